"""Table and plot of the benchmark of alignment, and what it keeps of an interrupted run."""

import importlib.util
import json
import sys

import pytest
from PIL import Image


@pytest.fixture(scope="module")
def alignment(repository):
    spec = importlib.util.spec_from_file_location("alignment", repository / "benchmarks" / "alignment.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])  # which the script adds to
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def cell(channels: int, is_aligned: bool, seed: int, psnr: float, accuracy: float) -> dict:
    place = {"latent_channels": channels, "is_aligned": is_aligned, "seed": seed}
    values = {"psnr_db": psnr, "accuracy": accuracy, "frechet_distance": 1.0, "linear_probe_accuracy": 0.9}
    return {**place, **values, "linear_cka": 0.5}


@pytest.fixture
def results() -> list[dict]:
    return [cell(32, True, 0, 27, 0.8), cell(4, False, 0, 25, 0.5), cell(4, False, 1, 26, 0.7)]


def test_mean_and_standard_deviation_over_the_seeds(alignment, results):
    lines = alignment.table(alignment.rows_of(results)).splitlines()
    assert lines[2:] == [
        "| 4 | no | 0.50 ± 0.00 | 25.5 ± 0.7 | 0.600 ± 0.141 | 1.00 ± 0.00 |",
        "| 32 | yes | 0.50 ± 0.00 | 27.0 ± 0.0 | 0.800 ± 0.000 | 1.00 ± 0.00 |",
    ]


def test_finished_cells_are_kept(alignment, results, tmp_path, monkeypatch):
    """With all cells there, nothing is trained: table and plot are made of them."""
    for folder in ("data", "encoder0", "encoder1"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(alignment, "run_script", lambda *arguments, **log: pytest.fail(f"runs {arguments}"))
    finished = [cell(4, is_aligned, 0, 25 + is_aligned, 0.5) for is_aligned in (False, True)]
    for name, values in zip(("plain", "aligned"), finished, strict=True):
        (tmp_path / f"channels4-{name}-seed0").mkdir()
        (tmp_path / f"channels4-{name}-seed0" / "result.json").write_text(json.dumps(values))
    arguments = ["--output_dir", str(tmp_path), "--seeds", "0", "--latent_channels", "4"]
    assert alignment.main(arguments) == finished
    assert json.loads((tmp_path / "results.json").read_text()) == finished
    assert "| 4 | yes | 0.50 ± 0.00 | 26.0 ± 0.0 |" in (tmp_path / "table.md").read_text(encoding="utf-8")
    with Image.open(tmp_path / "alignment.png") as image:
        assert image.width > image.height > 200
