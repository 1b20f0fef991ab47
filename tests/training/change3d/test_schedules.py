"""Against the recorded learning rates, and three recorded steps of training."""

import json
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from diffusers_lightningdit.change3d.metrics import binary_scores, confusion_matrix
from diffusers_lightningdit.original.change3d import build_change3d, change3d_from_original
from diffusers_lightningdit.settings import make_config
from diffusers_lightningdit.training.change3d.config import Change3DTrainingConfig
from diffusers_lightningdit.training.change3d.schedules import make_adam, make_schedule
from diffusers_lightningdit.training.optimizers import set_schedule

sys.path.insert(0, str(Path(__file__).parents[3] / "training_scripts"))
import train_change3d


def config_of(tmp_path, **settings) -> Change3DTrainingConfig:
    given = {"data": "x", "task": "binary", "output_dir": str(tmp_path / "new"), **settings}
    return make_config(Change3DTrainingConfig, given)


def rate(config: Change3DTrainingConfig, steps_per_epoch: int | None, step: int) -> float:
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    schedule = make_schedule(config, optimizer, steps_per_epoch)
    set_schedule(schedule, step)
    return optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("number", range(9))
def test_the_recorded_rates(golden_change3d, tmp_path, number):
    case = json.loads(golden_change3d("losses.json").read_text())["lr_schedule"][number]
    steps_per_epoch = case["max_batches"]
    config = config_of(
        tmp_path,
        learning_rate=case["lr0"],
        lr_scheduler=case["mode"],
        max_train_steps=steps_per_epoch * case["max_epochs"],
    )
    # the recorded `iter` of the step schedule counts within the epoch
    step = case["iter"] if case["mode"] == "poly" else case["epoch"] * steps_per_epoch
    assert rate(config, steps_per_epoch, step) == pytest.approx(case["lr"], rel=1e-12)


def test_captions_are_halved_every_ten_epochs(tmp_path):
    settings = {"lr_scheduler": "step", "lr_step_epochs": 10, "lr_step_factor": 0.5, "lr_warmup_steps": 0}
    config = config_of(tmp_path, learning_rate=1e-4, **settings)
    assert [rate(config, 7, step) for step in (0, 69, 70, 140)] == pytest.approx([1e-4, 1e-4, 5e-5, 2.5e-5])


def test_schedules_of_diffusers_and_of_streams(tmp_path):
    assert rate(config_of(tmp_path, lr_scheduler="constant"), 10, 5) == 2e-4
    assert rate(config_of(tmp_path, lr_scheduler="linear", lr_warmup_steps=10), 10, 5) == pytest.approx(1e-4)
    assert rate(config_of(tmp_path), None, 199) == pytest.approx(2e-4)
    with pytest.raises(ValueError, match="`lr_scheduler` is step with `streaming`"):
        config_of(tmp_path, lr_scheduler="step", streaming=True)


def test_three_recorded_steps(golden_change3d, change3d_checkpoint, tmp_path):
    """The loss and the rate of each step, and weights after the last."""
    recorded = load_file(golden_change3d("train_bcd_64x64.safetensors"))
    steps = json.loads(golden_change3d("train_bcd_64x64.json").read_text())["adam_steps"]
    images = load_file(golden_change3d("bcd_64x64.safetensors"))
    batch = {"image_before": images["pre"], "image_after": images["post"], "labels": recorded["target"]}
    model = (
        build_change3d(change3d_from_original(change3d_checkpoint("bcd_64x64"))).float().requires_grad_(True).train()
    )
    config, accelerator = config_of(tmp_path, max_train_steps=6), Accelerator(cpu=True)
    optimizer = make_adam(config, model)
    schedule = make_schedule(config, optimizer, 3)
    for number, expected in enumerate(steps):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected["lr"], rel=1e-12)
        losses = train_change3d.losses_of(model, "binary", batch, accelerator)
        assert losses["loss"].item() == pytest.approx(expected["loss"], abs=5e-4)
        with torch.no_grad():  # norms see the same batch again, and no statistic is read in training
            changed = model(batch["image_before"], batch["image_after"]).change > 0.5
        scores = binary_scores(confusion_matrix(batch["labels"], changed, 2).numpy())
        assert scores["f1"] == pytest.approx(expected["F1"], abs=5e-4)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        set_schedule(schedule, number + 1)
    weights = {"after3_fc0": model.encoder.differences[0].weight, "after3_up_c1": model.decoder_change.conv_out.weight}
    for name, weight in weights.items():
        assert (weight - recorded[name]).abs().max() < 1e-4, name
