# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Changes between two images of one place by Change3D (arXiv 2503.18803): maps of scenes of any size, or captions.

The pipeline is loaded by its class, or as remote code from this file:
`DiffusionPipeline.from_pretrained(..., custom_pipeline="pipelines/pipeline_change3d.py")`. This file imports nothing
but torch, diffusers, numpy and PIL, because it is uploaded to the Hub; GeoTIFF files need rasterio.

A scene is larger than the model's images in most cases. It is cut into tiles that overlap, which are evaluated in
batches, row by row; their probabilities are blended. Memory holds one row of tiles, and the maps themselves.

Letters in the shape comments: H and W the sides of a scene, h and w those of a tile, K classes, M channels of the
model's maps.
"""

import colorsys
import contextlib
import importlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput, logging

logger = logging.get_logger(__name__)

# The library of the model's class in model_index.json, and the name of the file with its code beside the weights.
# diffusers uses the installed package if it is imported, and otherwise, with `trust_remote_code=True`, the file.
PACKAGE = "diffusers_lightningdit"

# Normalisation of pixels in [0, 1]: mean and deviation of each channel. Captions were trained with those of ImageNet.
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

# {task: its classes with a map of their own, its probability}, in the order of the blended channels
CLASS_MAPS = {"binary": (), "semantic": ("before", "after"), "damage": ("damage",)}
PROBABILITY = {"binary": "change", "semantic": "change", "damage": "building"}
DAMAGE_NAMES = ("no building", "no damage", "minor damage", "major damage", "destroyed")
DAMAGE_PALETTE = ((0, 0, 0), (0, 160, 0), (255, 220, 0), (255, 128, 0), (220, 0, 0))
SPECIAL_WORDS = ("<pad>", "<unk>", "<start>", "<end>")


@dataclass
class Change3DPipelineOutput(BaseOutput):
    """The results of a call; each is a list with one entry for each pair, and None if the task does not have it.

    Maps are PIL images with `output_type="pil"`, arrays with "np" and tensors with "pt".

    Attributes:
        change: Masks [H, W], 255 (PIL) or 1 where something has changed, else 0. "binary" and "semantic".
        change_probability: [H, W], 0 to 255 (PIL) or float32 within [0, 1].
        before, after: The classes of what has changed, [H, W], 0 where nothing has. "semantic".
        before_picture, after_picture: The same in the colours of the palette; RGB, arrays [H, W, 3], tensors [3, H, W].
        damage, damage_picture: The classes of damage, and their colours; 0 where no building is. "damage".
        building, building_probability: Like `change` and `change_probability`.
        captions: Texts, or None for a pair of which no beam came to its end. "captioning".
        caption_scores: The sum of the log-probabilities of the words of each caption, or None.
        files: The paths of GeoTIFF files, if they were asked for in place of maps.
    """

    change: list | None = None
    change_probability: list | None = None
    before: list | None = None
    after: list | None = None
    before_picture: list | None = None
    after_picture: list | None = None
    damage: list | None = None
    damage_picture: list | None = None
    building: list | None = None
    building_probability: list | None = None
    captions: list[str | None] | None = None
    caption_scores: list[float | None] | None = None
    files: list[str] | None = None


# ---------------------------------------------------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------------------------------------------------


def shown(value) -> str:
    """Return a value as it stands in a message: one line of at most 100 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else text[:97] + "..."


def require(condition: bool, name: str, value, requirement: str) -> None:
    """Raise ValueError with the name of an argument, its value and the requirement, unless the condition holds."""
    if not condition:
        raise ValueError(f"`{name}` is {shown(value)}; required: {requirement}.")


def is_integer(value, low: int, high: float = math.inf) -> bool:
    """Whether a value is a whole number within bounds, and no boolean."""
    return isinstance(value, Integral) and not isinstance(value, bool) and low <= value <= high


def is_fraction(value) -> bool:
    """Whether a value is a number from 0 to 1, and no boolean."""
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= value <= 1


