"""Table and plot of the benchmark of alignment, and what it keeps of an interrupted run."""

import json

import pytest
from PIL import Image


@pytest.fixture(scope="module")
def alignment(load_benchmark):
    return load_benchmark("alignment")


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


@pytest.fixture
def folder(tmp_path):
    """What a run leaves whose cells are all finished."""
    for name in ("data/train.parquet", "encoder0/model.safetensors", "encoder1/model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name, values in zip(("plain", "aligned"), FINISHED, strict=True):
        (tmp_path / f"channels4-{name}-seed0").mkdir()
        (tmp_path / f"channels4-{name}-seed0" / "result.json").write_text(json.dumps(values))
    steps = {"vae_steps": 300, "transformer_steps": 600, "encoder_steps": 900, "num_images": 500}
    (tmp_path / "settings.json").write_text(json.dumps(steps))
    return tmp_path


FINISHED = [cell(4, is_aligned, 0, 25 + is_aligned, 0.5) for is_aligned in (False, True)]
ONE_SEED = ["--seeds", "0", "--latent_channels", "4"]


def test_finished_cells_are_kept(alignment, folder, monkeypatch):
    """With all cells there, nothing is trained: table and plot are made of them."""
    monkeypatch.setattr(alignment, "run_script", lambda *arguments, **log: pytest.fail(f"runs {arguments}"))
    assert alignment.main(["--output_dir", str(folder), *ONE_SEED]) == FINISHED
    assert json.loads((folder / "results.json").read_text()) == FINISHED
    assert "| 4 | yes | 0.50 ± 0.00 | 26.0 ± 0.0 |" in (folder / "table.md").read_text(encoding="utf-8")
    with Image.open(folder / "alignment.png") as image:
        assert image.width > image.height > 200


def test_cells_of_other_settings_are_refused(alignment, folder):
    with pytest.raises(
        SystemExit, match=r"with cells of .*'vae_steps': 300.*; required: the same, not .*'vae_steps': 7"
    ):
        alignment.main(["--output_dir", str(folder), *ONE_SEED, "--vae_steps", "7"])


def test_what_an_interrupted_run_left_is_made_again(alignment, folder, monkeypatch):
    (folder / "encoder1" / "model.safetensors").rename(folder / "encoder1" / ".result.partial")
    (folder / "channels4-plain-seed0" / "result.json").unlink()
    made = []

    def fail(script, *arguments, log):
        made.append(script.name)
        if script.name != "train_encoder.py":
            raise alignment.Failed(f"{script.name} failed, see {log}")

    monkeypatch.setattr(alignment, "run_script", fail)
    with pytest.raises(SystemExit, match=r"error: train_vavae\.py failed, see .*channels4-plain-seed0"):
        alignment.main(["--output_dir", str(folder), *ONE_SEED])
    assert made == ["train_encoder.py", "train_vavae.py"]
    assert not (folder / "encoder1").exists()
