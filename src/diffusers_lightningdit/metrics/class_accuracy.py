# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Whether generated images are of the classes that were asked for."""

import torch


def class_accuracy(
    features: torch.Tensor,
    labels: torch.Tensor,
    real_features: torch.Tensor,
    real_labels: torch.Tensor,
    max_iterations: int = 1000,
) -> float:
    """Part of the images whose class a logistic regression, fitted on all real images, takes for theirs, in [0, 1].

    Features are standardised by the real images (scikit-learn: L2 penalty of strength 1, L-BFGS), as in
    `linear_probe_accuracy`, which says how good such a judge is on real images that it has not seen.

    Args:
        features: [N, D].
        labels: that were asked for, int [N].
        real_features: [M, D].
        real_labels: int [M], of at least two classes.
        max_iterations: of L-BFGS.

    Raises:
        ValueError: for lengths that differ, or real images of a single class.
        ImportError: without scikit-learn.
    """
    for name, given, expected in (("labels", labels, features), ("real_labels", real_labels, real_features)):
        if given.shape != expected.shape[:1]:
            raise ValueError(f"`{name}` has shape {list(given.shape)}; required: {list(expected.shape[:1])}.")
    if len(real_labels.unique()) < 2:
        raise ValueError("`real_labels` holds a single class; required: at least 2 classes.")
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise ImportError('accuracy needs scikit-learn: pip install "diffusers-lightningdit[evaluation]".') from error
    judge = make_pipeline(StandardScaler(), LogisticRegression(max_iter=max_iterations))
    judge.fit(real_features.double().cpu().numpy(), real_labels.cpu().numpy())
    return float(judge.score(features.double().cpu().numpy(), labels.cpu().numpy()))
