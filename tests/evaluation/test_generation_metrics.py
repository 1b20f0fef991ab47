import numpy as np
import pytest
import torch

from diffusers_lightningdit.evaluation.generation_config import GenerationConfig
from diffusers_lightningdit.evaluation.generation_metrics import compute_metrics, metric_names, not_computed
from diffusers_lightningdit.evaluation.reference import Reference
from diffusers_lightningdit.evaluation.set_statistics import SetStatistics
from diffusers_lightningdit.metrics.frechet import FeatureStatistics


def test_published_statistics_of_inception():
    """Each kind of reference allows its metrics; the distances have a closed form for scaled covariances."""
    statistics = {}
    for kind, size in (("features", 3), ("spatial", 2)):
        statistics[kind] = FeatureStatistics(size)
        statistics[kind].update(torch.randn(50, size))
    samples = SetStatistics(50, statistics, (2.5, 0.1), torch.randn(50, 3), "")
    config = GenerationConfig(pipeline="p", output_dir="o", reference="r.npz", inception="w.pth", num_images=50)
    published = {
        kind: (of.mean + 1, 4 * of.covariance) for kind, of in statistics.items()
    }  # the distance is D + tr(C) (2 - 1)^2
    expected = {kind: of.num_features + of.covariance.trace().item() for kind, of in statistics.items()}

    reference = Reference(published, None, None, {})
    results = compute_metrics(config, samples, reference, 10, torch.device("cpu"))
    assert list(results) == ["fid", "sfid", "inception_score", "inception_score_std"]
    assert results["fid"] == pytest.approx(expected["features"], rel=1e-5)
    assert results["sfid"] == pytest.approx(expected["spatial"], rel=1e-5)
    assert not_computed(config, reference) == ["precision and recall are not computed: r.npz holds no images (arr_0)."]

    reference = Reference({"features": published["features"]}, samples, None, {})
    results = compute_metrics(config, samples, reference, 10, torch.device("cpu"))
    assert list(results) == ["fid", "inception_score", "inception_score_std", "precision", "recall"]
    assert not_computed(config, reference) == ["sfid is not computed: r.npz holds no mu_s and sigma_s."]


@pytest.mark.parametrize(("num_images", "is_computed"), [(19, False), (20, True)])
def test_inception_scores_of_too_few_images_for_the_splits(num_images, is_computed):
    """The score of a single image would be 1 by construction."""
    config = GenerationConfig(pipeline="p", output_dir="o", inception="w.pth", num_images=num_images, num_splits=10)
    samples = SetStatistics(num_images, {}, (2.5, 0.1), None, "")
    results = compute_metrics(config, samples, None, 10, torch.device("cpu"))
    lines = not_computed(config, None)
    assert list(results) == (["inception_score", "inception_score_std"] if is_computed else [])
    assert lines == (
        []
        if is_computed
        else [
            "inception_score is not computed: 19 images are too few for 10 splits; required: 2 for each, at least, or "
            "another `num_splits`."
        ]
    )


@pytest.mark.parametrize(
    ("settings", "arrays", "names"),
    [
        ({"features": "f"}, ["arr_0"], ["frechet_distance", "precision", "recall"]),
        ({"features": "f", "precision_recall": False}, ["arr_0"], ["frechet_distance"]),
        ({"inception": "w"}, ["mu", "sigma"], ["fid", "inception_score", "inception_score_std"]),
        ({"inception": "w", "num_splits": 50}, ["mu", "sigma", "mu_s", "sigma_s"], ["fid", "sfid"]),
    ],
)
def test_the_names_of_the_numbers_are_known_before(tmp_path, settings, arrays, names):
    np.savez(tmp_path / "r.npz", **{name: np.zeros(1) for name in arrays})
    config = GenerationConfig(
        pipeline="p", output_dir="o", reference=str(tmp_path / "r.npz"), num_images=50, **settings
    )
    assert metric_names(config) == names
