"""The conversion scripts from the command line: what they write, and that bad input writes nothing."""

import argparse
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from diffusers import AutoencoderKL, DiffusionPipeline
from golden.small_set import recorded_part
from safetensors.torch import load_file

from diffusers_lightningdit import AutoencoderVAVAE, LightningDiTPipeline, LightningDiTTransformer2DModel
from diffusers_lightningdit.files import file_sha256, read_checkpoint
from diffusers_lightningdit.hub.cards import check_card
from diffusers_lightningdit.original import load_autoencoder, read_autoencoder

SCRIPTS = Path(__file__).parents[2] / "conversion"
CASES = ["released", "qknorm_layernorm", "qknorm_rms_woshift", "learn_sigma_p2", "plain"]


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TO_DIFFUSERS = script("convert_lightningdit_to_diffusers")
VAE_TO_DIFFUSERS = script("convert_vavae_to_diffusers")
TO_ORIGINAL = script("convert_diffusers_to_lightningdit")


def call(module, **options) -> None:
    module.main([word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))])


def identical(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


@pytest.fixture
def fails(tmp_path, capsys):
    """Calls a script, which has to end with code 2 and one line, and to leave no trace on the disk; the line."""

    def check(module, **options) -> str:
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            call(module, **{"output_dir": tmp_path / "out"} | options)
        assert stop.value.code == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return captured.err

    return check


@pytest.fixture(scope="module")
def sampling(golden):
    """Options of a whole pipeline from golden files."""
    return {
        "checkpoint": golden("sampling/ckpt_published_ema_only.pt"),
        "config": golden("sampling/euler10_shift0.3_cfg6.7.yaml"),
        "latents_stats": golden("sampling/latents_stats.pt"),
    }


@pytest.fixture(scope="module")
def small_vae(tmp_path_factory):
    """A VA-VAE checkpoint of 32 latent channels, f16, with all that a training checkpoint has."""
    from diffusers_lightningdit.original import autoencoder_to_original

    torch.manual_seed(0)
    model = AutoencoderVAVAE(block_out_channels=(32,) * 5, layers_per_block=1)
    weights = autoencoder_to_original(dict(model.config), model.state_dict())
    extra = {
        "linear_proj.weight": torch.randn(8, 32, 1, 1),
        "loss.logvar": torch.zeros(()),
        "loss.discriminator.main.3.num_batches_tracked": torch.tensor(7),
        "loss.discriminator.main.0.weight": torch.randn(4, 3, 4, 4),
        "loss.perceptual_loss.lin0.weight": torch.randn(3),
        "foundation_model.model.norm.weight": torch.randn(3),
    }
    file = tmp_path_factory.mktemp("vae") / "vavae.ckpt"
    torch.save({"state_dict": weights | extra, "epoch": 1}, file)
    return file


# ---------------------------------------------------------------------------------------------------------------------
# Transformer alone
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, "ema", "model"])
@pytest.mark.parametrize("case", CASES)
def test_transformer_there_and_back(golden, tmp_path, case, weights):
    file = golden(f"dit/{case}/ckpt_train.pt")
    call(TO_DIFFUSERS, checkpoint=file, weights=weights, output_dir=tmp_path / "diffusers")
    model = LightningDiTTransformer2DModel.from_pretrained(tmp_path / "diffusers").eval()
    tensors = load_file(file.parent / "io.safetensors")
    with torch.no_grad():
        out = model(tensors["x"], tensors["t"], tensors["y"]).sample
    torch.testing.assert_close(out, tensors[f"out_{weights or 'ema'}"], atol=1e-4, rtol=0)

    call(TO_ORIGINAL, checkpoint=tmp_path / "diffusers", output_dir=tmp_path / "original")
    assert sorted(path.name for path in (tmp_path / "original").iterdir()) == ["config.yaml", "lightningdit.pt"]
    back = read_checkpoint(tmp_path / "original/lightningdit.pt")
    assert back.keys() == {"ema"}
    assert identical(back["ema"], read_checkpoint(file)[weights or "ema"])

    # what it wrote is converted again, with its own YAML
    call(
        TO_DIFFUSERS,
        checkpoint=tmp_path / "original/lightningdit.pt",
        config=tmp_path / "original/config.yaml",
        output_dir=tmp_path / "again",
    )
    names = ("config.json", "diffusion_pytorch_model.safetensors")
    assert all((tmp_path / "again" / n).read_bytes() == (tmp_path / "diffusers" / n).read_bytes() for n in names)


