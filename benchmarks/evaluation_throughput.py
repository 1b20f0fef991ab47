# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""How many images a second each part of `evaluate generation` handles, and whether writing holds up drawing.

    python benchmarks/evaluation_throughput.py --pipeline P --features F [--num_images 512] [--num_workers 4]

Each part is measured alone: drawing, writing PNG files, reading them, encoding and decoding by the pipeline's VAE, the
network of the features, the sums of the Fréchet distance, precision and recall; then drawing, writing, the network and
the sums together, as the evaluation does it. Prints a table, how long that took beside the parts one after another, and
the seconds that writing held up drawing.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from diffusers_lightningdit.data.images import from_8_bits
from diffusers_lightningdit.evaluation.autoencoders import decode, mean_latents
from diffusers_lightningdit.evaluation.drawn_images import DrawnImages, draw_block, load_pipeline
from diffusers_lightningdit.evaluation.generation_config import GenerationConfig
from diffusers_lightningdit.evaluation.image_files import ImageWriter, numbered_name
from diffusers_lightningdit.evaluation.image_sets import NumberedImages, cut
from diffusers_lightningdit.evaluation.ordered_batches import exact_arithmetic
from diffusers_lightningdit.evaluation.set_statistics import make_network, measure_images
from diffusers_lightningdit.metrics.frechet import FeatureStatistics
from diffusers_lightningdit.metrics.precision_recall import precision_and_recall
from diffusers_lightningdit.settings import make_config, one_line_errors

TOGETHER = "drawing, writing, features and sums together"


def seconds_of(function: Callable[[], object], device: torch.device) -> tuple[float, object]:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


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
    seconds["drawing"], images = seconds_of(lambda: draw(blocks), device)
    (folder / "alone").mkdir()
    seconds["writing"], _ = seconds_of(lambda: write_all(folder / "alone", images, config.num_workers), device)
    written = NumberedImages(folder / "alone", config.num_images, config.num_workers)
    seconds["reading"], arrays = seconds_of(lambda: list(written.read_blocks(blocks)), device)
    vae, pixels = pipeline.vae, [from_8_bits(torch.from_numpy(block)).permute(0, 3, 1, 2) for block in arrays]
    with torch.no_grad():
        seconds["encoding"], latents = seconds_of(
            lambda: [mean_latents(vae, block.to(device, vae.dtype)) for block in pixels], device
        )
        seconds["decoding"], _ = seconds_of(lambda: [decode(vae, block) for block in latents], device)
    features_of(network, arrays[:1], device)
    seconds["features"], features = seconds_of(lambda: features_of(network, arrays, device), device)
    seconds["sums"], _ = seconds_of(lambda: sum_up(features), device)
    (folder / "together").mkdir()
    together = DrawnImages(
        pipeline, folder / "together", config.num_images, size, *recipe, config.num_workers, 4 * config.batch_size
    )
    seconds[TOGETHER], _ = seconds_of(
        lambda: measure_images(together, network, accelerator, config.micro_batch_size, config.batch_size), device
    )
    on_device = features.to(device)
    seconds["precision and recall"], _ = seconds_of(lambda: precision_and_recall(on_device, on_device), device)
    return seconds, together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", required=True, help="folder or Hub id")
    parser.add_argument("--features", help="vision transformer, folder or Hub id")
    parser.add_argument("--inception", help="file of torch-fidelity's weights, in place of --features")
    parser.add_argument("--num_images", type=int, default=512)
    parser.add_argument("--num_inference_steps", type=int, help="default: the pipeline's")
    parser.add_argument("--micro_batch_size", type=int, default=16)
    parser.add_argument("--num_workers", type=int, default=4, help="threads that read and write")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--num_threads", type=int, default=1, help="of the networks on a CPU")
    settings = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    steps = settings.pop("num_inference_steps", None)
    settings["sampling"] = {} if steps is None else {"num_inference_steps": steps}
    with one_line_errors(), tempfile.TemporaryDirectory() as folder:
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
