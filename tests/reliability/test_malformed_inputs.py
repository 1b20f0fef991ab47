"""242 inputs that are damaged at random (seeded): each ends in one clear line or in the right result, within bounds.

Clear is a line that names the file or argument. Programs end with status 2, calls with a ValueError. Bounds are 4 GB of
memory beyond the libraries', and half a minute.
"""

import inspect
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import cache_latents
import numpy as np
import pytest
import torch
import train_lightningdit
import yaml
from diffusers import DiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from reliability import damage
from reliability.forked import Ended, run_forked

from diffusers_lightningdit.evaluation.commands import generation, reconstruction
from diffusers_lightningdit.pipelines import (
    LightningDiTImg2ImgPipeline,
    LightningDiTInterpolationPipeline,
    LightningDiTLikelihoodPipeline,
    LightningDiTPipeline,
    VAVAEReconstructionPipeline,
)

MEMORY, SECONDS = 4 << 30, 30

pytestmark = pytest.mark.usefixtures("fresh_accelerate_state")


def seeds(number: int):
    return pytest.mark.parametrize("seed", range(number))


def assert_one_line_or_done(ended: Ended, about: str, *names: str) -> bool:
    """Whether the program came to its end; otherwise it has to end with one line that has one of `names` in it."""
    assert "code was run" not in ended.output
    assert "Traceback" not in ended.output, f"{about}\n{ended.output}"
    if ended.status == 0:
        return True
    assert ended.status == 2, f"{about}: status {ended.status}\n{ended.output}"
    assert len(ended.errors) == 1, f"{about}\n{ended.output}"
    assert any(name in ended.errors[0] for name in names), f"{about}: no {names} in {ended.errors[0]}"
    assert len(ended.errors[0]) < 2500, ended.errors[0]
    return False


def run(program: Callable[[], object], folder: Path) -> Ended:
    return run_forked(program, folder, memory=MEMORY, seconds=SECONDS)


def call(function: Callable[[], object]) -> Callable[[], object]:
    """A call of the library as a program: a ValueError becomes a line and the status 2; numbers have to be finite."""

    def program() -> None:
        try:
            result = function()
        except (ValueError, OSError) as error:  # the latter of a missing file, from diffusers
            print("error: " + str(error))
            raise SystemExit(2 if str(error).count("\n") == 0 else 3) from error
        if result is not None:
            assert np.isfinite(np.asarray(result)).all(), "numbers that are not finite"

    return program


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory, data, trained_vae, transformer_recipe) -> Path:
    folder = tmp_path_factory.mktemp("pipeline_to_damage") / "pipeline"
    train_lightningdit.main(
        ["--config", transformer_recipe, f"data={data}", f"vae={trained_vae}", f"output_dir={folder}"]
    )
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    return folder


@pytest.fixture(scope="session")
def latents_folder(tmp_path_factory, data, trained_vae) -> Path:
    folder = tmp_path_factory.mktemp("latents_to_damage") / "latents"
    cache_latents.main([f"data={data}", f"vae={trained_vae}", "resolution=8", f"output_dir={folder}"])
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# Models and pipelines on the disk
# ---------------------------------------------------------------------------------------------------------------------


@seeds(30)
def test_an_autoencoder_that_images_are_cached_with(seed, data, trained_vae, tmp_path):
    rng = random.Random(f"vae {seed}")
    file, ways = rng.choice([("diffusion_pytorch_model.safetensors", damage.WEIGHTS), ("config.json", damage.JSON)])
    about = damage.damaged_copy(Path(trained_vae), tmp_path / "vae", file, ways, rng)
    words = [f"data={data}", f"vae={tmp_path / 'vae'}", "resolution=8", "output_dir=out"]
    (tmp_path / "work").mkdir()
    ended = run(lambda: cache_latents.main(words), tmp_path / "work")
    assert_one_line_or_done(ended, f"{about} {file}", str(tmp_path / "vae"), "`vae`", "VAE")


PIPELINE_FILES = (
    ("transformer/diffusion_pytorch_model.safetensors", damage.WEIGHTS),
    ("transformer/config.json", damage.JSON),
    ("model_index.json", damage.JSON),
    ("scheduler/scheduler_config.json", damage.JSON),
)


