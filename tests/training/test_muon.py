"""Muon against the recorded training of internal guidance, and against torch's Adam."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from diffusers_lightningdit.flow_matching import flow_matching_losses
from diffusers_lightningdit.original import OriginalConfig, load_transformer
from diffusers_lightningdit.original.transformer import transformer_rows
from diffusers_lightningdit.training.muon import Muon, orthogonalize, stacked_projections
from diffusers_lightningdit.training.transformer.config import LightningDiTTrainingConfig
from diffusers_lightningdit.training.transformer.loop import make_transformer_run

FOLDER = "internal_guidance"


@pytest.fixture(scope="module")
def recorded(golden_frontier):
    return load_file(golden_frontier(f"{FOLDER}/optimizer.safetensors"))


def assert_close(actual, expected, tolerance):
    torch.testing.assert_close(actual.float(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("number", range(3))
def test_matrices_are_orthogonalised_as_in_the_original(recorded, number):
    first, second = (recorded[f"ns{number}.{name}"] for name in ("in", "in2"))
    assert_close(orthogonalize(first), recorded[f"ns{number}.out"], 1e-3)
    parameter = nn.Parameter(torch.zeros_like(first))
    optimizer = Muon([parameter], lr=1.0, weight_decay=0.0)
    size = 0.2 * max(first.shape) ** 0.5
    for gradient, update in ((first, "update1"), (second, "update2")):
        parameter.grad = gradient
        before = parameter.detach().clone()
        optimizer.step()
        assert_close((before - parameter.detach()) / size, recorded[f"ns{number}.{update}"], 1e-3)
    assert_close(optimizer.state[parameter]["momentum_buffer"], recorded[f"ns{number}.momentum2"], 1e-6)


def test_singular_values_end_near_one():
    for shape in ((24, 8), (8, 24), (16, 16)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)).float())
        assert values.min() > 0.4 and values.max() < 1.3


def test_two_training_steps_are_the_originals(recorded, golden_frontier):
    """The frozen position table, which the original's decay shrinks with each step, is no parameter here."""
    facts = json.loads(golden_frontier(f"{FOLDER}/optimizer.json").read_text())
    yaml = OriginalConfig.read(golden_frontier(f"{FOLDER}/config.yaml"))
    model = load_transformer(golden_frontier(f"{FOLDER}/ckpt_ema_only.pt"), config=yaml)
    rows = {row.original: row for row in transformer_rows(model)}

    def weights() -> dict[str, torch.Tensor]:
        return {name: row.to_original(model.state_dict()).clone() for name, row in rows.items()}

    settings = {"weight_decay": facts["muon"]["weight_decay"], "stacked": stacked_projections(model)}
    optimizer, initial = Muon(model.parameters(), facts["lr"], **settings), weights()
    for number, fact in enumerate(facts["steps"], start=1):
        draws = [recorded[f"step{number}.{name}"] for name in ("x0", "x1", "t", "y")]
        losses = flow_matching_losses(model, *draws, with_internal=True)
        total = losses.mse.mean() + losses.cosine.mean() + 0.5 * losses.internal_mse.mean()
        assert total.item() == pytest.approx(fact["total"], abs=1e-3)
        optimizer.zero_grad()
        total.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), facts["max_grad_norm"])
        assert norm.item() == pytest.approx(fact["global_grad_norm_before_clip"], rel=1e-3)
        optimizer.step()
        start, found = f"after_step{number}.", weights()
        expected = {name.removeprefix(start): value for name, value in recorded.items() if name.startswith(start)}
        assert len(expected) == 8
        for name in expected.keys() - {"pos_embed"}:
            change = expected[name] - initial[name]
            error = (found[name] - expected[name]).norm() / change.norm()
            assert error < (0.1 if name in facts["muon_params"] else 1e-2), (number, name, error)
    assert torch.equal(found["pos_embed"], initial["pos_embed"])
    table = initial["pos_embed"].double()
    factor = (recorded["after_step2.pos_embed"] * table).sum() / table.square().sum()
    assert factor.item() == pytest.approx(facts["pos_embed_factor_after_2_steps"], abs=1e-7)


def test_vectors_are_moved_by_adam():
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 5)) for _ in range(2))
    optimizers = Muon([ours], 0.1, (0.9, 0.95), 0.5), torch.optim.Adam([theirs], 0.1, (0.9, 0.95))
    for _ in range(4):
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = parameter.detach() ** 2 - 0.3
            optimizer.step()
    torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=0)


def test_what_has_no_gradient_stays():
    parameter = nn.Parameter(torch.ones(2, 3))
    Muon([parameter], 0.1, weight_decay=0.5).step()
    assert parameter.min() == parameter.max() == 1


def test_sharded_matrices_are_refused(tmp_path):
    config = LightningDiTTrainingConfig(data="x", vae="x", output_dir=str(tmp_path / "new"), optimizer="muon")
    with pytest.raises(ValueError, match="`optimizer` is 'muon'; required: another one where weights are sharded"):
        make_transformer_run(config, SimpleNamespace(is_fsdp2=True), None, None)
