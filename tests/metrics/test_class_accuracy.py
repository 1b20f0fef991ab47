import pytest
import torch

from diffusers_lightningdit.metrics.class_accuracy import class_accuracy


def test_images_of_the_wrong_class_are_counted():
    """Classes far apart: the judge errs nowhere."""
    real_labels = torch.arange(3).repeat(20)
    real = torch.randn(60, 4) + 50 * real_labels[:, None]
    drawn = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    asked_for = torch.tensor([0, 1, 2, 2, 1, 2, 1, 1])
    assert class_accuracy(torch.randn(8, 4) + 50 * drawn[:, None], asked_for, real, real_labels) == 6 / 8


def test_refused():
    labels = torch.tensor([0, 1, 0])
    with pytest.raises(ValueError, match=r"`labels` has shape \[3\]; required: \[2\]"):
        class_accuracy(torch.zeros(2, 4), labels, torch.zeros(3, 4), labels)
    with pytest.raises(ValueError, match="a single class; required: at least 2"):
        class_accuracy(torch.zeros(3, 4), labels, torch.zeros(3, 4), torch.zeros(3, dtype=torch.long))
