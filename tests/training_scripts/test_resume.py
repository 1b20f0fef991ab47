"""A training run that is killed, resumed, moved to other processes, or meets bad steps."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import train_lightningdit
import train_vavae
from accelerate.utils import is_torch_version
from safetensors.torch import load_file

from diffusers_lightningdit.training.transformer import loop

STEPS = ["max_train_steps=5", "checkpointing_steps=2", "extra_ema_decays=[0.9]"]


def run(recipe: str, data: str, vae: str, output_dir: Path, *settings: str) -> None:
    arguments = ["--config", recipe, f"data={data}", f"vae={vae}", f"output_dir={output_dir}", *STEPS, *settings]
    train_lightningdit.main(arguments)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a finished run: the pipeline's transformer, and the last checkpoint."""
    files = [folder / "transformer" / "diffusion_pytorch_model.safetensors"]
    files += sorted((folder / "checkpoint-5").glob("*.safetensors"))
    assert len(files) == 5
    return {f"{file.name}: {name}": tensor for file in files for name, tensor in load_file(file).items()}


def assert_identical(folder: Path, expected: Path) -> None:
    tensors = weights(folder)
    for name, tensor in weights(expected).items():
        assert torch.equal(tensors[name], tensor), name


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, data, trained_vae, transformer_recipe) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    run(transformer_recipe, data, trained_vae, folder)
    return folder


def test_kill_and_resume(run_and_be_killed, uninterrupted, tmp_path, data, trained_vae, transformer_recipe, capsys):
    folder = tmp_path / "run"
    arguments = ["--config", transformer_recipe, f"data={data}", f"vae={trained_vae}", f"output_dir={folder}", *STEPS]
    said = run_and_be_killed("lightningdit", "checkpoint-4", "optimizer", *arguments)
    left = sorted(path.name for path in folder.iterdir())
    assert left == [".checkpoint-4.partial", ".lock", ".lock.json", "checkpoint-2"], said
    torch.manual_seed(99)
    train_lightningdit.main([*arguments, "--resume_from_checkpoint", "latest"])
    assert f"resumed from {folder}/checkpoint-2, step 2" in capsys.readouterr().out
    assert_identical(folder, uninterrupted)
    assert not (folder / ".checkpoint-4.partial").exists()


def test_a_run_killed_while_it_writes_the_result(uninterrupted, tmp_path, data, trained_vae, transformer_recipe):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted, folder)
    (folder / "model_index.json").unlink()  # which comes last
    (folder / "transformer" / "config.json").unlink()
    run(transformer_recipe, data, trained_vae, folder, "resume_from_checkpoint=latest")
    assert_identical(folder, uninterrupted)
    assert (folder / "transformer" / "config.json").is_file() and (folder / "model_index.json").is_file()


@pytest.mark.parametrize(
    "settings",
    [
        ["latents_in_memory=true"],
        ["num_workers=1", "random_flip=true"],
        ["optimizer=muon", "adam_weight_decay=0.01", "transformer.internal_guidance_layer=1"],
    ],
)
def test_resume_with_other_settings(tmp_path, data, trained_vae, transformer_recipe, settings):
    run(transformer_recipe, data, trained_vae, tmp_path / "whole", *settings)
    checkpoint = f"resume_from_checkpoint={tmp_path / 'whole' / 'checkpoint-2'}"
    run(transformer_recipe, data, trained_vae, tmp_path / "resumed", checkpoint, *settings)
    assert_identical(tmp_path / "resumed", tmp_path / "whole")


def test_accumulation_changes_rounding_only(uninterrupted, tmp_path, data, trained_vae, transformer_recipe):
    run(transformer_recipe, data, trained_vae, tmp_path / "run", "gradient_accumulation_steps=4")
    assert_close(tmp_path / "run", uninterrupted)


def assert_close(folder: Path, expected: Path) -> None:
    tensors = weights(folder)
    for name, tensor in weights(expected).items():
        # the biases of keys have no gradient but rounding noise, which the first Adam steps blow up
        if "to_k.bias" not in name:
            torch.testing.assert_close(tensors[name], tensor, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("kind", "num_processes"), [("ddp", 2), ("ddp", 4), ("fsdp2", 2)])
def test_several_processes_are_one_process(
    uninterrupted, tmp_path, data, trained_vae, transformer_recipe, kind, num_processes
):
    """From the beginning (DDP); from the second checkpoint of one process (FSDP2). The main process draws a grid."""
    if kind == "fsdp2" and is_torch_version("<", "2.8"):
        pytest.skip("FSDP2 needs accelerators with torch 2.6; seen on a CPU with 2.8")
    folder = tmp_path / "run"
    script = [train_lightningdit.__file__]
    if kind == "fsdp2":
        script = [str(Path(__file__).with_name("run_with_fsdp2.py")), "train_lightningdit"]
    arguments = ["--config", transformer_recipe, f"data={data}", f"vae={trained_vae}", f"output_dir={folder}", *STEPS]
    arguments += ["sample_steps=4", "num_samples=2"]
    if kind == "fsdp2":
        arguments.append(f"resume_from_checkpoint={uninterrupted / 'checkpoint-2'}")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launch += [f"--nproc_per_node={num_processes}", *script, *arguments]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(launch, capture_output=True, text=True, env=environment)
    assert finished.returncode == 0, finished.stderr
    assert_close(folder, uninterrupted)
    assert sorted(path.name for path in (folder / "samples").iterdir()) == ["step-4.png", "step-5.png"]
    if kind == "fsdp2":
        assert "sharded as FSDPLightningDiTTransformer2DModel" in finished.stdout
        return
    # and back on one process
    run(transformer_recipe, data, trained_vae, tmp_path / "one", f"resume_from_checkpoint={folder / 'checkpoint-4'}")
    assert_close(tmp_path / "one", uninterrupted)


