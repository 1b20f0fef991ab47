# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The data that the transformer is trained on: cached latents, or images that a frozen VAE encodes."""

from dataclasses import dataclass
from functools import partial

import torch
from torch.utils.data import DataLoader, Dataset

from ...data.images import ImageDataset
from ...data.latent_dataset import LatentsDataset
from ...data.latent_encoding import MomentsDataset, draw_latents, encode_moments, latents_size, resolution_for
from ...data.latent_statistics import check_statistics
from ...data.row_stream import RowStream
from ...data.streamed_latents import StreamedLatents
from ...data.streamed_rows import StreamedImages, StreamedRows
from ...keyed_random import KeyedRandom
from ...models import AutoencoderVAVAE
from ...pixels import square_or_pair
from ..batches import RandomlyFlipped
from .config import FlowTrainingConfig

NUM_CHECKED = 1024  # latents of a stream, whose statistics are compared with those of the VAE
REMEDY = "To fine-tune on other data, with the statistics of the VAE: `check_statistics=false`."


@dataclass
class TransformerData:
    """A data set, and the facts about it that a transformer needs.

    Attributes:
        dataset: A data set of items with `class_labels` and `pixel_values`, `moments` or `latents`; or a stream of
            them.
        sample_size: The height and width of the latents, or one number for squares.
        num_classes: The number of classes; labels are below it.
        id2label: The names of the labels, or None.
    """

    dataset: Dataset | StreamedRows
    sample_size: int | tuple[int, int]
    num_classes: int
    id2label: dict[int, str] | None

    def __len__(self) -> int:
        return len(self.dataset)


def load_data(
    config: FlowTrainingConfig,
    vae: AutoencoderVAVAE,
    data: str,
    split: str,
    for_training: bool,
    labels: bool = True,
    with_features: bool = False,
) -> TransformerData:
    """Training data, or validation data, which is never mirrored, and of a stream its first samples.

    Without `labels` images need none, and have no classes. Where `config.label_column` is None, all are of class 0.
    Latents come `with_features` if these are wanted.

    Raises:
        ValueError: in one line, if it cannot be read, or doesn't fit the VAE or (if `config.check_statistics`) its
            statistics.
    """
    if config.data_kind == "images":
        loaded = _load_images(config, vae, data, split, for_training, labels)
    else:
        loaded = _load_latents(config, vae, data, split, for_training, with_features)
    if config.streaming and not for_training:
        loaded.dataset = loaded.dataset.first(config.num_validation_samples)
    return loaded


def _load_images(
    config: FlowTrainingConfig, vae: AutoencoderVAVAE, data: str, split: str, for_training: bool, labels: bool
) -> TransformerData:
    resolution = resolution_for(vae, config.resolution)
    sample_size = square_or_pair(*latents_size(resolution, vae))
    arguments = (data, resolution, split, config.image_column, config.label_column if labels else None)
    others = {"allow_left_out": config.allow_left_out, "channels": vae.config.in_channels}
    images: StreamedImages | ImageDataset
    if config.streaming:
        images = StreamedImages(*arguments, random_flip=for_training and config.random_flip, **others)
        num_classes = len(images.id2label or {})
    else:
        images = ImageDataset(*arguments, num_classes=config.num_classes, **others)
        num_classes = images.num_classes
    if labels and config.label_column is None:
        return TransformerData(relabel(images, {None: 0}), sample_size, 1, None)
    return TransformerData(images, sample_size, num_classes, images.id2label)


def _load_latents(
    config: FlowTrainingConfig, vae: AutoencoderVAVAE, data: str, split: str, for_training: bool, with_features: bool
) -> TransformerData:
    latents: StreamedLatents | LatentsDataset
    random_flip = for_training and config.random_flip
    if config.streaming:
        latents = StreamedLatents(data, split, random_flip, config.num_classes)
    else:
        in_memory = for_training and config.latents_in_memory
        latents = LatentsDataset(data, split, random_flip, config.seed, in_memory, config.num_classes, with_features)
    latents.check_vae(vae)
    if config.check_statistics and (for_training or not config.streaming):
        if config.streaming:
            stream = RowStream(latents, 1, config.seed, config.shuffle_block_size, config.num_open_files)
            first = torch.cat([batch["latents"] for batch in stream.first_epoch(64, NUM_CHECKED)])
            # more tolerant, since rows of a few files are no random sample of all
            check = partial(check_statistics, first, data=data, tolerance=0.05)
        else:
            check = latents.check_statistics
        try:
            check(vae.config.latents_mean, vae.config.latents_std)
        except ValueError as error:
            raise ValueError(f"{error} {REMEDY}") from error
    num_classes = config.num_classes or latents.num_classes
    return TransformerData(latents, square_or_pair(*latents.shape[1:]), num_classes, latents.id2label)


class Relabelled(Dataset):
    """A data set whose items have other ids of classes; see `relabel`."""

    def __init__(self, dataset: Dataset, id_of_label: dict[int | None, int]):
        self.dataset = dataset
        self.id_of_label = id_of_label

    def summary(self) -> str:
        """The summary of the data set, with the names of its own classes."""
        return self.dataset.summary()

    def data_sha256(self) -> str:
        """The hash of the data set, in whose names the ids of classes have their cause."""
        return self.dataset.data_sha256()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        item = self.dataset[index]  # the index may know its epoch
        label = None if None in self.id_of_label else int(item["class_labels"])
        return {**item, "class_labels": self.id_of_label[label]}


def relabel(dataset: Dataset | StreamedRows, id_of_label: dict[int | None, int]) -> Dataset | StreamedRows:
    """Give samples other ids of classes; the key None stands for the missing label of every sample."""
    if isinstance(dataset, StreamedRows):
        dataset.id_of_label = id_of_label
        return dataset
    return Relabelled(dataset, id_of_label)


def dataset_to_train_on(
    config: FlowTrainingConfig, data: TransformerData, vae: AutoencoderVAVAE, show_progress: bool
) -> Dataset | StreamedRows:
    """The data set itself; images encoded once, by every process, or mirrored where the settings say so."""
    if config.streaming:
        return data.dataset  # which mirrors
    if config.data_kind == "images" and config.latents_in_memory:
        images = DataLoader(data.dataset, batch_size=64, num_workers=config.num_workers)
        return MomentsDataset(vae, images, show_progress)
    if config.data_kind == "images" and config.random_flip:
        return RandomlyFlipped(data.dataset, config.seed)
    return data.dataset


@torch.no_grad()
def normalized_latents(batch: dict, vae: AutoencoderVAVAE, draws: KeyedRandom) -> torch.Tensor:
    """Latents of a batch of any of the kinds, sampled from their posterior: [B, C, height, width]."""
    latents = batch.get("latents")
    if latents is None:
        moments = batch["moments"] if "moments" in batch else encode_moments(vae, batch["pixel_values"])
        channels, height, width = moments.shape[1:]
        latents = draw_latents(moments, draws.normal("posterior", (channels // 2, height, width)))
    return vae.normalize_latents(latents)
