# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The losses of Change3D (arXiv 2503.18803), of all four tasks.

Class 0 ("no change", "no building") is ignored by the cross entropies: its logits are trained through the softmax of
the other pixels only. A batch in which every pixel is of class 0 has no such loss: it is NaN, as in the original.

Letters in the shape comments: B pairs of images, K classes, H and W sides of the maps, L words of a caption, V words of
the vocabulary.
"""

import torch
import torch.nn.functional as F

DICE_SMOOTHING = 1e-5
IGNORED_CLASS = 0  # also the id of <pad>


def bce_dice_loss(probability: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Binary cross entropy plus 1 - Dice, where Dice is (2 sum p t + s) / (sum p + sum t + s), s = 1e-5.

    Args:
        probability: float32 within [0, 1], any shape. Logarithms are at least -100.
        target: 0 or 1, the same number of elements.

    Returns:
        A scalar. The sums of Dice run over the whole batch.
    """
    target = target.to(probability).view_as(probability)
    intersection = (probability * target).sum()
    dice = (2 * intersection + DICE_SMOOTHING) / (probability.sum() + target.sum() + DICE_SMOOTHING)
    return F.binary_cross_entropy(probability, target) + 1 - dice


def class_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The cross entropy of logits [B, K, H, W] and classes [B, H, W], the mean over pixels that are not of class 0."""
    return F.cross_entropy(logits.float(), target.long(), ignore_index=IGNORED_CLASS)


def similarity_loss(before_logits: torch.Tensor, after_logits: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Equal classes where nothing has changed, others where something has: a mean of cosine embedding losses.

    With the cosine c of the two softmaxes over the classes but class 0, the loss of a pixel is 1 - c where `change` is
    0, and max(0, c) where it is 1.

    Args:
        before_logits, after_logits: [B, K, H, W].
        change: 0 or 1, [B, H, W] or [B, 1, H, W].
    """
    before, after = (
        logits[:, 1:].float().softmax(1).movedim(1, -1).flatten(0, 2) for logits in (before_logits, after_logits)
    )
    return F.cosine_embedding_loss(before, after, 1 - 2 * change.flatten().to(before.dtype))


def binary_losses(change: torch.Tensor, label: torch.Tensor) -> dict[str, torch.Tensor]:
    """The losses of binary change detection: `loss`, of probabilities [B, 1, H, W] and labels 0 or 1."""
    return {"loss": bce_dice_loss(change, label)}


def semantic_losses(
    before_logits: torch.Tensor,
    after_logits: torch.Tensor,
    change: torch.Tensor,
    label_before: torch.Tensor,
    label_after: torch.Tensor,
    label_change: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """The losses of semantic change detection.

    Args:
        before_logits, after_logits: [B, K, H, W].
        change: Probabilities, [B, 1, H, W].
        label_before, label_after: Classes [B, H, W]; they count where `label_change` is 1.
        label_change: 0 or 1, [B, H, W].

    Returns:
        `loss`, the sum of `class_loss` (the mean of both dates), `change_loss` and `similarity_loss`.
    """
    label_change = label_change.long()
    classes = [class_loss(before_logits, label_before * label_change)]
    classes.append(class_loss(after_logits, label_after * label_change))
    losses = {
        "class_loss": (classes[0] + classes[1]) / 2,
        "change_loss": bce_dice_loss(change, label_change),
        "similarity_loss": similarity_loss(before_logits, after_logits, label_change),
    }
    return {"loss": sum(losses.values()), **losses}


def damage_losses(
    damage_logits: torch.Tensor, building: torch.Tensor, label_building: torch.Tensor, label_damage: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The losses of building damage assessment.

    Args:
        damage_logits: [B, K, H, W].
        building: Probabilities, [B, 1, H, W].
        label_building: 0 or 1, [B, H, W].
        label_damage: Classes [B, H, W]; they count where `label_building` is 1.

    Returns:
        `loss`, the sum of `class_loss` and `building_loss`.
    """
    losses = {
        "class_loss": class_loss(damage_logits, label_building.long() * label_damage.long()),
        "building_loss": bce_dice_loss(building, label_building),
    }
    return {"loss": sum(losses.values()), **losses}


def caption_losses(logits: torch.Tensor, captions: torch.Tensor) -> dict[str, torch.Tensor]:
    """The loss of captions by teacher forcing: `loss`, the mean cross entropy of the words that follow.

    Args:
        logits: [B, L, V], of the word after each one of `captions`.
        captions: Ids [B, L], from `<start>` to `<end>`, then `<pad>`, which does not count.
    """
    return {"loss": F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), captions[:, 1:].flatten(), ignore_index=0)}
