# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Measure how well an autoencoder gives images back: PSNR, SSIM, LPIPS of each, the Fréchet distance of all (rFID).

    python -m diffusers_lightningdit.evaluate reconstruction --vae VAE --data DATA --features MODEL --output_dir FOLDER
    accelerate launch -m diffusers_lightningdit.evaluate reconstruction ...

A reconstruction is decode(mean of the posterior), rounded to 8 bits as the original does, since that is what is saved
and shown; every measure is of these 8-bit images, in one pass over the data. Writes metrics.json, with everything that
the numbers depend on, and images.csv, with a line for each image.

Letters in the shape comments: B images.
"""

import csv
import dataclasses
import json
import math
from collections import deque
from pathlib import Path
from typing import Any, TextIO

import datasets
import torch
from accelerate import Accelerator
from diffusers import ModelMixin

from ...data.images import ImageDataset, from_8_bits, to_8_bits
from ...data.latent_shards import DTYPES
from ...files import (
    atomic_write,
    check_output_dir,
    file_sha256,
    partial_name,
    resolve_file,
    weights_sha256,
    write_json,
)
from ...metrics.frechet import FeatureStatistics
from ...metrics.image_similarity import peak_signal_to_noise_ratio, structural_similarity
from ...networks.inception import PUBLISHED_SHA256
from ...networks.lpips import LPIPS
from ...processes import patient_accelerator
from ...settings import check_choice, one_line_errors
from ..autoencoders import HELP as AUTOENCODER_HELP
from ..autoencoders import AutoencoderConfig, decode, load_autoencoder, mean_latents
from ..networks import exact_arithmetic, make_network
from ..ordered_batches import ordered_batches
from ..records import collected_warnings, measurement_record
from ..rounding import significant
from .command_help import parse_command

METRICS_FILE = "metrics.json"
IMAGES_FILE = "images.csv"
LEFTOVERS = tuple(partial_name(Path(name)).name for name in (METRICS_FILE, IMAGES_FILE))
DECIMALS = {"psnr_db": 4, "ssim": 6, "lpips": 6}


HELP = {
    **AUTOENCODER_HELP,
    "num_images": "the first so many; default: all",
    "lpips": "safetensors file of the weights of LPIPS, or user/repo:file on the Hub",
    "lpips_sha256": "of that file; without one, it has to be converted from the published weights",
    "features": "folder or Hub id of a vision transformer, for the Fréchet distance rfd",
    "feature_pooling": "patch_mean, class_token, or pooler (of networks without patches)",
    "feature_size": "side in pixels that its input is resized to; default: as it is",
    "inception": "file of torch-fidelity's Inception weights, for rfid",
    "inception_sha256": "of that file, or how it begins",
    "vae_dtype": "that the autoencoder computes in: float32, bfloat16, float16",
}


@dataclasses.dataclass(kw_only=True)
class ReconstructionConfig(AutoencoderConfig):
    """Settings of `evaluate reconstruction`; `HELP` says what each is.

    Raises:
        ValueError: for a value that cannot be measured with.
    """

    lpips: str | None = None
    lpips_sha256: str | None = None
    feature_pooling: str = "patch_mean"
    feature_size: int | None = None
    inception: str | None = None
    inception_sha256: str = PUBLISHED_SHA256
    vae_dtype: str = "float32"

    def __post_init__(self):
        super().__post_init__()
        check_choice("vae_dtype", self.vae_dtype, DTYPES)
        if self.features is not None and self.inception is not None:
            raise ValueError("`features` and `inception` are both given; required: one of them, or neither.")


# ---------------------------------------------------------------------------------------------------------------------
# One batch
# ---------------------------------------------------------------------------------------------------------------------


class ReconstructionMeasures:
    """What is measured of a batch of images.

    Args:
        vae: frozen, on its device.
        lpips: or None.
        features: a network as in `features.py`, or None.
    """

    def __init__(self, vae: ModelMixin, lpips: LPIPS | None, features: torch.nn.Module | None):
        self.vae, self.lpips, self.features = vae, lpips, features

    @torch.no_grad()
    def __call__(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`psnr_db`, `ssim`, `lpips`: [B]; `real`, `reconstructed`: features [B, D]; as far as there are networks."""
        originals = to_8_bits(batch["pixel_values"].to(self.vae.device))
        latents = mean_latents(self.vae, from_8_bits(originals).to(self.vae.dtype))
        reconstructions = to_8_bits(decode(self.vae, latents))
        x, y = from_8_bits(originals), from_8_bits(reconstructions)
        ssim = structural_similarity(originals.double() / 255, reconstructions.double() / 255)
        values = {"psnr_db": peak_signal_to_noise_ratio(x, y), "ssim": ssim}
        if self.lpips is not None:
            values["lpips"] = self.lpips(x, y).flatten().double()
        if self.features is not None:
            values["real"] = self.features(originals)["features"]
            values["reconstructed"] = self.features(reconstructions)["features"]
        return values


# ---------------------------------------------------------------------------------------------------------------------
# The whole data set
# ---------------------------------------------------------------------------------------------------------------------


