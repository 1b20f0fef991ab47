"""The VF loss by its definition, position by position; the recorded runs: test_golden_runs.py."""

import json

import pytest
import torch
from safetensors.torch import load_file

from diffusers_lightningdit.losses import FoundationProjection, vf_loss

TOLERANCE = {"atol": 1e-6, "rtol": 1e-5}


def by_definition(features, latents, distmat_margin, cos_margin) -> tuple[float, float]:
    distances, cosines = [], []
    for a, z in zip(features.flatten(2), latents.flatten(2), strict=True):
        a, z = ([column / column.norm() for column in grid.T] for grid in (a, z))
        for i in range(len(a)):
            cosines.append(max(0.0, 1 - cos_margin - (a[i] @ z[i]).item()))
            for j in range(len(a)):
                distances.append(max(0.0, abs(((z[i] @ z[j]) - (a[i] @ a[j])).item()) - distmat_margin))
    return sum(distances) / len(distances), sum(cosines) / len(cosines)


@pytest.mark.parametrize("margins", [(0.0, 0.0), (0.25, 0.5)])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, 2.0)])
def test_definition(margins, weights):
    features, latents = torch.randn(2, 2, 5, 3, 2).unbind()
    loss, *parts = vf_loss(features, latents, *margins, *weights)
    expected = by_definition(features, latents, *margins)
    torch.testing.assert_close(torch.stack(parts), torch.tensor(expected), **TOLERANCE)
    total = weights[0] * expected[0] + weights[1] * expected[1]
    torch.testing.assert_close(loss, torch.tensor(total), **TOLERANCE)


def test_lengths_do_not_matter_and_equal_grids_cost_nothing():
    features = torch.randn(2, 5, 3, 3)
    scales = torch.rand(2, 1, 3, 3) + 0.5
    loss, distmat_part, cos_part = vf_loss(features, scales * features)
    torch.testing.assert_close(torch.stack([loss, distmat_part, cos_part]), torch.zeros(3), atol=1e-6, rtol=0)


def test_half_precision_and_autocast_are_computed_in_float32():
    features, latents = torch.randn(2, 1, 5, 3, 3).bfloat16().unbind()
    expected = vf_loss(features.float(), latents.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = vf_loss(features, latents)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (2, 6, 3, 3), (2, 5, 9)])
def test_shapes_have_to_agree(shape):
    with pytest.raises(ValueError, match=r"`features` has shape \[2, 5, 3, 3\], `latents` .*; required: the same"):
        vf_loss(torch.zeros(2, 5, 3, 3), torch.zeros(shape))


@pytest.mark.parametrize("kind", ["reverse", "forward"])
def test_projection_is_the_originals(golden, kind):
    weights = load_file(golden("vae_train/linear_proj.safetensors"))
    projection = FoundationProjection(32, 1024, reverse=kind == "reverse")
    own = {key.replace(kind, "proj"): value for key, value in weights.items() if key.startswith(kind)}
    projection.load_state_dict(own)
    forward = load_file(golden("vae_train/forward.safetensors"))
    noise = load_file(golden("vae_train/inputs.safetensors"))
    latents = forward["moments_mean"] + (0.5 * forward["moments_logvar"]).exp() * noise["noise"]
    features, compared = projection(noise["aux_raw"], latents)
    expected = {
        "reverse": (noise["aux_raw"], forward["reverse.z"]),
        "forward": (forward["forward.aux_feature"], forward["forward.z"]),
    }[kind]
    torch.testing.assert_close(features, expected[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(compared, expected[1], atol=1e-4, rtol=0)
    # and the recorded loss of a run with this projection, from recorded tensors alone
    runs = json.loads(golden("vae_train/runs.json").read_text())
    run = runs["reverse_margin_adaptive" if kind == "reverse" else "forward_margin_fixed"]["scalars"]
    _, *parts = vf_loss(*expected, distmat_margin=0.25, cos_margin=0.5)
    assert [part.item() for part in parts] == pytest.approx([run["vf_distmat_part"], run["vf_cos_part"]], rel=1e-5)
