"""Both stages, caching, LoRA and evaluation on grey images that are no squares: every size and channel is followed."""

import json
from pathlib import Path

import cache_latents
import pytest
import torch
import train_lightningdit
import train_lightningdit_lora
import train_vavae
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from PIL import Image

from diffusers_lightningdit import AutoencoderVAVAE, LightningDiTTransformer2DModel
from diffusers_lightningdit.data.images import ImageDataset
from diffusers_lightningdit.evaluate import main as evaluate
from diffusers_lightningdit.original.export import original_files
from diffusers_lightningdit.pipelines.pipeline_lightningdit_img2img import LightningDiTImg2ImgPipeline
from diffusers_lightningdit.pipelines.pipeline_lightningdit_likelihood import LightningDiTLikelihoodPipeline
from diffusers_lightningdit.pipelines.pipeline_vavae_reconstruction import VAVAEReconstructionPipeline

GREY = {"in_channels": 1, "out_channels": 1}


@pytest.fixture(scope="module")
def wide_images(tmp_path_factory) -> str:
    """Eight images of two classes, 24x16 pixels."""
    folder = tmp_path_factory.mktemp("wide")
    for number in range(8):
        file = folder / ("cat" if number % 2 else "dog") / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.effect_noise((24, 16), 40 + number).save(file)
    return str(folder)


@pytest.fixture(scope="module")
def grey_vae(tmp_path_factory, wide_images, vae_recipe) -> str:
    folder = tmp_path_factory.mktemp("vae") / "vae"
    channels = [f"vae.{name}={value}" for name, value in GREY.items()]
    observed = ["sample_steps=3", "validation_steps=3", "validation_split=train", "num_validation_samples=8"]
    settings = [f"data={wide_images}", f"output_dir={folder}", "resolution=[8,12]", *channels, *observed]
    train_vavae.main(["--config", vae_recipe, *settings])
    return str(folder)


def test_the_autoencoder(grey_vae, wide_images):
    vae = AutoencoderVAVAE.from_pretrained(grey_vae)
    assert vae.config.in_channels == 1 and tuple(vae.config.sample_size) == (8, 12)
    with Image.open(Path(grey_vae) / "samples" / "step-3.png") as picture:
        assert picture.size == (8 * 12, 2 * 8)
    record = [json.loads(line) for line in (Path(grey_vae) / "metrics.jsonl").read_text().splitlines()][-1]
    assert record["validation_psnr_db"] > 0 and record["latents_linear_cka"] > 0
    # the same statistics by another way: means of the posteriors are near the draws that were measured
    pixels = torch.stack([item["pixel_values"] for item in ImageDataset(wide_images, (8, 12), channels=1)])
    assert pixels.shape == (8, 1, 8, 12)
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
    expected = posterior.mean.mean((0, 2, 3))
    spread = (posterior.std.square().mean() / (8 * 4 * 6)).sqrt()
    assert (torch.tensor(vae.config.latents_mean) - expected).abs().max() < 5 * spread


@pytest.fixture(scope="module")
def latents(tmp_path_factory, grey_vae, wide_images) -> str:
    folder = tmp_path_factory.mktemp("latents") / "latents"
    cache_latents.main(["--vae", grey_vae, "--data", wide_images, "--output_dir", str(folder)])
    assert json.loads((folder / "latents_info.json").read_text())["settings"]["resolution"] == [8, 12]
    return str(folder)


@pytest.mark.parametrize("kind", ["images", "latents", "streamed"])
def test_the_transformer(kind, grey_vae, wide_images, latents, transformer_recipe, tmp_path):
    source = {
        "images": [f"data={wide_images}"],
        "latents": [f"data={latents}", "data_kind=latents", "check_statistics=false"],
        "streamed": [f"data={wide_images}", "streaming=true"],
    }
    settings = [*source[kind], f"vae={grey_vae}", f"output_dir={tmp_path / 'out'}", "sample_steps=3", "num_samples=2"]
    train_lightningdit.main(["--config", transformer_recipe, *settings, "resolution=null"])
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert tuple(pipeline.transformer.config.sample_size) == (4, 6)
    images = pipeline(["cat", "dog"]).images
    assert [(image.size, image.mode) for image in images] == [((12, 8), "L")] * 2
    assert pipeline("cat", height=4, width=4, output_type="np").images.shape == (1, 4, 4, 1)
    with Image.open(tmp_path / "out" / "samples" / "step-3.png") as picture:
        assert picture.size in [(12, 16), (24, 8)]
    if kind == "latents":
        with pytest.raises(ValueError, match=r"`sample_size` is \[4, 6\]; required: one number"):
            original_files(tmp_path / "out" / "transformer")


def test_a_lora(grey_vae, wide_images, transformer_recipe, tmp_path, capsys):
    base = [f"data={wide_images}", f"vae={grey_vae}", f"output_dir={tmp_path / 'base'}", "resolution=null"]
    train_lightningdit.main(["--config", transformer_recipe, *base])
    lora = [f"data={wide_images}", f"pipeline={tmp_path / 'base'}", f"output_dir={tmp_path / 'lora'}"]
    lora += ["global_batch_size=4", "max_train_steps=1", "rank=2"]
    train_lightningdit_lora.main(lora)
    with pytest.raises(SystemExit):
        train_lightningdit_lora.main([*lora[:2], f"output_dir={tmp_path / 'other'}", *lora[3:], "resolution=8"])
    *_, error = capsys.readouterr().err.strip().splitlines()
    assert error == "error: the data has latents of 4x4; required: the pipeline's 4x6 (`resolution` [8, 12])."


@pytest.mark.parametrize("command", ["reconstruction", "latents"])
def test_evaluation(command, grey_vae, wide_images, foundation_model, tmp_path):
    words = [command, "--vae", grey_vae, "--data", wide_images, "--output_dir", str(tmp_path / "out")]
    words += ["--features", foundation_model]
    words += ["--perplexity", "2"] if command == "latents" else ["--resolution", "12", "16"]
    evaluate(words)
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert record["results"]["num_images"] == 8


def test_pipelines_make_colour_images_grey(grey_vae):
    vae = AutoencoderVAVAE.from_pretrained(grey_vae)
    torch.manual_seed(0)
    transformer = LightningDiTTransformer2DModel(
        sample_size=(4, 6), in_channels=4, num_layers=1, num_attention_heads=1, attention_head_dim=8, num_classes=2
    )
    models = (transformer, vae, FlowMatchEulerDiscreteScheduler())
    colour = Image.effect_noise((12, 8), 60).convert("RGB")
    colour.putpixel((3, 3), (255, 0, 0))
    grey = colour.convert("L")

    reconstruct = VAVAEReconstructionPipeline(vae)
    of_colour, of_grey = (reconstruct(image, output_type="pt").images for image in (colour, grey))
    assert of_colour.shape == (1, 1, 8, 12)
    assert (of_colour - of_grey).abs().max() < 1e-2  # Pillow rounds the luma to 8 bits

    def change(image: Image.Image) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        call = {"strength": 0.5, "num_inference_steps": 2, "output_type": "pt", "generator": generator}
        return LightningDiTImg2ImgPipeline(*models)(0, image, **call).images

    assert (change(colour) - change(grey)).abs().max() < 1e-2
    likelihood = LightningDiTLikelihoodPipeline(*models[:2])(colour, 0)
    assert likelihood.bits_per_dim.isfinite().all()