class ReconstructionTotals:
    """Takes in what is measured, batch by batch: a line for each image goes to a file, means and statistics are kept.

    Args:
        file: open for text.
    """

    def __init__(self, file: TextIO):
        self._writer = csv.writer(file, lineterminator="\n")
        self._values: dict[str, list[float]] = {}
        self._statistics: dict[str, FeatureStatistics] = {}

    def update(self, batch: dict[str, torch.Tensor]) -> None:
        """Take in what `ReconstructionMeasures` made of the next images."""
        if not self._values:
            self._values = {name: [] for name in DECIMALS if name in batch}
            self._writer.writerow(["index", *self._values])
        for row in zip(*(batch[name].tolist() for name in self._values), strict=True):
            index = len(self._values["psnr_db"])
            numbers = dict(zip(self._values, row, strict=True))
            self._writer.writerow([index, *(f"{value:.{DECIMALS[name]}f}" for name, value in numbers.items())])
            for name, value in numbers.items():
                self._values[name].append(value)
        for name in {"real", "reconstructed"} & batch.keys():
            self._statistics.setdefault(name, FeatureStatistics(batch[name].shape[1])).update(batch[name])

    def results(self) -> dict[str, float]:
        """Means over the images, and `frechet_distance` if there are features."""
        num_images = len(self._values["psnr_db"])
        # fsum is exact: the order doesn't matter
        means = {name: math.fsum(values) / num_images for name, values in self._values.items()}
        results = {"num_images": num_images, **{name: round(mean, DECIMALS[name]) for name, mean in means.items()}}
        if self._statistics:
            distance = self._statistics["real"].distance_to(self._statistics["reconstructed"])
            results["frechet_distance"] = significant(distance)
        return results


def evaluate_reconstruction(config: ReconstructionConfig, accelerator: Accelerator) -> dict[str, Any]:
    """Measure, and write `metrics.json` and `images.csv`, with a line for each image, into `config.output_dir`.

    Returns:
        The content of `metrics.json` on the main process, else nothing. Its `results`: `num_images`; `psnr_db`, `ssim`,
        `lpips`, means over the images (`psnr_db` is None if an image is given back exactly); `rfid` in Inception's
        features or `rfd` in others. The number of processes changes no digit.

    Raises:
        ValueError: before anything is computed, for settings, data or networks that cannot be used; later for an image
            that cannot be read.
        ImportError: for `inception`, without torch-fidelity.
        OSError: if the files cannot be written.
    """
    check_output_dir(config.output_dir, leftovers=LEFTOVERS)
    with exact_arithmetic(config.num_threads):
        return _evaluate(config, accelerator)


def _evaluate(config: ReconstructionConfig, accelerator: Accelerator) -> dict[str, Any]:
    vae = load_autoencoder(config.vae, config.resolution)
    weights = {"vae": weights_sha256(vae)}
    features = make_network(config)
    if features is not None:
        features.check_size(config.resolution, config.resolution)
        weights["features"] = features.description["sha256"]
    lpips = None
    if config.lpips is not None:
        lpips = LPIPS.from_file(config.lpips, config.lpips_sha256)
        weights["lpips"] = file_sha256(resolve_file(config.lpips))
    dataset = ImageDataset(
        config.data, config.resolution, config.split, config.image_column, None, config.preprocessing
    )
    config.check_num_images(len(dataset))
    indices = range(config.num_images or len(dataset))
    if features is not None and len(indices) < 2:
        raise ValueError("there is 1 image; required: at least 2 for a Fréchet distance.")
    if config.vae_dtype != "float32":
        vae.to(DTYPES[config.vae_dtype])
    for network in (vae, lpips, features):
        if network is not None:
            network.to(accelerator.device)
    measures = ReconstructionMeasures(vae, lpips, features)
    measures({"pixel_values": torch.zeros(1, 3, config.resolution, config.resolution)})  # too small for one of them?

    accelerator.wait_for_everyone()  # every process has looked at the folder
    measured = ordered_batches(dataset, measures, accelerator, config.micro_batch_size, config.num_workers, indices)
    if not accelerator.is_main_process:
        deque(measured, maxlen=0)
        return {}
    path = Path(config.output_dir) / IMAGES_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        totals = ReconstructionTotals(file)
        for batch in measured:
            totals.update(batch)
    with collected_warnings() as messages:  # of covariances of too few images
        results = totals.results()
    if features is not None:
        results["rfd" if config.inception is None else "rfid"] = results.pop("frechet_distance")
    record = measurement_record("reconstruction", results, config, weights, accelerator)
    record |= {"warnings": messages, "features": None if features is None else features.description}
    write_json(path.with_name(METRICS_FILE), record)
    return record


def main(argv: list[str] | None = None) -> None:
    with one_line_errors((ValueError, ImportError, OSError)):
        config = parse_command(ReconstructionConfig, argv, __doc__, HELP)
        datasets.disable_progress_bars()
        accelerator = patient_accelerator()
        record = evaluate_reconstruction(config, accelerator)
        if accelerator.is_main_process:
            print(json.dumps(record["results"], indent=2))
            print(f"wrote {Path(config.output_dir) / METRICS_FILE}")
    accelerator.end_training()
