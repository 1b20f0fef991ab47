# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""How much of the class a linear classifier reads from latents or features."""

import math

import torch


def can_be_split(labels: torch.Tensor, held_out_part: float = 0.25) -> bool:
    """Whether there are two classes, and images enough for at least one of each on both sides of the split."""
    classes, counts = labels.unique(return_counts=True)
    num_held_out = math.ceil(held_out_part * len(labels))
    on_both_sides = len(classes) <= min(num_held_out, len(labels) - num_held_out)
    return len(classes) >= 2 and counts.min().item() >= 2 and on_both_sides


def linear_probe_accuracy(
    features: torch.Tensor, labels: torch.Tensor, held_out_part: float = 0.25, seed: int = 0, max_iterations: int = 1000
) -> float:
    """Part of held-out images whose class a logistic regression finds, in [0, 1].

    Features are standardised with the mean and standard deviation of the images that the regression is fitted on
    (scikit-learn: L2 penalty of strength 1, L-BFGS). The split keeps the proportions of the classes. The same arguments
    give the same number.

    Args:
        features: [N, ...], flattened for each image. The cost grows with the values of an image times the classes:
            where both are many, average over positions first.
        labels: int [N].
        held_out_part: of each class, in (0, 1).
        seed: of the split.
        max_iterations: of L-BFGS.

    Raises:
        ValueError: for lengths that differ, values that are not finite, or labels that `can_be_split` refuses.
        ImportError: without scikit-learn.
    """
    if labels.shape != features.shape[:1]:
        raise ValueError(f"`labels` has shape {list(labels.shape)}; required: {list(features.shape[:1])}, as features.")
    if not features.isfinite().all():
        raise ValueError("`features` holds NaN or infinity; required: finite values.")
    if not 0 < held_out_part < 1:
        raise ValueError(f"`held_out_part` is {held_out_part}; required: a number between 0 and 1.")
    if not can_be_split(labels, held_out_part):
        raise ValueError(
            f"`labels` holds {len(labels.unique())} classes for {len(labels)} images; required: at least 2 classes, "
            f"each with images enough to hold out {held_out_part:g} of them."
        )
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import train_test_split
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise ImportError(
            'a linear probe needs scikit-learn: pip install "diffusers-lightningdit[evaluation]".'
        ) from error
    classes = labels.cpu().numpy()
    train, held_out, train_classes, held_out_classes = train_test_split(
        features.detach().double().cpu().flatten(1).numpy(),
        classes,
        test_size=held_out_part,
        stratify=classes,
        random_state=seed,
    )
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=max_iterations))
    return float(probe.fit(train, train_classes).score(held_out, held_out_classes))