@pytest.mark.parametrize(
    ("file", "options"),
    [
        ("facm/ckpt_ema_only.pt", {}),
        ("facm/ckpt_train_emas.pt", {"config": "facm/config.yaml"}),
        ("facm/r_embedder/ckpt_ema_only.pt", {}),
        ("internal_guidance/ckpt_ema_only.pt", {"config": "internal_guidance/config.yaml"}),
        ("internal_guidance/ckpt_ema_only.pt", {"internal_guidance_layer": 1}),
    ],
)
def test_files_of_other_projects_there_and_back(golden_frontier, tmp_path, file, options):
    if "config" in options:
        options = {"config": golden_frontier(options["config"])}
    call(TO_DIFFUSERS, checkpoint=golden_frontier(file), output_dir=tmp_path / "diffusers", **options)
    call(TO_ORIGINAL, checkpoint=tmp_path / "diffusers", output_dir=tmp_path / "original")
    expected = read_checkpoint(golden_frontier(file.replace("ckpt_train_emas", "ckpt_ema_only")))["ema"]
    assert identical(read_checkpoint(tmp_path / "original/lightningdit.pt")["ema"], expected)
    call(
        TO_DIFFUSERS,
        checkpoint=tmp_path / "original/lightningdit.pt",
        config=tmp_path / "original/config.yaml",
        output_dir=tmp_path / "again",
    )
    configs = [(tmp_path / name / "config.json").read_bytes() for name in ("diffusers", "again")]
    assert configs[0] == configs[1]


def test_a_training_file_with_python_objects_is_refused(fails, tmp_path):
    torch.save({"ema": {"x": torch.zeros(1)}, "args": argparse.Namespace(lr=1)}, tmp_path / "facm.pt")
    line = fails(TO_DIFFUSERS, checkpoint=tmp_path / "facm.pt")
    assert "facm.pt: contains the Python object argparse.Namespace; required: tensors and plain values only" in line


@pytest.mark.parametrize("file", ["ckpt_published_ema_only.pt", "ckpt_module_prefix.pt"])
def test_other_layouts(golden, tmp_path, file):
    folder = golden(f"dit/released/{file}").parent
    call(TO_DIFFUSERS, checkpoint=folder / file, config=folder / "config.yaml", output_dir=tmp_path / "out")
    LightningDiTTransformer2DModel.from_pretrained(tmp_path / "out")


def test_half_precision_is_kept(golden, tmp_path):
    weights = read_checkpoint(golden("dit/learn_sigma_p2/ckpt_train.pt"))["ema"]
    half = {key: value.to(torch.bfloat16) for key, value in weights.items()}
    torch.save(half, tmp_path / "half.pt")
    call(TO_DIFFUSERS, checkpoint=tmp_path / "half.pt", output_dir=tmp_path / "diffusers")
    call(TO_ORIGINAL, checkpoint=tmp_path / "diffusers", output_dir=tmp_path / "original")
    assert identical(read_checkpoint(tmp_path / "original/lightningdit.pt")["ema"], half)


def test_number_of_heads(golden, tmp_path, fails):
    torch.save(read_checkpoint(golden("dit/plain/ckpt_train.pt"))["ema"], tmp_path / "flat.pt")
    options = {"checkpoint": tmp_path / "flat.pt", "output_dir": tmp_path / "out"}
    assert "--num_attention_heads" in fails(TO_DIFFUSERS, **options)
    assert "divisor of the width, 48" in fails(TO_DIFFUSERS, **options, num_attention_heads=5)
    call(TO_DIFFUSERS, **options, num_attention_heads=4)
    assert LightningDiTTransformer2DModel.from_pretrained(tmp_path / "out").config.num_attention_heads == 4


def test_file_on_the_hub(golden, tmp_path, monkeypatch):
    file = golden("dit/learn_sigma_p2/ckpt_train.pt")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, name: str(file.parent / name))
    call(TO_DIFFUSERS, checkpoint="someone/somewhere:ckpt_train.pt", output_dir=tmp_path / "out")
    assert (tmp_path / "out/config.json").is_file()


