# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Accuracy of a linear classifier: on held-out latents or features, and on generated images.

The classifier is scikit-learn's logistic regression (L2 penalty of strength 1, L-BFGS) on standardised features.

Letters in the shape comments: N and M images, D features.
"""

import math

import torch

from .finite import check_finite

MAX_ITERATIONS = 1000  # of L-BFGS


def linear_probe_accuracy(
    features: torch.Tensor, labels: torch.Tensor, held_out_part: float = 0.25, seed: int = 0
) -> float:
    """Fit the classifier on some images and measure its accuracy on the others.

    The split keeps the proportions of the classes. Features are standardised with the mean and standard deviation of
    the images that the classifier is fitted on. The same arguments give the same number. Images whose class has no
    second image are left out (see `probed_images`).

    Args:
        features: Latents or features [N, ...], flattened for each image. The cost grows with the values of an image
            times the classes: where both are many, average over positions first.
        labels: The class of each image, int [N].
        held_out_part: The fraction of each class that is held out, in (0, 1).
        seed: The seed of the split.

    Returns:
        The accuracy on the held-out images, in [0, 1].

    Raises:
        ValueError: If the lengths differ, a value is not finite, or `can_be_split` refuses the labels.
        ImportError: If scikit-learn is not installed.
    """
    if labels.shape != features.shape[:1]:
        raise ValueError(f"`labels` has shape {list(labels.shape)}; required: {list(features.shape[:1])}, as features.")
    check_finite(features=features)
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
    classifier = _classifier()
    from sklearn.model_selection import train_test_split

    classes = labels.cpu().numpy()
    fitted, held_out, fitted_classes, held_out_classes = train_test_split(
        features.detach().double().cpu().flatten(1).numpy(),
        classes,
        test_size=held_out_part,
        stratify=classes,
        random_state=seed,
    )
    return float(classifier.fit(fitted, fitted_classes).score(held_out, held_out_classes))


def class_accuracy(
    features: torch.Tensor, labels: torch.Tensor, real_features: torch.Tensor, real_labels: torch.Tensor
) -> float:
    """Measure how many generated images a classifier fitted on all real images assigns to the requested class.

    Features are standardised with the mean and standard deviation of the real images. `linear_probe_accuracy` of the
    real images tells how accurate such a classifier is on real images that it has not seen.

    Args:
        features: Features of the generated images, [N, D].
        labels: The requested classes, int [N].
        real_features: Features of the real images, [M, D].
        real_labels: The classes of the real images, int [M]; at least two different ones.

    Returns:
        The accuracy, in [0, 1].

    Raises:
        ValueError: If the lengths differ, a value is not finite, or all real images are of one class.
        ImportError: If scikit-learn is not installed.
    """
    for name, given, expected in (("labels", labels, features), ("real_labels", real_labels, real_features)):
        if given.shape != expected.shape[:1]:
            raise ValueError(f"`{name}` has shape {list(given.shape)}; required: {list(expected.shape[:1])}.")
    check_finite(features=features, real_features=real_features)
    if len(real_labels.unique()) < 2:
        raise ValueError("`real_labels` holds a single class; required: at least 2 classes.")
    classifier = _classifier().fit(real_features.double().cpu().numpy(), real_labels.cpu().numpy())
    return float(classifier.score(features.double().cpu().numpy(), labels.cpu().numpy()))


def probed_images(labels: torch.Tensor) -> torch.Tensor:
    """Return bool [N]: whether the class of each image has a second image, so that a split can hold one of them out."""
    _, inverse, counts = labels.unique(return_inverse=True, return_counts=True)
    return counts[inverse] >= 2


def can_be_split(labels: torch.Tensor, held_out_part: float = 0.25) -> bool:
    """Whether the classes with at least two images can be split for `linear_probe_accuracy`.

    There must be at least two such classes, and at least as many images as classes on each side of the split.
    """
    labels = labels[probed_images(labels)]
    num_classes, num_held_out = len(labels.unique()), math.ceil(held_out_part * len(labels))
    return 2 <= num_classes <= min(num_held_out, len(labels) - num_held_out)


def _classifier():
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise ImportError(
            'a linear classifier needs scikit-learn: pip install "diffusers-lightningdit[evaluation]".'
        ) from error
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=MAX_ITERATIONS))