@seeds(40)
def test_a_pipeline_that_is_evaluated(seed, pipeline_folder, data, tmp_path):
    rng = random.Random(f"pipeline {seed}")
    file, ways = rng.choice(PIPELINE_FILES)
    about = damage.damaged_copy(pipeline_folder, tmp_path / "pipeline", file, ways, rng)
    words = [f"pipeline={tmp_path / 'pipeline'}", "num_images=4", "sampling.num_inference_steps=1", "output_dir=out"]
    words += ["reference=null"]
    (tmp_path / "work").mkdir()
    ended = run(lambda: generation.main(words), tmp_path / "work")
    assert_one_line_or_done(
        ended, f"{about} {file}", str(tmp_path / "pipeline"), "`pipeline`", "pipeline", "transformer"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Recipes, images, archives, latents
# ---------------------------------------------------------------------------------------------------------------------


@seeds(40)
def test_a_recipe(seed, transformer_recipe, data, trained_vae, tmp_path):
    rng = random.Random(f"recipe {seed}")
    (tmp_path / "whole").mkdir()
    recipe = yaml.safe_load(Path(transformer_recipe).read_text()) | {"max_train_steps": 1, "guidance_interval": None}
    (tmp_path / "whole" / "recipe.yaml").write_text(yaml.safe_dump({k: v for k, v in recipe.items() if v is not None}))
    about = damage.damaged_copy(tmp_path / "whole", tmp_path / "damaged", "recipe.yaml", damage.RECIPE, rng)
    words = ["--config", str(tmp_path / "damaged" / "recipe.yaml"), f"data={data}", f"vae={trained_vae}"]
    (tmp_path / "work").mkdir()
    ended = run(lambda: train_lightningdit.main([*words, "output_dir=out", "max_train_steps=1"]), tmp_path / "work")
    assert_one_line_or_done(ended, about, "recipe.yaml", *(f"`{name}" for name in recipe), "`", "--config")
    if ended.status:
        assert not (tmp_path / "work" / "out").exists(), f"{about}: something was written"


@seeds(24)
def test_an_image_in_a_folder(seed, trained_vae, tmp_path):
    rng = random.Random(f"image {seed}")
    for number in range(4):
        path = tmp_path / "images" / ("cat" if number % 2 else "dog") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((12, 10), 40 + number).convert("RGB").save(path)
    way = rng.choice(damage.IMAGE)
    way(tmp_path / "images" / "cat" / "1.png", rng)
    (tmp_path / "work").mkdir()
    if seed % 2:
        words = [f"data={tmp_path / 'images'}", f"vae={trained_vae}", "resolution=8", "output_dir=out"]
        ended = run(lambda: cache_latents.main(words), tmp_path / "work")
    else:
        words = [f"data={tmp_path / 'images'}", f"vae={trained_vae}", "resolution=8", "output_dir=out"]
        ended = run(lambda: reconstruction.main(words), tmp_path / "work")
    if assert_one_line_or_done(ended, way.__name__, "1.png", "images"):
        assert way in (damage.cut, damage.removed, damage.dangling_link, damage.link_to_itself, damage.folder), (
            way.__name__
        )


@seeds(24)
def test_an_archive_as_reference(seed, pipeline_folder, vision_transformer, tmp_path):
    rng = random.Random(f"archive {seed}")
    path = tmp_path / "reference.npz"
    np.savez(path, np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8))
    way = rng.choice(damage.NPZ)
    way(path, rng)
    words = [f"pipeline={pipeline_folder}", f"reference={path}", f"features={vision_transformer}", "num_images=4"]
    words += ["sampling.num_inference_steps=1", "output_dir=out"]
    (tmp_path / "work").mkdir()
    ended = run(lambda: generation.main(words), tmp_path / "work")
    assert not assert_one_line_or_done(ended, way.__name__, "reference"), way.__name__


@seeds(24)
def test_latents_that_are_trained_on(seed, latents_folder, trained_vae, transformer_recipe, tmp_path):
    rng = random.Random(f"latents {seed}")
    files = [("latents_rank00_shard000.safetensors", damage.WEIGHTS), ("latents_info.json", damage.JSON)]
    files += [("latents_stats.pt", damage.ANY_FILE)]
    file, ways = rng.choice(files)
    about = damage.damaged_copy(latents_folder, tmp_path / "latents", file, ways, rng)
    words = ["--config", transformer_recipe, f"data={tmp_path / 'latents'}", f"vae={trained_vae}", "data_kind=latents"]
    words += ["check_statistics=false", "max_train_steps=1", "output_dir=out"]
    (tmp_path / "work").mkdir()
    ended = run(lambda: train_lightningdit.main(words), tmp_path / "work")
    assert_one_line_or_done(ended, f"{about} {file}", str(tmp_path / "latents"), "latents")


