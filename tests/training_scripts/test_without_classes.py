"""Images without classes: caching, training and drawing."""

import cache_latents
import pytest
import train_lightningdit
import train_lightningdit_lora
from diffusers import DiffusionPipeline
from PIL import Image


@pytest.fixture(scope="module")
def flat_folder(tmp_path_factory) -> str:
    """A folder of eight images, without class folders."""
    folder = tmp_path_factory.mktemp("flat")
    for number in range(8):
        Image.effect_noise((12, 10), 40 + number).convert("RGB").save(folder / f"{number}.png")
    return str(folder)


@pytest.mark.parametrize("kind", ["images", "latents_in_memory", "latents", "streamed"])
def test_training_and_drawing(kind, flat_folder, trained_vae, transformer_recipe, tmp_path):
    settings = [f"data={flat_folder}", "label_column=null"]
    if kind == "latents":
        latents = tmp_path / "latents"
        cache_latents.main([*settings, f"vae={trained_vae}", f"output_dir={latents}"])
        settings = [f"data={latents}", "data_kind=latents", "check_statistics=false"]
    elif kind != "images":
        settings.append({"latents_in_memory": "latents_in_memory=true", "streamed": "streaming=true"}[kind])
    validation = ["validation_steps=3", "validation_split=train", "num_validation_samples=4"]
    observed = ["sample_steps=3", "num_samples=2", *validation]
    out = [f"vae={trained_vae}", f"output_dir={tmp_path / 'out'}", *observed]
    train_lightningdit.main(["--config", transformer_recipe, *settings, *out])
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert pipeline.transformer.config.num_classes == 1 and not pipeline.id2label
    for label in (0, None):
        assert pipeline(label, output_type="np").images.shape == (1, 8, 8, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "`label_column` is 'label'; required: a column of class labels or whole numbers, as a folder for each"),
        (["label_column=null"], "`label_column` is null; required: the column of the class labels, by which they"),
    ],
)
def test_a_lora_needs_a_class(settings, message, flat_folder, digits_pipeline, tmp_path, capsys):
    given = [f"pipeline={digits_pipeline}", f"data={flat_folder}", f"output_dir={tmp_path / 'out'}", *settings]
    with pytest.raises(SystemExit):
        train_lightningdit_lora.main(given)
    *_, error = capsys.readouterr().err.strip().splitlines()
    assert error.startswith(f"error: {message}") and "`class_name`" in error