def word_list(vocabulary: dict | list | tuple, vocab_size: int) -> list[str]:
    """Return the words of a vocabulary by id.

    Args:
        vocabulary: The words in the order of their ids, or {word: id}, as in the WORDMAP file of the captions.
        vocab_size: V.

    Raises:
        ValueError: If it has not one word for each of the V ids, or the special words stand elsewhere.
    """
    words = vocabulary
    if isinstance(vocabulary, dict):
        words = sorted(vocabulary, key=lambda word: vocabulary[word] if is_integer(vocabulary[word], 0) else -1)
        require(
            [vocabulary[word] for word in words] == list(range(len(words))),
            "vocabulary", vocabulary, "{word: id} with the ids from 0 on",
        )  # fmt: skip
    require(
        isinstance(words, (list, tuple)) and all(isinstance(word, str) for word in words) and len(words) > 4,
        "vocabulary", vocabulary, "a list of words, or {word: id}, with <pad>, <unk>, <start>, <end> and others",
    )  # fmt: skip
    if len(words) != vocab_size:
        raise ValueError(f"`vocabulary` has {len(words)} words; required: {vocab_size}, the model's `vocab_size`.")
    require(len(set(words)) == len(words), "vocabulary", vocabulary, "no word twice")
    special = (words[0], *words[-3:])
    require(
        special == SPECIAL_WORDS, "vocabulary", special, "<pad> as the first word, <unk>, <start>, <end> as the last"
    )
    return list(words)


def default_palette(task: str, num_classes: int) -> list[list[int]]:
    """Return a colour for each class: black for class 0, and hues far from each other for the others."""
    if task == "damage" and num_classes == len(DAMAGE_PALETTE):
        return [list(color) for color in DAMAGE_PALETTE]
    hues = [colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.75, 1 - 0.3 * (i % 2)) for i in range(num_classes - 1)]
    return [[0, 0, 0], *([round(255 * part) for part in color] for color in hues)]


# ---------------------------------------------------------------------------------------------------------------------
# Scenes: images of which rows are read when they are needed
# ---------------------------------------------------------------------------------------------------------------------


class Scene:
    """One image of any kind, as rows of pixels.

    Args:
        image: A PIL image, an array [H, W, 3] or a tensor [3, H, W] (uint8, or numbers within [0, 1]), the path of a
            GeoTIFF file, or a data set that rasterio has opened, of three bands of 8 bits.
        name: The argument, for messages.
        files: Where a file that is opened is registered to be closed.

    Raises:
        ValueError: If the image is none of these.
    """

    def __init__(self, image, name: str, files: contextlib.ExitStack):
        if isinstance(image, (str, os.PathLike)):
            image = open_raster(image, name, files)
        self.image, self.name = image, name
        self.is_raster = False
        problem = None
        if isinstance(image, PIL.Image.Image):
            self.height, self.width = image.height, image.width
            if image.mode != "RGB":
                problem = f"a PIL image of mode {image.mode!r}"
        elif isinstance(image, (np.ndarray, torch.Tensor)):
            bands = 2 if isinstance(image, np.ndarray) else 0
            if image.ndim != 3 or image.shape[bands] != 3 or 0 in image.shape:
                problem = f"the shape {tuple(image.shape)}"
            elif isinstance(image, torch.Tensor) and (image.is_meta or image.layout != torch.strided):
                problem = f"a tensor without values in rows ({image.device}, {image.layout})"
            elif image.dtype not in (np.uint8, torch.uint8):
                problem = self._problem_of_numbers()
            if problem is None:
                self.height, self.width = image.shape[:2] if bands else image.shape[1:]
        elif hasattr(image, "crs") and hasattr(image, "read"):
            self.is_raster = True
            self.height, self.width = image.height, image.width
            if image.count != 3 or set(image.dtypes) != {"uint8"}:
                problem = f"a raster of {image.count} bands of the type {', '.join(sorted(set(image.dtypes)))}"
        else:
            problem = f"a {type(image).__name__}"
        if problem is not None:
            raise ValueError(
                f"`{name}` holds {problem}; required: RGB images, that is PIL images of mode 'RGB', arrays [height, "
                "width, 3] or tensors [3, height, width] of uint8 or of numbers within [0, 1], or rasters of three "
                "bands of uint8."
            )

    def _problem_of_numbers(self) -> str | None:
        numbers = self.image
        is_float = numbers.is_floating_point() if isinstance(numbers, torch.Tensor) else numbers.dtype.kind == "f"
        if not is_float:
            return f"the type {numbers.dtype}"
        if not (numbers.min() >= 0 and numbers.max() <= 1):  # true of NaN, too
            return f"values from {float(numbers.min()):g} to {float(numbers.max()):g}"
        return None

    def rows(self, first: int, number: int) -> torch.Tensor:
        """Return rows as [3, rows, W], uint8 or float32."""
        last = min(first + number, self.height)
        if self.is_raster:
            window = rasterio_library(self.name).windows.Window(0, first, self.width, last - first)
            return torch.from_numpy(self.image.read(window=window))
        if isinstance(self.image, torch.Tensor):
            pixels = self.image[:, first:last]
        else:
            image = self.image
            if isinstance(image, PIL.Image.Image):
                image = np.array(image.crop((0, first, self.width, last)))
            pixels = torch.from_numpy(np.ascontiguousarray(image[first:last] if image is self.image else image))
            pixels = pixels.permute(2, 0, 1)
        return pixels if pixels.dtype == torch.uint8 else pixels.float()


