# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Validation of a Change3D in training, and the weights of the best one."""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, Subset

from ...change3d.pairs import PairDataset
from ...change3d.scores import CaptionTotals, MapTotals, measure_batch, selection_score
from ...files import atomic_write
from ...models import Change3DModel
from ...models.change3d import NotFiniteError
from ...processes import on_main_process
from .config import Change3DTrainingConfig

BEST_FILE = "best.safetensors"  # in the output folder
BATCH_SIZE = 8


class Change3DValidation:
    """The scores of a model over the validation data, which the processes share.

    Args:
        config: The settings.
        dataset: The pairs.
        accelerator: The accelerator of the run.
    """

    def __init__(self, config: Change3DTrainingConfig, dataset: PairDataset, accelerator: Accelerator):
        self.config, self.dataset, self.accelerator = config, dataset, accelerator
        number = config.num_validation_pairs or len(dataset)
        rank, num_processes = accelerator.process_index, accelerator.num_processes
        self.batches = [list(range(first, min(first + BATCH_SIZE, number))) for first in range(0, number, BATCH_SIZE)]
        self.own = range(rank, len(self.batches), num_processes)

    def __call__(self, model: Change3DModel) -> tuple[float, dict[str, Any]]:
        """The score that checkpoints are chosen by, and all scores by name, on the main process; (0, {}) on others.

        The score of a model that computes NaN or infinity is minus infinity, below that of any other.

        Every process has to call it.
        """
        config, model = self.config, model.to(self.accelerator.device).eval()
        measured = {}
        subset = Subset(self.dataset, [index for number in self.own for index in self.batches[number]])
        for number, batch in zip(self.own, DataLoader(subset, batch_size=BATCH_SIZE), strict=True):
            try:
                counts = measure_batch(model, batch, num_beams=config.num_beams)
            except NotFiniteError:  # on this process alone, which the others would wait for
                counts = {}
            measured[number] = {name: values.cpu() for name, values in counts.items()}
        gathered = gather_object([measured])
        if not self.accelerator.is_main_process:
            return 0.0, {}
        counts_of = {number: counts for part in gathered for number, counts in part.items()}
        num_bad = sum(not counts for counts in counts_of.values())
        if num_bad:
            return float("-inf"), {"validation_num_not_finite": num_bad}
        totals = CaptionTotals(self.dataset.form.vocabulary) if config.task == "captioning" else MapTotals(config.task)
        for number, indices in enumerate(self.batches):
            if config.task == "captioning":
                totals.update(counts_of[number]["captions"], [self.dataset.references(index) for index in indices])
            else:
                totals.update(counts_of[number])
        results = totals.results()
        scores = results["original"] or {}
        metrics = {f"validation_{name}": value for name, value in scores.items() if isinstance(value, float)}
        if "num_unfinished" in results:
            metrics["validation_num_unfinished"] = results["num_unfinished"]
        return selection_score(config.task, results), metrics


class BestWeights:
    """The weights of the best validation of a run, in one file of its output folder, with step and score.

    A run that continues keeps them: a validation has to be better, not equal, to replace them.

    Args:
        output_dir: The output folder, which exists while the run has its lock.
        accelerator: The accelerator of the run.
        step: The step that the run begins at.
        model: The model that they are the weights of.
        resumed_from: The checkpoint that the run goes on from; the best weights beside it, of steps up to this one, are
            taken along to another folder.

    Raises:
        ValueError: If the file is damaged, or of another model.
    """

    def __init__(
        self,
        output_dir: str | Path,
        accelerator: Accelerator,
        step: int,
        model: Change3DModel,
        resumed_from: str | None = None,
    ):
        weights = model.state_dict()
        self.file, self.accelerator = Path(output_dir) / BEST_FILE, accelerator
        origin = None if resumed_from in (None, "latest") else Path(resumed_from).parent / BEST_FILE

        def take_along() -> tuple[int | None, float]:
            if not self.file.exists() and origin is not None and origin.exists() and _read(origin, weights)[0] <= step:
                with atomic_write(self.file) as partial:
                    shutil.copyfile(origin, partial)
            return _read(self.file, weights) if self.file.exists() else (None, float("-inf"))

        self.step, self.score = on_main_process(accelerator, take_along)

    def offer(self, step: int, score: float, weights: Mapping[str, torch.Tensor]) -> None:
        """Keep the weights of a step if its score is better; on the main process only."""
        if score > self.score:
            tensors = {name: tensor.contiguous().cpu() for name, tensor in weights.items()}
            with atomic_write(self.file) as partial:
                save_file(tensors, partial, {"step": str(step), "score": repr(score)})
            self.step, self.score = step, score

    def load(self) -> dict[str, torch.Tensor]:
        """The weights that are kept."""
        return load_file(self.file)


def _read(file: Path, weights: Mapping[str, torch.Tensor]) -> tuple[int, float]:
    """The step and the score of a file of best weights, which have the names and shapes of `weights`."""
    required = "required: as it was written, or that it be removed."
    try:
        with safe_open(file, "pt") as content:
            metadata = content.metadata() or {}
            shapes = {name: tuple(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118
        found = int(metadata["step"]), float(metadata["score"])
        is_finite = all(tensor.isfinite().all() for tensor in load_file(file).values())
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{file} is damaged; {required}") from error
    if shapes != {name: tuple(weight.shape) for name, weight in weights.items()}:
        raise ValueError(f"{file} has the weights of another model; {required}")
    if not (is_finite and math.isfinite(found[1])):
        raise ValueError(f"{file} has values that are NaN or infinite; {required}")
    return found