# ---------------------------------------------------------------------------------------------------------------------
# Whole pipelines
# ---------------------------------------------------------------------------------------------------------------------


def test_pipeline_there_and_back(sampling, small_vae, tmp_path, capsys):
    call(TO_DIFFUSERS, **sampling, vae=small_vae, output_dir=tmp_path / "diffusers")
    printed = capsys.readouterr().out
    assert "LightningDiTPipeline" in printed
    assert "'guidance_scale': 6.7" in printed
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "diffusers")
    assert isinstance(pipeline, LightningDiTPipeline)
    assert pipeline.config.sampling_recipe == {
        "num_inference_steps": 9,
        "guidance_scale": 6.7,
        "guidance_interval": [0.11, 1.0],
        "guidance_channels": 3,
    }
    assert pipeline.scheduler.config.shift == pytest.approx(1 / 0.3)
    assert pipeline.get_label_ids(["golden retriever", "daisy"]) == [207, 985]
    assert pipeline.vae.config.scaling_factor == 1.0
    assert len(pipeline.vae.config.latents_mean) == 32
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("golden retriever", generator=torch.Generator().manual_seed(0)).images[0]
    assert image.size == (128, 128)

    call(TO_ORIGINAL, checkpoint=tmp_path / "diffusers", output_dir=tmp_path / "original")
    original = tmp_path / "original"
    assert identical(
        read_checkpoint(original / "lightningdit.pt")["ema"], read_checkpoint(sampling["checkpoint"])["ema"]
    )
    assert identical(read_checkpoint(original / "latents_stats.pt"), read_checkpoint(sampling["latents_stats"]))
    before, after = (read_checkpoint(file)["state_dict"] for file in (small_vae, original / "vavae.ckpt"))
    kept = {key: value for key, value in before.items() if key in after}
    assert identical(after, kept)
    # the YAML of the way back says the same as the one given, wherever it says something
    given, written = (
        yaml.safe_load(sampling["config"].read_text()),
        yaml.safe_load((original / "config.yaml").read_text()),
    )
    for section, key in (
        (name, key) for name in ("data", "vae", "model", "sample") for key in given[name].keys() & written[name].keys()
    ):
        assert written[section][key] == given[section][key], (section, key)
    call(
        TO_DIFFUSERS,
        checkpoint=original / "lightningdit.pt",
        config=original / "config.yaml",
        vae=original / "vavae.ckpt",
        latents_stats=original / "latents_stats.pt",
        output_dir=tmp_path / "again",
    )
    card = (tmp_path / "again" / "README.md").read_text()
    check_card(card)
    assert 'from_pretrained("user/again")' in card
    assert f"- `lightningdit.pt`, SHA-256 `{file_sha256(original / 'lightningdit.pt')}`" in card
    files = [path for path in (tmp_path / "diffusers").rglob("*") if path.is_file() and path.name != "README.md"]
    assert files
    for file in files:
        assert (tmp_path / "again" / file.relative_to(tmp_path / "diffusers")).read_bytes() == file.read_bytes()


def test_multiplier(sampling, small_vae, tmp_path, capsys):
    values = yaml.safe_load(sampling["config"].read_text())
    del values["data"]["latent_multiplier"]
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(values))
    options = sampling | {"vae": small_vae}
    for config, expected in ((tmp_path / "my.yaml", 0.18215), (sampling["config"], 1.0), (None, 1.0)):
        folder = tmp_path / f"out{config and config.name}"
        call(TO_DIFFUSERS, **options | {"config": config}, output_dir=folder)
        assert AutoencoderVAVAE.from_pretrained(folder, subfolder="vae").config.scaling_factor == expected
    assert "no YAML given" in capsys.readouterr().out


@pytest.mark.parametrize("plain", [False, True])
def test_pipeline_with_a_folder_as_vae(sampling, small_vae, tmp_path, fails, plain):
    vae = load_autoencoder(small_vae, None if plain else sampling["latents_stats"])
    vae.save_pretrained(tmp_path / "vae")
    if plain:
        AutoencoderKL.from_pretrained(tmp_path / "vae").save_pretrained(tmp_path / "vae")
        line = fails(TO_DIFFUSERS, **sampling | {"latents_stats": None}, vae=tmp_path / "vae")
        assert "latent_norm" in line
        assert "--latents_stats" in line
    options = sampling if plain else sampling | {"latents_stats": None}
    call(TO_DIFFUSERS, **options, vae=tmp_path / "vae", output_dir=tmp_path / "out")
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert type(pipeline.vae) is AutoencoderVAVAE
    assert len(pipeline.vae.config.latents_std) == 32


