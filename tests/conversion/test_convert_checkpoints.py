"""Checkpoints of training runs become what the runs leave at their ends: files and weights are the same."""

import json
import shutil
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from tiny_change3d import TINY_MODEL, write_folders
from tiny_training import *  # noqa: F403
from tiny_training import write_recipe

from diffusers_lightningdit import AutoencoderVAVAE
from diffusers_lightningdit.hub.cards import check_card

sys.path.insert(0, str(Path(__file__).parents[2] / "conversion"))
import convert_change3d_checkpoint
import convert_checkpoint_to_diffusers

STEPS = ["max_train_steps=3", "checkpointing_steps=2"]


def convert(checkpoint: Path, folder: Path, *words: str, script=convert_checkpoint_to_diffusers) -> Path:
    script.main([f"checkpoint={checkpoint}", f"output_dir={folder}", *words])
    return folder


def result_files(folder: Path) -> dict[str, Path]:
    """The files of a result by name, without what the run itself keeps, and without the card, which names the step."""
    files = {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()}
    own = ("checkpoint-", "metrics.jsonl", "samples", ".lock", "README.md")
    return {name: file for name, file in files.items() if not name.startswith(own)}


def assert_same_result(folder: Path, expected: Path) -> None:
    found, wanted = result_files(folder), result_files(expected)
    assert found.keys() == wanted.keys()
    assert any(name.endswith(".safetensors") for name in found)
    for name, file in wanted.items():
        if file.suffix == ".safetensors":
            tensors, others = load_file(found[name]), load_file(file)
            assert tensors.keys() == others.keys(), name
            assert all(torch.equal(tensor, others[key]) for key, tensor in tensors.items()), name
        else:
            assert found[name].read_bytes() == file.read_bytes(), name


@pytest.fixture(scope="module")
def flow(tmp_path_factory, data, trained_vae, transformer_recipe) -> Path:
    import train_lightningdit

    folder = tmp_path_factory.mktemp("flow") / "run"
    words = ["--config", transformer_recipe, f"data={data}", f"vae={trained_vae}", f"output_dir={folder}", *STEPS]
    train_lightningdit.main([*words, "extra_ema_decays=[0.25]", "hub_model_id=user/flow"])
    return folder


def test_the_last_checkpoint_is_the_result(flow, tmp_path):
    assert_same_result(convert(flow, tmp_path / "newest"), flow)
    card = (tmp_path / "newest" / "README.md").read_text()
    check_card(card)
    assert "Made of the checkpoint of step 3." in card
    assert card.replace(" Made of the checkpoint of step 3.", "") == (flow / "README.md").read_text()


def test_an_earlier_checkpoint(flow, tmp_path):
    folder = convert(flow / "checkpoint-2", tmp_path / "earlier", "settings.num_inference_steps=2")
    weights = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    averages = load_file(flow / "checkpoint-2" / "transformer.ema-0.5.safetensors")
    assert all(torch.equal(weights[name], average) for name, average in averages.items())
    pipeline = DiffusionPipeline.from_pretrained(folder)
    assert pipeline.config.sampling_recipe["num_inference_steps"] == 2
    assert pipeline("dog", output_type="pt").images.isfinite().all()
    other = convert(flow / "checkpoint-2", tmp_path / "other", "settings.ema_decay=0.25")
    averages = load_file(flow / "checkpoint-2" / "transformer.ema-0.25.safetensors")
    weights = load_file(other / "transformer" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(weights[name], average) for name, average in averages.items())


def test_neither_data_nor_the_old_place_of_the_autoencoder(flow, trained_vae, tmp_path):
    moved, vae = tmp_path / "moved", tmp_path / "vae"
    shutil.copytree(flow / "checkpoint-3", moved)
    shutil.copytree(trained_vae, vae)
    state = json.loads((moved / "state.json").read_text())
    state["settings"] |= {"data": "gone", "vae": "gone"}
    (moved / "state.json").write_text(json.dumps(state))
    manifest = json.loads((moved / "manifest.json").read_text())
    content = (moved / "state.json").read_bytes()
    manifest["state.json"] = {"size": len(content), "sha256": sha256(content).hexdigest()}
    (moved / "manifest.json").write_text(json.dumps(manifest))
    assert_same_result(convert(moved, tmp_path / "pipeline", f"settings.vae={vae}"), flow)


