# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Measure how well the latents of an autoencoder are organised, and so how easily a transformer learns them.

    python -m diffusers_lightningdit.evaluate latents --vae VAE --data DATA --features MODEL --output_dir FOLDER
    accelerate launch --quiet -m diffusers_lightningdit.evaluate latents ...

The latents are the unnormalised means of the posteriors; with `data_kind=latents` those that cache_latents.py wrote,
draws of the posteriors, with the features beside them if there are any. The command writes metrics.json, with
everything that the numbers depend on, tsne.png, a t-SNE of the latents coloured by density, and tsne.csv with its
points.

Letters in the shape comments: B images, C latent channels, F feature channels, (h, w) grid.
"""

import contextlib
import csv
import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import ModelMixin

from ...data.latent_dataset import LatentsDataset
from ...files import atomic_write, check_output_dir, partial_name, weights_sha256, write_json
from ...locks import locked_by_run
from ...metrics.alignment import distance_matrix_gap, linear_cka
from ...metrics.channel_statistics import channel_statistics
from ...metrics.finite import check_finite
from ...metrics.interpolation_distance import interpolation_distance
from ...metrics.linear_classifier import can_be_split, linear_probe_accuracy, probed_images
from ...metrics.uniformity import check_scikit_learn, point_density, principal_plane, tsne_plane, uniformity
from ...networks.foundation_model import FoundationModel
from ...pixels import as_rgb, from_8_bits, to_8_bits
from ...settings import setting
from ..autoencoders import (
    METRICS_FILE,
    AutoencoderConfig,
    check_num_images,
    decode,
    load_autoencoder,
    mean_latents,
    open_dataset,
)
from ..ordered_batches import exact_arithmetic, ordered_batches
from ..plots import check_matplotlib, plot_density
from ..records import SIGNIFICANT_DIGITS, collected_warnings, measurement_record, run_command, significant

PLOT_FILE, POINTS_FILE = "tsne.png", "tsne.csv"
LEFTOVERS = tuple(partial_name(Path(name)).name for name in (METRICS_FILE, PLOT_FILE, POINTS_FILE))


@dataclasses.dataclass(kw_only=True)
class LatentsConfig(AutoencoderConfig):
    """Settings of `evaluate latents`.

    Raises:
        ValueError: If a value cannot be used.
    """

    data_kind: str = setting(
        "images",
        "The kind of the data: images, which are encoded, or latents, which cache_latents.py wrote.",
        group="Data",
        choices=("images", "latents"),
    )
    label_column: str | None = setting(
        "label", "The column of the class labels, for the linear probe; null for images without labels."
    )
    num_images: int | None = setting(
        None,
        "The number of images, drawn at random by `seed`, whose latents and features are kept in memory; null: all.",
    )
    seed: int = setting(0, "The seed of the choice of images, the t-SNE and the linear probe.", minimum=0)

    perplexity: float = setting(30.0, "The perplexity of the t-SNE.", group="Measures")

    def __post_init__(self):
        super().__post_init__()
        if self.data_kind == "latents" and self.features is not None:
            raise ValueError(
                f"`features` is {self.features!r}; required: null for latents, whose features lie beside them."
            )


# ---------------------------------------------------------------------------------------------------------------------
# Latents and features
# ---------------------------------------------------------------------------------------------------------------------


class LatentMeasures:
    """Latents and features of a batch of images.

    Args:
        vae: The frozen autoencoder, on its device.
        foundation_model: The vision transformer of the features, or None.
    """

    def __init__(self, vae: ModelMixin, foundation_model: FoundationModel | None):
        self.vae, self.foundation_model = vae, foundation_model

    @torch.no_grad()
    def __call__(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Compute `latents` [B, C, h, w], and return `features` [B, F, h, w] and `labels` [B] if there are any.

        A batch of latents, with its features or without, stays as it is.
        """
        if "latents" in batch:
            values = {name: batch[name] for name in ("latents", "features") if name in batch}
        else:
            pixels = batch["pixel_values"].to(self.vae.device)
            values = {"latents": mean_latents(self.vae, pixels)}
            if self.foundation_model is not None:
                values["features"] = self.foundation_model(as_rgb(pixels), tuple(values["latents"].shape[2:]))
            check_finite(**values)
        if "class_labels" in batch:
            values["labels"] = batch["class_labels"]
        return values

    @torch.no_grad()
    def features_of(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode latents, and average the features of the images over positions: [B, C, h, w] -> [B, F].

        The images are rounded to 8 bits, as the original saves them and `evaluate reconstruction` measures them.
        """
        images = as_rgb(to_8_bits(decode(self.vae, latents.to(self.vae.device))))
        return self.foundation_model(from_8_bits(images), tuple(latents.shape[2:])).mean((2, 3)).cpu()


def open_latents(config: LatentsConfig, vae: ModelMixin) -> LatentsDataset:
    """Open cached latents, with the features beside them if there are any, never those of mirrored images.

    Raises:
        ValueError: If they cannot be read, are those of another autoencoder, or are fewer than `num_images`.
    """
    arguments = {"split": config.split, "random_flip": False}
    dataset = LatentsDataset(config.data, **arguments)
    dataset.check_vae(vae)
    if ((dataset.info or {}).get("settings") or {}).get("foundation_model") is not None:
        dataset = LatentsDataset(config.data, with_features=True, **arguments)
    check_num_images(config.num_images, len(dataset))
    return dataset


def chosen_images(num_images: int | None, available: int, seed: int) -> list[int]:
    """Choose the indices of images at random without replacement, in ascending order; all if no number is given."""
    if num_images is None:
        return list(range(available))
    return sorted(np.random.default_rng(seed).permutation(available)[:num_images].tolist())


# ---------------------------------------------------------------------------------------------------------------------
# Numbers
# ---------------------------------------------------------------------------------------------------------------------


def latent_results(
    measures: LatentMeasures, values: dict[str, torch.Tensor], plane: torch.Tensor, config: LatentsConfig
) -> dict[str, Any]:
    """Compute all metrics that the data and the networks allow, by name.

    Args:
        measures: The object that decodes latents and computes features.
        values: The latents, features and labels of all images.
        plane: The points of the t-SNE, [B, 2].
        config: The settings of the command.
    """
    latents = values["latents"]
    results = {
        "num_images": len(latents),
        "latents_shape": list(latents.shape[1:]),
        "channels": channel_statistics(latents),
        "uniformity": {"tsne": uniformity(plane), "principal_plane": uniformity(principal_plane(latents))},
    }
    if "labels" in values:
        labels = values["labels"][probed_images(values["labels"])]
        if can_be_split(labels):
            results["linear_probe_accuracy"] = linear_probe_accuracy(latents, values["labels"], seed=config.seed)
            results["linear_probe_num_images"] = len(labels)
        else:
            warnings.warn(
                f"there is no linear probe: {len(labels.unique())} classes have at least 2 images, {len(labels)} in "
                "all; required: at least 2 such classes, and four times as many images.",
                stacklevel=2,
            )
    if "features" in values:
        results["linear_cka"] = linear_cka(latents, values["features"])
        results["distance_matrix_gap"] = distance_matrix_gap(latents, values["features"])
    if measures.foundation_model is not None:  # which sees decoded images, too
        pooled = values["features"].mean((2, 3))
        for name, weight in (("reconstruction_fd", 0.0), ("interpolation_fd", 0.5)):
            results[name] = interpolation_distance(
                latents, pooled, measures.features_of, weight=weight, batch_size=config.micro_batch_size
            )
    return significant(results)


# ---------------------------------------------------------------------------------------------------------------------
# The whole command
# ---------------------------------------------------------------------------------------------------------------------


def evaluate_latents(config: LatentsConfig, accelerator: Accelerator) -> dict[str, Any]:
    """Measure the latents, and write `metrics.json`, `tsne.png` and `tsne.csv` to `config.output_dir`.

    Returns:
        The content of `metrics.json` on the main process, an empty dictionary on the others. Its `results` are the
        statistics of the `channels`; the `uniformity` in the planes of the t-SNE and of the principal components; with
        labels, if there are enough images, `linear_probe_accuracy` and `linear_probe_num_images`, the number of images
        that it was computed from; with features `linear_cka`, `distance_matrix_gap`, and the Fréchet distances
        `reconstruction_fd` and `interpolation_fd` in these features.

    Raises:
        ValueError: Before anything is computed, if settings, data or networks cannot be used; later, if an image cannot
            be read.
        ImportError: If scikit-learn, scipy or matplotlib is not installed.
        OSError: If the files cannot be written.
    """
    check_output_dir(config.output_dir, leftovers=LEFTOVERS)
    check_scikit_learn()
    check_matplotlib()
    with exact_arithmetic(config.num_threads, accelerator.device), contextlib.ExitStack() as stack:
        return _evaluate(config, accelerator, stack)


def _evaluate(config: LatentsConfig, accelerator: Accelerator, stack: contextlib.ExitStack) -> dict[str, Any]:
    vae, resolution = load_autoencoder(config.vae, config.resolution)
    config = dataclasses.replace(config, resolution=resolution)
    foundation_model, weights = None, {"vae": weights_sha256(vae)}
    if config.features is not None:
        foundation_model = FoundationModel.from_pretrained(config.features, config.feature_normalization)
        weights["features"] = weights_sha256(foundation_model.model)
        foundation_model.to(accelerator.device)
    if config.data_kind == "latents":
        dataset = open_latents(config, vae)
    else:
        dataset = open_dataset(config, vae, config.label_column)
    indices = chosen_images(config.num_images, len(dataset), config.seed)
    if not 0 < config.perplexity < len(indices):
        raise ValueError(f"`perplexity` is {config.perplexity:g}; required: above 0, below the {len(indices)} images.")
    measures = LatentMeasures(vae.to(accelerator.device), foundation_model)
    stack.enter_context(locked_by_run(accelerator, config.output_dir))
    check_output_dir(config.output_dir, leftovers=LEFTOVERS)  # another run may have ended there in the meantime
    accelerator.print(dataset.summary())
    sizes = (config.micro_batch_size, config.num_workers)
    batches = list(ordered_batches(dataset, measures, accelerator, *sizes, indices, "encoding"))
    if not accelerator.is_main_process:
        return {}
    values = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    plane = tsne_plane(values["latents"], config.perplexity, config.seed, config.num_threads)
    with collected_warnings() as messages:  # about too few images
        results = latent_results(measures, values, plane, config)

    folder = Path(config.output_dir)
    density = point_density(plane)
    write_points(folder / POINTS_FILE, indices, plane, density, values.get("labels"))
    gini = results["uniformity"]["tsne"]["gini_coefficient"]
    plot_density(folder / PLOT_FILE, plane, density, f"t-SNE of {len(indices)} latents, Gini coefficient {gini:.3f}")
    record = measurement_record("latents", results, config, weights, accelerator)
    record["warnings"] = messages
    write_json(folder / METRICS_FILE, record)
    return record


def write_points(
    path: Path, indices: list[int], points: torch.Tensor, density: torch.Tensor, labels: torch.Tensor | None
) -> None:
    """Write a table with a line for each image: its index in the data, its point in the plane, density and label."""
    columns = {"index": indices, "x": points[:, 0].tolist(), "y": points[:, 1].tolist(), "density": density.tolist()}
    if labels is not None:
        columns["label"] = labels.tolist()
    with atomic_write(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for row in zip(*columns.values(), strict=True):
            writer.writerow([f"{value:.{SIGNIFICANT_DIGITS}g}" if isinstance(value, float) else value for value in row])


def main(argv: list[str] | None = None) -> dict[str, Any]:
    return run_command(LatentsConfig, evaluate_latents, METRICS_FILE, argv, __doc__)
