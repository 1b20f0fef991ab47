"""REPA and iREPA: the numbers of the originals."""

import json

import pytest
import torch
from safetensors.torch import load_file

from diffusers_lightningdit.training.transformer.alignment import (
    AlignmentProjector,
    alignment_loss,
    normalize_features,
)


@pytest.fixture(scope="module")
def recorded(golden_frontier):
    return load_file(golden_frontier("repa/projection.safetensors"))


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("weight", [0.0, 0.6, 1.0])
def test_features_are_normalised_as_in_the_original(recorded, weight):
    assert_close(normalize_features(recorded["features"], weight), recorded[f"features_zscore_alpha{weight}"])


@pytest.mark.parametrize("normalization", ["none", "zscore_alpha1.0", "zscore_alpha0.6"])
@pytest.mark.parametrize("kind", ["mlp", "linear", "conv"])
def test_projectors_and_losses_are_the_originals(recorded, golden_frontier, kind, normalization):
    facts = json.loads(golden_frontier("repa/projection.json").read_text())[f"{kind}.{normalization}"]
    projector = AlignmentProjector(20, 24, kind, hidden_dim=32)
    start = f"{kind}.weights."
    weights = {f"layers.{name.removeprefix(start)}": v for name, v in recorded.items() if name.startswith(start)}
    projector.load_state_dict(weights)
    tokens = recorded["h"].clone().requires_grad_()
    projected = projector(tokens, (4, 4))
    assert_close(projected.detach(), recorded[f"{kind}.out"])
    features = recorded["features"]
    if normalization != "none":
        features = normalize_features(features, float(normalization.removeprefix("zscore_alpha")))
    loss = alignment_loss(projected, features).mean()
    assert_close(loss.detach(), recorded[f"{kind}.{normalization}.loss"])
    loss.backward()
    assert_close(tokens.grad, recorded[f"{kind}.{normalization}.grad_h"])
    norms = {name.removeprefix("layers."): weight.grad.norm().item() for name, weight in projector.named_parameters()}
    assert norms == pytest.approx(facts["grad_norms"], rel=1e-3)


def test_of_several_foundation_models_the_loss_is_the_mean(recorded):
    pairs = [("mlp.out", "features"), ("two_encoders.z2", "two_encoders.features2")]
    losses = [alignment_loss(recorded[projected], recorded[features]) for projected, features in pairs]
    assert_close(torch.stack(losses).mean(), recorded["two_encoders.loss"])


def test_directions_alone_are_aligned():
    features = torch.randn(2, 5, 3)
    assert_close(alignment_loss(4 * features, features), torch.full((2,), -1.0))
    assert_close(alignment_loss(-features, features), torch.ones(2))