# ---------------------------------------------------------------------------------------------------------------------
# What goes wrong
# ---------------------------------------------------------------------------------------------------------------------


def one_line_of(capsys, stop, status: int) -> str:
    assert stop.value.code == status
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["transformer.num_layers=2"], "has `transformer.num_layers` 1, this run 2; required: the same architecture"),
        (["seed=1"], "`seed` is 1; required: 0, as in the checkpoint"),
        (["global_batch_size=2"], "`global_batch_size` is 2; required: 4, as in the checkpoint"),
        (["ema_decay=0.7"], "the EMA decay 0.7 is not in the checkpoint"),
    ],
)
def test_a_checkpoint_of_another_run(
    uninterrupted, tmp_path, data, trained_vae, transformer_recipe, capsys, settings, message
):
    checkpoint = f"resume_from_checkpoint={uninterrupted / 'checkpoint-2'}"
    with pytest.raises(SystemExit) as stop:
        run(transformer_recipe, data, trained_vae, tmp_path / "new", checkpoint, *settings)
    assert message in one_line_of(capsys, stop, 2)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("trained_with", "resumed_with", "message"),
    [
        ("disc_weight=0.5", "disc_weight=0", "has the models discriminator, vae, this run vae; required: the same"),
        ("disc_weight=0", "disc_weight=0.5", "has the models vae, this run discriminator, vae; required: the same"),
        ("ema_decay=null", "ema_decay=0.5", "the EMA decay 0.5 is not in the checkpoint"),
    ],
)
def test_an_autoencoders_checkpoint_of_another_run(
    tmp_path, data, vae_recipe, capsys, trained_with, resumed_with, message
):
    arguments = ["--config", vae_recipe, f"data={data}", "max_train_steps=2"]
    train_vavae.main([*arguments, f"output_dir={tmp_path / 'run'}", trained_with])
    checkpoint = f"resume_from_checkpoint={tmp_path / 'run' / 'checkpoint-2'}"
    with pytest.raises(SystemExit) as stop:
        train_vavae.main([*arguments, f"output_dir={tmp_path / 'new'}", resumed_with, checkpoint])
    assert message in one_line_of(capsys, stop, 2)
    assert not (tmp_path / "new").exists()


def test_a_finished_run_is_not_overwritten(uninterrupted, data, trained_vae, transformer_recipe, capsys):
    with pytest.raises(SystemExit) as stop:
        run(transformer_recipe, data, trained_vae, uninterrupted, "resume_from_checkpoint=latest")
    assert "which holds a finished result; required: another folder" in one_line_of(capsys, stop, 2)


def test_a_disk_that_fills_up(tmp_path, data, trained_vae, transformer_recipe, capsys, monkeypatch):
    """After the first checkpoint, no file can grow beyond 4 kB any more."""
    from diffusers_lightningdit.training.run_state import RunState

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = RunState.save

    def save_then_fill(self):
        save(self)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, limits[1]))

    monkeypatch.setattr(RunState, "save", save_then_fill)
    try:
        with pytest.raises(SystemExit) as stop:
            run(transformer_recipe, data, trained_vae, tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = one_line_of(capsys, stop, 1)
    assert "checkpoint-4 cannot be written: " in error and error.endswith("the checkpoint of step 2 is kept.")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-2"]


def test_bad_steps_are_skipped_and_a_series_of_them_rolled_back(
    tmp_path, data, trained_vae, transformer_recipe, capsys, monkeypatch
):
    """Batches 3 to 5 have NaN: two bad steps in a row lead back to the checkpoint of step 2, the third is skipped."""
    positions = []
    training_loss = loop.training_loss

    def sometimes_nan(config, model, latents, class_labels, draws, *others):
        positions.append(draws.batch_index)
        loss = training_loss(config, model, latents, class_labels, draws, *others)
        factor = float("nan") if draws.batch_index in (3, 4, 5) else 1
        return {name: value * factor for name, value in loss.items()}

    monkeypatch.setattr(loop, "training_loss", sometimes_nan)
    run(transformer_recipe, data, trained_vae, tmp_path / "run", "spike_patience=2")
    output = capsys.readouterr().out
    assert "step 4 skipped: loss is nan (1 skipped in all)" in output
    assert "2 steps in a row were bad at step 5: back to" in output
    assert "step 2, with later data" in output
    assert positions == list(range(8))
    state = json.loads((tmp_path / "run" / "checkpoint-5" / "state.json").read_text())
    assert (state["step"], state["position"], state["guard"]["num_skipped"]) == (5, 8, 3)
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run").values())


def test_bad_steps_from_the_beginning_stop_the_run(tmp_path, data, trained_vae, transformer_recipe, capsys):
    with pytest.raises(SystemExit) as stop:
        run(transformer_recipe, data, trained_vae, tmp_path / "run", "learning_rate=1e30", "spike_patience=3",
            "checkpointing_steps=null")  # fmt: skip
    assert "3 steps in a row were bad at step" in one_line_of(capsys, stop, 1)


def test_the_autoencoder_resumes_bit_for_bit(tmp_path, data, vae_recipe):
    def train(folder, *settings):
        arguments = ["--config", vae_recipe, f"data={data}", f"output_dir={folder}", "checkpointing_steps=2"]
        train_vavae.main([*arguments, *settings])
        return load_file(folder / "diffusion_pytorch_model.safetensors"), json.loads(
            (folder / "config.json").read_text()
        )

    whole, config = train(tmp_path / "whole")
    checkpoint = f"resume_from_checkpoint={tmp_path / 'whole' / 'checkpoint-2'}"
    resumed, resumed_config = train(tmp_path / "resumed", checkpoint)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    assert resumed_config["latents_std"] == config["latents_std"]
