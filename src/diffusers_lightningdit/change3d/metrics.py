# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Scores of change maps from one confusion matrix over the whole data set, in exact integers.

A matrix is an int64 array [K, K] of pixels, of labels (rows) and predictions (columns). Each function has the usual
convention, in which a quotient with nothing below is 0; the functions `original_...` have the original's, whose small
constants keep the divisors from 0.

Letters: K classes; TP, FP, FN, TN the true and false positives and negatives, N all pixels.
"""

import math

import numpy as np
import torch

BINARY_EPS = float(np.finfo(np.float32).eps)
DAMAGE_EPS = 1e-7
ACCURACY_EPS = 1e-10
BUILDING_SHARE, DAMAGE_SHARE = 0.3, 0.7  # in the overall score of the xView2 challenge
MIOU_SHARE, SEK_SHARE = 0.3, 0.7  # in the score of the SECOND challenge


def confusion_matrix(labels: torch.Tensor, predictions: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Count the pixels of each label and prediction: int64 [K, K] of whole numbers below `num_classes`."""
    pairs = labels.flatten().long() * num_classes + predictions.flatten().long()
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def _ratio(above: float, below: float) -> float:
    return float(above / below) if below else 0.0


def _kappa(matrix: np.ndarray) -> float:
    """Cohen's kappa; 0 where chance alone explains everything."""
    total = matrix.sum()
    observed = _ratio(np.trace(matrix), total)
    expected = _ratio(float(matrix.sum(0) @ matrix.sum(1)), float(total) ** 2)
    return _ratio(observed - expected, 1 - expected)


# ---------------------------------------------------------------------------------------------------------------------
# Binary change detection
# ---------------------------------------------------------------------------------------------------------------------


def binary_scores(matrix: np.ndarray) -> dict[str, float]:
    """`f1`, `iou`, `precision` and `recall` of class 1, `accuracy` and `kappa` of a matrix [2, 2]."""
    matrix = np.asarray(matrix, dtype=np.float64)
    (_, fp), (fn, tp) = matrix
    return {
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        "iou": _ratio(tp, tp + fp + fn),
        "precision": _ratio(tp, tp + fp),
        "recall": _ratio(tp, tp + fn),
        "accuracy": _ratio(np.trace(matrix), matrix.sum()),
        "kappa": _kappa(matrix),
    }