def rasterio_library(name: str):
    """Return the module rasterio, for the argument of this name.

    It is not imported by a statement: diffusers would then ask everybody who runs this file as remote code for it.
    """
    try:
        return importlib.import_module("rasterio")
    except ImportError as error:
        raise ImportError(f"`{name}` is a GeoTIFF file; required: `pip install rasterio`.") from error


def open_raster(path: str | os.PathLike, name: str, files: contextlib.ExitStack):
    """Open a GeoTIFF file, of which windows are then read when they are needed."""
    rasterio = rasterio_library(name)
    try:
        return files.enter_context(rasterio.open(path))
    except rasterio.errors.RasterioIOError as error:
        raise ValueError(f"`{name}` is {str(path)!r}, which rasterio cannot read ({shown(str(error))}).") from error


def list_images(image, name: str) -> list:
    """Return one image, a batch [B, ...] or a list of images as a list."""
    if isinstance(image, (np.ndarray, torch.Tensor)) and image.ndim == 4:
        return list(image)
    images = list(image) if isinstance(image, (list, tuple)) else [image]
    require(len(images) > 0, name, image, "at least one image")
    return images


def check_pair(number: int, before: Scene, after: Scene) -> None:
    """Raise ValueError unless both images show the same piece of ground."""
    sizes = [f"{scene.height}x{scene.width}" for scene in (before, after)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"`image_after` has {sizes[1]} pixels in pair {number}; required: {sizes[0]}, as `image_before` has."
        )
    if before.is_raster and after.is_raster:
        for name in ("crs", "transform"):
            first, second = getattr(before.image, name), getattr(after.image, name)
            if first != second:
                raise ValueError(
                    f"`image_after` has the {name} {shown(str(second))} in pair {number}; required: "
                    f"{shown(str(first))}, as `image_before` has."
                )


