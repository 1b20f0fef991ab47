"""Runs that a signal ends, that meet another run in their folder, or that learn nothing."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import train_lightningdit
import train_vavae
from datasets import ClassLabel, load_dataset
from reliability.forked import run_forked
from safetensors.torch import load_file

from diffusers_lightningdit.locks import locked
from diffusers_lightningdit.training.progress import TrainingProgress
from diffusers_lightningdit.training.transformer import loop

STEPS = ["max_train_steps=4", "checkpointing_steps=2", "sample_steps=1", "num_samples=2", "validation_steps=1"]
STEPS += ["num_validation_samples=4", "validation_split=train", "resume_from_checkpoint=latest", "output_dir=out"]


@pytest.fixture(params=["transformer", "vavae"])
def program(request, data, trained_vae, transformer_recipe, vae_recipe):
    if request.param == "transformer":
        words = ["--config", transformer_recipe, f"data={data}", f"vae={trained_vae}", *STEPS]
        return lambda: train_lightningdit.main(words)
    return lambda: train_vavae.main(["--config", vae_recipe, f"data={data}", *STEPS])


def signalled(program, number: signal.Signals, step: int):
    """The program, which is sent a signal in the middle of a step."""

    def run() -> None:
        update = TrainingProgress.update

        def update_and_be_told(self, current: int, metrics: dict) -> None:
            update(self, current, metrics)
            if current == step:
                os.kill(os.getpid(), number)

        TrainingProgress.update = update_and_be_told
        program()

    return run


def result(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(path for path in folder.rglob("*.safetensors") if "checkpoint" not in str(path))
    return {f"{path.name} {name}": tensor for path in files for name, tensor in load_file(path).items()}


def observed(folder: Path) -> tuple[list[str], list[int]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    validated = [line["step"] for line in lines if any(key.startswith("validation_") for key in line)]
    return sorted(path.name for path in (folder / "samples").iterdir()), validated


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_after_a_checkpoint(program, number, status, tmp_path):
    for name in ("whole", "ended"):
        (tmp_path / name).mkdir()
    assert run_forked(program, tmp_path / "whole").status == 0
    ended = run_forked(signalled(program, number, step=3), tmp_path / "ended")
    assert ended.status == status, ended.output
    assert "Traceback" not in ended.output and ended.errors == []
    line = f"interrupted by {number.name} after step 3; `resume_from_checkpoint=latest` goes on from step 3."
    assert line in ended.output.splitlines()
    assert (tmp_path / "ended" / "out" / "checkpoint-3").is_dir()
    again = run_forked(program, tmp_path / "ended")
    assert again.status == 0, again.output
    expected, found = result(tmp_path / "whole" / "out"), result(tmp_path / "ended" / "out")
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert observed(tmp_path / "ended" / "out") == observed(tmp_path / "whole" / "out")


def test_without_checkpoints_a_signal_writes_none(data, trained_vae, transformer_recipe, tmp_path):
    words = ["--config", transformer_recipe, f"data={data}", f"vae={trained_vae}", "output_dir=out"]
    program = signalled(lambda: train_lightningdit.main([*words, "checkpointing_steps=null"]), signal.SIGTERM, 2)
    (tmp_path / "run").mkdir()
    ended = run_forked(program, tmp_path / "run")
    assert ended.status == 143
    assert "interrupted by SIGTERM after step 2; there is no checkpoint." in ended.output


def test_a_second_run_in_the_folder_of_a_running_one(program, tmp_path):
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run" / "out"):
        before = sorted((tmp_path / "run" / "out").iterdir())
        second = run_forked(program, tmp_path / "run")
        assert sorted((tmp_path / "run" / "out").iterdir()) == before
    assert second.status == 2, second.output
    assert len(second.errors) == 1
    assert f"error: out is being written by process {os.getpid()} on " in second.errors[0]


def test_a_folder_with_checkpoints_is_gone_on_with(data, trained_vae, transformer_recipe, tmp_path, capsys):
    words = ["--config", transformer_recipe, f"data={data}", f"vae={trained_vae}", f"output_dir={tmp_path}"]
    (tmp_path / "checkpoint-2").mkdir()
    with pytest.raises(SystemExit):
        train_lightningdit.main(words)
    assert "or `resume_from_checkpoint=latest` to go on with the run that began there" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# No result
# ---------------------------------------------------------------------------------------------------------------------


def fails_without_a_result(main, words: list[str], folder: Path, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*words, f"output_dir={folder}"])
    assert stop.value.code == 1
    captured = capsys.readouterr()
    assert "wrote" not in captured.out
    assert not any((folder / name).exists() for name in ("model_index.json", "config.json", "vae", "transformer"))
    (line,) = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    return line


def test_a_run_whose_steps_were_all_bad(data, trained_vae, transformer_recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        loop,
        "training_loss",
        lambda config, model, *others: {"loss": sum(weight.sum() for weight in model.parameters()) * float("nan")},
    )
    words = ["--config", transformer_recipe, f"data={data}", f"vae={trained_vae}"]
    line = fails_without_a_result(train_lightningdit.main, words, tmp_path / "out", capsys)
    assert "all 3 steps were bad and skipped; required: finite data and weights" in line
    assert line.endswith("No result is written.")


def test_weights_that_are_not_finite_are_no_result(
    data, trained_vae, transformer_recipe, tmp_path, capsys, monkeypatch
):
    """A rate that is too high for the last step: the loss was still finite."""
    finish_step = loop.finish_step

    def too_far(state, *arguments):
        metrics = finish_step(state, *arguments)
        if state.step == 3:
            with torch.no_grad():
                next(state.models["transformer"].parameters()).fill_(float("inf"))
                for shadows in state._shadows("transformer").values():
                    next(iter(shadows.values())).fill_(float("inf"))
        return metrics

    monkeypatch.setattr(loop, "finish_step", too_far)
    words = ["--config", transformer_recipe, f"data={data}", f"vae={trained_vae}", "checkpointing_steps=2"]
    line = fails_without_a_result(train_lightningdit.main, words, tmp_path / "out", capsys)
    assert "weights of the transformer are not finite after step 3; required: an earlier checkpoint" in line
    assert (tmp_path / "out" / "checkpoint-2").is_dir()


# ---------------------------------------------------------------------------------------------------------------------
# What a run is compared by, and several errors at once
# ---------------------------------------------------------------------------------------------------------------------


def test_classes_with_other_names_are_another_run(data, trained_vae, transformer_recipe, tmp_path, capsys):
    words = ["--config", transformer_recipe, f"vae={trained_vae}", f"output_dir={tmp_path / 'out'}"]
    train_lightningdit.main([*words, f"data={data}", "checkpointing_steps=2"])
    (tmp_path / "out" / "model_index.json").unlink()
    rows = load_dataset("parquet", data_files=f"{data}/train.parquet", split="train")
    renamed = tmp_path / "renamed"
    rows.cast_column("label", ClassLabel(names=["cat", "wolf"])).to_parquet(renamed / "train.parquet")
    with pytest.raises(SystemExit) as stop:
        train_lightningdit.main([*words, f"data={renamed}", "resume_from_checkpoint=latest", "max_train_steps=5"])
    assert stop.value.code == 2
    assert "`classes[1]` is 'wolf'; required: 'dog', as in the checkpoint" in capsys.readouterr().err


def test_errors_of_a_small_data_set_come_at_once(data, trained_vae, vae_recipe, transformer_recipe, tmp_path, capsys):
    sizes = ["global_batch_size=256", "validation_steps=1", "validation_split=train", f"data={data}"]
    for main, words in (
        (train_lightningdit.main, ["--config", transformer_recipe, f"vae={trained_vae}"]),
        (train_vavae.main, ["--config", vae_recipe]),
    ):
        with pytest.raises(SystemExit):
            main([*words, *sizes, f"output_dir={tmp_path / 'out'}"])
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert "`global_batch_size` is 256; required: at most the 8 samples" in line
        assert "small_*.yaml" in line and " Also: `num_validation_samples` is" in line
    assert not (tmp_path / "out").exists()


def test_pictures_and_records_that_a_kill_took_are_made_on_resuming(program, tmp_path):
    """The last checkpoint was there, its picture and its validation were not."""
    (tmp_path / "run").mkdir()
    assert run_forked(program, tmp_path / "run").status == 0
    out = tmp_path / "run" / "out"
    pictures, validated = observed(out)
    expected = (out / "samples" / "step-4.png").read_bytes()
    (out / "samples" / "step-4.png").unlink()
    lines = (out / "metrics.jsonl").read_text().splitlines()
    (out / "metrics.jsonl").write_text("\n".join([*lines[:-1], lines[-1][:9]]))  # the disk was full
    for name in ("model_index.json", "config.json", "transformer", "vae", "training"):
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    again = run_forked(program, tmp_path / "run")
    assert again.status == 0, again.output
    assert (out / "samples" / "step-4.png").read_bytes() == expected
    assert observed(out) == (pictures, validated)