def original_binary_scores(matrix: np.ndarray) -> dict[str, float]:
    """The same with the original's constant 1.19e-7 in each divisor; kappa is -inf for one class in both maps."""
    matrix = np.asarray(matrix, dtype=np.float64)
    (tn, fp), (fn, tp) = matrix
    total, eps = matrix.sum(), BINARY_EPS
    recall, precision = tp / (tp + fn + eps), tp / (tp + fp + eps)
    accuracy = (tp + tn) / (total + eps)
    expected = ((tp + fn) * (tp + fp) + (tn + fp) * (tn + fn)) / total**2
    with np.errstate(divide="ignore"):
        kappa = (accuracy - expected) / np.float64(1 - expected)
    scores = {
        "f1": 2 * recall * precision / (recall + precision + eps),
        "iou": tp / (tp + fp + fn + eps),
        "precision": precision,
        "recall": recall,
        "accuracy": accuracy,
        "kappa": kappa,
    }
    return {name: float(value) for name, value in scores.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Classes
# ---------------------------------------------------------------------------------------------------------------------


def class_scores(matrix: np.ndarray) -> dict[str, float | list[float]]:
    """Scores of any number of classes.

    Returns:
        `accuracy`; `class_accuracy`, the mean over the classes, of those that occur; `miou`, the mean of the IoU of all
        classes; `fwiou`, the same weighted by the labels' frequency; `kappa`; `f1`, a list for the classes from 1 on.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    diagonal, labels, predictions = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    iou = [_ratio(*pair) for pair in zip(diagonal, labels + predictions - diagonal, strict=True)]
    recalls = [_ratio(*pair) for pair in zip(diagonal, labels, strict=True) if pair[1]]
    f1 = [_ratio(2 * hits, all_) for hits, all_ in zip(diagonal, labels + predictions, strict=True)]
    return {
        "accuracy": _ratio(diagonal.sum(), matrix.sum()),
        "class_accuracy": _ratio(sum(recalls), len(recalls)),
        "miou": float(np.mean(iou)),
        "fwiou": _ratio(float(labels @ np.array(iou)), labels.sum()),
        "kappa": _kappa(matrix),
        "f1": f1[1:],
    }


def semantic_scores(matrix: np.ndarray) -> dict[str, float]:
    """Scores of semantic change detection, of one matrix of the maps of both dates, 0 where nothing has changed.

    Returns:
        `miou`, the mean of the IoU of unchanged and changed pixels; `sek`, the separated kappa (SECOND): kappa without
        the pixels that are rightly unchanged, times exp(IoU of changed pixels - 1); `fscd`, the harmonic mean of the
        share of changed predictions, and of changed labels, whose class is right; `score`, 0.3 miou + 0.7 sek, which
        the literature reports and the original does not; `kappa`.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    total, unchanged = matrix.sum(), matrix[0, 0]
    label_unchanged, predicted_unchanged = matrix[0].sum(), matrix[:, 0].sum()
    iou_unchanged = _ratio(unchanged, label_unchanged + predicted_unchanged - unchanged)
    both_changed = matrix[1:, 1:].sum()
    iou_changed = _ratio(both_changed, total - unchanged)
    changed_only = matrix.copy()
    changed_only[0, 0] = 0
    sek = _kappa(changed_only) * math.exp(iou_changed - 1)
    hits = np.diag(matrix)[1:].sum()
    precision, recall = _ratio(hits, total - predicted_unchanged), _ratio(hits, total - label_unchanged)
    miou = (iou_unchanged + iou_changed) / 2
    return {
        "miou": float(miou),
        "sek": float(sek),
        "fscd": _ratio(2 * precision * recall, precision + recall),
        "score": float(MIOU_SHARE * miou + SEK_SHARE * sek),
        "kappa": _kappa(matrix),
    }


def original_pixel_accuracy(num_right: int, num_pixels: int) -> float:
    """The share of the pixels of one map that are right, with the original's constant 1e-10 in the divisor."""
    return num_right / (num_pixels + ACCURACY_EPS)


# ---------------------------------------------------------------------------------------------------------------------
# Building damage
# ---------------------------------------------------------------------------------------------------------------------


def damage_scores(building: np.ndarray, damage: np.ndarray) -> dict[str, float | list[float]]:
    """Scores of building damage assessment, as in the xView2 challenge.

    Args:
        building: A matrix [2, 2] of all pixels.
        damage: A matrix [K, K] of the pixels whose label is a building; whether one was predicted there does not count.

    Returns:
        `building_f1`; `damage_f1`, a list for the classes from 1 on; `damage_harmonic_f1`, their harmonic mean;
        `overall_f1`, 0.3 building_f1 + 0.7 damage_harmonic_f1.
    """
    return _overall(binary_scores(building)["f1"], class_scores(damage)["f1"])


def original_damage_scores(building: np.ndarray, damage: np.ndarray) -> dict[str, float | list[float]]:
    """The same with the original's constant 1e-7 in each divisor of the damage's F1."""
    damage = np.asarray(damage, dtype=np.float64)
    scores = []
    for number in range(1, len(damage)):
        hits = damage[number, number]
        precision = hits / (damage[:, number].sum() + DAMAGE_EPS)
        recall = hits / (damage[number].sum() + DAMAGE_EPS)
        scores.append(float(2 * precision * recall / (precision + recall + DAMAGE_EPS)))
    return _overall(binary_scores(building)["f1"], scores)


def _overall(building_f1: float, damage_f1: list[float]) -> dict[str, float | list[float]]:
    harmonic = len(damage_f1) / sum(1 / f1 for f1 in damage_f1) if all(damage_f1) else 0.0
    return {
        "building_f1": building_f1,
        "damage_f1": damage_f1,
        "damage_harmonic_f1": harmonic,
        "overall_f1": BUILDING_SHARE * building_f1 + DAMAGE_SHARE * harmonic,
    }
