"""Continuing a training checkpoint of the original: its own loop, weight for weight."""

import json
import math

import pytest
import torch
from accelerate import Accelerator
from golden.small_set import recorded_part
from safetensors.torch import load_file
from torch.optim.lr_scheduler import LambdaLR

from diffusers_lightningdit import LightningDiTTransformer2DModel
from diffusers_lightningdit.files import read_checkpoint
from diffusers_lightningdit.flow_matching import flow_matching_losses
from diffusers_lightningdit.original import (
    OriginalConfig,
    load_transformer,
    read_training_checkpoint,
    transformer_to_original,
)
from diffusers_lightningdit.training.moving_averages import MovingAverages
from diffusers_lightningdit.training.run_state import RunState
from diffusers_lightningdit.training.spike_guard import SpikeGuard

LEARNING_RATE = 2e-4
TOLERANCE = {"atol": 2e-6, "rtol": 1e-5}  # of weights that have moved by about 4e-4


def make_run(model) -> RunState:
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    model, optimizer = accelerator.prepare(model.train(), optimizer)
    model.class_embedder.eval()
    return RunState(
        accelerator,
        "unused",
        models={"transformer": model},
        optimizers={"transformer": optimizer},
        lr_schedulers={"transformer": LambdaLR(optimizer.optimizer, lambda step: 1.0)},
        averages={"transformer": MovingAverages(model.parameters(), [0.9999])},
        spike_guard=SpikeGuard(),
        must_match={},
        architectures={"transformer": dict(model.config)},
        settings={},
    )


def take_step(run: RunState, recorded: dict, number: int, max_grad_norm: float | None = None) -> torch.Tensor:
    """One step with the original's draws; returns the losses [2, B]."""
    model = run.models["transformer"]
    draws = [recorded[f"step{number}.{name}"] for name in ("x0", "x1", "t", "y_after_drop")]
    losses = flow_matching_losses(model, *draws)[:2]
    run.accelerator.backward(losses[0].mean() + losses[1].mean())
    if max_grad_norm is not None:
        run.grad_norm = run.accelerator.clip_grad_norm_(model.parameters(), max_grad_norm)
    run.optimizers["transformer"].step()
    run.optimizers["transformer"].zero_grad()
    run.averages["transformer"].step(model.parameters())
    return torch.stack(losses).detach()


