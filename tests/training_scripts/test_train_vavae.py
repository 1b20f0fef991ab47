import json
import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import torch
import train_vavae
from PIL import Image
from safetensors.torch import load_file, save_file

from diffusers_lightningdit import AutoencoderVAVAE
from diffusers_lightningdit.data.images import ImageDataset
from diffusers_lightningdit.data.latent_encoding import encode_moments
from diffusers_lightningdit.losses import FoundationProjection, PatchGANDiscriminator
from diffusers_lightningdit.networks.lpips import LPIPS
from diffusers_lightningdit.original import read_autoencoder
from diffusers_lightningdit.training.vavae.networks import load_networks


def run(recipe: str, data: str, output_dir: Path, *settings: str) -> None:
    train_vavae.main(["--config", recipe, f"data={data}", f"output_dir={output_dir}", *settings])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the result."""
    files = sorted(path for path in Path(folder).rglob("*.safetensors") if "checkpoint" not in str(path))
    return {f"{file.relative_to(folder)}: {name}": value for file in files for name, value in load_file(file).items()}


def assert_identical(folder: Path, expected: Path) -> None:
    found, required = weights(folder), weights(expected)
    assert found.keys() == required.keys()
    for name, tensor in required.items():
        assert torch.equal(found[name], tensor), name


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def test_every_weight_is_trained(trained_vae, tiny_vae_arguments):
    torch.manual_seed(0)  # as the script
    initial = {
        ".": AutoencoderVAVAE(**tiny_vae_arguments, sample_size=8),
        "training/projection": FoundationProjection(latent_channels=4, feature_channels=8),
        "training/discriminator": PatchGANDiscriminator(base_channels=4, num_layers=1),
    }
    for folder, model in initial.items():
        trained = type(model).from_pretrained(Path(trained_vae) / folder)
        parameters = dict(trained.named_parameters())
        for name, weight in model.named_parameters():
            # Adam moves a weight by at most about the learning rate, 1e-4, a step; the hinge loss pulls at the bias of
            # the logits with equal force from both sides
            change = (parameters[name] - weight).abs().max()
            assert change < 4e-4 and (change > 0 or name == "layers.5.bias"), f"{folder}: {name}"


def test_statistics_are_those_of_the_data(trained_vae, data):
    vae = AutoencoderVAVAE.from_pretrained(trained_vae).eval()
    pixels = torch.stack([item["pixel_values"] for item in ImageDataset(data, 8)])
    mean, logvar = encode_moments(vae, pixels).chunk(2, dim=1)
    # over samples of the posterior: its own variance adds to that of the means
    std = (mean.var((0, 2, 3)) + logvar.exp().mean((0, 2, 3))).sqrt()
    assert vae.config.latents_mean == pytest.approx(mean.mean((0, 2, 3)).tolist(), abs=0.4)
    assert vae.config.latents_std == pytest.approx(std.tolist(), rel=0.3)


def test_a_run_is_reproducible(trained_vae, data, vae_recipe, tmp_path):
    run(vae_recipe, data, tmp_path / "vae")
    assert_identical(tmp_path / "vae", trained_vae)


# ---------------------------------------------------------------------------------------------------------------------
# What the steps do
# ---------------------------------------------------------------------------------------------------------------------


def test_alignment_brings_latents_and_features_together(data, vae_recipe, tmp_path):
    settings = ["max_train_steps=60", "learning_rate=1e-2", "logging_steps=1", "vf_weight=2", "distmat_margin=0"]
    run(vae_recipe, data, tmp_path / "vae", *settings, "cos_margin=0", "disc_weight=0")
    losses = [record["vf_loss"] for record in records(tmp_path / "vae")]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_stages_in_a_row(data, vae_recipe, tmp_path):
    """The discriminator trains from the step on that its stage says, and is heeded one step later."""
    stages = "stages=[{num_steps: 3, disc_start: 1, vf_weight: 0.5}, {num_steps: 2, disc_start: 0, adaptive_vf: false}]"
    run(vae_recipe, data, tmp_path / "vae", "max_train_steps=null", stages, "logging_steps=1")
    steps = records(tmp_path / "vae")
    assert ["disc_loss" in step for step in steps] == [False, True, True, True, True]
    assert ["d_weight" in step for step in steps] == [False, False, True, False, True]
    assert [step["vf_weight"] == pytest.approx(0.1) for step in steps] == [False] * 3 + [True] * 2


def test_a_stage_with_a_larger_loss_is_no_spike(data, vae_recipe, tmp_path):
    """Sums over pixels in place of means: 192 times the loss, which 50 steps of the first stage say nothing of."""
    stages = "stages=[{num_steps: 51, reduction: mean}, {num_steps: 2, reduction: sum}]"
    settings = [stages, "max_train_steps=null", "disc_weight=0", "logging_steps=1", "learning_rate=1e-6"]
    run(vae_recipe, data, tmp_path / "whole", *settings, "checkpointing_steps=51")
    steps = records(tmp_path / "whole")
    assert steps[51]["nll_loss"] > 50 * steps[50]["nll_loss"]
    assert steps[52]["skipped"] == 0
    resumed = f"resume_from_checkpoint={tmp_path / 'whole' / 'checkpoint-51'}"
    run(vae_recipe, data, tmp_path / "resumed", *settings, resumed)
    assert_identical(tmp_path / "resumed", tmp_path / "whole")


def test_accumulated_gradients_are_those_of_the_batch(data, vae_recipe, tmp_path):
    """Without the adaptive weights and batch norms, which see a part of the batch at a time."""
    settings = ["disc_weight=0", "adaptive_vf=false", "max_train_steps=1"]
    run(vae_recipe, data, tmp_path / "whole", *settings, "logging_steps=1")
    run(vae_recipe, data, tmp_path / "parts", *settings, "logging_steps=1", "gradient_accumulation_steps=4")
    (whole,), (parts,) = records(tmp_path / "whole"), records(tmp_path / "parts")
    for name in ("total_loss", "nll_loss", "kl_loss", "vf_loss", "grad_norm"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-5), name


def test_gradient_checkpointing_changes_memory_only(data, vae_recipe, tmp_path):
    settings = ["max_train_steps=2", "disc_start=0", "logging_steps=1"]
    run(vae_recipe, data, tmp_path / "plain", *settings)
    run(vae_recipe, data, tmp_path / "saving", *settings, "gradient_checkpointing=true")
    for plain, saving in zip(records(tmp_path / "plain"), records(tmp_path / "saving"), strict=True):
        for name in {"total_loss", "d_weight", "vf_weight", "disc_loss", "grad_norm"} & plain.keys():
            assert saving[name] == pytest.approx(plain[name], rel=1e-5), name


def test_a_compiled_autoencoder_changes_rounding_only(data, vae_recipe, tmp_path, compiled):
    """Also with the adaptive weights, which go through parts of the backward graph on their own."""
    settings = ["max_train_steps=2", "disc_start=0", "logging_steps=1"]
    run(vae_recipe, data, tmp_path / "plain", *settings)
    run(vae_recipe, data, tmp_path / "compiled", *settings, "compile_vae=true")
    assert len(compiled) == 2
    for plain, other in zip(records(tmp_path / "plain"), records(tmp_path / "compiled"), strict=True):
        for name in {"total_loss", "d_weight", "vf_weight", "disc_loss", "grad_norm"} & plain.keys():
            assert other[name] == pytest.approx(plain[name], rel=1e-5), name


def test_two_processes_weigh_the_losses_and_measure_the_latents_as_one_does(data, vae_recipe, tmp_path):
    """The learning rate is so small that the weights whose latents are measured are the same, but for rounding."""
    settings = ["disc_weight=0", "vf_weight=0.5", "max_train_steps=2", "logging_steps=1", "checkpointing_steps=null",
                "learning_rate=1e-12"]  # fmt: skip
    run(vae_recipe, data, tmp_path / "one", *settings)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", train_vavae.__file__]
    arguments = ["--config", vae_recipe, f"data={data}", f"output_dir={tmp_path / 'two'}", *settings]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    finished = subprocess.run([*launch, *arguments], capture_output=True, text=True, env=environment)
    assert finished.returncode == 0, finished.stderr
    for one, two in zip(records(tmp_path / "one"), records(tmp_path / "two"), strict=True):
        for name in ("total_loss", "vf_loss", "vf_weight", "grad_norm"):
            assert two[name] == pytest.approx(one[name], rel=1e-4), name
    one, two = (AutoencoderVAVAE.load_config(tmp_path / name) for name in ("one", "two"))
    for name in ("latents_mean", "latents_std"):
        assert two[name] == pytest.approx(one[name], rel=1e-4), name


def test_processes_that_do_not_know_of_each_other(data, vae_recipe, tmp_path, capsys, separate_processes):
    with pytest.raises(SystemExit):
        run(vae_recipe, data, tmp_path / "vae")
    assert "error: 2 processes were started which do not know of each other" in capsys.readouterr().err


def test_averaged_weights_are_saved(data, vae_recipe, tmp_path):
    run(vae_recipe, data, tmp_path / "vae", "ema_decay=0.5")
    saved = load_file(tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    average = load_file(tmp_path / "vae" / "checkpoint-3" / "vae.ema-0.5.safetensors")
    trained = load_file(tmp_path / "vae" / "checkpoint-3" / "vae.safetensors")
    assert all(torch.equal(value, average[f"vae.{name}"]) for name, value in saved.items())
    assert not all(torch.equal(value, trained[f"vae.{name}"]) for name, value in saved.items())


def test_perceptual_distance_is_part_of_the_loss(data, vae_recipe, tmp_path):
    torch.manual_seed(0)
    file = tmp_path / "lpips.safetensors"
    save_file(LPIPS().state_dict(), file)
    lpips = [f"lpips={file}", f"lpips_sha256={sha256(file.read_bytes()).hexdigest()}"]
    settings = ["resolution=16", "max_train_steps=1", "logging_steps=1", "disc_weight=0"]
    run(vae_recipe, data, tmp_path / "without", *settings)
    run(vae_recipe, data, tmp_path / "with", *settings, *lpips, "perceptual_weight=2")
    (without,), (with_lpips,) = records(tmp_path / "without"), records(tmp_path / "with")
    assert with_lpips["rec_loss"] > 1.01 * without["rec_loss"]
    assert with_lpips["nll_loss"] == pytest.approx(with_lpips["rec_loss"] * 3 * 16 * 16, rel=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Validation, beginning from weights, resuming
# ---------------------------------------------------------------------------------------------------------------------


def test_validation_and_pictures(data, vae_recipe, tmp_path):
    settings = ["resolution=16", "validation_split=train", "num_validation_samples=8", "label_column=label"]
    run(vae_recipe, data, tmp_path / "vae", *settings, "validation_steps=2", "sample_steps=3", "num_samples=5")
    validations = [record for record in records(tmp_path / "vae") if "validation_psnr_db" in record]
    assert [record["step"] for record in validations] == [0, 2, 3]
    assert validations[0]["validation_psnr_db"] < validations[-1]["validation_psnr_db"]
    vae = AutoencoderVAVAE.from_pretrained(tmp_path / "vae").eval()
    pixels = torch.stack([item["pixel_values"] for item in ImageDataset(data, 16)])
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mode()
        differences = pixels - vae.decode(latents).sample.clamp(-1, 1)
    psnr = (10 * (4 / differences.square().mean((1, 2, 3))).log10()).mean().item()
    assert validations[-1]["validation_psnr_db"] == pytest.approx(psnr, rel=1e-4)
    assert {"validation_ssim", "validation_rfd", "latents_linear_probe_accuracy", "latents_linear_cka",
            "latents_gini_coefficient", "latents_interpolation_fd"} < validations[-1].keys()  # fmt: skip
    with Image.open(tmp_path / "vae" / "samples" / "step-3.png") as picture:
        assert picture.size == (5 * 16, 2 * 16)


def test_fine_tuning_begins_with_all_three_networks(trained_vae, data, vae_recipe, tmp_path):
    settings = [f"weight_init={trained_vae}", "vae={}", "learning_rate=1e-12", "max_train_steps=2"]
    run(vae_recipe, data, tmp_path / "vae", *settings)
    found = weights(tmp_path / "vae")
    for name, tensor in weights(trained_vae).items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(found[name], tensor, msg=lambda message, name=name: f"{name}: {message}")


def test_fine_tuning_of_an_original_checkpoint(golden, data, vae_recipe, tmp_path, capsys):
    """Its autoencoder, discriminator and scale are taken over; it has no projection here, which then is new."""
    checkpoint = torch.load(golden("vae/vavae/vavae.ckpt"), weights_only=True)["state_dict"]
    discriminator = PatchGANDiscriminator(base_channels=4, num_layers=1).state_dict()
    checkpoint = {key: value for key, value in checkpoint.items() if not key.startswith(("loss.", "linear_proj."))}
    checkpoint |= {
        f"loss.discriminator.{key.replace('layers', 'main', 1)}": discriminator[key] for key in discriminator
    }
    checkpoint["loss.logvar"] = torch.tensor(0.25)
    torch.save({"state_dict": checkpoint}, tmp_path / "original.ckpt")
    settings = [f"weight_init={tmp_path / 'original.ckpt'}", "vae={}", "resolution=32", "learning_rate=1e-12"]
    run(vae_recipe, data, tmp_path / "vae", *settings, "disc_start=0", "max_train_steps=1")
    said = capsys.readouterr().out
    assert "original.ckpt has no complete projection: a new one is trained" in said
    assert "original.ckpt has `loss.logvar` 0.25: it is kept" in said
    assert [record["logvar"] for record in records(tmp_path / "vae")] == [0.25]
    assert load_networks(str(tmp_path / "vae")).logvar == 0.25
    found = weights(tmp_path / "vae")
    for name, tensor in read_autoencoder(tmp_path / "original.ckpt").state_dict.items():
        torch.testing.assert_close(found[f"diffusion_pytorch_model.safetensors: {name}"], tensor)
    for name, tensor in discriminator.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(
                found[f"training/discriminator/diffusion_pytorch_model.safetensors: {name}"], tensor
            )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("weight_init=/no/such/file.ckpt", "`weight_init` is '/no/such/file.ckpt': "),
        ("weight_init=/no/such/folder", "'/no/such/folder'"),
        ("reverse_proj=false", "whose FoundationProjection has `reverse` True; required: False, as `reverse_proj`"),
        ("discriminator.num_layers=2", "has `num_layers` 1; required: 2, as `discriminator.num_layers`"),
    ],
)
def test_weights_of_other_networks(trained_vae, data, vae_recipe, tmp_path, capsys, setting, message):
    with pytest.raises(SystemExit):
        run(vae_recipe, data, tmp_path / "vae", "vae={}", f"weight_init={trained_vae}", setting)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "vae").exists()


DISCRIMINATOR = "training/discriminator/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (DISCRIMINATOR, b"{}", "is damaged or no checkpoint"),
        (DISCRIMINATOR, {"proj.weight": torch.zeros(1)}, "key `proj.weight` is unknown; required: only `layers.*`"),
        (DISCRIMINATOR, {"layers.0.weight": torch.zeros(4, 3, 4, 4)}, "holds no whole discriminator"),
        ("training/loss.safetensors", {"loss.logvar": torch.zeros(2)}, "`loss.logvar` is [0.0, 0.0]; required: one"),
        ("diffusion_pytorch_model.safetensors", b"{}", "is damaged or no safetensors file"),
        ("config.json", b"{}", "holds a None; required: AutoencoderVAVAE"),
    ],
)
def test_a_damaged_folder_to_begin_with(trained_vae, data, vae_recipe, tmp_path, capsys, file, content, message):
    shutil.copytree(trained_vae, tmp_path / "damaged", ignore=shutil.ignore_patterns("checkpoint-*"))
    if isinstance(content, bytes):
        (tmp_path / "damaged" / file).write_bytes(content)
    else:
        save_file(content, tmp_path / "damaged" / file)
    with pytest.raises(SystemExit) as stop:
        run(vae_recipe, data, tmp_path / "vae", "vae={}", f"weight_init={tmp_path / 'damaged'}")
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2
    assert error.startswith("error: `weight_init` is ") and message in error


def test_kill_and_resume(run_and_be_killed, trained_vae, data, vae_recipe, tmp_path):
    """With both optimisers, killed for good when it has written part of the second checkpoint."""
    folder = tmp_path / "vae"
    arguments = ["--config", vae_recipe, f"data={data}", f"output_dir={folder}", "checkpointing_steps=1"]
    said = run_and_be_killed("vavae", "checkpoint-2", "discriminator.optimizer", *arguments)
    assert sorted(path.name for path in folder.iterdir()) == [
        ".checkpoint-2.partial",
        ".lock",
        ".lock.json",
        "checkpoint-1",
    ], said
    run(vae_recipe, data, folder, "checkpointing_steps=1", "resume_from_checkpoint=latest")
    assert_identical(folder, trained_vae)


# ---------------------------------------------------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("kl_weigth=1", "`kl_weigth` is no key of VAVAETrainingConfig. Did you mean `kl_weight`?"),
        ("vae.latent_channel=4", "`vae.latent_channel` is no key of AutoencoderVAVAE"),
        ("resolution=9", "`resolution` is 9; required: a multiple of the VAE's factor, 2"),
        ("data=/no/such/folder", "`data` is '/no/such/folder'"),
        ("image_column=picture", "`image_column` is 'picture'; required: a column of images"),
        ("global_batch_size=9", "`global_batch_size` is 9; required: at most the 8 samples"),
        ("global_batch_size=0", "`global_batch_size` is 0; required: at least 1"),
        ("max_train_steps=0", "`max_train_steps` is 0; required: at least 1"),
        (
            "label_column=kind",
            "`label_column` is 'kind'; required: a column of class labels or whole numbers",
        ),
        ("lr_scheduler=cosin", "`lr_scheduler` is 'cosin'; required: one of"),
        ("max_train_steps=1", "`disc_start` is 1; required: below the 1 steps"),
        ("foundation_model=/no/such/model", "`foundation_model` is '/no/such/model'"),
        ("foundation_model=null", "`vf_weight` is 0.1 without `foundation_model`"),
        ("discriminator.num_layers=3", "`resolution` is 8; required: at least 24"),
        ("num_validation_samples=2", "`num_validation_samples` is 2; required: at least 3"),
        (
            "inception=/no/such/file validation_steps=1 validation_split=train num_validation_samples=8",
            "`inception` is '/no/such/file'; required: a file of weights",
        ),
        ("mixed_precision=half", "`mixed_precision` is 'half'; required: one of no, fp16, bf16, fp8"),
    ],
)
def test_bad_input_is_one_line_and_touches_nothing(data, vae_recipe, tmp_path, capsys, setting, message):
    output_dir = tmp_path / "vae"
    with pytest.raises(SystemExit) as stop:
        train_vavae.main(["--config", vae_recipe, f"data={data}", f"output_dir={output_dir}", *setting.split()])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2
    assert error.startswith("error: ")
    assert message in error
    assert not output_dir.exists()


def test_a_result_is_not_overwritten(trained_vae, data, vae_recipe, capsys):
    with pytest.raises(SystemExit):
        train_vavae.main(["--config", vae_recipe, f"data={data}", f"output_dir={trained_vae}"])
    assert "which exists; required: a new or an empty folder" in capsys.readouterr().err
