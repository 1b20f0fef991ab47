"""Runs whose data is a stream: the same as ever, in another order."""

import json
from pathlib import Path

import cache_latents
import numpy as np
import pytest
import torch
import train_lightningdit
import train_lightningdit_lora
import train_vavae
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from safetensors.torch import load_file

from diffusers_lightningdit import AutoencoderVAVAE
from diffusers_lightningdit.training import run_state
from diffusers_lightningdit.training.transformer import loop

ORDER = ["streaming=true", "shuffle_block_size=4", "num_open_files=2"]
STEPS = ["max_train_steps=5", "checkpointing_steps=2"]


def write_images(file: Path, images: list, labels: list[int], names: tuple[str, ...] = ("cat", "dog")) -> None:
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=list(names))})
    Dataset.from_dict({"image": images, "label": labels}, features=features).to_parquet(file)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> str:
    """Eleven images in three files."""
    folder = tmp_path_factory.mktemp("files")
    for number, count in enumerate((4, 5, 2)):
        images = [Image.effect_noise((20, 16), 40 + 10 * number + i).convert("RGB") for i in range(count)]
        write_images(folder / f"train-{number}.parquet", images, [i % 2 for i in range(count)])
    return str(folder)


@pytest.fixture(scope="module")
def latents(tmp_path_factory, files, trained_vae) -> str:
    folder = str(tmp_path_factory.mktemp("latents") / "latents")
    given = {"data": files, "vae": trained_vae, "output_dir": folder, "resolution": 8, "shard_size": 4}
    flags = [f"--{name}={value}" for name, value in given.items()]
    cache_latents.main([*flags, "--format=parquet", "--streaming"])
    return folder


