import itertools

import numpy as np
import pytest
import torch

from diffusers_lightningdit.metrics.inception_score import InceptionScore


def score_of(probabilities: torch.Tensor, num_splits: int, batch_size: int = 1000) -> tuple[float, float]:
    score = InceptionScore(len(probabilities), num_splits)
    for batch in probabilities.split(batch_size):
        score.update(batch)
    return score.compute()


@pytest.mark.parametrize("batch_size", [1, 7, 53])
@pytest.mark.parametrize("num_splits", [1, 3, 10])
def test_the_definition_split_by_split(num_splits, batch_size):
    probabilities = torch.randn(53, 6).mul(2).softmax(1)
    edges, scores = [split * 53 // num_splits for split in range(num_splits + 1)], []
    assert np.ptp(np.diff(edges)) <= 1
    for start, end in itertools.pairwise(edges):
        p = probabilities[start:end].double().numpy()
        divergences = (p * (np.log(p) - np.log(p.mean(0)))).sum(1)
        scores.append(np.exp(divergences.mean()))
    assert score_of(probabilities, num_splits, batch_size) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-9)


def test_torch_fidelity_says_the_same():
    metric = pytest.importorskip("torch_fidelity.metric_isc", exc_type=ImportError)
    logits = torch.randn(203, 12).mul(2)
    theirs = metric.isc_features_to_metric(logits, splits=10, shuffle=False)
    expected = theirs["inception_score_mean"], theirs["inception_score_std"]
    assert score_of(logits.softmax(1), 10) == pytest.approx(expected, rel=1e-5)


def test_certain_and_balanced_classes_score_their_number():
    assert score_of(torch.eye(5).repeat(20, 1), 10) == pytest.approx((5, 0), abs=1e-12)


def test_the_same_for_every_image_scores_1():
    assert score_of(torch.randn(1, 5).softmax(1).repeat(30, 1), 3) == pytest.approx((1, 0), abs=1e-6)


def test_refused():
    with pytest.raises(ValueError, match="`num_splits` is 11; required: 1 to 10"):
        InceptionScore(10, 11)
    score = InceptionScore(3, 1)
    with pytest.raises(ValueError, match="rows that do not sum to 1"):
        score.update(torch.ones(1, 5))
    score.update(torch.eye(2))
    with pytest.raises(ValueError, match="2 images came; required: 3"):
        score.compute()
    with pytest.raises(ValueError, match="4 images came; required: 3"):
        score.update(torch.eye(2))
