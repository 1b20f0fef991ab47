# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Measure change maps or captions of Change3D over a data set, with all scores of the paper.

    python -m diffusers_lightningdit.evaluate change --model MODEL --data DATA --split test --output_dir FOLDER
    accelerate launch --quiet -m diffusers_lightningdit.evaluate change ...

Every score is of one confusion matrix over all pixels, in exact integers, whatever the processes and the size of a
batch. It is given in the usual convention and in that of the paper's code. The command writes metrics.json, with
everything that the numbers depend on, and pairs.csv, with a line for each pair.
"""

import contextlib
import csv
import dataclasses
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ...change3d.caption_metrics import Meteor
from ...change3d.captions import check_vocabulary
from ...change3d.pairs import PairDataset, PairFormat
from ...change3d.scores import CaptionTotals, MapTotals, measure_batch
from ...change3d.sources import open_pairs, read_vocabulary
from ...files import atomic_write, check_output_dir, partial_name, read_model, weights_sha256, write_json
from ...locks import locked_by_run
from ...models import Change3DModel
from ...pipelines import Change3DPipeline
from ...settings import check_settings, required, setting
from ..ordered_batches import exact_arithmetic, ordered_batches
from ..records import measurement_record, run_command

METRICS_FILE, PAIRS_FILE = "metrics.json", "pairs.csv"
LEFTOVERS = tuple(partial_name(Path(name)).name for name in (METRICS_FILE, PAIRS_FILE))


@dataclasses.dataclass(kw_only=True)
class ChangeConfig:
    """Settings of `evaluate change`.

    Raises:
        ValueError: If a value cannot be used.
    """

    model: str = required("Folder or Hub id of a Change3DPipeline, or of a Change3DModel.", group="Input")
    vocabulary: str | None = setting(
        None, "The WORDMAP file of captions, {word: id}; null: the pipeline's, or that of the data."
    )

    data: str = required(
        "Folder with SPLIT/t1, t2 and labels, folder or JSON file of captions, or folder or Hub id for "
        "`datasets.load_dataset`.",
        group="Data",
    )
    split: str = setting("test", "The split of the data set.")
    columns: dict = setting({}, "Names of columns that are not image_before, label, ..., as columns.label=mask.")
    label_palette: tuple[tuple[int, int, int], ...] | None = setting(
        None, "The colour [red, green, blue] of each class in label maps that are pictures; null: labels are numbers."
    )
    resize: bool = setting(
        False, "Resize images and labels to the model's size, as the original does; else they must have it."
    )
    allow_left_out: bool = setting(False, "Accept that folders or files of `data` are left out; they are named.")
    check_data: bool = setting(True, "Read all label maps of folders before anything is computed.")
    num_pairs: int | None = setting(None, "The number of pairs, the first ones of the data; null: all.", minimum=1)

    threshold: float = setting(
        0.5, "The probability above which a change, or a building, is one.", group="Measures", minimum=0
    )
    num_beams: int = setting(1, "The number of beams of captions; the original has 1 by default.", minimum=1)
    meteor_jar: str | None = setting(
        None, "The file meteor-1.5.jar, which needs Java and its data folder beside it; null: no METEOR."
    )

    micro_batch_size: int = setting(
        8,
        "Pairs that are read and computed at a time; on a CPU each is computed alone.",
        group="Computation",
        minimum=1,
    )
    num_threads: int = setting(
        1, "Threads of each process's network on a CPU; another number may change the last digits.", minimum=1
    )
    num_workers: int = setting(0, "Processes that read images, for each process that computes.", minimum=0)

    output_dir: str = required("Folder of the numbers, new or empty.", group="Output")

    def __post_init__(self):
        check_settings(self)
        if self.threshold > 1:
            raise ValueError(f"`threshold` is {self.threshold}; required: a probability, at most 1.")


def load_model(name: str) -> tuple[Change3DModel, dict[str, int] | None]:
    """Load a model for evaluation from the folder of a pipeline, or of a model; and its vocabulary, if it has one.

    Raises:
        ValueError: In one line, if it is neither.
    """
    wanted = "a folder or Hub id of a Change3DPipeline or a Change3DModel"
    try:
        is_pipeline = Change3DPipeline.load_config(name).get("_class_name") == Change3DPipeline.__name__
    except Exception:  # diffusers raises many kinds where there is no model_index.json
        is_pipeline = False
    if not is_pipeline:
        model = read_model(Change3DModel, name, "model", wanted)
        return model.requires_grad_(False).eval(), None
    pipeline = read_model(Change3DPipeline, name, "model", wanted)
    words = pipeline.config.vocabulary
    vocabulary = None if words is None else {word: number for number, word in enumerate(words)}
    return pipeline.model.requires_grad_(False).eval(), vocabulary


def open_dataset(
    config: ChangeConfig, model: Change3DModel, vocabulary: dict[str, int] | None
) -> tuple[PairDataset, dict[str, int] | None]:
    """The pairs in the form that the model needs, and the vocabulary of captions.

    Raises:
        ValueError: For data that cannot be used, or a vocabulary that is not the model's.
    """
    task = model.config.task
    source = open_pairs(task, config.data, config.split, config.columns, allow_left_out=config.allow_left_out)
    if task == "captioning":
        vocabulary = _one_vocabulary(config, vocabulary, source.vocabulary, model.config.vocab_size)
    for name in ("vocabulary", "meteor_jar"):
        value = getattr(config, name)
        if value is not None and task != "captioning":
            raise ValueError(f"`{name}` is {value!r}; required: null for a model of the task {task!r}.")
    form = PairFormat(
        task, model.sample_size, model.config.num_classes, config.label_palette, config.resize, vocabulary
    )
    dataset = PairDataset(source, form, config.data)
    if config.num_pairs is not None and config.num_pairs > len(dataset):
        raise ValueError(f"`num_pairs` is {config.num_pairs}; required: at most {len(dataset)}, which `data` has.")
    if config.check_data:
        dataset.check()
    return dataset, vocabulary


def _one_vocabulary(
    config: ChangeConfig, own: dict[str, int] | None, of_data: dict[str, int] | None, vocab_size: int
) -> dict[str, int]:
    given = None if config.vocabulary is None else read_vocabulary(config.vocabulary)
    found = {"`vocabulary`": given, "`model`": own, "`data`": of_data}
    found = {name: vocabulary for name, vocabulary in found.items() if vocabulary is not None}
    if not found:
        raise ValueError("`vocabulary` is null, and neither `model` nor `data` has one; required: a WORDMAP file.")
    name, vocabulary = next(iter(found.items()))
    for other, words in found.items():
        if words != vocabulary:
            raise ValueError(f"{name} and {other} have different vocabularies; required: the one of the training.")
    if len(check_vocabulary(vocabulary, name)) != vocab_size:
        raise ValueError(f"{name} has a vocabulary of {len(vocabulary)} words; required: {vocab_size}, as the model.")
    return vocabulary


def evaluate_change(config: ChangeConfig, accelerator: Accelerator) -> dict[str, Any]:
    """Measure the model, and write `metrics.json` and `pairs.csv` to `config.output_dir`.

    Returns:
        The content of `metrics.json` on the main process, an empty dictionary on the others. Its `results` are those of
        `MapTotals` or `CaptionTotals`.

    Raises:
        ValueError: Before anything is computed, if settings, data or model cannot be used; later, if an image cannot be
            read.
        ImportError: If the data are HDF5 files, and h5py is not installed.
        OSError: If the files cannot be written, or METEOR fails.
    """
    check_output_dir(config.output_dir, leftovers=LEFTOVERS)
    with exact_arithmetic(config.num_threads, accelerator.device), contextlib.ExitStack() as stack:
        return _evaluate(config, accelerator, stack)


def _evaluate(config: ChangeConfig, accelerator: Accelerator, stack: contextlib.ExitStack) -> dict[str, Any]:
    model, vocabulary = load_model(config.model)
    weights = {"model": weights_sha256(model)}
    dataset, vocabulary = open_dataset(config, model, vocabulary)
    meteor = None if config.meteor_jar is None else Meteor(config.meteor_jar)
    model.to(accelerator.device)
    stack.enter_context(locked_by_run(accelerator, config.output_dir))
    check_output_dir(config.output_dir, leftovers=LEFTOVERS)  # another run may have ended there in the meantime
    accelerator.print(dataset.summary())
    measured = ordered_batches(
        dataset,
        lambda batch: measure_batch(model, batch, config.threshold, config.num_beams),
        accelerator,
        config.micro_batch_size,
        config.num_workers,
        range(config.num_pairs or len(dataset)),
        "measuring",
    )
    if not accelerator.is_main_process:
        deque(measured, maxlen=0)
        return {}
    path = Path(config.output_dir) / PAIRS_FILE
    with atomic_write(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if model.config.task == "captioning":
            totals = CaptionTotals(vocabulary, meteor)
            _collect_captions(dataset, measured, totals, writer)
        else:
            totals = MapTotals(model.config.task)
            _collect_maps(dataset, measured, totals, writer)
    record = measurement_record("change", totals.results(), config, weights, accelerator)
    record |= {"task": model.config.task, "data_sha256": dataset.source.sha256}
    if meteor is None and model.config.task == "captioning":
        record["left_out"] = {"meteor": "`meteor_jar` is null"}
    write_json(path.with_name(METRICS_FILE), record)
    return record


def _collect_maps(
    dataset: PairDataset, measured: Iterator[dict[str, torch.Tensor]], totals: MapTotals, writer: Any
) -> None:
    """Add all counts, and write the pixels of each pair: right and wrong ones of each matrix."""
    for counts in measured:
        matrices = [name for name in counts if name != "num_right"]
        if totals.num_pairs == 0:
            names = [f"{prefix}{name}" for name in matrices for prefix in ("right_", "wrong_")]
            writer.writerow(["index", "name", *(name.replace("_matrix", "") for name in names)])
        for number in range(len(counts[matrices[0]])):
            index, row = totals.num_pairs + number, []
            for name in matrices:
                right = int(counts[name][number].trace())
                row += [right, int(counts[name][number].sum()) - right]
            writer.writerow([index, dataset.name(index), *row])
        totals.update(counts)


def _collect_captions(
    dataset: PairDataset, measured: Iterator[dict[str, torch.Tensor]], totals: CaptionTotals, writer: Any
) -> None:
    """Add all captions, and write them."""
    writer.writerow(["index", "name", "caption"])
    for batch in measured:
        first = len(totals.hypotheses)
        indices = range(first, first + len(batch["captions"]))
        totals.update(batch["captions"], [dataset.references(index) for index in indices])
        for index in indices:
            words = totals.words(index)
            writer.writerow([index, dataset.name(index), "(no beam came to its end)" if words is None else words])


def main(argv: list[str] | None = None) -> None:
    run_command(ChangeConfig, evaluate_change, METRICS_FILE, argv, __doc__)