def assert_weights(state_dict: dict, expected: dict, model) -> None:
    for name, value in transformer_to_original(dict(model.config), state_dict).items():
        value = recorded_part(value, expected[name])
        # a bias of the keys has no gradient but rounding noise, which the first Adam steps blow up
        if name.endswith("attn.qkv.bias"):
            value, expected[name] = (torch.cat(t.chunk(3)[::2]) for t in (value, expected[name]))
        torch.testing.assert_close(value, expected[name], **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture
def run(golden):
    yaml = OriginalConfig.read(golden("train/step_plain.yaml"))
    return make_run(load_transformer(golden("train/weight_init.pt"), config=yaml))


@pytest.mark.parametrize("name", ["step_plain", "step_clip"])
def test_two_steps_are_the_originals(golden, run, name):
    recorded = load_file(golden(f"train/{name}.safetensors"))
    steps = json.loads(golden("train/steps.json").read_text())[name]
    max_grad_norm = OriginalConfig.read(golden(f"train/{name}.yaml")).get("optimizer.max_grad_norm", float)
    assert (max_grad_norm is not None) == (name == "step_clip")
    for number in (1, 2):
        losses = take_step(run, recorded, number, max_grad_norm)
        for index, kind in enumerate(("loss", "cos_loss")):
            torch.testing.assert_close(losses[index], recorded[f"step{number}.{kind}"], atol=1e-4, rtol=1e-4)
        assert losses.mean(1).tolist() == pytest.approx(steps["losses"][number - 1], abs=1e-4)
        if max_grad_norm is not None:
            assert run.grad_norm.item() == pytest.approx(steps["grad_norm_before_clip"][number - 1], rel=1e-3)
        for part, state in (
            ("model", run.models["transformer"].state_dict()),
            ("ema", run.average("transformer", 0.9999)),
        ):
            prefix = f"after_step{number}.{part}."
            expected = {key.removeprefix(prefix): value for key, value in recorded.items() if key.startswith(prefix)}
            if expected:
                tables = transformer_to_original(dict(run.models["transformer"].config), state)
                missing = {key: value for key, value in tables.items() if key not in expected}
                assert all(key.startswith("feat_rope.") for key in missing)
                assert_weights(state, expected | missing, run.models["transformer"])


def test_weights_average_and_moments_after_the_steps_are_those_of_its_checkpoint(golden, run):
    recorded = load_file(golden("train/step_plain.safetensors"))
    for number in (1, 2):
        take_step(run, recorded, number)
    training = read_training_checkpoint(golden("train/step_plain_ckpt_0000002.pt"))
    assert training.num_steps == 2
    model = run.models["transformer"]
    original = read_checkpoint(golden("train/step_plain_ckpt_0000002.pt"))
    assert_weights(model.state_dict(), dict(original["model"]), model)
    assert_weights(run.average("transformer", 0.9999), dict(original["ema"]), model)
    names = dict(model.named_parameters())
    for entry in ("exp_avg", "exp_avg_sq"):
        assert training.moments[entry].keys() == names.keys()
        for name, expected in training.moments[entry].items():
            moment = run.optimizers["transformer"].optimizer.state[names[name]][entry]
            torch.testing.assert_close(moment, expected, atol=1e-5, rtol=1e-3, msg=lambda text, n=name: f"{n}: {text}")


def test_going_on_from_its_checkpoint_is_going_on(golden, run):
    """A third step, from our own state after two and from the original's: the same weights."""
    recorded = load_file(golden("train/step_plain.safetensors"))
    for number in (1, 2):
        take_step(run, recorded, number)
    training = read_training_checkpoint(golden("train/step_plain_ckpt_0000002.pt"))
    other = make_run(LightningDiTTransformer2DModel.from_config(training.config))
    other.adopt("transformer", training.weights, training.average, training.moments, training.num_steps)
    assert (other.step, other.batch_index, other.averages["transformer"].num_steps) == (2, 2, 2)
    for each in (run, other):
        take_step(each, recorded, 1)
    model = run.models["transformer"]
    for a, b in (
        (run.models["transformer"].state_dict(), other.models["transformer"].state_dict()),
        (run.average("transformer", 0.9999), other.average("transformer", 0.9999)),
    ):
        assert_weights(a, transformer_to_original(dict(model.config), b), model)
    state = other.optimizers["transformer"].optimizer.state
    assert {entries["step"].item() for entries in state.values()} == {3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("opt"), "has no entry `opt`; required: a training checkpoint"),
        (lambda c: c["opt"]["param_groups"][0]["params"].pop(), "entry `opt` has 36 parameters; required: 37"),
        (lambda c: c["opt"]["state"].pop(5), "entry `opt` has no state of `t_embedder.mlp.2.weight`"),
        (lambda c: c["opt"]["state"][5].update(step=torch.tensor(9.0)), r"has parameters at steps \[2, 9\]"),
        (lambda c: c["opt"]["state"][5].update(exp_avg=torch.zeros(3)), r"opt.exp_avg of t_embedder.mlp.2.weight"),
        (lambda c: c["opt"].update(param_groups=[]), "entry `opt` is no state of an optimiser"),
        (lambda c: c["opt"].update(param_groups=["x"]), "entry `opt` is no state of an optimiser"),
        (lambda c: c["opt"]["param_groups"][0].update(params=None), "entry `opt` is no state of an optimiser"),
        (lambda c: c["opt"]["state"].update({5: None}), "entry `opt` has no state of `t_embedder.mlp.2.weight`"),
        (lambda c: c["opt"]["state"][5].update(step=None), "the step None of `t_embedder.mlp.2.weight`; required"),
        (lambda c: c["opt"]["state"][5].update(step=torch.tensor(math.nan)), "the step nan of `t_embedder.mlp.2.wei"),
        (lambda c: c["opt"]["state"][5].update(exp_avg_sq=1.0), "exp_avg_sq of t_embedder.mlp.2.weight` of type float"),
        (lambda c: c["opt"]["state"][5]["exp_avg"].fill_(math.inf), "exp_avg of t_embedder.mlp.2.weight` has values"),
        (lambda c: c["model"].update({5: torch.zeros(1)}), "entry `model` has the key 5; required: names of weights"),
    ],
)
def test_a_checkpoint_whose_parts_do_not_fit(golden, tmp_path, change, message):
    checkpoint = torch.load(golden("train/step_plain_ckpt_0000002.pt"), weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, tmp_path / "changed.pt")
    with pytest.raises(ValueError, match=message):
        read_training_checkpoint(tmp_path / "changed.pt")


def test_moments_are_translated_as_weights_are(golden, tmp_path):
    """Swapped halves and split matrices: where a moment is the weight itself, it stays so."""
    checkpoint = torch.load(golden("train/step_plain_ckpt_0000002.pt"), weights_only=True)
    names = [name for name in checkpoint["model"] if not name.startswith("feat_rope.")]
    for number, name in enumerate(names):
        if name != "pos_embed":
            checkpoint["opt"]["state"][number]["exp_avg"] = checkpoint["model"][name]
    torch.save(checkpoint, tmp_path / "changed.pt")
    training = read_training_checkpoint(tmp_path / "changed.pt")
    assert all(torch.equal(moment, training.weights[name]) for name, moment in training.moments["exp_avg"].items())