def test_few_steps_and_lora(flow, data, tmp_path):
    import train_lightningdit_few_step
    import train_lightningdit_lora

    common = [f"pipeline={flow}", f"data={data}", "data_kind=images", "resolution=8", "global_batch_size=4", *STEPS]
    train_lightningdit_few_step.main([*common, f"output_dir={tmp_path / 'student'}"])
    assert_same_result(convert(tmp_path / "student", tmp_path / "pipeline"), tmp_path / "student")
    words = [*common, f"output_dir={tmp_path / 'lora'}", "class_name=ox", "new_classes.ox=cat", "rank=2"]
    train_lightningdit_lora.main(words)
    converted = convert(tmp_path / "lora", tmp_path / "converted")
    assert_same_result(converted, tmp_path / "lora")
    card = (converted / "README.md").read_text()
    assert card.replace("converted", "lora") == (tmp_path / "lora" / "README.md").read_text()


def test_autoencoders(trained_vae, data, vae_recipe, tmp_path):
    import train_vavae

    train_vavae.main(["--config", vae_recipe, f"data={data}", f"output_dir={tmp_path / 'run'}", "ema_decay=0.5"])
    assert_same_result(convert(tmp_path / "run" / "checkpoint-3", tmp_path / "vae"), tmp_path / "run")
    card = (tmp_path / "vae" / "README.md").read_text()
    check_card(card)
    assert "By `train_vavae.py` of diffusers-lightningdit. Made of the checkpoint of step 3." in card
    assert "trust_remote_code" not in card  # there is no code in the folder
    check_card((tmp_path / "run" / "README.md").read_text())
    without = convert(tmp_path / "run", tmp_path / "without", "measure_latents=false")
    assert AutoencoderVAVAE.from_pretrained(without).config.latents_mean is None
    plain = convert(Path(trained_vae), tmp_path / "plain")  # without averages
    assert_same_result(plain, Path(trained_vae))


@pytest.fixture(scope="module")
def change3d(tmp_path_factory) -> Path:
    import train_change3d

    folder = tmp_path_factory.mktemp("change3d")
    data = write_folders(folder / "data", "semantic", 4)
    recipe = write_recipe(folder / "recipe.yaml", {"task": "semantic", "model": {**TINY_MODEL, "num_classes": 3}})
    words = ["--config", recipe, f"data={data}", f"output_dir={folder / 'run'}", "global_batch_size=4", *STEPS]
    train_change3d.main([*words, "class_names=[same, road, house]", "ema_decay=0.5"])
    return folder / "run"


def test_change3d(change3d, tmp_path):
    folder = convert(change3d, tmp_path / "pipeline", script=convert_change3d_checkpoint)
    assert_same_result(folder, change3d)
    assert 'from_pretrained("user/pipeline")' in (folder / "README.md").read_text()
    assert 'from_pretrained("user/run")' in (change3d / "README.md").read_text()
    convert(change3d / "checkpoint-2", tmp_path / "earlier", script=convert_change3d_checkpoint)
    with pytest.raises(AssertionError):
        assert_same_result(tmp_path / "earlier", change3d)


def error_of(capsys, folder: Path, checkpoint: Path, *words: str, script=convert_checkpoint_to_diffusers) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        convert(checkpoint, folder, *words, script=script)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not folder.exists()
    return error


def test_what_cannot_be_converted(flow, change3d, trained_vae, data, vae_recipe, tmp_path, capsys):
    folder = tmp_path / "out"
    assert "required: a folder checkpoint-N" in error_of(capsys, folder, tmp_path)
    assert "convert_change3d_checkpoint.py" in error_of(capsys, folder, change3d)
    error = error_of(capsys, folder, flow, script=convert_change3d_checkpoint)
    assert "required: a checkpoint of train_change3d.py" in error
    error = error_of(capsys, folder, flow, "settings.ema_decay=0.75")
    assert "`ema_decay` is 0.75; required: one that" in error and "0.25, 0.5" in error
    assert "`colour` is no key of LightningDiTTrainingConfig" in error_of(capsys, folder, flow, "settings.colour=red")
    other = tmp_path / "other"
    vae = AutoencoderVAVAE.from_pretrained(trained_vae)
    torch.nn.init.zeros_(vae.decoder.conv_out.weight)
    vae.save_pretrained(other)
    assert "not those that the checkpoint was trained with" in error_of(capsys, folder, flow, f"settings.vae={other}")
    damaged = tmp_path / "damaged"
    shutil.copytree(flow / "checkpoint-2", damaged)
    with open(damaged / "transformer.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    assert "is damaged" in error_of(capsys, folder, damaged)
