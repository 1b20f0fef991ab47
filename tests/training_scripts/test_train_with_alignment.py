"""train_lightningdit.py with REPA: images and cached features, resume, processes, the step at which it ends."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cache_latents
import pytest
import torch
import train_lightningdit
from safetensors.torch import load_file

ALIGNED = ["alignment.layer=1", "alignment.hidden_dim=8", "max_train_steps=4", "checkpointing_steps=2"]


@pytest.fixture(scope="module")
def arguments(data, trained_vae, transformer_recipe) -> list[str]:
    return ["--config", transformer_recipe, f"data={data}", f"vae={trained_vae}", *ALIGNED]


@pytest.fixture(scope="module")
def images(arguments, foundation_model) -> list[str]:
    return [*arguments, f"alignment.model={foundation_model}", "alignment.foundation_normalization=minus_one_to_one"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, images) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    train_lightningdit.main([*images, f"output_dir={folder}"])
    return folder


def checkpoint(folder: Path, step: int = 4) -> dict[str, torch.Tensor]:
    files = sorted((folder / f"checkpoint-{step}").glob("*.safetensors"))
    return {f"{file.name}: {name}": tensor for file in files for name, tensor in load_file(file).items()}


def assert_close(folder: Path, expected: Path, atol: float) -> None:
    tensors = checkpoint(folder)
    for name, tensor in checkpoint(expected).items():
        if "to_k.bias" not in name:  # no gradient but rounding noise
            torch.testing.assert_close(
                tensors[name], tensor, atol=atol, rtol=10 * atol, msg=lambda m, n=name: f"{n}: {m}"
            )


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_transformer_and_projector_learn_the_alignment(uninterrupted, arguments, tmp_path):
    """All of the projector trains, and the transformer otherwise than without; the pipeline has no projector."""
    before, after = checkpoint(uninterrupted, 2), checkpoint(uninterrupted)
    changed = [name for name, tensor in before.items() if name.startswith("projector.safetensors") and
               not torch.equal(tensor, after[name])]  # fmt: skip
    assert len(changed) == 6
    plain = tmp_path / "plain"
    train_lightningdit.main([word for word in arguments if "alignment" not in word] + [f"output_dir={plain}"])
    name = "transformer.safetensors: transformer_blocks.0.attn.to_q.weight"
    assert not torch.equal(checkpoint(plain)[name], after[name])
    saved = load_file(uninterrupted / "transformer" / "diffusion_pytorch_model.safetensors")
    assert saved.keys() == load_file(plain / "transformer" / "diffusion_pytorch_model.safetensors").keys()


def test_the_losses_are_recorded(uninterrupted, images, tmp_path):
    train_lightningdit.main([*images, f"output_dir={tmp_path}", "logging_steps=1", "alignment.weight=0.3"])
    for line in metrics(tmp_path):
        assert -1 <= line["alignment_loss"] <= 1
        assert line["loss"] == pytest.approx(line["flow_loss"] + 0.3 * line["alignment_loss"], abs=1e-5)


def test_a_resumed_run_is_the_uninterrupted_one(uninterrupted, images, tmp_path):
    train_lightningdit.main(
        [*images, f"output_dir={tmp_path / 'run'}", f"resume_from_checkpoint={uninterrupted / 'checkpoint-2'}"]
    )
    expected = checkpoint(uninterrupted)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in checkpoint(tmp_path / "run").items())


@pytest.mark.parametrize("settings", [["gradient_checkpointing=true"], ["gradient_accumulation_steps=2"]])
def test_other_ways_of_computing(uninterrupted, images, tmp_path, settings):
    train_lightningdit.main([*images, f"output_dir={tmp_path / 'run'}", *settings])
    assert_close(tmp_path / "run", uninterrupted, 1e-4)


def test_compiled_blocks(uninterrupted, images, tmp_path, compiled):
    train_lightningdit.main([*images, f"output_dir={tmp_path / 'run'}", "compile_blocks=true"])
    assert compiled == ["LightningDiTTransformerBlock"]
    assert_close(tmp_path / "run", uninterrupted, 1e-4)


def test_two_processes_are_one(uninterrupted, images, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launch, train_lightningdit.__file__, *images, f"output_dir={tmp_path / 'run'}"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert finished.returncode == 0, finished.stderr
    assert_close(tmp_path / "run", uninterrupted, 1e-4)


def test_cached_features(uninterrupted, arguments, images, data, trained_vae, foundation_model, tmp_path):
    """A projector of the same shapes learns from them."""
    cache = ["--data", data, "--vae", trained_vae, "--output_dir", str(tmp_path / "latents"), "--resolution", "8"]
    cache_latents.main([*cache, "--foundation_model", foundation_model, "--foundation_normalization=minus_one_to_one"])
    settings = [f"data={tmp_path / 'latents'}", f"vae={tmp_path / 'latents' / 'vae'}", "data_kind=latents"]
    train_lightningdit.main([*arguments, *settings, f"output_dir={tmp_path / 'run'}", "random_flip=true"])
    assert checkpoint(tmp_path / "run").keys() == checkpoint(uninterrupted).keys()


def test_it_ends_after_a_step(images, arguments, tmp_path):
    """The step after the last aligned one is that of a run without, from the same checkpoint but for the projector."""
    train_lightningdit.main([*images, f"output_dir={tmp_path / 'run'}", "alignment.until_step=2", "logging_steps=1"])
    assert ["alignment_loss" in line for line in metrics(tmp_path / "run")] == [True, True, False, False]
    before, after = checkpoint(tmp_path / "run", 2), checkpoint(tmp_path / "run")
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) == ("projector" in name or "pos_embed" in name), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["alignment.weights=1"], "`alignment`: `weights` is no key of AlignmentSettings. Did you mean `weight`?"),
        (["alignment.projector=cubic"], "`alignment`: `projector` is 'cubic'; required: one of mlp, linear, conv"),
        (["alignment.weight=0"], "`alignment`: `weight` is 0.0; required"),
        (["alignment.layer=2"], "`alignment.layer` is 2; required: at most the transformer's 1 blocks"),
        (["alignment.model=/no/such"], "`alignment.model` is '/no/such'; required"),
        (["latents_in_memory=true"], "required: `alignment.model`, and `latents_in_memory` false"),
        (["data_kind=latents"], "required with latents: left out"),
    ],
)
def test_what_cannot_be_aligned(images, tmp_path, capsys, settings, message):
    with pytest.raises(SystemExit) as stop:
        train_lightningdit.main([*images, f"output_dir={tmp_path / 'out'}", *settings])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "model_index.json").exists()
