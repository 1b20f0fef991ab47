import math
import sys
import types
from importlib.util import find_spec

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from diffusers_lightningdit.training.config import TrainingConfig
from diffusers_lightningdit.training.optimizers import make_adamw, make_lr_scheduler, set_schedule
from diffusers_lightningdit.training.transformer.config import LightningDiTTrainingConfig


def example_config(tmp_path, **settings) -> TrainingConfig:
    settings = {"global_batch_size": 4, "max_train_steps": 5, "learning_rate": 1.0, **settings}
    return TrainingConfig(data="images", output_dir=str(tmp_path / "new"), **settings)


def test_the_schedule_ends_at_the_last_step(tmp_path):
    config = example_config(tmp_path, lr_scheduler="linear", lr_warmup_steps=2, max_train_steps=6)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    scheduler = make_lr_scheduler(config, optimizer)
    rates = []
    for _ in range(6):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0, 0.5, 1, 0.75, 0.5, 0.25])
    assert scheduler.get_last_lr() == [0]


def test_piecewise_schedule(tmp_path):
    config = example_config(tmp_path, lr_scheduler="piecewise_constant", lr_step_rules="1:2,0.1")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make_lr_scheduler(config, optimizer)
    rates = []
    for _ in range(4):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1, 1, 0.1, 0.1])


def test_a_schedule_is_set_where_it_would_be():
    def rates(num_steps, jump):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = LambdaLR(optimizer, lambda step: math.cos(step / 10))
        if jump:
            set_schedule(scheduler, num_steps)
        for _ in range(0 if jump else num_steps):
            optimizer.step()
            scheduler.step()
        optimizer.step()
        scheduler.step()
        return scheduler.get_last_lr(), optimizer.param_groups[0]["lr"]

    assert rates(7, jump=True) == rates(7, jump=False)


def test_eight_bit_moments_need_bitsandbytes(tmp_path, monkeypatch):
    arguments = {"data": "x", "vae": "x", "output_dir": str(tmp_path / "new"), "optimizer": "adamw_8bit"}
    if find_spec("bitsandbytes") is None:
        with pytest.raises(ValueError, match="`optimizer` is 'adamw_8bit'; required: bitsandbytes"):
            LightningDiTTrainingConfig(**arguments)

    class AdamW8bit(torch.optim.AdamW):
        """A stand-in: which class gets which settings. Its own moments of 8 bits need a GPU."""

    package, module = types.ModuleType("bitsandbytes"), types.ModuleType("bitsandbytes.optim")
    module.AdamW8bit = AdamW8bit
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", module)
    optimizer = make_adamw("adamw_8bit", [nn.Parameter(torch.zeros(1))], 0.5, (0.1, 0.2), 0.3)
    assert type(optimizer) is AdamW8bit
    assert {name: optimizer.defaults[name] for name in ("lr", "betas", "weight_decay")} == {
        "lr": 0.5, "betas": (0.1, 0.2), "weight_decay": 0.3
    }  # fmt: skip