# ---------------------------------------------------------------------------------------------------------------------
# Tiles
# ---------------------------------------------------------------------------------------------------------------------


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Return where tiles begin along a side: every `tile - overlap` pixels, and the last one ends with the side."""
    if length <= tile:
        return [0]
    number = math.ceil((length - tile) / (tile - overlap))
    return [min(i * (tile - overlap), length - tile) for i in range(number + 1)]


def tile_weights(length: int, tile: int, overlap: int) -> list[torch.Tensor]:
    """Return the weights [tile] of each tile along a side: ramps over the overlap, whose sum is 1 at every pixel."""
    starts = tile_starts(length, tile, overlap)
    position = torch.arange(tile)
    ramp = torch.minimum(position + 1, tile - position).clamp(max=overlap + 1).float()
    total = torch.zeros(max(length, tile))
    for start in starts:
        total[start : start + tile] += ramp
    return [ramp / total[start : start + tile] for start in starts]


class BlendedScene:
    """The tiles of a pair of scenes, and the blended rows of their maps.

    Tiles come and go in the order of their rows and columns, whatever the batches: sums of floating-point numbers
    depend on their order.

    Args:
        before, after: The scenes, of one size.
        tile: (h, w).
        overlap: In pixels.
    """

    def __init__(self, before: Scene, after: Scene, tile: tuple[int, int], overlap: int):
        self.scenes = (before, after)
        self.height, self.width = before.height, before.width
        self.tile = tile
        self.starts = [tile_starts(n, t, overlap) for n, t in zip((self.height, self.width), tile, strict=True)]
        self.weights = [tile_weights(n, t, overlap) for n, t in zip((self.height, self.width), tile, strict=True)]
        self.sums = None  # [M, h, W] of the tiles up to now, from the beginning of the current row of tiles on

    @property
    def num_tiles(self) -> int:
        """The number of tiles that cover the scene."""
        return len(self.starts[0]) * len(self.starts[1])

    def tiles(self) -> Iterator[tuple[int, int, list[torch.Tensor]]]:
        """Yield (row, column, [before, after]) of each tile, [3, h, w], padded by the pixels of the edges."""
        for row, top in enumerate(self.starts[0]):
            bands = [self._padded(scene.rows(top, self.tile[0])) for scene in self.scenes]
            for column, left in enumerate(self.starts[1]):
                yield row, column, [band[:, :, left : left + self.tile[1]] for band in bands]

    def _padded(self, band: torch.Tensor) -> torch.Tensor:
        missing = (0, max(0, self.tile[1] - band.shape[2]), 0, max(0, self.tile[0] - band.shape[1]))
        if not any(missing):
            return band
        return torch.nn.functional.pad(band[None].float(), missing, mode="replicate")[0].to(band.dtype)

    def add(self, row: int, column: int, maps: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Add the maps [M, h, w] of a tile, and yield (first row, [M, rows, W]) of the rows that this completes."""
        tops, lefts = self.starts
        if self.sums is None:
            width = max(self.width, self.tile[1])
            self.sums = torch.zeros(len(maps), self.tile[0], width, device=maps.device)
        weight = self.weights[0][row][:, None] * self.weights[1][column]
        self.sums[:, :, lefts[column] : lefts[column] + self.tile[1]] += maps * weight.to(maps.device)
        if column == len(lefts) - 1:
            is_last = row == len(tops) - 1
            number = self.height - tops[row] if is_last else tops[row + 1] - tops[row]
            yield tops[row], self.sums[:, :number, : self.width]
            kept = self.sums[:, number:].clone()
            self.sums.zero_()
            self.sums[:, : kept.shape[1]] = kept


# ---------------------------------------------------------------------------------------------------------------------
# Where maps go
# ---------------------------------------------------------------------------------------------------------------------


class MapsInMemory:
    """The maps of a scene as arrays [H, W], filled row by row."""

    def __init__(self, height: int, width: int):
        self.size = (height, width)
        self.maps: dict[str, np.ndarray] = {}

    def write(self, first: int, rows: dict[str, torch.Tensor]) -> None:
        """Take rows [h, W] of each map, from row `first` of the scene on."""
        for name, values in rows.items():
            values = values.cpu().numpy()
            if name not in self.maps:
                self.maps[name] = np.zeros(self.size, values.dtype)
            self.maps[name][first : first + len(values)] = values


class MapsInFile:
    """The maps of a scene as bands of 8 bits of a GeoTIFF file that lies where its images do.

    Args:
        path: The new file, which appears when it is whole.
        raster: The data set whose coordinate system and transform are kept.
        files: Closes the file.
    """

    def __init__(self, path: Path, raster, files: contextlib.ExitStack):
        self.path, self.raster, self.files, self.dataset = path, raster, files, None
        self.partial = path.with_name(f".{path.name}.partial")

    def write(self, first: int, rows: dict[str, torch.Tensor]) -> None:
        """Write rows [h, W] of each map, from row `first` of the scene on."""
        rasterio = rasterio_library("output_file")
        if self.dataset is None:
            self.files.callback(self.partial.unlink, missing_ok=True)
            profile = {
                "driver": "GTiff",
                "dtype": "uint8",
                "count": len(rows),
                "compress": "deflate",
                "bigtiff": "if_safer",
            }
            place = {name: getattr(self.raster, name) for name in ("height", "width", "crs", "transform")}
            self.dataset = self.files.enter_context(rasterio.open(self.partial, "w", **profile, **place))
            self.dataset.descriptions = tuple(rows)
        for band, values in enumerate(rows.values(), start=1):
            window = rasterio.windows.Window(0, first, self.raster.width, len(values))
            self.dataset.write(as_8_bits(values).cpu().numpy(), band, window=window)

    def finish(self) -> str:
        """Give the file its name, which is returned."""
        self.dataset.close()
        os.replace(self.partial, self.path)
        return str(self.path)