def arguments(recipe: str, data: str, output_dir: Path, *settings: str) -> list[str]:
    return ["--config", recipe, f"data={data}", f"output_dir={output_dir}", *ORDER, *STEPS, *settings]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the last checkpoint."""
    files = sorted((folder / "checkpoint-5").glob("*.safetensors"))
    return {f"{file.name}: {name}": tensor for file in files for name, tensor in load_file(file).items()}


def assert_identical(folder: Path, expected: Path) -> None:
    tensors = weights(folder)
    for name, tensor in weights(expected).items():
        assert torch.equal(tensors[name], tensor), name
    states = [json.loads((path / "checkpoint-5" / "state.json").read_text()) for path in (folder, expected)]
    assert states[0]["stream"] == states[1]["stream"]
    assert states[0]["stream"]["num_yielded"] == 20


def assert_close(folder: Path, expected: Path) -> None:
    tensors = weights(folder)
    for name, tensor in weights(expected).items():
        # the biases of keys have no gradient but rounding noise, which the first Adam steps blow up
        if "to_k.bias" not in name:
            torch.testing.assert_close(tensors[name], tensor, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


# ---------------------------------------------------------------------------------------------------------------------
# The transformer
# ---------------------------------------------------------------------------------------------------------------------

FLIPPED = "random_flip=true"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, files, trained_vae, transformer_recipe) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    train_lightningdit.main(arguments(transformer_recipe, files, folder, f"vae={trained_vae}", FLIPPED))
    return folder


def test_a_run_that_breaks_off_in_a_checkpoint(
    uninterrupted, tmp_path, files, trained_vae, transformer_recipe, monkeypatch
):
    settings = arguments(transformer_recipe, files, tmp_path / "run", f"vae={trained_vae}", FLIPPED)
    write_tensors = run_state.write_tensors

    def write_or_stop(tensors, file):
        if "checkpoint-4" in str(file) and "optimizer" in file.name:
            raise KeyboardInterrupt
        write_tensors(tensors, file)

    with monkeypatch.context() as patched, pytest.raises(SystemExit, match="130"):
        patched.setattr(run_state, "write_tensors", write_or_stop)
        train_lightningdit.main(settings)
    assert not (tmp_path / "run" / "checkpoint-4").exists()
    train_lightningdit.main([*settings, "resume_from_checkpoint=latest"])
    assert_identical(tmp_path / "run", uninterrupted)


def test_two_processes_share_a_stream_are_killed_and_resumed_on_one(
    run_and_be_killed, uninterrupted, tmp_path, files, trained_vae, transformer_recipe
):
    folder = tmp_path / "run"
    settings = arguments(transformer_recipe, files, folder, f"vae={trained_vae}", FLIPPED)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    said = run_and_be_killed(
        "lightningdit", "checkpoint-5", "optimizer", *settings, launch=launch, ACCELERATE_USE_CPU="true"
    )
    left = sorted(path.name for path in folder.glob("*checkpoint*"))
    assert left == [".checkpoint-5.partial", "checkpoint-2", "checkpoint-4"], said
    assert json.loads((folder / "checkpoint-4" / "state.json").read_text())["num_processes"] == 2
    train_lightningdit.main([*settings, "resume_from_checkpoint=latest"])
    assert_close(folder, uninterrupted)


def test_accumulation_over_a_stream(uninterrupted, tmp_path, files, trained_vae, transformer_recipe):
    settings = [f"vae={trained_vae}", FLIPPED, "gradient_accumulation_steps=2"]
    train_lightningdit.main(arguments(transformer_recipe, files, tmp_path / "run", *settings))
    assert_close(tmp_path / "run", uninterrupted)


def test_latents_are_streamed_with_everything_that_is_shown(tmp_path, latents, transformer_recipe):
    settings = [f"vae={latents}/vae", "data_kind=latents", FLIPPED]
    shown = ["validation_steps=2", "validation_split=train", "num_validation_samples=6", "sample_steps=5"]
    run = tmp_path / "run"
    train_lightningdit.main(arguments(transformer_recipe, latents, run, *settings, *shown, "num_samples=4"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation_loss" in line] == [2, 4, 5]
    resumed, checkpoint = tmp_path / "resumed", f"resume_from_checkpoint={run / 'checkpoint-4'}"
    train_lightningdit.main(arguments(transformer_recipe, latents, resumed, *settings, checkpoint))
    assert_identical(resumed, run)


def test_a_roll_back_does_not_rewind_the_stream(
    uninterrupted, tmp_path, files, trained_vae, transformer_recipe, monkeypatch
):
    """Batches 3 and 4 have NaN, which leads back to the checkpoint of step 2; batches 5 to 7 follow."""
    seen = []
    training_loss = loop.training_loss

    def sometimes_nan(config, model, latents, class_labels, draws, *others):
        seen.append((draws.batch_index, latents))
        loss = training_loss(config, model, latents, class_labels, draws, *others)
        factor = float("nan") if draws.batch_index in (3, 4) and config.spike_patience == 2 else 1
        return {name: value * factor for name, value in loss.items()}

    monkeypatch.setattr(loop, "training_loss", sometimes_nan)
    settings = [f"vae={trained_vae}", FLIPPED]
    bad = [*settings, "spike_patience=2"]
    train_lightningdit.main(arguments(transformer_recipe, files, tmp_path / "bad", *bad))
    rolled_back = seen.copy()
    state = json.loads((tmp_path / "bad" / "checkpoint-5" / "state.json").read_text())
    assert (state["step"], state["position"], state["stream"]["num_yielded"]) == (5, 8, 32)
    seen.clear()
    longer = arguments(transformer_recipe, files, tmp_path / "good", *settings, "max_train_steps=8")
    train_lightningdit.main(longer)
    assert [position for position, _ in rolled_back] == [position for position, _ in seen] == list(range(8))
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(rolled_back, seen, strict=True))


def test_lora_from_a_stream(uninterrupted, tmp_path, monkeypatch):
    """The labels become those of the pipeline: dog is its second class, and a new class follows."""
    labels = set()
    training_loss = loop.training_loss

    def training_loss_seen(config, model, latents, class_labels, *others):
        labels.update(class_labels.tolist())
        return training_loss(config, model, latents, class_labels, *others)

    monkeypatch.setattr(loop, "training_loss", training_loss_seen)
    data, run, resumed = tmp_path / "data", tmp_path / "run", tmp_path / "resumed"
    images = [Image.effect_noise((20, 16), 40 + number).convert("RGB") for number in range(6)]
    write_images(data / "train.parquet", images, [0, 1] * 3, names=("dog", "ox"))
    settings = ["resolution=8", "global_batch_size=4", "rank=2", f"pipeline={uninterrupted}", "new_classes={ox: cat}"]
    settings += [*ORDER, *STEPS, f"data={data}"]
    train_lightningdit_lora.main([*settings, f"output_dir={run}"])
    assert labels == {1, 2}
    checkpoint = f"resume_from_checkpoint={run / 'checkpoint-2'}"
    train_lightningdit_lora.main([*settings, f"output_dir={resumed}", checkpoint])
    assert_identical(resumed, run)


# ---------------------------------------------------------------------------------------------------------------------
# The autoencoder
# ---------------------------------------------------------------------------------------------------------------------


def test_the_autoencoder_from_a_stream(tmp_path, files, vae_recipe):
    settings = ["random_flip=true", "validation_steps=4", "validation_split=train", "num_validation_samples=10",
                "label_column=label", "sample_steps=5", "num_samples=3"]  # fmt: skip
    run, resumed = tmp_path / "run", tmp_path / "resumed"
    train_vavae.main(arguments(vae_recipe, files, run, *settings))
    checkpoint = f"resume_from_checkpoint={run / 'checkpoint-2'}"
    train_vavae.main(arguments(vae_recipe, files, resumed, "random_flip=true", checkpoint))
    assert_identical(resumed, run)
    statistics = [AutoencoderVAVAE.load_config(folder)["latents_std"] for folder in (run, resumed)]
    assert statistics[0] == statistics[1]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation_psnr_db" in line] == [0, 4, 5]
    with Image.open(run / "samples" / "step-5.png") as picture:
        assert picture.size == (3 * 8, 2 * 8)


def test_statistics_of_a_stream_are_those_of_the_data(tmp_path, files, vae_recipe):
    """Two orders of reading: the draws from the posteriors are others, and a part of the images is another one."""
    found = {}
    for name, settings in (
        ("stream", ORDER),
        ("files", []),
        ("part", [*ORDER, "statistics_samples=3"]),
        ("part of files", ["statistics_samples=3"]),
    ):
        settings = [*settings, "learning_rate=1e-12", "max_train_steps=2", "checkpointing_steps=null"]
        train_vavae.main(["--config", vae_recipe, f"data={files}", f"output_dir={tmp_path / name}", *settings])
        found[name] = torch.tensor(AutoencoderVAVAE.load_config(tmp_path / name)["latents_std"])
    torch.testing.assert_close(found["stream"], found["files"], rtol=0.2, atol=0)
    assert not torch.equal(found["part"], found["stream"]) and not torch.equal(found["part of files"], found["files"])


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
        (["num_workers=1"], "`num_workers` is 1; required: 0 with `streaming`"),
        (["latents_in_memory=true"], "`latents_in_memory` is true; required: false with `streaming`"),
        (["image_column=picture"], "`image_column` is 'picture'; required: a column of images among image, label"),
        (["gradient_accumulation_steps=3"], "`global_batch_size` is 4; required: a multiple of 3"),
        (["data_kind=latents"], "has the columns image, label; required: *.safetensors shards, or the columns latents"),
        (
            ["validation_steps=1", "validation_split=train", "num_validation_samples=12"],
            "`num_validation_samples` is 12; required: a multiple of the 1 processes, at most the 11 samples",
        ),
    ],
)
def test_bad_input_of_a_stream_is_one_line(tmp_path, files, trained_vae, transformer_recipe, capsys, settings, message):
    with pytest.raises(SystemExit) as stop:
        train_lightningdit.main(arguments(transformer_recipe, files, tmp_path / "run", f"vae={trained_vae}", *settings))
    assert message in one_line_of(capsys, stop, 2)
    assert not (tmp_path / "run").exists()


def test_latents_with_other_statistics(tmp_path, latents, transformer_recipe, capsys):
    vae = AutoencoderVAVAE.from_pretrained(f"{latents}/vae")
    vae.set_latents_statistics([9.0] * 4, vae.config.latents_std)
    vae.save_pretrained(tmp_path / "vae")
    settings = [f"vae={tmp_path / 'vae'}", "data_kind=latents"]
    with pytest.raises(SystemExit) as stop:
        train_lightningdit.main(arguments(transformer_recipe, latents, tmp_path / "run", *settings))
    error = one_line_of(capsys, stop, 2)
    assert "the VAE's config has mean 9, " in error and error.endswith("`check_statistics=false`.")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["streaming=false"], "`streaming` is false; required: true, as in the checkpoint"),
        (["shuffle_block_size=8"], "`shuffle_block_size` is 8; required: 4, as in the checkpoint"),
        (["seed=1"], "`seed` is 1; required: 0, as in the checkpoint"),
    ],
)
def test_a_checkpoint_of_another_order(
    uninterrupted, tmp_path, files, trained_vae, transformer_recipe, capsys, settings, message
):
    checkpoint = f"resume_from_checkpoint={uninterrupted / 'checkpoint-2'}"
    settings = [f"vae={trained_vae}", FLIPPED, checkpoint, *settings]
    with pytest.raises(SystemExit) as stop:
        train_lightningdit.main(arguments(transformer_recipe, files, tmp_path / "run", *settings))
    assert message in one_line_of(capsys, stop, 2)
    assert not (tmp_path / "run").exists()


def test_latents_that_are_not_finite(tmp_path, latents, transformer_recipe, capsys):
    """Read from a stream, and without one."""
    data, rows = tmp_path / "data", Dataset.from_parquet(f"{latents}/*.parquet")
    features, vae = rows.features, f"vae={latents}/vae"
    values = np.array(rows["latents"], dtype=np.float32)
    values[7] = np.nan
    columns = {"latents": list(values), "latents_flip": list(values), "label": rows["label"]}
    Dataset.from_dict(columns, features=features).to_parquet(data / "train.parquet")
    settings = [vae, "data_kind=latents", "check_statistics=false"]
    for streaming, place in (("true", "of epoch 0 of the stream: the row"), ("false", "split train, row 7")):
        folder = tmp_path / streaming
        with pytest.raises(SystemExit) as stop:
            train_lightningdit.main(
                arguments(transformer_recipe, str(data), folder, *settings, f"streaming={streaming}")
            )
        assert f"{place} has NaN in its latents" in one_line_of(capsys, stop, 1)


def test_a_damaged_image_in_the_middle(tmp_path, files, trained_vae, transformer_recipe, vae_recipe, capsys):
    """It ends the run when its turn comes; the checkpoints before it stay."""
    data = tmp_path / "data"
    images = [Image.effect_noise((8, 8), 40 + number).convert("RGB") for number in range(30)]
    write_images(data / "train.parquet", [*images[:20], {"path": "wreck.png", "bytes": b"?"}, *images[21:]], [0] * 30)
    train = {train_lightningdit: (transformer_recipe, f"vae={trained_vae}"), train_vavae: (vae_recipe,)}
    for script, (recipe, *settings) in train.items():
        folder = tmp_path / script.__name__
        settings = [*settings, "checkpointing_steps=1", "max_train_steps=8"]
        with pytest.raises(SystemExit) as stop:
            script.main(arguments(recipe, str(data), folder, *settings))
        error = one_line_of(capsys, stop, 1)
        assert f"{data}, sample 2" in error and "of epoch 0 of the stream: wreck.png: Unidentified" in error
        assert sorted(path.name for path in folder.glob("checkpoint-*")) == [
            "checkpoint-3",
            "checkpoint-4",
            "checkpoint-5",
        ]
