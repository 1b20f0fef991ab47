# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The scores of a model over a data set: what is counted of each batch, and what follows from all counts.

Each score is given in two conventions: `usual`, and `original`, that of the paper's code, with its small constants.
They differ more for captions: the original leaves out an image of which no beam came to its end, with its references,
where the usual convention scores an empty caption; and it gives METEOR ids in place of words.

Letters in the shape comments: B pairs of images, K classes, L words of a caption.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..models import Change3DModel
from ..models.change3d import NotFiniteError
from .caption_metrics import Meteor, caption_scores, says_no_change
from .captions import END, PAD, START, words_of
from .metrics import (
    binary_scores,
    class_scores,
    confusion_matrix,
    damage_scores,
    original_binary_scores,
    original_damage_scores,
    original_pixel_accuracy,
    semantic_scores,
)

# The score by which the original chooses among checkpoints of a task
SELECTED_BY = {"binary": "f1", "semantic": "miou", "damage": "overall_f1", "captioning": "bleu_4"}
NO_WORD = -1  # in a tensor of captions: no caption came to its end, or it has ended


# ---------------------------------------------------------------------------------------------------------------------
# A batch
# ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def measure_batch(
    model: Change3DModel, batch: dict[str, torch.Tensor], threshold: float = 0.5, num_beams: int = 1
) -> dict[str, torch.Tensor]:
    """Count the pixels of each label and prediction, or write captions.

    On a CPU each pair is computed alone, so that no number depends on the size of a batch.

    Args:
        model: The model, in evaluation.
        batch: Samples of `PairDataset`.
        threshold: The probability above which a change or a building is one.
        num_beams: The number of beams of captions.

    Returns:
        int64 tensors, with an entry for each pair: `matrix` [B, 2, 2] of binary change; `matrix` [B, K, K] of both
        dates and `num_right` [B, 2] of semantic change; `building` [B, 2, 2] and `damage` [B, K, K]; or `captions`
        [B, L], with `NO_WORD` after the last word, and in place of a caption that did not come to its end.

    Raises:
        NotFiniteError: If the model computes NaN or infinity, of which no number follows.
    """
    before, after = (batch[name].to(model.device) for name in ("image_before", "image_after"))
    size = 1 if model.device.type == "cpu" else len(before)
    parts = list(zip(before.split(size), after.split(size), strict=True))
    if model.config.task == "captioning":
        sequences = [each for part in parts for each in model.generate(*part, num_beams=num_beams).sequences]
        captions = torch.full((len(sequences), model.config.max_caption_length), NO_WORD)
        for row, sequence in zip(captions, sequences, strict=True):
            if sequence is not None:
                row[: len(sequence)] = torch.tensor(sequence)
        return {"captions": captions}
    of_parts = [_maps(model(*part), model.config.task) for part in parts]
    maps = {name: torch.cat([each[name] for each in of_parts]) for name in of_parts[0]}
    labels, count = batch["labels"].to(model.device).long(), _COUNTS[model.config.task]
    counts = [
        count({name: value[number] for name, value in maps.items()}, of_pair, threshold, model.config.num_classes)
        for number, of_pair in enumerate(labels)
    ]
    return {name: torch.stack([each[name] for each in counts]) for name in counts[0]}


def _maps(output, task: str) -> dict[str, torch.Tensor]:
    """The probability [B, H, W] and the classes [B, H, W] of a batch."""
    for name, logits in output.items():
        if not logits.isfinite().all():
            raise NotFiniteError(
                f"`model` computed NaN or infinity as `{name}`; required: finite weights, in their type."
            )
    if task == "damage":
        return {"probability": output.building[:, 0], "damage": output.damage_logits.argmax(1)}
    maps = {"probability": output.change[:, 0]}
    if task == "semantic":
        maps |= {"before": output.before_logits.argmax(1), "after": output.after_logits.argmax(1)}
    return maps


def _count_binary(maps: dict, labels: torch.Tensor, threshold: float, _: None) -> dict[str, torch.Tensor]:
    return {"matrix": confusion_matrix(labels[0], maps["probability"] > threshold, 2)}


def _count_semantic(maps: dict, labels: torch.Tensor, threshold: float, num_classes: int) -> dict[str, torch.Tensor]:
    is_changed, matrix, num_right = maps["probability"] > threshold, 0, []
    for name, label in (("before", labels[0]), ("after", labels[1])):
        prediction, label = maps[name] * is_changed, label * labels[2]
        matrix = matrix + confusion_matrix(label, prediction, num_classes)
        num_right.append((prediction == label).sum())
    return {"matrix": matrix, "num_right": torch.stack(num_right)}


def _count_damage(maps: dict, labels: torch.Tensor, threshold: float, num_classes: int) -> dict[str, torch.Tensor]:
    is_building = labels[0] > 0
    return {
        "building": confusion_matrix(labels[0], maps["probability"] > threshold, 2),
        "damage": confusion_matrix(labels[1][is_building], maps["damage"][is_building], num_classes),
    }


_COUNTS: dict[str, Callable[..., dict[str, torch.Tensor]]] = {
    "binary": _count_binary,
    "semantic": _count_semantic,
    "damage": _count_damage,
}


# ---------------------------------------------------------------------------------------------------------------------
# A data set
# ---------------------------------------------------------------------------------------------------------------------


