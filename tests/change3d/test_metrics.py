"""Against the recorded scores, in the original's convention and in the usual one."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffusers_lightningdit.change3d.losses import bce_dice_loss
from diffusers_lightningdit.change3d.metrics import (
    binary_scores,
    class_scores,
    confusion_matrix,
    damage_scores,
    original_binary_scores,
    original_damage_scores,
    original_pixel_accuracy,
    semantic_scores,
)

BINARY = {"Kappa": "kappa", "IoU": "iou", "F1": "f1", "OA": "accuracy", "recall": "recall", "precision": "precision"}


@pytest.fixture(scope="module")
def metrics(golden_change3d):
    return json.loads(golden_change3d("metrics.json").read_text())


@pytest.fixture(scope="module")
def values(golden_change3d):
    return json.loads(golden_change3d("losses.json").read_text())


@pytest.fixture(scope="module")
def maps(golden_change3d):
    return load_file(golden_change3d("losses.safetensors"))


def test_a_matrix_has_labels_in_rows_and_predictions_in_columns():
    matrix = confusion_matrix(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 2, 1, 0]), 3)
    assert matrix.dtype == torch.int64
    assert matrix.tolist() == [[1, 0, 0], [0, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize("number", range(5))
def test_binary(metrics, number):
    case = metrics["binary"][number]
    scores = original_binary_scores(case["cm_rows_gt_cols_pred"])
    for recorded, name in BINARY.items():
        assert scores[name] == pytest.approx(float(case["scores"][recorded]), abs=1e-9), name
    for name, value in binary_scores(case["cm_rows_gt_cols_pred"]).items():
        if name != "kappa" or math.isfinite(scores[name]):
            assert value == pytest.approx(scores[name], abs=1e-6), name
        else:
            assert value == 0


def test_binary_over_batches(maps, values):
    recorded, matrix, losses = values["bcd_val"], torch.zeros(2, 2, dtype=torch.int64), []
    for pred, target in zip(maps["bcd_val_pred"], maps["bcd_val_target"], strict=True):
        matrix += confusion_matrix(target, pred > 0.5, 2)
        losses.append(bce_dice_loss(pred, target).item())
    scores = original_binary_scores(matrix.numpy())
    for name, own in BINARY.items():
        assert scores[own] == pytest.approx(recorded[name], abs=1e-9), name
    assert np.mean(losses) == pytest.approx(recorded["avg_loss"], abs=1e-6)


@pytest.mark.parametrize("number", range(2))
def test_classes(metrics, number):
    case = metrics["multiclass"][number]
    matrix = np.array(case["hist_rows_pred_cols_label"]).T
    scores = semantic_scores(matrix)
    assert scores["fscd"] == pytest.approx(case["Fscd"], abs=1e-9)
    assert scores["miou"] == pytest.approx(case["IoU_mean"], abs=1e-9)
    assert scores["sek"] == pytest.approx(case["SeK"], abs=1e-9)
    assert scores["kappa"] == pytest.approx(case["kappa_all"], abs=1e-9)
    assert scores["score"] == pytest.approx(case["derived_score_0p3_mIoU_0p7_SeK"], abs=1e-9)
    recorded, scores = case["evaluator"], class_scores(matrix)
    assert scores["accuracy"] == pytest.approx(recorded["pixel_accuracy"], abs=1e-9)
    assert scores["class_accuracy"] == pytest.approx(recorded["pixel_accuracy_class"], abs=1e-9)
    for name in ("miou", "fwiou", "kappa"):
        assert scores[name] == pytest.approx(recorded[name], abs=1e-9), name
    assert scores["f1"] == pytest.approx(recorded["damage_f1"], abs=1e-6)


def test_semantic_maps(maps, values):
    recorded, matrix, accuracies = values["scd_val"], torch.zeros(7, 7, dtype=torch.int64), []
    changed, label_changed = (maps["scd_change_pred"] > 0.5)[:, 0], maps["scd_change_label"]
    for date in ("pre", "post"):
        predictions = maps[f"scd_{date}_logits"].argmax(1) * changed
        labels = maps[f"scd_{date}_label"] * label_changed
        matrix += confusion_matrix(labels, predictions, 7)
        accuracies += [original_pixel_accuracy(n, 120) for n in (labels == predictions).sum((1, 2)).tolist()]
    scores = semantic_scores(matrix.numpy())
    for name, own in (("Fscd", "fscd"), ("IoU_mean", "miou"), ("SeK", "sek")):
        assert scores[own] == pytest.approx(recorded[name], abs=1e-9), name
    assert np.mean(accuracies) == pytest.approx(recorded["acc"], abs=1e-12)


def test_damage_maps(maps, values):
    recorded, is_building = values["bda_val"], maps["bda_label_loc"] > 0
    building = confusion_matrix(maps["bda_label_loc"], maps["bda_loc_pred"] > 0.5, 2)
    predictions = maps["bda_cls_logits"].argmax(1)
    damage = confusion_matrix(maps["bda_label_damage"][is_building], predictions[is_building], 5)
    assert building.tolist() == recorded["cm_loc"]
    assert damage.tolist() == recorded["cm_cls"]
    scores = original_damage_scores(building.numpy(), damage.numpy())
    assert scores["building_f1"] == pytest.approx(recorded["loc_f1"], abs=1e-9)
    assert scores["damage_f1"] == pytest.approx(recorded["damage_f1"], abs=1e-9)
    assert scores["damage_harmonic_f1"] == pytest.approx(recorded["harmonic_mean_f1"], abs=1e-9)
    assert scores["overall_f1"] == pytest.approx(recorded["oa_f1"], abs=1e-9)
    usual = damage_scores(building.numpy(), damage.numpy())
    assert usual["overall_f1"] == pytest.approx(recorded["oa_f1"], abs=1e-6)
    assert usual["damage_f1"] != scores["damage_f1"]


def test_nothing_to_be_right_about():
    nothing = np.zeros((5, 5), np.int64)
    assert set(semantic_scores(nothing).values()) == {0.0}
    assert damage_scores(nothing[:2, :2], nothing)["overall_f1"] == 0
    unchanged = nothing.copy()
    unchanged[0, 0] = 9
    assert semantic_scores(unchanged)["miou"] == 0.5
