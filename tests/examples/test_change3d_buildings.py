"""The pairs with drawn buildings: the same at every run, with real labels, and too hard for a difference."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("skimage", exc_type=ImportError)
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "change3d_buildings"))
import difference
import draw_pairs


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("buildings") / "data"
    draw_pairs.main([f"output_dir={folder}", "num_train=12", "num_validation=2", "num_test=12"])
    return folder


def pixels(split: str, number: int, seed: int = 0) -> list[np.ndarray]:
    return [
        np.array(image) for pair in draw_pairs.draw_pairs(split, number, 64, seed) for image in list(pair.values())[:3]
    ]


def test_the_same_pixels_at_every_run():
    first, second = pixels("test", 2), pixels("test", 3)
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=False))
    assert not np.array_equal(first[0], pixels("test", 1, seed=1)[0])
    assert not np.array_equal(first[0], pixels("validation", 1)[0])


def test_no_photograph_is_in_two_splits():
    names = [name for split in draw_pairs.PHOTOGRAPHS.values() for name in split]
    assert len(set(names)) == len(names)
    assert all(draw_pairs.load_photograph(name).mode == "RGB" for name in names)


def test_the_label_is_where_a_building_is_at_one_date_only():
    """Seen without light, blur and noise: the scene differs most where the label is."""
    rng = np.random.default_rng(0)
    ground = draw_pairs.cut_ground(draw_pairs.load_photograph("grass.png"), 64, rng)
    corners = draw_pairs.rectangle(np.array([32.0, 20.0]), np.array([20.0, 12.0]), 0.3)
    with_building = draw_pairs.draw_date(ground, [(corners, 0)], [True], [], 64, np.random.default_rng(1))
    without = draw_pairs.draw_date(ground, [(corners, 0)], [False], [], 64, np.random.default_rng(1))
    differences = np.abs(np.array(with_building, int) - np.array(without, int)).sum(-1)
    assert differences[20 * draw_pairs.SCALE, 32 * draw_pairs.SCALE] > 20
    assert differences[55 * draw_pairs.SCALE :].max() == 0


@pytest.mark.parametrize(
    ("presence", "first", "last"),
    [
        ([(True, True)] * 3, "the scene is the same as before", "almost nothing has changed"),
        (
            [(False, True), (True, True), (True, True)],
            "a building has appeared at the top left",
            "there is now a building at the top left",
        ),
        (
            [(True, False), (False, True), (True, False)],
            "a building has appeared in the middle and two buildings have vanished",
            "there is now a building in the middle and there are no longer two buildings",
        ),
    ],
)
def test_captions_by_hand(presence, first, last):
    buildings = [
        [(x - 3, y - 2), (x + 3, y - 2), (x + 3, y + 2), (x - 3, y + 2)] for x, y in ((8, 9), (30, 35), (60, 20))
    ]
    captions = draw_pairs.describe(buildings, presence, 64)
    assert len(captions) == len(set(captions)) == 5
    assert (captions[0], captions[-1]) == (first, last)


def test_captions_say_what_the_label_shows():
    """Where nothing has changed, and only there, the label is empty; a single change is where the caption says."""
    numbers = {"top": 0, "bottom": 2, "left": 0, "right": 2}
    for pair in draw_pairs.draw_pairs("test", 60, 64, 0, change_probability=0.2):
        label, caption = np.array(pair["label"]) > 0, pair["captions"][0]
        assert label.any() != (caption == draw_pairs.NO_CHANGE_CAPTIONS[0])
        if " and " not in caption and "a building" in caption:
            y, x = np.argwhere(label).mean(0) / 64 * 3
            for word in caption.split():
                if word in numbers:
                    assert abs((y if word in ("top", "bottom") else x) - numbers[word] - 0.5) < 0.75, caption


def test_labels_and_sizes(data):
    from datasets import load_dataset

    rows = load_dataset(str(data))["test"]
    shares = [(np.array(row["label"]) > 0).mean() for row in rows]
    assert {value for row in rows for value in np.unique(np.array(row["label"]))} == {0, 255}
    assert 0.02 < np.mean(shares) < 0.3
    assert rows[0]["image_before"].size == (64, 64)


def test_the_baseline_by_hand(data, tmp_path):
    from datasets import load_dataset

    difference.main(["--data", str(data), "--output_dir", str(tmp_path / "out")])
    record = json.loads((tmp_path / "out" / "baseline.json").read_text())
    tp = fp = fn = 0
    for row in load_dataset(str(data))["test"]:
        found = (
            difference.difference(np.array(row["image_before"]), np.array(row["image_after"]), 1.0)
            >= record["threshold"]
        )
        label = np.array(row["label"]) > 0
        tp, fp, fn = tp + (found & label).sum(), fp + (found & ~label).sum(), fn + (~found & label).sum()
    assert record["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert 0 < record["f1"] < 0.6
    assert record["num_pairs"] == 12


def test_settings_that_cannot_be_used(tmp_path, capsys):
    with pytest.raises(SystemExit):
        draw_pairs.main([f"output_dir={tmp_path / 'new'}", "size=60"])
    assert "`size` is 60; required: a multiple of 8" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        draw_pairs.main([f"output_dir={tmp_path / 'new'}", "change_probability=1.5"])
    assert "`change_probability` is 1.5; required: at most 1" in capsys.readouterr().err
