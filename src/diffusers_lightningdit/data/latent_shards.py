# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Files of raw latents, in the layout of the original: writing, checking and reading them.

A folder has, in sorted order, `latents_rank00_shard000.safetensors`, ... with the tensors `latents` and `latents_flip`
(of the mirrored image), [N, C, height, width] in float32, bfloat16 or float16, and `labels`, int64 [N]; and
`latents_stats.pt` with `mean` and `std` of all `latents`, float32 [1, C, 1, 1]. What this project writes also has
`latents_info.json`, which says what the files were made from, and, where it was asked for them, `features` and
`features_flip` of the images and the mirrored ones by a vision foundation model, [N, F, h, w].
"""

import bisect
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..files import atomic_write, read_json

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHARD_DTYPES = ("F32", "BF16", "F16")  # as safetensors names them
STATISTICS_FILE = "latents_stats.pt"
INFO_FILE = "latents_info.json"


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------


def shard_name(number: int) -> str:
    """The original's name of shard `number`; the rank counts thousands, so that sorted names are in order."""
    return f"latents_rank{number // 1000:02d}_shard{number % 1000:03d}.safetensors"


def write_shard(
    path: Path, latents: torch.Tensor, latents_flip: torch.Tensor, labels: torch.Tensor, **features: torch.Tensor
) -> None:
    """Write latents [N, C, height, width] and labels int64 [N], under the final name only when all is on the disk.

    `features` and `features_flip`, [N, F, h, w], may come with them.
    """
    tensors = {"latents": latents, "latents_flip": latents_flip, "labels": labels, **features}
    metadata = {"total_size": str(len(labels)), "dtype": str(latents.dtype), "device": "cpu"}
    with atomic_write(path) as partial:
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, partial, metadata=metadata)
        _sort_metadata(partial)


