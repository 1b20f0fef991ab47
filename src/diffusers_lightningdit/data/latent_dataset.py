# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""A data set of raw latents with labels, from shards or from the rows of a Hugging Face data set.

Items are `{"latents": float32 [C, height, width], "class_labels": int}`. Latents are raw: the VAE normalises them.
"""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset

from ..files import weights_sha256
from ..keyed_random import is_flipped
from ..models import AutoencoderVAVAE
from .latent_shards import LatentShards, read_info
from .latent_statistics import check_statistics
from .rows import UnusableData, describe_classes, known_num_classes, open_source


class UnusableLatents(UnusableData):
    """Latents of a data set that cannot be used; the message is one line."""


class LatentsDataset(Dataset):
    """Latents of a folder of shards (ours or the original's), or of a data set that `datasets.load_dataset` reads.

    An index that is an `EpochIndex`, as `GlobalBatchSampler` yields, decides with the seed whether the mirrored image's
    latents are taken; a plain index reads epoch 0.

    Args:
        data: The folder of *.safetensors shards; or the folder or Hub id of a data set with the columns latents,
            latents_flip and label.
        split: The split of a data set that `datasets` reads; shards have none.
        random_flip: Whether to take the mirrored image with probability 0.5.
        seed: The seed of the flips.
        in_memory: Whether to read everything at once and keep it.
        num_classes: The number that labels have to be below; by default the number of their names, if they have any.
        with_features: Whether to give features with the latents; they stay on the disk.

    Attributes:
        labels: int64 [N].
        shape: The shape of the latents, (C, height, width).
        feature_shape: The shape of the features, (F, h, w), or None without them.
        id2label: names of the labels, or None where the data has none.

    Raises:
        ValueError: naming the file, for data that is missing, damaged, of changing shapes, or has labels out of range.
            Latents that aren't finite are found, and named, when they are read.
    """

    def __init__(
        self,
        data: str,
        split: str = "train",
        random_flip: bool = True,
        seed: int = 0,
        in_memory: bool = False,
        num_classes: int | None = None,
        with_features: bool = False,
    ):
        folder = Path(data)
        if folder.is_dir() and not any(folder.iterdir()):
            raise ValueError(f"`data` is {data!r}, an empty folder; required: shards of latents or a data set.")
        has_shards = folder.is_dir() and any(folder.glob("*.safetensors"))
        if with_features and not has_shards:
            raise ValueError(f"`data` is {data!r}; required: a folder of shards, which alone can hold features.")
        self._source: LatentShards | LatentRows
        if has_shards:
            self._source = LatentShards(folder, random_flip, with_features)
        else:
            self._source = LatentRows(data, split, random_flip)
        self.feature_shape = self._source.feature_shape if with_features else None
        self.data = data
        self.random_flip = random_flip
        self.seed = seed
        self.labels = self._source.labels
        self.shape = self._source.shape
        self.info = self._source.info
        self.id2label = self._source.id2label
        made_with = (self.info or {}).get("settings") or {}
        is_one_class = "label_column" in made_with and made_with["label_column"] is None
        self._num_classes = num_classes or (1 if is_one_class else None)
        self._check_labels(num_classes or (self.id2label and len(self.id2label)))
        self._memory = None
        if in_memory:
            memory = {flip: torch.empty(len(self), *self.shape) for flip in (False, True)[: 1 + random_flip]}
            for flip, latents in memory.items():
                for index in range(len(self)):
                    latents[index] = self.read(index, flip)
            self._memory = memory

    def _check_labels(self, num_classes: int | None) -> None:
        limit = num_classes or int(self.labels.max()) + 1
        wrong = ((self.labels < 0) | (self.labels >= limit)).nonzero().flatten().tolist()
        if wrong:
            raise ValueError(
                f"{self._source.place(wrong[0])} has label {int(self.labels[wrong[0]])} ({len(wrong)} such labels in "
                f"all); required: 0 to {limit - 1}."
            )

    @property
    def num_classes(self) -> int:
        """The number of classes: of names of labels, or else as given; raises ValueError if nothing tells it."""
        return known_num_classes(len(self.id2label) if self.id2label else self._num_classes, self.data)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict]:
        """Items, which a DataLoader asks for a batch at a time: they are copied and checked at once."""
        flips = [self.random_flip and is_flipped(self.seed, getattr(i, "epoch", 0), int(i)) for i in indices]
        latents, labels = self._read_all(indices, flips), self.labels[list(indices)].tolist()
        items = [{"latents": x, "class_labels": label} for x, label in zip(latents, labels, strict=True)]
        if self.feature_shape is not None:
            for item, features in zip(items, self._read_all(indices, flips, "features"), strict=True):
                item["features"] = features
        return items

    def read(self, index: int, flip: bool) -> torch.Tensor:
        """Raw latents of an image, or of the mirrored image: float32 [C, height, width].

        Raises:
            ValueError: if they are not finite.
        """
        return self._read_all([index], [flip])[0]

    def _read_all(self, indices: Sequence[int], flips: list[bool], name: str = "latents") -> torch.Tensor:
        """Latents, or features, as one tensor in float32; raises ValueError, naming its place, if one is not finite."""
        for index in (min(indices), max(indices)):
            if not 0 <= index < len(self):
                raise IndexError(f"index {index} is out of range; required: 0 to {len(self) - 1}.")
        if self._memory is not None and name == "latents":
            return torch.stack([self._memory[flip][index] for index, flip in zip(indices, flips, strict=True)])
        read = self._source.read if name == "latents" else partial(self._source.read, name=name)
        found = torch.stack([read(index, flip) for index, flip in zip(indices, flips, strict=True)]).float()
        if not found.sum().isfinite():  # which the sum of great numbers isn't, either
            for values, index in zip(found, indices, strict=True):
                require_finite(values, self._source.place(index), name)
        return found

    def summary(self) -> str:
        """One line: the number of images, the classes, and the images of each class."""
        return f"{self.data}: latents of {len(self)} images, {describe_classes(self.labels.tolist(), self.id2label)}"

    def data_sha256(self) -> str:
        """The hash of what the rows are known by, for a resumed run to compare.

        Equal shapes make files of equal sizes: labels and the first latents and the last tell more than names do.
        """
        digest = hashlib.sha256(self.labels.numpy().tobytes())
        for index in (0, len(self) - 1):
            digest.update(self._source.read(index, flip=False).float().numpy().tobytes())
        return digest.hexdigest()

    # -- does it belong together? --

    def check_vae(self, vae: AutoencoderVAVAE) -> None:
        """Raise ValueError if the latents were made by another VAE; see `check_made_by`."""
        check_made_by(vae, self.data, self.shape, self.info)

    def check_statistics(
        self, mean: list[float], std: list[float], name: str = "the VAE's config", num_images: int = 1024
    ) -> None:
        """Raise ValueError if statistics per channel are not those of these latents; see `check_statistics`.

        `num_images` of them are measured, spread evenly over the data.
        """
        indices = np.linspace(0, len(self) - 1, min(num_images, len(self))).round().astype(int).tolist()
        sample = torch.stack([self.read(index, flip=False) for index in indices])
        check_statistics(sample, mean, std, self.data, name, len(self))


def require_finite(latents: torch.Tensor, place: str, name: str = "latents") -> torch.Tensor:
    """The latents (or features) themselves; raises UnusableLatents, naming their place, if they aren't finite."""
    if not latents.isfinite().all():
        kind = "NaN" if latents.isnan().any() else "infinite values"
        raise UnusableLatents(f"{place} has {kind} in its {name}; required: finite numbers.")
    return latents


class LatentRows:
    """The rows of a Hugging Face data set of latents, as `LatentShards` has those of its files."""

    def __init__(self, data: str, split: str, with_flips: bool):
        rows = open_source(data, split).rows
        self.shape, self.id2label = check_latent_features(data, rows.features, with_flips)
        if len(rows) == 0:
            raise ValueError(f"`data` is {data!r}, split {split!r}, without a row; required: at least one.")
        self.info = read_info(Path(data), len(rows))
        self.labels = torch.from_numpy(rows.with_format("numpy", columns=["label"])[:]["label"].astype(np.int64))
        # only the column that is asked for is taken from the mapped file
        self._columns = {
            flip: rows.with_format("numpy", columns=[name])
            for flip, name in ((False, "latents"), (True, "latents_flip"))[: 1 + with_flips]
        }
        self._place = f"{data}, split {split}"

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int, flip: bool) -> torch.Tensor:
        """The raw latents [C, height, width] of a row, or of the mirrored image."""
        (latents,) = self._columns[flip][index].values()
        return torch.from_numpy(np.array(latents))

    def place(self, index: int) -> str:
        """The place of a row, for messages."""
        return f"{self._place}, row {index}"