class MapTotals:
    """The sums of what `measure_batch` counted, and the scores that follow.

    Args:
        task: "binary", "semantic" or "damage".
    """

    def __init__(self, task: str):
        self.task = task
        self.num_pairs = 0
        self.sums: dict[str, torch.Tensor] = {}
        self.accuracies: list[float] = []  # of each map of a pair, of semantic change
        self.original_accuracies: list[float] = []

    def update(self, counts: dict[str, torch.Tensor]) -> None:
        """Add the counts of a batch."""
        for name, values in counts.items():
            if name != "num_right":
                self.sums[name] = self.sums.get(name, 0) + values.sum(0)
        self.num_pairs += len(next(iter(counts.values())))
        if "num_right" in counts:
            num_pixels = counts["matrix"].sum((1, 2)) // 2
            for rights, pixels in zip(counts["num_right"].tolist(), num_pixels.tolist(), strict=True):
                self.accuracies += [right / pixels for right in rights]
                self.original_accuracies += [original_pixel_accuracy(right, pixels) for right in rights]

    def results(self) -> dict[str, Any]:
        """`usual` and `original` scores by name, and the matrices they follow from, labels in rows.

        A kappa of -inf of the original's, where there is one class only, is None.
        """
        matrices = {name: values.numpy() for name, values in self.sums.items()}
        if self.task == "binary":
            usual = binary_scores(matrices["matrix"])
            original = original_binary_scores(matrices["matrix"])
        elif self.task == "semantic":
            scores = semantic_scores(matrices["matrix"])
            means = [math.fsum(each) / len(each) for each in (self.accuracies, self.original_accuracies)]
            classes = class_scores(matrices["matrix"])
            usual = {**scores, "accuracy": means[0], "class_miou": classes["miou"], "class_f1": classes["f1"]}
            original = {name: scores[name] for name in ("miou", "sek", "fscd")} | {"accuracy": means[1]}
        else:
            usual = damage_scores(matrices["building"], matrices["damage"])
            usual |= {f"building_{name}": value for name, value in binary_scores(matrices["building"]).items()}
            original = original_damage_scores(matrices["building"], matrices["damage"])
        original = {name: None if value == -math.inf else value for name, value in original.items()}
        matrices = {name: values.tolist() for name, values in matrices.items()}
        return {"num_pairs": self.num_pairs, "usual": usual, "original": original, "confusion_matrices": matrices}


class CaptionTotals:
    """The captions of all pairs, and their scores.

    Args:
        vocabulary: {word: id}.
        meteor: METEOR, or None to leave it out.
    """

    def __init__(self, vocabulary: dict[str, int], meteor: Meteor | None = None):
        self.vocabulary, self.meteor = vocabulary, meteor
        self.hypotheses: list[list[int] | None] = []
        self.references: list[list[list[int]]] = []

    def update(self, captions: torch.Tensor, references: Sequence[list[list[int]]]) -> None:
        """Add captions of `measure_batch`, and for each pair the ids of the words of its references."""
        special = {self.vocabulary[word] for word in (PAD, START, END)} | {NO_WORD}
        for ids in captions.tolist():
            unfinished = ids[0] == NO_WORD
            self.hypotheses.append(None if unfinished else [number for number in ids if number not in special])
        self.references += references

    def words(self, index: int) -> str | None:
        """The caption of a pair as text."""
        ids = self.hypotheses[index]
        return None if ids is None else " ".join(words_of(ids, self.vocabulary))

    def results(self) -> dict[str, Any]:
        """`usual` and `original` scores by name, `original` None where no caption came to its end.

        Beside the scores of all captions, `change_accuracy` and `no_change_accuracy` are the shares of right ones, as
        `says_no_change` judges them, among the pairs whose second reference tells of a change, or of none.
        """
        finished = [index for index, ids in enumerate(self.hypotheses) if ids is not None]
        unfinished = [index for index, ids in enumerate(self.hypotheses) if ids is None]
        return {
            "num_pairs": len(self.hypotheses),
            "num_unfinished": len(unfinished),
            "usual": self._scores(range(len(self.hypotheses)), of_words=True),
            "original": self._scores(finished, of_words=False) if finished else None,
            "unfinished": unfinished,
        }

    def _scores(self, indices: Sequence[int], of_words: bool) -> dict[str, Any]:
        hypotheses = [self.hypotheses[index] or [] for index in indices]
        references = [self.references[index] for index in indices]
        scores = self._of(hypotheses, references, of_words)
        words = [words_of(ids, self.vocabulary) for ids in hypotheses]
        unchanged = [says_no_change(words_of(each[min(1, len(each) - 1)], self.vocabulary)) for each in references]
        for name, wanted in (("change", False), ("no_change", True)):
            chosen = [number for number, value in enumerate(unchanged) if value is wanted]
            if chosen:
                right = sum(says_no_change(words[number]) is wanted for number in chosen)
                scores[f"{name}_accuracy"] = right / len(chosen)
                of_part = [[each[number] for number in chosen] for each in (hypotheses, references)]
                scores[f"of_{name}"] = self._of(*of_part, of_words)
        return scores

    def _of(self, hypotheses: list, references: list, of_words: bool) -> dict[str, Any]:
        scores: dict[str, Any] = dict(caption_scores(hypotheses, references))
        if self.meteor is not None:
            if of_words:
                hypotheses = [words_of(ids, self.vocabulary) for ids in hypotheses]
                references = [[words_of(ids, self.vocabulary) for ids in each] for each in references]
            scores["meteor"] = self.meteor(hypotheses, references)[0]
        return scores


def selection_score(task: str, results: dict[str, Any]) -> float:
    """The score by which checkpoints are chosen, in the original's convention; 0 where it has none."""
    return (results["original"] or {}).get(SELECTED_BY[task]) or 0.0
