# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Encode the images of a data set once, to files of raw latents that are the same however the work is done.

Shard k holds the images k * shard_size to (k + 1) * shard_size - 1 of the data set, less those that cannot be read, and
is encoded in fixed batches with noise that follows from the seed and the image's index. So neither the number of
processes nor an interruption changes a file, and no image is left out or encoded twice.

Letters in the shape comments: B batch, C latent channels.
"""

import contextlib
import dataclasses
import itertools
import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import torch
from accelerate import Accelerator
from datasets import Array3D, ClassLabel, Features, Value
from safetensors import SafetensorError
from tqdm.auto import tqdm

from ..files import atomic_write, check_output_dir, new_folder, one_line, read_json, weights_sha256, write_json
from ..interruption import Interrupted, Interruption
from ..keyed_random import posterior_noise
from ..locks import locked_by_run
from ..models import AutoencoderVAVAE
from ..networks.foundation_model import IMAGE_NORMALIZATIONS, FoundationModel
from ..pixels import RESOLUTION_HELP, as_rgb, height_and_width
from ..settings import check_settings, required, setting
from .images import UnusableImage, image_name, read_pixels
from .latent_encoding import draw_latents, encode_moments, latents_size, load_frozen_vae, resolution_for
from .latent_shards import DTYPES, INFO_FILE, shard_name, write_shard, write_statistics
from .latent_statistics import LatentsStatistics
from .rows import ImageRows, first_names

PROGRESS_FOLDER = "progress"  # while it lasts: the settings, and a record of each whole shard
SKIPPED_FILE = "skipped_images.json"
ROW_GROUP_SIZE = 100  # rows of a parquet file that a stream reads at a time
# The front matter tells `datasets` and the Hub's viewer which files are the data.
CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: train-*.parquet
---

Raw latents of images (`latents`), of the mirrored images (`latents_flip`), and class labels. They are normalised
with the statistics in the config of the autoencoder in `vae/`.
"""


@dataclasses.dataclass(kw_only=True)
class CachingConfig:
    """Settings of cache_latents.py.

    Raises:
        ValueError: for a value that cannot be cached with.
    """

    data: str = required(
        "Folder (imagefolder, parquet, webdataset) or Hub id of labelled images, for `datasets.load_dataset`.",
        group="Data",
    )
    split: str = setting("train", "The split of the data set.")
    image_column: str = setting("image", "The column of the images; of a webdataset often jpg.")
    label_column: str | None = setting(
        "label",
        "The column of the class labels, or of whole numbers; of a webdataset often cls; null for images without "
        "classes, which get the label 0.",
    )
    streaming: bool = setting(
        False, "Leave the data where it is; every process reads all of it, and decodes only its own part."
    )
    allow_left_out: bool = setting(False, "Accept that files in a local folder of `data` are left out; they are named.")
    resolution: int | tuple[int, int] | None = setting(None, RESOLUTION_HELP, minimum=1)
    on_error: str = setting(
        "fail",
        "At an image that cannot be decoded, has no label or whose latents overflow `dtype`: fail, or skip it and list "
        "it in skipped_images.json.",
        choices=("fail", "skip"),
    )

    vae: str = required("Folder or Hub id of an AutoencoderVAVAE; it is not changed.", group="Model")
    foundation_model: str | None = setting(
        None,
        "Folder or Hub id of a vision foundation model, for `transformers`, whose features of the images are kept "
        "beside the latents, for `alignment` in train_lightningdit.py; null: no features.",
    )
    foundation_normalization: str = setting(
        "model",
        "The input of the foundation model: by the model's own preprocessor_config.json, or pixels in [-1, 1].",
        choices=IMAGE_NORMALIZATIONS,
    )
    feature_grid_size: int | tuple[int, int] | None = setting(
        None,
        "The size of the grid of features, its side or [height, width]: that of the transformer's tokens; null: of the "
        "latents.",
        minimum=1,
    )

    vae_dtype: str = setting(
        "float32",
        "The type that the autoencoder computes in; bfloat16 is faster on a GPU.",
        group="Computation",
        choices=DTYPES,
    )
    compile_vae: bool = setting(
        False, "Compile the encoder by torch.compile, with its channels last in memory: the same to rounding."
    )
    batch_size: int = setting(64, "Images that are encoded at a time.", minimum=1)
    num_workers: int = setting(4, "Threads that read and crop images, of each process.", minimum=1)
    seed: int = setting(0, "The seed of the posterior's noise.", minimum=0)

    output_dir: str = required("Folder of the latents: new, empty, or that of an interrupted run.", group="Output")
    dtype: str = setting(
        "float32",
        "The type of the latents in the files; float16 (11 significant bits) and bfloat16 (8) take half the space.",
        choices=DTYPES,
    )
    format: str = setting(
        "safetensors",
        "The format of the files: safetensors, the original's shards, or parquet, a data set for `datasets` and the "
        "Hub.",
        choices=("safetensors", "parquet"),
    )
    shard_size: int = setting(10_000, "Images of a file.", minimum=1)

    def __post_init__(self):
        check_settings(self)
        if self.format == "parquet" and self.dtype == "bfloat16":
            raise ValueError("`dtype` is 'bfloat16'; required: float32 or float16 where `format` is parquet.")
        if self.format == "parquet" and self.foundation_model is not None:
            raise ValueError("`format` is 'parquet'; required: safetensors for the features of a `foundation_model`.")

    def identity(self) -> dict:
        """The settings that the files depend on."""
        free = ["output_dir", "on_error", "num_workers"]
        if not self.compile_vae:  # which files that were begun before there was this setting do not have
            free.append("compile_vae")
        if self.foundation_model is None:
            free += ["foundation_model", "foundation_normalization", "feature_grid_size"]
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in free}