# ---------------------------------------------------------------------------------------------------------------------
# LoRAs
# ---------------------------------------------------------------------------------------------------------------------


@seeds(20)
def test_a_lora(seed, pipeline_folder, tmp_path):
    """A LoRA that is loaded whole draws; one that is refused leaves the pipeline as it was."""
    rng = random.Random(f"lora {seed}")
    (tmp_path / "work").mkdir()
    (tmp_path / "whole").mkdir()
    pipe = DiffusionPipeline.from_pretrained(pipeline_folder)
    pipe.set_progress_bar_config(disable=True)
    before = draw(pipe)
    torch.manual_seed(0)
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    pipe.save_lora_weights(tmp_path / "whole", get_peft_model_state_dict(pipe.transformer))
    pipe = DiffusionPipeline.from_pretrained(pipeline_folder)
    pipe.set_progress_bar_config(disable=True)
    about = damage.damaged_copy(
        tmp_path / "whole", tmp_path / "lora", "pytorch_lora_weights.safetensors", damage.WEIGHTS, rng
    )

    def load():
        try:
            pipe.load_lora_weights(tmp_path / "lora", weight_name="pytorch_lora_weights.safetensors")
        except (ValueError, OSError):
            assert np.array_equal(draw(pipe), before), "the refused LoRA has changed the pipeline"
            pipe.save_pretrained("again")
            assert np.array_equal(draw(DiffusionPipeline.from_pretrained("again")), before)
            raise
        return draw(pipe)

    ended = run(call(load), tmp_path / "work")
    assert_one_line_or_done(ended, about, str(tmp_path / "lora"), "LoRA", "lora")


def draw(pipe: DiffusionPipeline) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(0, generator=generator, num_inference_steps=1, output_type="np").images


# ---------------------------------------------------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------------------------------------------------

WRONG = (None, True, -1, 0, 2.5, 10**30, math.nan, math.inf, "text", "", [], [None], [1, "a"], {}, {"a": 1}, object())
WRONG += (b"bytes", torch.zeros(2), torch.full((1, 4, 4, 4), math.nan), torch.Generator, [torch.Generator()] * 3, len)


@pytest.mark.parametrize(
    "pipeline_class",
    [
        LightningDiTPipeline,
        LightningDiTImg2ImgPipeline,
        LightningDiTInterpolationPipeline,
        LightningDiTLikelihoodPipeline,
        VAVAEReconstructionPipeline,
    ],
    ids=lambda pipeline_class: pipeline_class.__name__,
)
@seeds(8)
def test_arguments_of_a_pipeline(pipeline_class, seed, pipeline_folder, tmp_path):
    """Eight wrong values at each seed: a ValueError that names the argument, or finite images."""
    rng = random.Random(f"{pipeline_class.__name__} {seed}")
    (tmp_path / "work").mkdir()
    loaded = LightningDiTPipeline.from_pretrained(pipeline_folder)
    parts = inspect.signature(pipeline_class.__init__).parameters
    pipe = pipeline_class(**{name: part for name, part in loaded.components.items() if name in parts})
    pipe.set_progress_bar_config(disable=True)
    names = [name for name in inspect.signature(pipeline_class.__call__).parameters if name != "self"]
    image = Image.effect_noise((8, 8), 40).convert("RGB")
    good = {"class_labels": [0, 1] if "num_images" in names else 0, "image": image, "num_inference_steps": 1}
    good |= {"num_images": 2, "strength": 1.0, "output_type": "np", "generator": torch.Generator().manual_seed(0)}
    good = {name: value for name, value in good.items() if name in names}
    for _ in range(8):
        name, value = rng.choice(names), rng.choice(WRONG)

        def program(name=name, value=value) -> None:
            images = pipe(**good | {name: value})[0]
            return images if isinstance(images, np.ndarray) else None

        ended = run(call(program), tmp_path / "work")
        assert_one_line_or_done(ended, f"{name}={value!r}", name, f"`{name}`")
