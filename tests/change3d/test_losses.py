"""Against the recorded losses."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from diffusers_lightningdit.change3d.losses import (
    bce_dice_loss,
    binary_losses,
    caption_losses,
    class_loss,
    damage_losses,
    semantic_losses,
    similarity_loss,
)


@pytest.fixture(scope="module")
def tensors(golden_change3d):
    return load_file(golden_change3d("losses.safetensors"))


@pytest.fixture(scope="module")
def values(golden_change3d):
    return json.loads(golden_change3d("losses.json").read_text())


def test_bce_dice(tensors, values):
    target = tensors["bce_target"]
    assert bce_dice_loss(tensors["bce_pred"], target).item() == pytest.approx(values["bce_dice"], abs=1e-6)
    saturated = bce_dice_loss(tensors["bce_pred_saturated"], target).item()
    assert saturated == pytest.approx(values["bce_dice_saturated"], abs=1e-6)
    empty = binary_losses(tensors["bce_pred"], torch.zeros_like(target))["loss"].item()
    assert empty == pytest.approx(values["bce_dice_empty_target"], abs=1e-6)


def test_semantic(tensors, values):
    arguments = [tensors[f"scd_{name}"] for name in ("pre_logits", "post_logits", "change_pred")]
    labels = [tensors[f"scd_{name}_label"] for name in ("pre", "post", "change")]
    losses = semantic_losses(*arguments, *labels)
    assert losses["loss"].item() == pytest.approx(values["scd_total"], abs=1e-6)
    assert losses["loss"].item() == pytest.approx(values["scd_val"]["val_loss"], abs=1e-6)
    assert losses["change_loss"].item() == pytest.approx(values["scd_bce_dice"], abs=1e-6)
    assert losses["similarity_loss"].item() == pytest.approx(values["scd_similarity"], abs=1e-6)
    assert losses["class_loss"].item() == pytest.approx((values["scd_ce_pre"] + values["scd_ce_post"]) / 2, abs=1e-6)
    for logits, label, name in zip(arguments[:2], labels[:2], ("pre", "post"), strict=True):
        assert class_loss(logits, label * labels[2]).item() == pytest.approx(values[f"scd_ce_{name}"], abs=1e-6)
    swapped = similarity_loss(*arguments[:2], 1 - labels[2])
    assert swapped.item() != pytest.approx(values["scd_similarity"], abs=1e-3)


def test_damage(tensors, values):
    names = ("cls_logits", "loc_pred", "label_loc", "label_damage")
    losses = damage_losses(*(tensors[f"bda_{name}"] for name in names))
    assert losses["class_loss"].item() == pytest.approx(values["bda_ce"], abs=1e-6)
    assert losses["building_loss"].item() == pytest.approx(values["bda_bce_dice"], abs=1e-6)
    assert losses["loss"].item() == pytest.approx(values["bda_val"]["total_loss"], abs=1e-6)


def test_no_class_but_the_ignored_one(tensors, values):
    assert values["ce_all_ignored"] == "nan"
    assert math.isnan(class_loss(tensors["scd_pre_logits"], torch.zeros(2, 12, 10)).item())


def test_captions(golden_change3d):
    recorded = load_file(golden_change3d("cc_64x64_v43.safetensors"))
    case = json.loads(golden_change3d("configs.json").read_text())["configs"]["cc_64x64_v43"]
    loss = caption_losses(recorded["tf_scores_sorted"], recorded["captions_sorted"])["loss"]
    assert loss.item() == pytest.approx(case["tf_loss"], abs=1e-6)
