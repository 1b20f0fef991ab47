# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""How much of the class a linear classifier reads from latents or features."""

import math

import torch


def probed_images(labels: torch.Tensor) -> torch.Tensor:
    """Which images a probe can use: bool [N], those whose class has a second one, to be held out or fitted on."""
    _, inverse, counts = labels.unique(return_inverse=True, return_counts=True)
    return counts[inverse] >= 2


def can_be_split(labels: torch.Tensor, held_out_part: float = 0.25) -> bool:
    """Whether a probe can be had of the classes with at least two images.

    There have to be two of them, and on each side of the split at least as many images as classes.
    """
    labels = labels[probed_images(labels)]
    num_classes, num_held_out = len(labels.unique()), math.ceil(held_out_part * len(labels))
    return 2 <= num_classes <= min(num_held_out, len(labels) - num_held_out)


def linear_probe_accuracy(
    features: torch.Tensor, labels: torch.Tensor, held_out_part: float = 0.25, seed: int = 0, max_iterations: int = 1000
) -> float:
    """Part of held-out images whose class a logistic regression finds, in [0, 1].

    Features are standardised with the mean and standard deviation of the images that the regression is fitted on
    (scikit-learn: L2 penalty of strength 1, L-BFGS). The split keeps the proportions of the classes. The same arguments
    give the same number. Images whose class has no second one are left out (`probed_images`).

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
    is_probed = probed_images(labels)
    features, labels = features[is_probed.to(features.device)], labels[is_probed]
    if not can_be_split(labels, held_out_part):
        raise ValueError(
            f"`labels` holds {len(labels.unique())} classes of at least 2 images, {len(labels)} images in all; "
            f"required: at least 2 such classes, and no fewer images on either side of a split that holds out "
            f"{held_out_part:g} of them."
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
