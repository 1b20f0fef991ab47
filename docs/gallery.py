# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Draw the pictures of docs/gallery.md with the embedded checkpoints of the digits, in minutes on a CPU.

    python examples/digits/prepare.py --output_dir outputs/digits/data
    python docs/gallery.py --data outputs/digits/data --lora LORA

A LoRA as docs/training.md trains it on turned sevens gives the pictures of LoRA and training; without `--lora` they
stay as they are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
from PIL import Image, ImageChops

from diffusers_lightningdit import FlowMatchUCGMScheduler, LightningDiTPipeline
from diffusers_lightningdit.evaluation.commands.tools import draw_curves
from diffusers_lightningdit.files import atomic_write
from diffusers_lightningdit.grids import labelled_grid
from diffusers_lightningdit.pipelines import (
    LightningDiTImg2ImgPipeline,
    LightningDiTInterpolationPipeline,
    VAVAEReconstructionPipeline,
)
from diffusers_lightningdit.pipelines.lightningdit_sampling import decode, postprocess
from diffusers_lightningdit.settings import one_line_errors, parse_config, required, setting

REPOSITORY = Path(__file__).resolve().parents[1]
CARDS = REPOSITORY / "model_cards"
DIFFERENCE = 4  # the factor by which differences are enlarged
ZOOM = 2


@dataclass(kw_only=True)
class GalleryConfig:
    """Settings of gallery.py."""

    data: str = required("Folder of the digits, as examples/digits/prepare.py writes it.")
    pipeline: str = setting(str(CARDS / "lightningdit-digits"), "Folder of the digits' pipeline.")
    few_step: str = setting(str(CARDS / "lightningdit-digits-few-step"), "Folder of the student of two steps.")
    lora: str | None = setting(None, "Folder of a run on turned sevens; null: no pictures of it.")
    output_dir: str = setting(str(REPOSITORY / "docs" / "images"), "Folder of the pictures.", group="Output")


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


# ---------------------------------------------------------------------------------------------------------------------
# One function for each picture
# ---------------------------------------------------------------------------------------------------------------------


def guidance(pipe: LightningDiTPipeline) -> Image.Image:
    """The same noise of three classes at several scales of guidance."""
    scales, names = (1.0, 2.0, 4.0, 8.0), ("two", "five", "eight")
    drawn = [
        pipe(list(names), guidance_scale=scale, generator=[seeded(row + 3) for row in range(3)]).images
        for scale in scales
    ]
    rows = [(name, [images[row] for images in drawn]) for row, name in enumerate(names)]
    return labelled_grid(rows, columns=[f"{scale:g}" for scale in scales], zoom=ZOOM)


def denoising(pipe: LightningDiTPipeline) -> Image.Image:
    """The state of the flow at several times, decoded."""
    shown, frames = (0, 40, 70, 90, 105, 113, 119), {}

    def look(pipeline, step, timestep, values):
        if step in shown:
            frames[step] = postprocess(pipeline.image_processor, decode(pipeline.vae, values["latents"]), "pil")
        return values

    names = ("three", "seven")
    pipe(list(names), generator=[seeded(1), seeded(2)], callback_on_step_end=look)
    rows = [(name, [frames[step][row] for step in shown]) for row, name in enumerate(names)]
    return labelled_grid(rows, columns=[str(step + 1) for step in shown], zoom=ZOOM)


def steps(pipe: LightningDiTPipeline, student: LightningDiTPipeline) -> Image.Image:
    """Few evaluations of the network: Euler, the extrapolating sampler, and a student."""
    names = ["zero", "two", "three", "five", "eight", "nine"]

    def draw(pipeline, **arguments):
        return pipeline(names, generator=[seeded(number) for number in range(len(names))], **arguments).images

    rows = [(f"Euler, {number}", draw(pipe, num_inference_steps=number)) for number in (4, 12, 120)]
    own, pipe.scheduler = pipe.scheduler, FlowMatchUCGMScheduler()
    rows.insert(2, ("UCGM, 12", draw(pipe, num_inference_steps=12)))
    pipe.scheduler = own
    rows.append(("student, 2", draw(student)))
    return labelled_grid(rows, columns=names, zoom=ZOOM)


def image_to_image(pipe: LightningDiTPipeline, images: list[Image.Image]) -> Image.Image:
    """A digit that becomes an eight, by strength."""
    edit, strengths = LightningDiTImg2ImgPipeline.from_pipe(pipe), (0.2, 0.4, 0.6, 0.8, 1.0)
    edit.set_progress_bar_config(disable=True)
    rows = []
    for row, image in enumerate(images):
        edited = [edit("eight", image=image, strength=each, generator=seeded(row)).images[0] for each in strengths]
        rows.append(("", [image, *edited]))
    return labelled_grid(rows, columns=["image", *(f"{each:g}" for each in strengths)], zoom=ZOOM)