def test_pipeline_errors(golden, sampling, small_vae, tmp_path, fails):
    options = sampling | {"vae": small_vae}
    assert "--latents_stats" in fails(TO_DIFFUSERS, **options | {"latents_stats": None})
    assert "`latents_stats` is given without `vae`" in fails(TO_DIFFUSERS, **options | {"vae": None})
    small = golden("dit/learn_sigma_p2/ckpt_train.pt")
    assert "32 latent channels; required: 4" in fails(TO_DIFFUSERS, **options | {"checkpoint": small, "config": None})
    assert "is a LightningDiT transformer" in fails(TO_DIFFUSERS, **options | {"vae": small})
    assert "is an autoencoder" in fails(TO_DIFFUSERS, **options | {"checkpoint": small_vae})
    assert "has no tensor `mean`" in fails(TO_DIFFUSERS, **options | {"latents_stats": small})
    (tmp_path / "empty").mkdir()
    assert "config.json" in fails(TO_DIFFUSERS, **options | {"vae": tmp_path / "empty"})


# ---------------------------------------------------------------------------------------------------------------------
# Autoencoder
# ---------------------------------------------------------------------------------------------------------------------


def test_vae_there_and_back(small_vae, sampling, tmp_path, capsys):
    options = {"checkpoint": small_vae, "latents_stats": sampling["latents_stats"]}
    call(VAE_TO_DIFFUSERS, **options, output_dir=tmp_path / "diffusers")
    printed = capsys.readouterr().out
    assert "left out: foundation_model.model.*, 1 tensors" in printed
    assert "left out: loss.perceptual_loss.*, 1 tensors" in printed
    before = read_checkpoint(small_vae)["state_dict"]
    training = read_autoencoder(tmp_path / "diffusers").training
    names = ("linear_proj.", "loss.discriminator.", "loss.logvar")
    assert identical(training, {key: value for key, value in before.items() if key.startswith(names)})
    assert AutoencoderVAVAE.from_pretrained(tmp_path / "diffusers").config.latents_mean is not None

    call(TO_ORIGINAL, checkpoint=tmp_path / "diffusers", output_dir=tmp_path / "original")
    after = read_checkpoint(tmp_path / "original/vavae.ckpt")["state_dict"]
    foreign = ("foundation_model.", "loss.perceptual_loss.")
    assert identical(after, {key: value for key, value in before.items() if not key.startswith(foreign)})
    assert identical(
        read_checkpoint(tmp_path / "original/latents_stats.pt"), read_checkpoint(sampling["latents_stats"])
    )


@pytest.mark.parametrize(
    ("file", "entry"), [("vae/vavae/vavae.ckpt", "state_dict"), ("vae/marvae/marvae.ckpt", "model")]
)
def test_golden_vae_there_and_back(golden, tmp_path, file, entry):
    call(VAE_TO_DIFFUSERS, checkpoint=golden(file), output_dir=tmp_path / "diffusers")
    model = AutoencoderVAVAE.from_pretrained(tmp_path / "diffusers").eval()
    tensors = load_file(golden(file).parent / "io.safetensors")
    with torch.no_grad():
        decoded = recorded_part(model.decode(tensors["z"]).sample, tensors["z_decode"])
    torch.testing.assert_close(decoded, tensors["z_decode"], atol=1e-4, rtol=0)
    call(TO_ORIGINAL, checkpoint=tmp_path / "diffusers", output_dir=tmp_path / "original")
    assert [path.name for path in (tmp_path / "original").iterdir()] == [golden(file).name]
    after, before = (
        read_checkpoint(tmp_path / "original" / golden(file).name)[entry],
        read_checkpoint(golden(file))[entry],
    )
    foreign = ("foundation_model.", "loss.perceptual_loss.")
    assert identical(after, {key: value for key, value in before.items() if not key.startswith(foreign)})


