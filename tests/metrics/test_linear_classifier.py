import sys

import pytest
import torch

from diffusers_lightningdit.metrics.linear_classifier import (
    can_be_split,
    class_accuracy,
    linear_probe_accuracy,
    probed_images,
)

LABELS = torch.arange(4).repeat(30)


def test_classes_on_an_axis_of_their_own_are_found():
    latents = 0.1 * torch.randn(120, 4, 2, 2)
    latents[torch.arange(120), LABELS] += 1
    assert linear_probe_accuracy(latents, LABELS) == 1


def test_noise_tells_nothing_of_unseen_images():
    accuracy = linear_probe_accuracy(torch.randn(1200, 8), LABELS.repeat(10))
    assert accuracy == pytest.approx(0.25, abs=0.08)


def test_the_scale_of_a_channel_does_not_count_and_the_seed_does():
    features = torch.randn(120, 6)
    features[:, 0] += LABELS / 2
    accuracy = linear_probe_accuracy(features, LABELS)
    scales = torch.tensor([1e-3, 1.0, 10, 100, 1e3, 1e4])
    assert linear_probe_accuracy(features * scales, LABELS) == accuracy == linear_probe_accuracy(features, LABELS)
    assert len({linear_probe_accuracy(features, LABELS, seed=seed) for seed in range(4)}) > 1


def test_classes_of_a_single_image_are_left_out():
    """Single images occur if a few images of many classes are chosen at random."""
    features = torch.randn(122, 6)
    features[:120, 0] += LABELS
    labels = torch.cat([torch.tensor([7]), LABELS, torch.tensor([9])])
    features = features.roll(1, dims=0)
    assert probed_images(labels).tolist() == [False] + [True] * 120 + [False]
    assert can_be_split(labels)
    accuracy = linear_probe_accuracy(features, labels)
    assert accuracy == linear_probe_accuracy(features[1:121], LABELS) > 0.3


@pytest.mark.parametrize(
    ("features", "labels", "arguments", "message"),
    [
        (torch.zeros(4, 2), torch.zeros(3), {}, r"`labels` has shape \[3\]; required: \[4\]"),
        (
            torch.zeros(4, 2),
            torch.zeros(4),
            {},
            "1 classes of at least 2 images, 4 images in all; required: at least 2",
        ),
        (torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]), {}, "1 classes of at least 2 images, 3 images in all"),
        (
            torch.zeros(6, 2),
            torch.tensor([0, 0, 1, 1, 2, 2]),
            {},
            "no fewer images on either side of a split that holds out 0.25 of",
        ),
        (torch.zeros(4, 2), torch.tensor([0, 0, 1, 1]), {"held_out_part": 1.0}, "`held_out_part` is 1.0"),
        (torch.full((4, 2), torch.nan), torch.tensor([0, 0, 1, 1]), {}, "NaN or infinity"),
    ],
)
def test_bad_input(features, labels, arguments, message):
    with pytest.raises(ValueError, match=message):
        linear_probe_accuracy(features, labels, **arguments)


def test_images_of_the_wrong_class_are_counted():
    """The classes are so far apart that the classifier makes no mistake."""
    real_labels = torch.arange(3).repeat(20)
    real = torch.randn(60, 4) + 50 * real_labels[:, None]
    drawn = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    asked_for = torch.tensor([0, 1, 2, 2, 1, 2, 1, 1])
    assert class_accuracy(torch.randn(8, 4) + 50 * drawn[:, None], asked_for, real, real_labels) == 6 / 8


def test_bad_input_of_class_accuracy():
    labels = torch.tensor([0, 1, 0])
    with pytest.raises(ValueError, match=r"`labels` has shape \[3\]; required: \[2\]"):
        class_accuracy(torch.zeros(2, 4), labels, torch.zeros(3, 4), labels)
    with pytest.raises(ValueError, match="a single class; required: at least 2"):
        class_accuracy(torch.zeros(3, 4), labels, torch.zeros(3, 4), torch.zeros(3, dtype=torch.long))


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ImportError, match=r"diffusers-lightningdit\[evaluation\]"):
        linear_probe_accuracy(torch.randn(120, 2), LABELS)