def check_latent_features(
    data: str, features: datasets.Features | None, with_flips: bool
) -> tuple[tuple[int, int, int], dict[int, str] | None]:
    """Shape of the latents and names of the labels; raises ValueError if the columns are not those of latents."""
    features = features or {}
    latents, label = features.get("latents"), features.get("label")
    if not isinstance(latents, datasets.Array3D) or label is None:
        raise ValueError(
            f"{data} has the columns {', '.join(features) or 'none that are known'}; required: *.safetensors shards, "
            "or the columns latents (Array3D), latents_flip and label."
        )
    if with_flips and features.get("latents_flip") != latents:
        raise ValueError(
            f"{data} has no column `latents_flip` like its `latents`; required, unless flips are switched off."
        )
    id2label = dict(enumerate(label.names)) if isinstance(label, datasets.ClassLabel) else None
    return tuple(latents.shape), id2label


def check_made_by(vae: AutoencoderVAVAE, data: str, shape: tuple[int, int, int], info: dict | None) -> None:
    """Raise ValueError if latents were made by another VAE, as far as the data tells.

    The channels always tell; data that this project made also knows its VAE's weights, in the type that they have in
    the file, so check before casting. `info` is the content of `latents_info.json`, if there is one.
    """
    if vae.config.latent_channels != shape[0]:
        raise ValueError(
            f"{data} holds latents of {shape[0]} channels; required: the VAE's {vae.config.latent_channels}."
        )
    recorded = (info or {}).get("vae_sha256")
    if recorded is not None and recorded != weights_sha256(vae):
        raise ValueError(f"{data} was made by a VAE with other weights; required: the VAE it was made by.")
