# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Throughput of each part of `evaluate generation` in images a second, and the time that drawing waits for writing.

    python benchmarks/evaluation_throughput.py --pipeline P --features F --num_images 512 --num_workers 4

Each part is measured alone: drawing, writing PNG files, reading them, encoding and decoding by the pipeline's VAE, the
network of the features, the sums of the Fréchet distance, precision and recall. Then drawing, writing, the network and
the sums are measured together, as they run in the evaluation. The script prints a table, the time that they took
together and one after another, and the time that drawing had to wait for writing.
"""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from timing import timed

from diffusers_lightningdit.evaluation.autoencoders import decode, mean_latents
from diffusers_lightningdit.evaluation.drawn_images import DrawnImages, draw_block, load_pipeline
from diffusers_lightningdit.evaluation.generation_config import GenerationConfig
from diffusers_lightningdit.evaluation.image_files import ImageWriter, numbered_name
from diffusers_lightningdit.evaluation.image_sets import NumberedImages, cut
from diffusers_lightningdit.evaluation.ordered_batches import exact_arithmetic
from diffusers_lightningdit.evaluation.set_statistics import make_network, measure_images
from diffusers_lightningdit.metrics.frechet import FeatureStatistics
from diffusers_lightningdit.metrics.precision_recall import precision_and_recall
from diffusers_lightningdit.pixels import from_8_bits
from diffusers_lightningdit.settings import make_config, one_line_errors, parse_config, required, setting

TOGETHER = "drawing, writing, features and sums together"


@dataclasses.dataclass(kw_only=True)
class ThroughputConfig:
    """Settings of evaluation_throughput.py; those of `evaluate generation` are checked there."""

    pipeline: str = required("Folder or Hub id of a class-conditional pipeline.")

    num_images: int = setting(512, "Images of each measurement.", group="Sampling")
    num_inference_steps: int | None = setting(
        None, "The number of sampling steps; null: that of the pipeline's recipe."
    )

    features: str | None = setting(
        None, "Folder or Hub id of a vision transformer; it or `inception` is needed.", group="Measures"
    )
    inception: str | None = setting(None, "File of torch-fidelity's Inception weights, in place of `features`.")

    dtype: str = setting("float32", "The type that the pipeline computes in.", group="Computation")
    micro_batch_size: int = setting(16, "Images that the networks take at a time.")
    num_workers: int = setting(4, "Threads that read and write images.")
    num_threads: int = setting(1, "Threads of the networks on a CPU.")


def write_all(folder: Path, images: list[np.ndarray], num_threads: int) -> None:
    with ImageWriter(num_threads) as writer:
        for index, image in enumerate(images):
            writer.write(folder / numbered_name(index), image)


def features_of(network: torch.nn.Module, blocks: list[np.ndarray], device: torch.device) -> torch.Tensor:
    tensors = (torch.from_numpy(block).to(device).permute(0, 3, 1, 2) for block in blocks)
    return torch.cat([network(tensor)["features"].float().cpu() for tensor in tensors])


def sum_up(features: torch.Tensor) -> None:
    statistics = FeatureStatistics(features.shape[1])
    for rows in features.split(1024):
        statistics.update(rows)


def measure(config: GenerationConfig, folder: Path) -> tuple[dict[str, float], DrawnImages]:
    """Seconds of each part, and the set that was drawn and measured together."""
    accelerator = Accelerator()
    device = accelerator.device
    pipeline = load_pipeline(config.pipeline).to(device, getattr(torch, config.dtype))
    network = make_network(config).to(device)
    blocks = cut(config.num_images, config.micro_batch_size)
    recipe = (config.labels, config.seed, config.sampling, config.micro_batch_size)

    def draw(blocks: list[range]) -> list[np.ndarray]:
        return [image for block in blocks for image in draw_block(pipeline, block, *recipe)]

    size = draw(blocks[:1])[0].shape[:2]  # a first call is slower
    seconds = {}
    seconds["drawing"], images = timed(lambda: draw(blocks), device)
    (folder / "alone").mkdir()
    seconds["writing"], _ = timed(lambda: write_all(folder / "alone", images, config.num_workers), device)
    written = NumberedImages(folder / "alone", config.num_images, config.num_workers)
    seconds["reading"], arrays = timed(lambda: list(written.read_blocks(blocks)), device)
    vae, pixels = pipeline.vae, [from_8_bits(torch.from_numpy(block)).permute(0, 3, 1, 2) for block in arrays]
    with torch.no_grad():
        seconds["encoding"], latents = timed(
            lambda: [mean_latents(vae, block.to(device, vae.dtype)) for block in pixels], device
        )
        seconds["decoding"], _ = timed(lambda: [decode(vae, block) for block in latents], device)
    features_of(network, arrays[:1], device)
    seconds["features"], features = timed(lambda: features_of(network, arrays, device), device)
    seconds["sums"], _ = timed(lambda: sum_up(features), device)
    (folder / "together").mkdir()
    together = DrawnImages(
        pipeline, folder / "together", config.num_images, size, *recipe, config.num_workers, 4 * config.batch_size
    )
    seconds[TOGETHER], _ = timed(
        lambda: measure_images(together, network, accelerator, config.micro_batch_size, config.batch_size), device
    )
    on_device = features.to(device)
    seconds["precision and recall"], _ = timed(lambda: precision_and_recall(on_device, on_device), device)
    return seconds, together


def main(argv: list[str] | None = None) -> None:
    with one_line_errors(), tempfile.TemporaryDirectory() as folder:
        settings = dataclasses.asdict(parse_config(ThroughputConfig, argv, __doc__))
        steps = settings.pop("num_inference_steps")
        settings["sampling"] = {} if steps is None else {"num_inference_steps": steps}
        config = make_config(GenerationConfig, {**settings, "output_dir": folder, "reference": folder})
        with exact_arithmetic(config.num_threads, Accelerator().device):
            seconds, together = measure(config, Path(folder))
    print(f"| part of {config.num_images} images | images/s |\n|---|---|")
    for name, value in seconds.items():
        print(f"| {name} | {config.num_images / value:,.1f} |")
    apart = sum(seconds[name] for name in ("drawing", "writing", "features", "sums"))
    print(f"\ntogether in {seconds[TOGETHER]:.2f} s, one after another in {apart:.2f} s")
    print(f"writing held up drawing for {together.seconds_held_up:.3f} s")


if __name__ == "__main__":
    main()
