# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Measure the reconstructions of an autoencoder: PSNR, SSIM, LPIPS and the Fréchet distance (rFID).

    python -m diffusers_lightningdit.evaluate reconstruction --vae VAE --data DATA --features MODEL --output_dir FOLDER
    accelerate launch --quiet -m diffusers_lightningdit.evaluate reconstruction ...

A reconstruction is decode(mean of the posterior), rounded to 8 bits as in the original, since these images are saved
and shown. All metrics are of these 8-bit images and are computed in one pass over the data. The command writes
metrics.json, with everything that the numbers depend on, images.csv, with a line for each image, and sheet.png, which
shows the worst reconstructions and those of the middle with their differences.

Letters in the shape comments: B images.
"""

import contextlib
import csv
import dataclasses
import math
from collections import deque
from pathlib import Path
from typing import Any, TextIO

import torch
from accelerate import Accelerator
from diffusers import ModelMixin
from diffusers.utils import make_image_grid
from PIL import Image

from ...data.images import ImageDataset
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
from ...grids import labelled_grid
from ...locks import locked_by_run
from ...metrics.finite import check_finite
from ...metrics.frechet import FeatureStatistics
from ...metrics.image_similarity import peak_signal_to_noise_ratio, structural_similarity
from ...networks.inception import PUBLISHED_SHA256
from ...networks.lpips import LPIPS
from ...networks.vision_features import POOLINGS
from ...pixels import as_rgb, from_8_bits, height_and_width, to_8_bits
from ...settings import setting
from ..autoencoders import (
    METRICS_FILE,
    AutoencoderConfig,
    decode,
    image_channels,
    load_autoencoder,
    mean_latents,
    open_dataset,
)
from ..ordered_batches import exact_arithmetic, ordered_batches
from ..records import collected_warnings, measurement_record, run_command, significant
from ..set_statistics import make_network

IMAGES_FILE, SHEET_FILE = "images.csv", "sheet.png"
LEFTOVERS = tuple(partial_name(Path(name)).name for name in (METRICS_FILE, IMAGES_FILE, SHEET_FILE))
SHEET_SIDE = 128  # pixels that small images are enlarged to in the sheet
DIFFERENCE = 4  # the factor by which differences are enlarged in the sheet
DECIMALS = {"psnr_db": 4, "ssim": 6, "lpips": 6}


@dataclasses.dataclass(kw_only=True)
class ReconstructionConfig(AutoencoderConfig):
    """Settings of `evaluate reconstruction`.

    Raises:
        ValueError: If a value cannot be used.
    """

    num_images: int | None = setting(None, "The number of images, the first ones of the data; null: all.")
    num_shown: int = setting(
        4, "The worst reconstructions, and as many of the middle, that sheet.png shows; 0: no sheet.", minimum=0
    )

    lpips: str | None = setting(
        None,
        "File of LPIPS's weights that convert_lpips_to_safetensors.py wrote, or user/name:file on the Hub; null: no "
        "LPIPS.",
        group="Measures",
    )
    lpips_sha256: str | None = setting(
        None, "The SHA-256 of the file `lpips`; null: the file has to name the published weights as its source."
    )
    feature_pooling: str = setting(
        "patch_mean",
        "The pooling of the vision transformer's tokens; pooler is for networks without patches.",
        choices=tuple(POOLINGS),
    )
    feature_size: int | None = setting(
        None, "The side in pixels that the vision transformer's input is resized to; null: the input is not resized."
    )
    inception: str | None = setting(
        None, "File of torch-fidelity's Inception weights, for `rfid`; null: no such number."
    )
    inception_sha256: str = setting(PUBLISHED_SHA256, "The SHA-256 of the file `inception`, or how it begins.")

    vae_dtype: str = setting(
        "float32", "The type that the autoencoder computes in.", group="Computation", choices=DTYPES
    )

    def __post_init__(self):
        super().__post_init__()
        if self.features is not None and self.inception is not None:
            raise ValueError("`features` and `inception` are both given; required: one of them, or neither.")


# ---------------------------------------------------------------------------------------------------------------------
# One batch
# ---------------------------------------------------------------------------------------------------------------------


class ReconstructionMeasures:
    """Metrics of a batch of images and their reconstructions.

    Args:
        vae: The frozen autoencoder, on its device.
        lpips: The network of LPIPS, or None.
        features: The network whose features are compared, or None.
    """

    def __init__(self, vae: ModelMixin, lpips: LPIPS | None, features: torch.nn.Module | None):
        self.vae, self.lpips, self.features = vae, lpips, features

    @torch.no_grad()
    def reconstruct(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and reconstructions, uint8 [B, C, H, W], of pixels [B, C, H, W] in [-1, 1]."""
        originals = to_8_bits(pixels.to(self.vae.device))
        latents = mean_latents(self.vae, from_8_bits(originals).to(self.vae.dtype))
        return originals, to_8_bits(decode(self.vae, latents))

    @torch.no_grad()
    def __call__(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Compute `psnr_db`, `ssim` and `lpips`, [B], and the features `real` and `reconstructed`, [B, D].

        Values whose network is None are left out.
        """
        originals, reconstructions = self.reconstruct(batch["pixel_values"])
        x, y = from_8_bits(originals), from_8_bits(reconstructions)
        ssim = structural_similarity(originals.double() / 255, reconstructions.double() / 255)
        values = {"psnr_db": peak_signal_to_noise_ratio(x, y), "ssim": ssim}
        if self.lpips is not None:
            values["lpips"] = self.lpips(as_rgb(x), as_rgb(y)).flatten().double()
        if self.features is not None:
            values["real"] = self.features(as_rgb(originals))["features"]
            values["reconstructed"] = self.features(as_rgb(reconstructions))["features"]
        check_finite(**{name: tensor for name, tensor in values.items() if name != "psnr_db"})  # inf of equal images
        return values


# ---------------------------------------------------------------------------------------------------------------------
# The whole data set
# ---------------------------------------------------------------------------------------------------------------------


class ReconstructionTotals:
    """Means and statistics of all batches, and a table of all images that is written to a file.

    Args:
        file: The file, open for writing text.
    """

    def __init__(self, file: TextIO):
        self._writer = csv.writer(file, lineterminator="\n")
        self._values: dict[str, list[float]] = {}
        self._statistics: dict[str, FeatureStatistics] = {}

    def update(self, batch: dict[str, torch.Tensor]) -> None:
        """Add the result of `ReconstructionMeasures` for the next batch."""
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

    def shown(self, number: int) -> dict[str, list[tuple[int, float]]]:
        """The "worst" images and the "median" ones, by LPIPS if there is one, else by PSNR: (index, PSNR in dB)."""
        psnr = self._values["psnr_db"]
        quality = [-distance for distance in self._values["lpips"]] if "lpips" in self._values else psnr
        order = sorted(range(len(psnr)), key=quality.__getitem__)
        first = max(0, (len(order) - number) // 2)
        chosen = {"worst": order[:number], "median": order[first : first + number]}
        return {name: [(index, psnr[index]) for index in indices] for name, indices in chosen.items()}

    def results(self) -> dict[str, float]:
        """Return the means over the images, and the `frechet_distance` if there are features."""
        num_images = len(self._values["psnr_db"])
        # fsum is exact, so the order does not matter.
        means = {name: math.fsum(values) / num_images for name, values in self._values.items()}
        results = {"num_images": num_images, **{name: round(mean, DECIMALS[name]) for name, mean in means.items()}}
        if self._statistics:
            distance = self._statistics["real"].distance_to(self._statistics["reconstructed"])
            results["frechet_distance"] = significant(distance)
        return results


def draw_sheet(
    measures: ReconstructionMeasures, dataset: ImageDataset, shown: dict[str, list[tuple[int, float]]]
) -> Image.Image:
    """Draw images, their reconstructions and the differences times `DIFFERENCE`, a column for each image.

    Args:
        measures: The object that reconstructs.
        dataset: The images.
        shown: The images as `ReconstructionTotals.shown` gives them.
    """
    bands = []
    for name, images in shown.items():
        rows: dict[str, list[Image.Image]] = {name: [], "reconstruction": [], f"difference x {DIFFERENCE}": []}
        for index, _ in images:
            original, reconstruction = measures.reconstruct(dataset[index]["pixel_values"][None])
            difference = (original.int() - reconstruction.int()).abs().mul(DIFFERENCE).clamp(max=255).to(torch.uint8)
            for row, pixels in zip(rows.values(), (original, reconstruction, difference), strict=True):
                row.append(Image.fromarray(as_rgb(pixels)[0].permute(1, 2, 0).cpu().numpy()))
        zoom = max(1, SHEET_SIDE // rows[name][0].height)
        bands.append(labelled_grid(list(rows.items()), [f"{index}: {psnr:.1f} dB" for index, psnr in images], zoom))
    return make_image_grid(bands, rows=len(bands), cols=1)


def evaluate_reconstruction(config: ReconstructionConfig, accelerator: Accelerator) -> dict[str, Any]:
    """Measure the reconstructions, and write `metrics.json`, `images.csv` and `sheet.png` to `config.output_dir`.

    Returns:
        The content of `metrics.json` on the main process, an empty dictionary on the others. Its `results` are
        `num_images`; the means `psnr_db`, `ssim` and `lpips` over the images (`psnr_db` is None if an image is
        reconstructed exactly); and the Fréchet distance, `rfid` with Inception's features or `rfd` with others. They do
        not depend on the number of processes.

    Raises:
        ValueError: Before anything is computed, if settings, data or networks cannot be used; later, if an image cannot
            be read.
        ImportError: If `inception` is set and torch-fidelity is not installed.
        OSError: If the files cannot be written.
    """
    check_output_dir(config.output_dir, leftovers=LEFTOVERS)
    with exact_arithmetic(config.num_threads, accelerator.device), contextlib.ExitStack() as stack:
        return _evaluate(config, accelerator, stack)


def _evaluate(config: ReconstructionConfig, accelerator: Accelerator, stack: contextlib.ExitStack) -> dict[str, Any]:
    vae, resolution = load_autoencoder(config.vae, config.resolution)
    config = dataclasses.replace(config, resolution=resolution)
    weights = {"vae": weights_sha256(vae)}
    features = make_network(config)
    if features is not None:
        features.check_size(*height_and_width(resolution))
        weights["features"] = features.description["sha256"]
    lpips = None
    if config.lpips is not None:
        lpips = LPIPS.from_file(config.lpips, config.lpips_sha256)
        weights["lpips"] = file_sha256(resolve_file(config.lpips))
    dataset = open_dataset(config, vae)
    indices = range(config.num_images or len(dataset))
    if features is not None and len(indices) < 2:
        raise ValueError("there is 1 image; required: at least 2 for a Fréchet distance.")
    if config.vae_dtype != "float32":
        vae.to(DTYPES[config.vae_dtype])
    for network in (vae, lpips, features):
        if network is not None:
            network.to(accelerator.device)
    measures = ReconstructionMeasures(vae, lpips, features)
    size = (image_channels(vae), *height_and_width(resolution))
    measures({"pixel_values": torch.zeros(1, *size)})  # checks the size of the images
    stack.enter_context(locked_by_run(accelerator, config.output_dir))
    check_output_dir(config.output_dir, leftovers=LEFTOVERS)  # another run may have ended there in the meantime
    accelerator.print(dataset.summary())
    sizes = (config.micro_batch_size, config.num_workers)
    measured = ordered_batches(dataset, measures, accelerator, *sizes, indices)
    if not accelerator.is_main_process:
        deque(measured, maxlen=0)
        return {}
    path = Path(config.output_dir) / IMAGES_FILE
    with atomic_write(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        totals = ReconstructionTotals(file)
        for batch in measured:
            totals.update(batch)
    with collected_warnings() as messages:  # about covariances of too few images
        results = totals.results()
    if config.num_shown:
        with atomic_write(path.with_name(SHEET_FILE)) as partial:
            draw_sheet(measures, dataset, totals.shown(config.num_shown)).save(partial, format="PNG")
    if features is not None:
        results["rfd" if config.inception is None else "rfid"] = results.pop("frechet_distance")
    record = measurement_record("reconstruction", results, config, weights, accelerator)
    record |= {"warnings": messages, "features": None if features is None else features.description}
    write_json(path.with_name(METRICS_FILE), record)
    return record


def main(argv: list[str] | None = None) -> dict[str, Any]:
    return run_command(ReconstructionConfig, evaluate_reconstruction, METRICS_FILE, argv, __doc__)
