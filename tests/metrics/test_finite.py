"""No measure gives a number of NaN or infinity."""

import math

import pytest
import torch

from diffusers_lightningdit.metrics.alignment import distance_matrix_gap, linear_cka
from diffusers_lightningdit.metrics.channel_statistics import channel_statistics
from diffusers_lightningdit.metrics.frechet import FeatureStatistics, frechet_distance
from diffusers_lightningdit.metrics.image_similarity import peak_signal_to_noise_ratio, structural_similarity
from diffusers_lightningdit.metrics.inception_score import InceptionScore
from diffusers_lightningdit.metrics.interpolation_distance import nearest_by_angle
from diffusers_lightningdit.metrics.linear_classifier import class_accuracy, linear_probe_accuracy
from diffusers_lightningdit.metrics.precision_recall import precision_and_recall
from diffusers_lightningdit.metrics.uniformity import principal_plane, tsne_plane, uniformity

LABELS = torch.tensor([0, 1] * 6)
ROWS, GRIDS, IMAGES = torch.rand(12, 2), torch.rand(12, 3, 2, 2), torch.rand(12, 3, 12, 12)
MEASURES = [
    ("linear_cka of latents", lambda x: linear_cka(x, GRIDS), GRIDS),
    ("linear_cka of features", lambda x: linear_cka(GRIDS, x), GRIDS),
    ("distance_matrix_gap of latents", lambda x: distance_matrix_gap(x, GRIDS), GRIDS),
    ("distance_matrix_gap of features", lambda x: distance_matrix_gap(GRIDS, x), GRIDS),
    ("channel_statistics", channel_statistics, GRIDS),
    ("FeatureStatistics", FeatureStatistics.of, ROWS),
    ("frechet_distance of mean_1", lambda x: frechet_distance(x, torch.eye(2), ROWS[0], torch.eye(2)), ROWS[0]),
    ("frechet_distance of mean_2", lambda x: frechet_distance(ROWS[0], torch.eye(2), x, torch.eye(2)), ROWS[0]),
    ("peak_signal_to_noise_ratio of pixels", lambda x: peak_signal_to_noise_ratio(x, IMAGES), IMAGES),
    ("peak_signal_to_noise_ratio", lambda x: peak_signal_to_noise_ratio(IMAGES, x), IMAGES),
    ("structural_similarity", lambda x: structural_similarity(IMAGES, x), IMAGES),
    ("InceptionScore", lambda x: InceptionScore(12, 2).update(x), torch.full((12, 2), 0.5)),
    ("nearest_by_angle", nearest_by_angle, ROWS),
    ("linear_probe_accuracy", lambda x: linear_probe_accuracy(x, LABELS), ROWS),
    ("class_accuracy", lambda x: class_accuracy(x, LABELS, ROWS, LABELS), ROWS),
    ("class_accuracy of real images", lambda x: class_accuracy(ROWS, LABELS, x, LABELS), ROWS),
    ("precision_and_recall", lambda x: precision_and_recall(x, ROWS), ROWS),
    ("precision_and_recall of real images", lambda x: precision_and_recall(ROWS, x), ROWS),
    ("principal_plane", principal_plane, ROWS),
    ("tsne_plane", lambda x: tsne_plane(x, 3.0), ROWS),
    ("uniformity", uniformity, ROWS),
]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("measure", "good"), [case[1:] for case in MEASURES], ids=[case[0] for case in MEASURES])
def test_a_measure_refuses_what_is_not_finite(measure, good, bad):
    measure(good)
    values = good.clone()
    values.view(-1)[1] = bad
    with pytest.raises(ValueError, match=r"NaN or infinity|sum to 1"):
        measure(values)