def test_plain_folder_of_others(small_vae, sampling, tmp_path):
    ours = load_autoencoder(small_vae)
    ours.save_pretrained(tmp_path / "theirs")
    AutoencoderKL.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "theirs")
    call(
        VAE_TO_DIFFUSERS,
        checkpoint=tmp_path / "theirs",
        latents_stats=sampling["latents_stats"],
        output_dir=tmp_path / "out",
    )
    loaded = AutoencoderVAVAE.from_pretrained(tmp_path / "out")
    assert identical(loaded.state_dict(), ours.state_dict())
    assert loaded.config.latents_mean is not None


def test_vae_errors(golden, small_vae, sampling, tmp_path, fails):
    assert "is a LightningDiT transformer" in fails(VAE_TO_DIFFUSERS, checkpoint=sampling["checkpoint"])
    (tmp_path / "my.yaml").write_text("model: {params: {embed_dim: 16}}")
    line = fails(VAE_TO_DIFFUSERS, checkpoint=small_vae, config=tmp_path / "my.yaml")
    assert "`model.params.embed_dim` is 16; required: 32" in line
    torch.save({"mean": torch.zeros(1, 4, 1, 1), "std": torch.ones(1, 4, 1, 1)}, tmp_path / "stats.pt")
    line = fails(VAE_TO_DIFFUSERS, checkpoint=small_vae, latents_stats=tmp_path / "stats.pt")
    assert "`mean` has shape [1, 4, 1, 1]; required: [1, 32, 1, 1]" in line


# ---------------------------------------------------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------------------------------------------------


class Malicious:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return (os.mkdir, (self.marker,))


@pytest.mark.parametrize("module", [TO_DIFFUSERS, VAE_TO_DIFFUSERS], ids=["lightningdit", "vavae"])
def test_bad_files(module, tmp_path, fails):
    for name, content in (("empty.pt", b""), ("text.pt", b"hello"), ("text.safetensors", b"hello")):
        (tmp_path / name).write_bytes(content)
        assert name in fails(module, checkpoint=tmp_path / name)
    torch.save({"ema": {"a": torch.zeros(1)}}, tmp_path / "other.pt")
    assert "is missing" in fails(module, checkpoint=tmp_path / "other.pt")
    torch.save({}, tmp_path / "nothing.pt")
    assert "holds no weights" in fails(module, checkpoint=tmp_path / "nothing.pt")
    torch.save({"ema": Malicious(tmp_path / "marker")}, tmp_path / "evil.pt")
    assert "contains the Python object" in fails(module, checkpoint=tmp_path / "evil.pt")
    assert not (tmp_path / "marker").exists()
    assert "no such file" in fails(module, checkpoint=tmp_path / "missing.pt")


@pytest.mark.parametrize("changed", ["missing", "unknown", "shape", "nan"])
def test_bad_weights(golden, tmp_path, fails, changed):
    weights = read_checkpoint(golden("sampling/ckpt_published_ema_only.pt"))["ema"]
    key = "blocks.1.attn.proj.bias"
    if changed == "missing":
        del weights[key]
    elif changed == "unknown":
        weights[key := "blocks.1.attn.proj.other"] = torch.zeros(1)
    else:
        weights[key] = torch.zeros(63) if changed == "shape" else weights[key] * torch.nan
    torch.save({"ema": weights}, tmp_path / "bad.pt")
    line = fails(TO_DIFFUSERS, checkpoint=tmp_path / "bad.pt")
    assert f"bad.pt: key `{key}`" in line


def test_weights_that_are_not_there(sampling, fails):
    assert "has no `model` weights; it has `ema`" in fails(
        TO_DIFFUSERS, checkpoint=sampling["checkpoint"], weights="model"
    )


def test_truncated(golden, tmp_path, fails):
    content = golden("sampling/ckpt_published_ema_only.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    assert "cut.pt: is damaged" in fails(TO_DIFFUSERS, checkpoint=tmp_path / "cut.pt")


def test_contradicting_yaml(sampling, tmp_path, fails):
    values = yaml.safe_load(sampling["config"].read_text())
    values["model"]["in_chans"] = 16
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(values))
    line = fails(TO_DIFFUSERS, checkpoint=sampling["checkpoint"], config=tmp_path / "my.yaml")
    assert "`model.in_chans` is 16; required: 32, as the weights have it" in line