# ---------------------------------------------------------------------------------------------------------------------
# Images
# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Sample:
    """An image of the data set: `pixels` [C_in, height, width] in [-1, 1] and `label`, or the `error` that it has."""

    index: int
    name: str
    pixels: torch.Tensor | None = None
    label: int = -1
    error: str | None = None


class ShardedImages(ImageRows):
    """The rows of a data set of labelled images, in its order, to read shard by shard.

    Args:
        resolution: The size of the images in pixels, (height, width) or one number for both.
        channels: 3 for RGB, 1 for grey.
        arguments: As for `ImageRows`.

    Raises:
        ValueError: as `ImageRows`.
    """

    def __init__(self, resolution: int | tuple[int, int], channels: int, *arguments):
        super().__init__(*arguments)
        self.resolution = resolution
        self.channels = channels

    def shards(self, size: int, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Iterator[tuple[int, dict]]]]:
        """Yield the wanted ones of the shards of `size` rows: the shard's number, and (index, row) of each row.

        A stream is read to its end even where the rest is not wanted.
        """
        if isinstance(self.rows, datasets.IterableDataset):
            for shard, rows in itertools.groupby(enumerate(self.rows), key=lambda pair: pair[0] // size):
                if wanted(shard):
                    yield shard, rows
            return
        for shard in filter(wanted, range(-(-self.num_images // size))):
            indices = range(shard * size, min((shard + 1) * size, self.num_images))
            yield shard, ((index, self.rows[index]) for index in indices)

    def shard_sha256(self, shard: int, size: int) -> str:
        """The hash of the files that a shard is made from, as `Source.sha256` makes it, with their times."""
        return self.source.sha256(slice(shard * size, (shard + 1) * size), with_times=True)

    def read(self, index: int, row: dict) -> Sample:
        """Decode, crop and scale the image of a row; nothing is raised for an unusable one."""
        image, label = row[self.image_column], 0 if self.label_column is None else row[self.label_column]
        sample = Sample(index, f"{image_name(image)} (row {index})")
        if label is None or label < 0 or (self.id2label and label >= len(self.id2label)):
            sample.error = f"its label is {label}"
            return sample
        sample.label = label
        try:
            sample.pixels = read_pixels(image, self.resolution, channels=self.channels)
        except UnusableImage as error:
            sample.error = str(error)
        return sample


# ---------------------------------------------------------------------------------------------------------------------
# Encoding
# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class ShardEncoder:
    """Encodes the images of a shard, and of their mirror images."""

    vae: AutoencoderVAVAE
    images: ShardedImages
    config: CachingConfig
    interruption: Interruption
    foundation_model: FoundationModel | None

    def __post_init__(self):
        self.shape = (self.vae.config.latent_channels, *latents_size(self.images.resolution, self.vae))
        self.grid_size = height_and_width(self.config.feature_grid_size or self.shape[1:])

    def encode(
        self, rows: Iterator[tuple[int, dict]], progress_bar: tqdm
    ) -> tuple[dict[str, torch.Tensor], list[dict]]:
        """Latents, flipped latents, labels and features of the images of `rows`, and a report of each that was skipped.

        Raises:
            ValueError: naming the image that cannot be read or encoded, if such images are not to be skipped.
            Interrupted: after the batch in which a signal came.
        """
        dtype = DTYPES[self.config.dtype]
        parts = {name: [torch.empty(0, *self.shape, dtype=dtype)] for name in ("latents", "latents_flip")}
        if self.foundation_model is not None:
            shape = (self.foundation_model.num_channels, *self.grid_size)
            parts |= {name: [torch.empty(0, *shape, dtype=dtype)] for name in ("features", "features_flip")}
        labels, skipped = [], []
        for samples in self._read(rows):
            good = [sample for sample in samples if sample.error is None]
            if good:
                encoded = self._encode_batch(good)
                usable = [sample.error is None for sample in good]
                for name, tensors in parts.items():
                    tensors.append(encoded[name][usable])
                labels += [sample.label for sample in good if sample.error is None]
            bad = [
                {"index": sample.index, "name": sample.name, "error": sample.error}
                for sample in samples
                if sample.error is not None
            ]
            if bad and self.config.on_error == "fail":
                raise ValueError(
                    f"{bad[0]['name']} in {self.config.data} cannot be used ({bad[0]['error']}); required: a sound "
                    f"image, or `on_error` skip. Whole shards so far are kept in {self.config.output_dir}."
                )
            skipped += bad
            progress_bar.update(len(samples))
            self.check_interruption()
        tensors = {name: torch.cat(values) for name, values in parts.items()}
        return {**tensors, "labels": torch.tensor(labels, dtype=torch.int64)}, skipped

    def check_interruption(self) -> None:
        """Raise Interrupted if a signal has asked for the end; whole shards are kept."""
        if self.interruption.requested:
            raise Interrupted(
                f"interrupted by {self.interruption.requested.name}; whole shards are kept in "
                f"{self.config.output_dir}, where the same command goes on.",
                self.interruption.requested,
            )

    def _read(self, rows: Iterator[tuple[int, dict]]) -> Iterator[list[Sample]]:
        """Batches of read images; two are read by other threads while one is encoded."""
        with ThreadPoolExecutor(self.config.num_workers) as threads:
            pending = deque()
            while chunk := list(itertools.islice(rows, self.config.batch_size)):
                pending.append([threads.submit(self.images.read, index, row) for index, row in chunk])
                if len(pending) > 2:
                    yield [future.result() for future in pending.popleft()]
            for futures in pending:
                yield [future.result() for future in futures]

    def _encode_batch(self, samples: list[Sample]) -> dict[str, torch.Tensor]:
        """Latents and features of the images, and of the mirrored ones, as they are stored; NaN is an error."""
        pixels, encoded = torch.stack([sample.pixels for sample in samples]), {}
        for flip in (False, True):
            seen, end = (pixels.flip(-1), "_flip") if flip else (pixels, "")
            moments = encode_moments(self.vae, seen)
            noise = [posterior_noise(self.config.seed, sample.index, flip, self.shape) for sample in samples]
            encoded[f"latents{end}"] = draw_latents(moments, torch.stack(noise)).cpu().to(DTYPES[self.config.dtype])
            if self.foundation_model is not None:
                features = self.foundation_model(as_rgb(seen.to(self.vae.device)), self.grid_size)
                encoded[f"features{end}"] = features.cpu().to(DTYPES[self.config.dtype])
        for name in ("latents", "features"):
            both = [tensors for key, tensors in encoded.items() if key.startswith(name)]
            for number, sample in enumerate(samples if both else ()):
                largest = torch.stack([tensors[number] for tensors in both]).double().abs().amax().item()
                if not math.isfinite(largest) and sample.error is None:
                    model = f"VAE in {self.config.vae_dtype}" if name == "latents" else "the foundation model"
                    sample.error = f"its {name} hold {largest:g} in {self.config.dtype} ({model})"
        return encoded


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


class LatentFiles:
    """The folder that a data set of latents grows in, shard by shard; nothing in it is ever half written.

    Args:
        config: The settings of the run.
        settings: What the files depend on beside the images themselves.
        images: The images.

    Raises:
        ValueError: if the folder holds something else, what was begun with other settings, or a complete data set of
            images that have changed since.
    """

    def __init__(self, config: CachingConfig, settings: dict, images: ShardedImages):
        self.folder = Path(config.output_dir)
        self.progress = self.folder / PROGRESS_FOLDER
        self.config = config
        self.settings = settings
        self.images = images
        self.id2label = images.id2label
        self.is_complete = (self.folder / INFO_FILE).exists()
        begun = self.progress / "settings.json"
        if self.is_complete or begun.exists():
            info = read_json(self.folder / INFO_FILE) if self.is_complete else {"settings": read_json(begun)}
            before = info.get("settings")
            for name, value in settings.items():
                old = before.get(name) if isinstance(before, dict) else None
                if old != value:
                    raise ValueError(
                        f"{self.folder} was begun with `{name}` {_difference(old, value)}; required: the same, or "
                        "another `output_dir`."
                    )
            if self.is_complete:
                self._check_images(info.get("data_sha256"))
        else:
            # a run may have been interrupted before its settings were on the disk
            was_made = self.progress.is_dir() and all(path.suffix == ".partial" for path in self.progress.iterdir())
            check_output_dir(config.output_dir, leftovers=(PROGRESS_FOLDER,) if was_made else ())

    def _check_images(self, before: object) -> None:
        """Raise ValueError if a complete data set was made from other images."""
        now = None
        if isinstance(before, list):
            size, num_images = self.config.shard_size, self.images.num_images
            num_shards = len(before) if num_images is None else math.ceil(num_images / size)
            now = [self.images.shard_sha256(shard, size) for shard in range(num_shards)]
        if before != now or now is None:
            pairs = enumerate(itertools.zip_longest(before or (), now or ()))
            changed = [self.name(shard) for shard, (old, new) in pairs if old != new]
            raise ValueError(
                f"{self.folder} is complete, but the images of {first_names(changed) or INFO_FILE} have changed since, "
                f"or others are in their place; required: {self.config.data} as it was, or another `output_dir`."
            )

    def prepare(self) -> list[str]:
        """Make the folder, clear what an interrupted run left half written, and shards of images that have changed.

        For one process.

        Returns:
            The names of the shards that were there and have to be made anew.
        """
        self.progress.mkdir(parents=True, exist_ok=True)
        for pattern in ("*.partial", ".*.partial-*", f"{PROGRESS_FOLDER}/*.partial"):
            for partial in self.folder.glob(pattern):
                shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
        write_json(self.progress / "settings.json", self.settings)
        changed = []
        for record in sorted(self.progress.glob("shard_*.json")):
            shard = int(record.stem.removeprefix("shard_"))
            if read_json(record).get("data_sha256") != self.images.shard_sha256(shard, self.config.shard_size):
                record.unlink()  # before the shard: its record tells that it is whole
                (self.folder / self.name(shard)).unlink(missing_ok=True)
                changed.append(self.name(shard))
        return changed

    def name(self, shard: int) -> str:
        """The file name of a shard."""
        return shard_name(shard) if self.config.format == "safetensors" else f"train-{shard:05d}.parquet"

    def _record_path(self, shard: int) -> Path:
        return self.progress / f"shard_{shard:06d}.json"

    def has(self, shard: int) -> bool:
        """Whether a shard is done: its record is written last."""
        return self._record_path(shard).exists()

    def write(self, shard: int, tensors: dict[str, torch.Tensor], skipped: list[dict]) -> None:
        """Write a shard and its record.

        Raises:
            ValueError: if the disk doesn't take it; shards that were written before are kept.
        """
        statistics = None
        num_images = len(tensors["labels"])
        path = self.folder / self.name(shard)
        if num_images:
            statistics = dataclasses.asdict(LatentsStatistics.of(tensors["latents"]))
            try:
                if self.config.format == "safetensors":
                    write_shard(path, **tensors)
                else:
                    self._write_parquet(path, tensors)
            except (OSError, SafetensorError) as error:
                raise ValueError(
                    f"{path} cannot be written ({one_line(error)}); required: space and permission. What "
                    "was written before is kept."
                ) from error
        digest = self.images.shard_sha256(shard, self.config.shard_size)
        record = {"num_images": num_images, "skipped": skipped, "statistics": statistics, "data_sha256": digest}
        write_json(self._record_path(shard), record)

    def _write_parquet(self, path: Path, tensors: dict[str, torch.Tensor]) -> None:
        array = Array3D(tuple(tensors["latents"].shape[1:]), self.config.dtype)
        label = Value("int64") if self.id2label is None else ClassLabel(names=list(self.id2label.values()))
        columns = {
            "latents": list(tensors["latents"].numpy()),
            "latents_flip": list(tensors["latents_flip"].numpy()),
            "label": tensors["labels"].tolist(),
        }
        rows = datasets.Dataset.from_dict(
            columns, features=Features({"latents": array, "latents_flip": array, "label": label})
        )
        with atomic_write(path) as partial:
            rows.to_parquet(partial, batch_size=ROW_GROUP_SIZE)

    def finish(self) -> dict:
        """Write statistics, report and the VAE's copy, when every shard is done; for one process.

        Returns:
            The content of `latents_info.json`, whose presence tells that all is done.

        Raises:
            ValueError: if no image could be used.
        """
        num_shards = sum(1 for _ in self.progress.glob("shard_*.json"))
        records = {shard: read_json(self._record_path(shard)) for shard in range(num_shards)}
        skipped = [report for record in records.values() for report in record["skipped"]]
        write_json(self.folder / SKIPPED_FILE, skipped)
        num_images = sum(record["num_images"] for record in records.values())
        if num_images == 0:
            raise ValueError(
                f"none of the {len(skipped)} images of {self.config.data} can be used; required: sound images, see "
                f"{self.folder / SKIPPED_FILE}."
            )
        measured = (record["statistics"] for record in records.values() if record["num_images"])
        statistics = LatentsStatistics.combine(LatentsStatistics(**values) for values in measured)
        write_statistics(self.folder, statistics.mean, statistics.std)
        self._write_vae(statistics)
        if self.config.format == "parquet":
            (self.folder / "README.md").write_text(CARD, encoding="utf-8")
        info = {
            "num_images": num_images,
            "num_skipped": len(skipped),
            "vae_sha256": self.settings["vae_sha256"],
            "latents_mean": statistics.mean,
            "latents_std": statistics.std,
            "id2label": self.id2label,
            "files": {
                self.name(shard): record["num_images"] for shard, record in records.items() if record["num_images"]
            },
            "data_sha256": [record["data_sha256"] for record in records.values()],
            "settings": self.settings,
        }
        write_json(self.folder / INFO_FILE, info)
        shutil.rmtree(self.progress)
        return info

    def _write_vae(self, statistics: LatentsStatistics) -> None:
        """A copy of the VAE whose config holds these statistics."""
        vae = load_frozen_vae(self.config.vae, with_statistics=False)
        vae.set_latents_statistics(statistics.mean, statistics.std)
        shutil.rmtree(self.folder / "vae", ignore_errors=True)  # a run was killed just after this was written
        with new_folder(self.folder / "vae") as partial:
            vae.save_pretrained(partial)


def _difference(before: object, now: object) -> str:
    """Two values of a setting for a message; of two lists the first entries that differ."""
    if isinstance(before, list) and isinstance(now, list):
        pairs = ((old, new) for old, new in itertools.zip_longest(before, now) if old != new)
        before, now = next(pairs)
    return f"{before!r}, now it is {now!r}"


# ---------------------------------------------------------------------------------------------------------------------
# The whole job
# ---------------------------------------------------------------------------------------------------------------------


def cache_latents(config: CachingConfig, accelerator: Accelerator) -> None:
    """Encode the images of `config.data` to files in `config.output_dir`, or go on where a run was interrupted.

    Shards are dealt out to the processes in turns.

    Raises:
        ValueError: before anything is written, for data, VAE or output folder that cannot be used, and more processes
            than shards; later for an image that cannot be used, or a disk that is full.
    """
    world_size = accelerator.num_processes
    vae = load_frozen_vae(config.vae, with_statistics=False)
    resolution = resolution_for(vae, config.resolution)
    columns, size = (config.image_column, config.label_column), (resolution, vae.config.in_channels)
    images = ShardedImages(*size, config.data, config.split, *columns, config.streaming, config.allow_left_out)
    accelerator.print(images.summary())
    interruption = Interruption()
    foundation_model, more = None, {}
    if config.foundation_model is not None:
        name = config.foundation_model
        foundation_model = FoundationModel.from_pretrained(name, config.foundation_normalization)
        more["foundation_model_sha256"] = weights_sha256(foundation_model)
    encoder = ShardEncoder(vae, images, config, interruption, foundation_model)
    names = None if images.id2label is None else list(images.id2label.values())
    same = {"resolution": resolution, "class_names": names, "vae_sha256": weights_sha256(vae), **more}
    if images.num_images is not None and -(-images.num_images // config.shard_size) < world_size:
        raise ValueError(
            f"{world_size} processes are more than the shards, of `shard_size` {config.shard_size}, that "
            f"{images.num_images} images make; required: at least one for each process."
        )
    folder = Path(config.output_dir)
    is_whole = (folder / INFO_FILE).exists() and not (folder / PROGRESS_FOLDER).exists()  # and may be read-only
    with contextlib.nullcontext() if is_whole else locked_by_run(accelerator, folder):
        files = LatentFiles(config, {**config.identity(), **same}, images)
        accelerator.wait_for_everyone()  # every process has looked at the folder
        if not files.is_complete:
            with interruption:
                _fill(files, encoder, accelerator)
            return
        if accelerator.is_main_process:  # a run may have been killed when all was done
            shutil.rmtree(files.progress, ignore_errors=True)
        accelerator.print(f"{config.output_dir} is complete")


def _fill(files: LatentFiles, encoder: ShardEncoder, accelerator: Accelerator) -> None:
    """Make the shards that are not there yet, and what belongs to all of them."""
    rank, world_size = accelerator.process_index, accelerator.num_processes
    config, images, vae = encoder.config, encoder.images, encoder.vae
    if accelerator.is_main_process:
        changed = files.prepare()
        if changed:
            print(f"made anew, since images have changed: {first_names(changed)}")
    accelerator.wait_for_everyone()
    vae.to(accelerator.device)
    if encoder.foundation_model is not None:
        encoder.foundation_model.to(accelerator.device)
    if config.vae_dtype != "float32":
        vae.to(DTYPES[config.vae_dtype])
    if config.compile_vae:
        vae.to(memory_format=torch.channels_last).encoder.compile()
    begin = time.perf_counter()
    num_encoded = 0
    with tqdm(desc="encoding", unit=" images", disable=not accelerator.is_main_process) as progress_bar:
        wanted = lambda shard: shard % world_size == rank and not files.has(shard)  # noqa: E731
        if images.num_images is not None:
            first_rows = range(0, images.num_images, config.shard_size)
            mine = [row for shard, row in enumerate(first_rows) if wanted(shard)]
            progress_bar.total = sum(min(config.shard_size, images.num_images - row) for row in mine)
        for shard, rows in images.shards(config.shard_size, wanted):
            tensors, skipped = encoder.encode(rows, progress_bar)
            files.write(shard, tensors, skipped)
            num_encoded += len(tensors["labels"])
    encoder.check_interruption()
    num_encoded = int(accelerator.reduce(torch.tensor(num_encoded, device=accelerator.device), "sum"))
    seconds = time.perf_counter() - begin
    if accelerator.is_main_process:
        info = files.finish()
        print(
            f"wrote {config.output_dir}: {info['num_images']} images in {len(info['files'])} files, "
            f"{info['num_skipped']} skipped ({SKIPPED_FILE}); {num_encoded} encoded now, "
            f"{num_encoded / seconds:.1f} images/s in all processes"
        )
    accelerator.wait_for_everyone()