def as_8_bits(values: torch.Tensor) -> torch.Tensor:
    """Return probabilities as 0 to 255, and classes as they are."""
    return (values * 255).round().to(torch.uint8) if values.is_floating_point() else values.to(torch.uint8)


# ---------------------------------------------------------------------------------------------------------------------
# Pipeline
# ---------------------------------------------------------------------------------------------------------------------


class Change3DPipeline(DiffusionPipeline):
    """Maps or captions of the changes between two images of one place.

    Args:
        model: A `Change3DModel`.
        id2label: The names of the classes by id, for "semantic" and "damage"; of damage, the paper's by default.
        palette: The colour of each class in pictures, [red, green, blue] from 0 to 255; by default colours far from
            each other.
        vocabulary: The words of captions in the order of their ids, or {word: id}; required for "captioning".

    Raises:
        ValueError: If names, colours or words do not fit the model.

    Example:
        >>> from diffusers_lightningdit import Change3DModel, Change3DPipeline
        >>> pipe = Change3DPipeline(Change3DModel("binary"))
        >>> output = pipe(before, after, threshold=0.5)
        >>> mask, probability = output.change[0], output.change_probability[0]
    """

    model_cpu_offload_seq = "model"
    _source_code = __spec__.loader.get_source(__name__)  # read on import: remote code may be overwritten later

    def __init__(
        self,
        model,
        id2label: dict | None = None,
        palette: list | None = None,
        vocabulary: list | dict | None = None,
    ):
        super().__init__()
        self.register_modules(model=model)
        task = model.config.task
        num_classes = model.config.num_classes or 0
        if id2label is None and task == "damage" and num_classes == len(DAMAGE_NAMES):
            id2label = dict(enumerate(DAMAGE_NAMES))
        if id2label is not None:
            require(isinstance(id2label, dict), "id2label", id2label, "{class id: name} or None")
            for key, name in id2label.items():  # after loading, JSON has made the key 3 the string "3"
                is_id = str(key).isdecimal() and int(key) < num_classes and isinstance(name, str)
                require(is_id, "id2label", {key: name}, f"names of the ids below {num_classes}, the model's classes")
            id2label = {int(key): name for key, name in id2label.items()}
        if palette is None and num_classes:
            palette = default_palette(task, num_classes)
        if palette is not None:
            require(isinstance(palette, (list, tuple)) and len(palette) == num_classes, "palette", palette,
                    f"{num_classes} colours, one for each class of the model")  # fmt: skip
            for color in palette:
                is_color = (
                    isinstance(color, (list, tuple)) and len(color) == 3 and all(is_integer(c, 0, 255) for c in color)
                )
                require(is_color, "palette", color, "colours [red, green, blue] from 0 to 255")
            palette = [list(map(int, color)) for color in palette]
        if task == "captioning":
            require(bool(vocabulary), "vocabulary", vocabulary, "the words of a captioning model")
            vocabulary = word_list(vocabulary, model.config.vocab_size)
        else:
            require(vocabulary is None, "vocabulary", vocabulary, f"None for the task {task!r}")
        self.register_to_config(id2label=id2label, palette=palette, vocabulary=vocabulary)

    @property
    def task(self) -> str:
        """The task of the model: "binary", "semantic", "damage" or "captioning"."""
        return self.model.config.task

    @property
    def id2label(self) -> dict[int, str]:
        """The names of classes by id; empty if none are known."""
        return {int(key): name for key, name in (self.config.id2label or {}).items()}

    @torch.no_grad()
    def __call__(
        self,
        image_before,
        image_after,
        threshold: float = 0.5,
        num_beams: int = 1,
        tile_overlap: int | None = None,
        batch_size: int = 8,
        output_type: str = "pil",
        output_file: str | os.PathLike | list | None = None,
        return_dict: bool = True,
    ) -> Change3DPipelineOutput | tuple:
        """Compute the maps or captions of pairs of images.

        Args:
            image_before, image_after: PIL images in RGB, arrays [H, W, 3] or tensors [3, H, W] of uint8 or of numbers
                within [0, 1], paths of GeoTIFF files or data sets of rasterio with three bands of 8 bits, or a batch or
                list of them. Maps are computed of scenes of any size, captions of images of the model's size.
            threshold: The probability above which a change (a building, for "damage") is one, within [0, 1].
            num_beams: The number of beams of captions.
            tile_overlap: The number of pixels by which tiles overlap, at most half of a tile; by default a quarter.
            batch_size: The number of tiles, or of captions, that the model evaluates at a time. It changes no result
                but by the rounding of the device's convolutions.
            output_type: "pil", "np" or "pt".
            output_file: The path of a new GeoTIFF file, or a list with one for each pair, for rasters: maps are written
                to it as bands of 8 bits, and not returned. Coordinate system and transform are those of `image_before`.
            return_dict: Whether to return a `Change3DPipelineOutput`, and not a tuple of its fields that are not None.

        Raises:
            ValueError: For an argument that does not fit, before anything is computed; for maps that are not finite.
        """
        tile = self.model.sample_size
        tile_overlap = min(tile) // 4 if tile_overlap is None else tile_overlap
        require(is_fraction(threshold), "threshold", threshold, "a number within [0, 1]")
        require(is_integer(num_beams, 1, 1000), "num_beams", num_beams, "an integer from 1 to 1000")
        half = min(tile) // 2
        require(is_integer(tile_overlap, 0, half), "tile_overlap", tile_overlap, f"an integer from 0 to {half}")
        require(is_integer(batch_size, 1), "batch_size", batch_size, "a positive integer")
        is_known = isinstance(output_type, str) and output_type in ("pil", "np", "pt")
        require(is_known, "output_type", output_type, "'pil', 'np' or 'pt'")
        require(isinstance(return_dict, bool), "return_dict", return_dict, "True or False")
        with contextlib.ExitStack() as files:
            pairs = self._read_pairs(image_before, image_after, files)
            if self.task == "captioning":
                require(output_file is None, "output_file", output_file, "None for captions")
                output = self._write_captions(pairs, num_beams, batch_size)
            else:
                targets = self._targets(pairs, output_file, files)
                scenes = [BlendedScene(*pair, tile, tile_overlap) for pair in pairs]
                self._blend(scenes, targets, threshold, batch_size)
                if output_file is None:
                    output = self._maps(targets, output_type)
                else:
                    output = Change3DPipelineOutput(files=[target.finish() for target in targets])
        self.maybe_free_model_hooks()
        return output if return_dict else output.to_tuple()

    # -- arguments -------------------------------------------------------------------------------------------------

    def _read_pairs(self, image_before, image_after, files: contextlib.ExitStack) -> list[tuple[Scene, Scene]]:
        before, after = list_images(image_before, "image_before"), list_images(image_after, "image_after")
        if len(before) != len(after):
            raise ValueError(f"`image_after` has {len(after)} images; required: {len(before)}, as `image_before` has.")
        pairs = []
        for number, images in enumerate(zip(before, after, strict=True)):
            pair = tuple(
                Scene(image, name, files) for image, name in zip(images, ("image_before", "image_after"), strict=True)
            )
            check_pair(number, *pair)
            size, required = (pair[0].height, pair[0].width), self.model.sample_size
            if self.task == "captioning" and size != required:
                raise ValueError(
                    f"`image_before` has {size[0]}x{size[1]} pixels in pair {number}; required: "
                    f"{required[0]}x{required[1]}, of which the model writes captions."
                )
            pairs.append(pair)
        return pairs

    def _targets(self, pairs: list[tuple[Scene, Scene]], output_file, files: contextlib.ExitStack) -> list:
        if output_file is None:
            return [MapsInMemory(before.height, before.width) for before, _ in pairs]
        given = output_file if isinstance(output_file, (list, tuple)) else [output_file]
        is_path = all(isinstance(path, (str, os.PathLike)) for path in given)
        require(is_path, "output_file", output_file, "the path of a new file, a list of them, or None")
        paths = [Path(path) for path in given]
        require(len(set(paths)) == len(pairs), "output_file", output_file, f"one path for each of {len(pairs)} pairs")
        require(all(before.is_raster for before, _ in pairs), "output_file", output_file, "None for what is no raster")
        num_classes = self.model.config.num_classes or 0
        require(
            num_classes <= 256, "output_file", output_file, f"None for {num_classes} classes, more than 8 bits hold"
        )
        for path in paths:
            is_new = not path.exists() and path.parent.is_dir() and path.suffix.lower() in (".tif", ".tiff")
            require(is_new, "output_file", str(path), "a new .tif file in an existing folder")
        return [MapsInFile(path, before.image, files) for path, (before, _) in zip(paths, pairs, strict=True)]

    # -- maps ------------------------------------------------------------------------------------------------------

    def _normalized(self, images: list[torch.Tensor]) -> torch.Tensor:
        """Stack images [3, h, w] (uint8, or float32 within [0, 1]) and normalise them as in the training."""
        pixels = torch.stack([image.float() / 255 if image.dtype == torch.uint8 else image for image in images])
        mean, std = IMAGENET if self.task == "captioning" else HALVES
        pixels = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        if self.task == "damage":  # the original reads them with OpenCV
            pixels = pixels.flip(1)
        return pixels.to(self._execution_device, self.model.dtype)

    def _blend(self, scenes: list[BlendedScene], targets: list, threshold: float, batch_size: int) -> None:
        """Evaluate all tiles of all scenes in batches, and write the blended maps row by row."""
        places, images = [], []

        def evaluate() -> None:
            before, after = (self._normalized([pair[i] for pair in images]) for i in (0, 1))
            for (scene, target, row, column), maps in zip(places, self._probabilities(before, after), strict=True):
                for first, rows in scene.add(row, column, maps):
                    target.write(first, self._decide(rows, threshold))
            progress_bar.update(len(places))
            places.clear()
            images.clear()

        with self.progress_bar(total=sum(scene.num_tiles for scene in scenes)) as progress_bar:
            for scene, target in zip(scenes, targets, strict=True):
                for row, column, pair in scene.tiles():
                    places.append((scene, target, row, column))
                    images.append(pair)
                    if len(places) == batch_size:
                        evaluate()
            if places:
                evaluate()

    def _probabilities(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """Return the probabilities [B, M, h, w]: K of each map of classes, then that of a change or building."""
        output = self.model(before, after)
        maps = [output[f"{name}_logits"].float().softmax(1) for name in CLASS_MAPS[self.task]]
        maps = torch.cat([*maps, getattr(output, PROBABILITY[self.task])], dim=1)
        if not maps.isfinite().all():
            weights = [name for name, weight in self.model.named_parameters() if not weight.isfinite().all()]
            found = f"its weight `{weights[0]}` is not finite, either" if weights else "its weights are finite"
            raise ValueError(f"`model` computed NaN or infinity, and {found}; required: finite weights, in their type.")
        return maps

    def _decide(self, maps: torch.Tensor, threshold: float) -> dict[str, torch.Tensor]:
        """Return the maps [rows, W] of blended probabilities [M, rows, W], by name."""
        name, is_wide = PROBABILITY[self.task], (self.model.config.num_classes or 0) > 256
        probability = maps[-1]
        mask = probability > threshold
        rows = {name: mask.to(torch.uint8), f"{name}_probability": probability}
        for number, of_classes in enumerate(CLASS_MAPS[self.task]):
            num_classes = self.model.config.num_classes
            classes = maps[number * num_classes : (number + 1) * num_classes].argmax(0)
            rows[of_classes] = (classes * mask).to(torch.int16 if is_wide else torch.uint8)
        return rows

    def _maps(self, targets: list[MapsInMemory], output_type: str) -> Change3DPipelineOutput:
        output = {}
        for target in targets:
            for name, values in target.maps.items():
                if name in PROBABILITY.values() and output_type == "pil":
                    values = 255 * values
                output.setdefault(name, []).append(as_output(values, output_type))
                if name in CLASS_MAPS[self.task]:
                    colors = np.array(self.config.palette, dtype=np.uint8)[values]  # [H, W, 3]
                    output.setdefault(f"{name}_picture", []).append(as_output(colors, output_type))
        return Change3DPipelineOutput(**output)

    # -- captions --------------------------------------------------------------------------------------------------

    def _write_captions(
        self, pairs: list[tuple[Scene, Scene]], num_beams: int, batch_size: int
    ) -> Change3DPipelineOutput:
        captions, scores = [], []
        with self.progress_bar(total=len(pairs)) as progress_bar:
            for first in range(0, len(pairs), batch_size):
                batch = pairs[first : first + batch_size]
                before, after = (self._normalized([pair[i].rows(0, pair[i].height) for pair in batch]) for i in (0, 1))
                found = self.model.generate(before, after, num_beams)
                captions += [None if sequence is None else self.decode(sequence) for sequence in found.sequences]
                scores += found.scores
                progress_bar.update(len(batch))
        unfinished = [number for number, caption in enumerate(captions) if caption is None]
        if unfinished:
            logger.warning(
                f"No caption of the pairs {shown(unfinished)} came to its end within "
                f"{self.model.config.max_caption_length} words: theirs is None."
            )
        return Change3DPipelineOutput(captions=captions, caption_scores=scores)

    def decode(self, sequence: list[int]) -> str:
        """Return the text of a caption of word ids, without `<start>`, `<end>` and `<pad>`."""
        words = [self.config.vocabulary[word] for word in sequence]
        return " ".join(word for word in words if word not in ("<pad>", "<start>", "<end>"))

    # -- Hub -------------------------------------------------------------------------------------------------------

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """Write model_index.json, the code of this pipeline, and the code of the model beside its weights.

        `save_pretrained` and `push_to_hub` of diffusers end with this call. Of a pipeline that was loaded as remote
        code, diffusers alone would drop the code and write names that cannot be loaded again.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        cls = type(getattr(self.model, "_orig_mod", self.model))  # a compiled model is a wrapper
        code = vars(cls).get("_source_code")  # not inherited: a user's subclass is defined in another file
        if code is not None:
            self.register_to_config(model=(PACKAGE, cls.__name__))
            if (folder / "model").is_dir():
                (folder / "model" / f"{PACKAGE}.py").write_text(code, encoding="utf-8", newline="\n")
        code = vars(type(self)).get("_source_code")
        if code is not None:
            (folder / "pipeline.py").write_text(code, encoding="utf-8", newline="\n")
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    def _upload_folder(self, working_dir: str | os.PathLike, repo_id: str, **kwargs):
        """Replace the generic model card in the last step of a push; a card of the repository's own is kept."""
        card = Path(working_dir) / "README.md"
        if card.is_file() and GENERIC_CARD in card.read_text(encoding="utf-8"):
            card.write_text(self._model_card(repo_id), encoding="utf-8", newline="\n")
        return super()._upload_folder(working_dir, repo_id, **kwargs)

    def _model_card(self, repository: str) -> str:
        fields = [*CLASS_MAPS[self.task], PROBABILITY[self.task]] if self.task != "captioning" else ["captions"]
        names = ", ".join(self.id2label.values())
        height, width = self.model.sample_size
        return MODEL_CARD.format(
            title=repository.rpartition("/")[2],
            pipeline_tag="image-to-text" if self.task == "captioning" else "image-segmentation",
            repository=repository,
            task=self.task,
            size=f"{height}x{width}",
            fields=", ".join(f"`output.{name}[0]`" for name in fields),
            parameters=self.model.num_parameters(),
            names=f" The classes are {names}." if names else "",
        )


def as_output(values: np.ndarray, output_type: str):
    """Return a map [H, W] or picture [H, W, 3] as a PIL image, an array or a tensor ([3, H, W] of a picture)."""
    if output_type == "np":
        return values
    if output_type == "pt":
        return torch.from_numpy(values).movedim(-1, 0) if values.ndim == 3 else torch.from_numpy(values)
    if values.dtype == np.float32:
        values = (values * 255).round().astype(np.uint8)
    return PIL.Image.fromarray(values.astype(np.int32) if values.dtype == np.int16 else values)


# The generic model card of diffusers consists of blanks to fill in. It is recognised by this sentence.
GENERIC_CARD = "This model card has been automatically generated."
MODEL_CARD = """---
library_name: diffusers
pipeline_tag: {pipeline_tag}
tags:
- change3d
- change-detection
- remote-sensing
---

# {title}

```python
from diffusers import DiffusionPipeline

repository = "{repository}"
pipe = DiffusionPipeline.from_pretrained(repository, custom_pipeline=repository, trust_remote_code=True)
output = pipe(before, after)  # two PIL images of one place
```

This runs the Python files of this repository. With the package diffusers-lightningdit, which holds the same files,
nothing from here is run:

```python
import diffusers_lightningdit  # makes its classes known to diffusers
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{repository}")
output = pipe(before, after)
```

Change3D ([arXiv 2503.18803](https://arxiv.org/abs/2503.18803), {parameters:,} parameters, trained at {size} pixels) for
the task "{task}": {fields} are what has changed between two images of one place.{names}
"""