def inpainting(pipe: LightningDiTPipeline, images: list[Image.Image]) -> Image.Image:
    """The lower half drawn anew as other classes."""
    edit, names = LightningDiTImg2ImgPipeline.from_pipe(pipe), ("three", "eight", "nine", "two")
    edit.set_progress_bar_config(disable=True)
    mask = Image.new("L", images[0].size)
    mask.paste(255, (0, mask.height // 2, mask.width, mask.height))
    rows = []
    for row, image in enumerate(images):
        arguments = {"image": image, "mask_image": mask, "strength": 1.0}
        edited = [edit(name, generator=seeded(row), **arguments).images[0] for name in names]
        rows.append(("", [image, mask, *edited]))
    return labelled_grid(rows, columns=["image", "mask", *names], zoom=ZOOM)


def interpolation(pipe: LightningDiTPipeline) -> Image.Image:
    """From class to class: with moving noise, with the noise held still, and noise alone."""
    interpolate = LightningDiTInterpolationPipeline.from_pipe(pipe)
    interpolate.set_progress_bar_config(disable=True)

    def strip(classes: list[str], seeds: tuple[int, int]) -> list[Image.Image]:
        return interpolate(classes, num_images=8, generator=[seeded(seed) for seed in seeds]).images

    return labelled_grid(
        [
            ("three to eight, noise too", strip(["three", "eight"], (1, 2))),
            ("the noise held still", strip(["three", "eight"], (1, 1))),
            ("one class, noise alone", strip(["four", "four"], (1, 2))),
        ],
        zoom=ZOOM,
    )


def reconstruction(pipe: LightningDiTPipeline, images: list[Image.Image]) -> Image.Image:
    """Real digits, through the autoencoder and back, and the difference."""
    reconstruct = VAVAEReconstructionPipeline.from_pipe(pipe)
    output = reconstruct(images)
    differences = [
        ImageChops.difference(image, other).point(lambda value: min(255, value * DIFFERENCE))
        for image, other in zip(images, output.images, strict=True)
    ]
    rows = [("image", images), ("reconstruction", output.images), (f"difference x {DIFFERENCE}", differences)]
    return labelled_grid(rows, columns=[f"{value:.1f} dB" for value in output.psnr.tolist()], zoom=3)


def lora(pipe: LightningDiTPipeline, folder: str) -> Image.Image:
    """The old class without the LoRA and with it, and the new class, from the same noise."""

    def draw(name: str) -> list[Image.Image]:
        return pipe([name] * 8, generator=[seeded(number) for number in range(8)]).images

    rows = [("seven, before", draw("seven"))]
    pipe.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors")
    rows += [("seven, with the LoRA", draw("seven")), ("turned seven", draw("turned seven"))]
    pipe.unload_lora_weights()
    return labelled_grid(rows, zoom=ZOOM)


def samples_while_training(folder: str) -> Image.Image:
    """The grids of a run, one beside the other."""
    files = {int(file.stem.split("-")[1]): file for file in (Path(folder) / "samples").glob("step-*.png")}
    grids = [Image.open(files[step]) for step in sorted(files)]
    return labelled_grid([("", grids)], columns=[f"step {step}" for step in sorted(files)], zoom=ZOOM)


def pictures(config: GalleryConfig) -> Iterator[tuple[str, Image.Image]]:
    """The pictures by name."""
    pipe, student = (LightningDiTPipeline.from_pretrained(name) for name in (config.pipeline, config.few_step))
    for pipeline in (pipe, student):
        pipeline.set_progress_bar_config(disable=True)
    rows = datasets.load_dataset(config.data, split="train")
    digits = {label: rows[rows["label"].index(label)]["image"] for label in range(10)}
    yield "guidance", guidance(pipe)
    yield "denoising", denoising(pipe)
    yield "steps", steps(pipe, student)
    yield "img2img", image_to_image(pipe, [digits[label] for label in (3, 5)])
    yield "inpainting", inpainting(pipe, [digits[label] for label in (0, 7)])
    yield "interpolation", interpolation(pipe)
    yield "reconstruction", reconstruction(pipe, [digits[label] for label in range(8)])
    if config.lora is not None:
        yield "lora", lora(pipe, config.lora)
        yield "training-samples", samples_while_training(config.lora)


def main(argv: list[str] | None = None) -> None:
    with one_line_errors():
        config = parse_config(GalleryConfig, argv, __doc__)
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures(config):
        with atomic_write(folder / f"{name}.png") as partial:
            picture.save(partial, format="PNG", optimize=True)
        print(folder / f"{name}.png", flush=True)
    if config.lora is not None:
        with atomic_write(folder / "training-curves.png") as partial:
            draw_curves(partial, config.lora, ("loss", "grad_norm", "learning_rate"))
        print(folder / "training-curves.png")


if __name__ == "__main__":
    main()