def _sort_metadata(path: Path) -> None:
    """Order the metadata in a file's header, which safetensors leaves to chance: equal content, equal bytes."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        file.seek(8)
        file.write(json.dumps(header, separators=(",", ":")).encode().ljust(size))


def write_statistics(folder: Path, mean: list[float], std: list[float]) -> None:
    """Write `latents_stats.pt` as the original reads it."""
    statistics = {"mean": torch.tensor(mean).view(1, -1, 1, 1), "std": torch.tensor(std).view(1, -1, 1, 1)}
    # torch names the archive after a path, which here is a passing one
    with atomic_write(folder / STATISTICS_FILE) as partial, open(partial, "wb") as file:
        torch.save(statistics, file)


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


class LatentShards:
    """The shards of a folder as one sequence: headers and labels are read at once, latents from mapped memory.

    A tensor of a file is mapped once a process, by the first read of it. `with_flips` requires `latents_flip`, and
    `with_features` features in place of what there is of them otherwise.

    Attributes:
        labels: int64 [N].
        shape: The shape of the latents, (C, height, width).
        feature_shape: The shape of the features, (F, h, w), if they are required.
        info: The content of `latents_info.json`, or None.
        id2label: The names of the labels from there, or None.

    Raises:
        ValueError: naming the file, if it is truncated, lacks a tensor, or differs in shape from the first one; or if
            the folder has fewer or more images than its `latents_info.json` tells.
    """

    def __init__(self, folder: Path, with_flips: bool, with_features: bool = False):
        self.paths = sorted(folder.glob("*.safetensors"))
        if not self.paths:
            raise ValueError(f"{folder} has no *.safetensors file; required: at least one shard of latents.")
        labels, shapes = zip(*(_check_shard(path, with_flips) for path in self.paths), strict=True)
        self.labels = torch.cat(labels)
        self.shape = self._one_shape("latents", shapes)
        self.feature_shape = None
        if with_features:
            self.feature_shape = self._one_shape("features", [_check_features(path, with_flips) for path in self.paths])
        self._ends = list(itertools.accumulate(len(part) for part in labels))
        self._tensors: dict[tuple[int, str], torch.Tensor] = {}
        self.info = read_info(folder, len(self.labels))
        names = (self.info or {}).get("id2label")
        self.id2label = names and {int(label): name for label, name in names.items()}

    def _one_shape(self, name: str, shapes: Sequence[tuple[int, int, int]]) -> tuple[int, int, int]:
        """The shape that a tensor has in all files; raises ValueError if a file has another one than the first."""
        for path, shape in zip(self.paths, shapes, strict=True):
            if shape != shapes[0]:
                raise ValueError(
                    f"{path} holds {name} of shape {list(shape)}; required: {list(shapes[0])}, as in "
                    f"{self.paths[0].name}."
                )
        return shapes[0]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int, flip: bool, name: str = "latents") -> torch.Tensor:
        """Raw latents [C, height, width] of an image, or of the mirrored image; or its features [F, h, w]."""
        shard, row = self._locate(index)
        key = shard, f"{name}_flip" if flip else name
        if key not in self._tensors:  # mapped memory: nothing is read yet
            with safe_open(self.paths[shard], "pt") as file:
                self._tensors[key] = file.get_tensor(key[1])
        return self._tensors[key][row]

    def place(self, index: int) -> str:
        """Where an item lies, for messages."""
        shard, row = self._locate(index)
        return f"{self.paths[shard]}, row {row}"

    def _locate(self, index: int) -> tuple[int, int]:
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    def __getstate__(self) -> dict:  # mapped memory doesn't go to worker processes
        return {**self.__dict__, "_tensors": {}}


def _check_shard(path: Path, with_flips: bool) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """Labels and shape of latents of a shard; raises ValueError if it is not as the module describes."""
    try:
        with safe_open(path, "pt") as file:
            found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            shapes = {name: tuple(part.get_shape()) for name, part in found.items()}
            dtypes = {name: part.get_dtype() for name, part in found.items()}
            labels = file.get_tensor("labels") if "labels" in found else None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or no safetensors file ({error}); required: a whole shard.") from error
    for name in ("latents", "labels") + ("latents_flip",) * with_flips:
        if name not in found:
            hint = " It can be read with flips switched off." if name == "latents_flip" else ""
            raise ValueError(f"{path} has no tensor `{name}`; required: latents, latents_flip and labels.{hint}")
    shape = shapes["latents"]
    if dtypes["labels"] != "I64" or len(shapes["labels"]) != 1:
        raise ValueError(f"{path} has labels {dtypes['labels']} {list(shapes['labels'])}; required: I64 [N].")
    for name in ("latents", "latents_flip") if with_flips else ("latents",):
        if dtypes[name] not in SHARD_DTYPES or shapes[name] != shape or len(shape) != 4 or shape[0] != len(labels):
            raise ValueError(
                f"{path} has `{name}` {dtypes[name]} {list(shapes[name])} and {len(labels)} labels; required: "
                f"[N, C, height, width] in {', '.join(SHARD_DTYPES)}, N labels, and the flipped ones of equal shape."
            )
    return labels, shape[1:]


def _check_features(path: Path, with_flips: bool) -> tuple[int, int, int]:
    """The shape of the features of a shard; raises ValueError if it has none that belong to its latents."""
    with safe_open(path, "pt") as file:
        found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        names = ("features", "features_flip") if with_flips else ("features",)
        shapes = [tuple(found[name].get_shape()) if name in found else None for name in names]
        num_images = found["labels"].get_shape()[0]
    for name, shape in zip(names, shapes, strict=True):
        if shape is None or len(shape) != 4 or shape != (num_images, *shapes[0][1:]):
            raise ValueError(
                f"{path} has `{name}` {'none' if shape is None else list(shape)}; required: [{num_images}, F, h, w], "
                "as cache_latents.py writes them with `foundation_model`."
            )
    return shapes[0][1:]


def read_info(folder: Path, num_images: int | None = None) -> dict | None:
    """Content of a folder's `latents_info.json`, or None; raises ValueError if it is another kind or of other data."""
    path = folder / INFO_FILE
    if not path.exists():
        return None
    info = read_json(path)
    kinds = {"num_images": int, "vae_sha256": str, "settings": dict, "id2label": dict}
    known = isinstance(info, dict) and all(isinstance(info.get(name), kind | None) for name, kind in kinds.items())
    if not known or not all(label.isdecimal() for label in info.get("id2label") or {}):
        raise ValueError(f"{path} has other content; required: what cache_latents.py writes.")
    if num_images is not None and info.get("num_images") != num_images:
        raise ValueError(
            f"{path} tells of {info.get('num_images')} images, the files beside it hold {num_images}; "
            "required: the files it was written for, no more and no fewer."
        )
    return info
