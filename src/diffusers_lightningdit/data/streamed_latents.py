# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Raw latents that are read in a stream; the samples are those of `LatentsDataset`."""

from pathlib import Path

import numpy as np
import torch

from ..models import AutoencoderVAVAE
from .latent_dataset import check_latent_features, check_made_by, require_finite
from .latent_shards import read_info
from .rows import known_num_classes, open_source
from .streamed_rows import Row, StreamedRows


class StreamedLatents(StreamedRows):
    """Raw latents: `{"latents": float32 [C, height, width], "class_labels": int}`.

    Args:
        data, split: As for `open_source`: data with the columns latents, latents_flip and label, as
            `cache_latents.py --format parquet` writes it.
        random_flip: As for `StreamedRows`; without it, no column `latents_flip` is needed.
        num_classes: The number that labels have to be below; by default the number of names that came with the data.

    Attributes:
        shape: The shape of the latents, (C, height, width).
        num_classes: The number of classes; labels are below it.

    Raises:
        ValueError: as `StreamedRows`, and where nothing tells the number of classes.
    """

    def __init__(self, data: str, split: str = "train", random_flip: bool = True, num_classes: int | None = None):
        if any(Path(data).glob("*.safetensors")):
            raise ValueError(
                f"`data` is {data!r}, shards of latents; required: no streaming of them, or latents that "
                "cache_latents.py wrote with `--format parquet`."
            )
        self.num_classes = num_classes
        super().__init__(data, split, random_flip)

    def _load(self, data: str, split: str) -> None:
        self.source = open_source(data, split, streaming=True)
        rows = self.source.rows
        self.shape, self.id2label = check_latent_features(self.data, rows.features, self.random_flip)
        self.num_classes = known_num_classes(self.num_classes or len(self.id2label or ()), self.data)
        needed = ["latents", "latents_flip", "label"] if self.random_flip else ["latents", "label"]
        self.rows = rows.select_columns(needed).with_format("arrow")  # numbers are made of a process's own rows only

    def _label(self, row: Row) -> tuple[int | None, int]:
        return row["label"][0].as_py(), self.num_classes

    def _decode(self, row: Row, mirrored: bool | None) -> dict:
        column = row["latents_flip" if mirrored else "latents"].combine_chunks()
        numbers = column.storage.flatten().flatten().flatten()  # of nested lists
        latents = torch.from_numpy(np.array(numbers, dtype=np.float32).reshape(self.shape))
        return {"latents": require_finite(latents, "the row")}

    def check_vae(self, vae: AutoencoderVAVAE) -> None:
        """Raise ValueError if the latents were made by another VAE than this one; see `check_made_by`."""
        # the record is beside the files of a folder; of a Hub id it is not fetched
        check_made_by(vae, self.data, self.shape, read_info(Path(self.data)))