@pytest.mark.parametrize("module", [TO_DIFFUSERS, VAE_TO_DIFFUSERS, TO_ORIGINAL])
def test_output_is_never_overwritten(module, sampling, tmp_path, fails):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious").write_text("x")
    for taken in (tmp_path / "out", tmp_path / "out/precious"):
        line = fails(module, checkpoint=sampling["checkpoint"], output_dir=taken)
        assert f"`output_dir` is {str(taken)!r}, which exists; required: a new or an empty folder" in line
    assert (tmp_path / "out/precious").read_text() == "x"


def test_way_back_errors(golden, tmp_path, fails):
    assert "is no folder" in fails(TO_ORIGINAL, checkpoint=golden("sampling/runs.json"))
    (tmp_path / "model").mkdir()
    assert "config.json" in fails(TO_ORIGINAL, checkpoint=tmp_path / "model")
    (tmp_path / "model/config.json").write_text('{"_class_name": "UNet2DModel"}')
    assert "holds a UNet2DModel" in fails(TO_ORIGINAL, checkpoint=tmp_path / "model")
    call(TO_DIFFUSERS, checkpoint=golden("dit/learn_sigma_p2/ckpt_train.pt"), output_dir=tmp_path / "transformer")
    weights = tmp_path / "transformer/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "is damaged" in fails(TO_ORIGINAL, checkpoint=tmp_path / "transformer")
    weights.unlink()
    fails(TO_ORIGINAL, checkpoint=tmp_path / "transformer")


def test_usage_is_one_line(tmp_path, fails):
    assert "`checkpoint` is not given; required: checkpoint=..." in fails(TO_DIFFUSERS)
    assert "`weights` is 'other'; required: one of ema, model, ema_models.0" in fails(
        TO_DIFFUSERS, checkpoint="x", weights="other"
    )


@pytest.mark.parametrize("good", [True, False])
def test_as_a_process(golden, tmp_path, good):
    """As a user runs it."""
    file = golden("sampling/ckpt_published_ema_only.pt") if good else tmp_path / "missing.pt"
    command = [sys.executable, SCRIPTS / "convert_lightningdit_to_diffusers.py", "--checkpoint", file]
    done = subprocess.run([*command, "--output_dir", tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode == (0 if good else 2)
    assert (tmp_path / "out").exists() == good
    assert done.stdout.count("\n") == (1 if good else 0)
    # installed packages may warn while they are imported; after that, one line and no traceback
    assert done.stderr.count("error: ") == (0 if good else 1)
    assert "Traceback" not in done.stderr
    assert good or done.stderr.splitlines()[-1].startswith("error: ")


# ---------------------------------------------------------------------------------------------------------------------
# YAML files
# ---------------------------------------------------------------------------------------------------------------------

YAML_TO_RECIPE = script("convert_yaml_to_recipe")


def test_a_yaml_becomes_recipes_that_name_what_is_left(golden, tmp_path, capsys):
    values = yaml.safe_load(golden("train/step_clip.yaml").read_text())
    values["train"]["warmup"] = 100
    (tmp_path / "original.yaml").write_text(yaml.safe_dump(values))
    call(YAML_TO_RECIPE, yaml=tmp_path / "original.yaml", output_dir=tmp_path / "out")
    output = capsys.readouterr().out
    assert "unknown: train.warmup\n" in output
    assert "left: data.latent_norm: `latents_mean`, `latents_std` in the VAE's config" in output
    train, evaluate = ((tmp_path / "out" / f"{name}.yaml").read_text() for name in ("train", "evaluate"))
    assert yaml.safe_load(train)["learning_rate"] == 2e-4 and yaml.safe_load(evaluate)["num_images"] == 50_000
    assert "# Unknown: train.warmup\n" in train and "train transformer --config train.yaml" in train


def test_bad_yaml_files_write_nothing(fails, tmp_path):
    file = tmp_path / "original.yaml"
    for content, required in (
        ("transport: {path_type: VP}", "`transport.path_type` is 'VP'; required: 'Linear'"),
        ("[1, 2]", "holds a list; required: a mapping of sections"),
        ("{}", "has no key that a recipe can take"),
        ("a: [", "is no readable YAML file"),
    ):
        file.write_text(content)
        assert required in fails(YAML_TO_RECIPE, yaml=file)
