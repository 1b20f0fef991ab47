import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_lightningdit.evaluation.plots import plot_bars, plot_density, plot_lines, plot_panels


def colours(path) -> set[tuple[int, int, int]]:
    with Image.open(path) as image:
        return set(map(tuple, np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()))


def test_points_have_the_colours_of_their_density(tmp_path):
    plot_density(tmp_path / "a.png", torch.rand(51, 2), torch.linspace(0, 1, 51), "title")
    assert {(68, 1, 84), (33, 145, 140)} <= colours(tmp_path / "a.png")  # the darkest and the middle of viridis
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_every_line_has_a_colour(tmp_path):
    lines = {"a": [(2.0, 1.0), (1.0, 3.0)], "b": [(1.0, 2.0), (2.0, 2.5)]}
    plot_lines(tmp_path / "a.png", lines, "x", "y", "title")
    assert {(31, 119, 180), (255, 127, 14)} <= colours(tmp_path / "a.png")  # the first two of matplotlib


def test_a_legend_hides_no_line(tmp_path):
    """Many lines along the right border stay visible: as many pixels of each as without a legend beside them."""
    lines = {f"interval from {number / 10}": [(0.0, number), (1.0, 10.0 + number)] for number in range(10)}
    plot_lines(tmp_path / "all.png", lines, "x", "y", "title")
    with Image.open(tmp_path / "all.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    last = np.argwhere((pixels == (23, 190, 207)).all(-1))  # the tenth of matplotlib's colours
    axes = np.argwhere((pixels == 0).all(-1))
    right = axes[:, 1].max()
    assert len(last[last[:, 1] < right]) > 1000 and pixels.shape[1] > pixels.shape[0]


def test_panels_share_their_steps(tmp_path):
    panels = {
        "loss": {"loss": [(1, 2.0), (2, 1.0)], "validation_loss": [(2, 1.5)]},
        "grad_norm": {"grad_norm": [(1, 3)]},
    }
    plot_panels(tmp_path / "a.png", panels, "step")
    assert {(31, 119, 180), (255, 127, 14)} <= colours(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as two:
        plot_panels(tmp_path / "b.png", {"loss": panels["loss"]}, "step")
        with Image.open(tmp_path / "b.png") as one:
            assert one.height < two.height


def test_bars_are_as_long_as_their_values(tmp_path):
    plot_bars(tmp_path / "a.png", {"Euler": 4.0, "Heun": 2.0, "UniPC": 1.0}, "fid", "title")
    with Image.open(tmp_path / "a.png") as image:
        is_bar = (np.asarray(image.convert("RGB")) == (31, 119, 180)).all(-1)
    lengths = [length for length in is_bar.sum(1).tolist() if length]
    longest, middle, shortest = sorted(set(lengths), key=lengths.index)
    assert (longest / middle, longest / shortest) == (pytest.approx(2, rel=0.02), pytest.approx(4, rel=0.02))


def test_matplotlib_is_named_where_it_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'needs matplotlib: pip install "diffusers-lightningdit\[evaluation\]"'):
        plot_density(tmp_path / "a.png", torch.rand(5, 2), torch.rand(5), "title")
    assert not list(tmp_path.iterdir())
