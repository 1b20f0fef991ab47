"""Saving and restoring a run of two models, as that of an autoencoder and its discriminator."""

import hashlib
import json
import math
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from diffusers_lightningdit.training.checkpoints import CheckpointWriteError, find_checkpoint, list_checkpoints
from diffusers_lightningdit.training.moving_averages import MovingAverages
from diffusers_lightningdit.training.run_state import RunState
from diffusers_lightningdit.training.spike_guard import SpikeGuard, TrainingDiverged

NAMES = ("generator", "critic")
sgd_with_momentum = partial(torch.optim.SGD, momentum=0.9)


def make_run(
    folder,
    width=3,
    seed=5,
    learning_rate=0.1,
    decays=(0.9, 0.99),
    names=NAMES,
    critic_optimizer=sgd_with_momentum,
    report=None,
    **arguments,
) -> RunState:
    accelerator = Accelerator(cpu=True)
    models = {"generator": nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width)), "critic": nn.Linear(2, 1)}
    optimizers = {
        "generator": torch.optim.AdamW(models["generator"].parameters(), lr=learning_rate),
        "critic": critic_optimizer(models["critic"].parameters(), lr=learning_rate),
    }
    prepared = {name: accelerator.prepare(models[name], optimizers[name]) for name in names}
    return RunState(
        accelerator,
        str(folder),
        models={name: prepared[name][0] for name in names},
        optimizers={name: prepared[name][1] for name in names},
        lr_schedulers={name: LambdaLR(optimizers[name], lambda step: 1 / (1 + step)) for name in names},
        averages={"generator": MovingAverages(models["generator"].parameters(), decays)} if decays else {},
        spike_guard=SpikeGuard(),
        must_match={"seed": seed},
        architectures={name: {"width": width} if name == "generator" else {} for name in names},
        settings={"learning_rate": learning_rate, "output_dir": str(folder)},
        report=report or (lambda line: None),
        **arguments,
    )


def resume(run: RunState, checkpoint: str) -> None:
    run.resume(find_checkpoint(run.accelerator, run.output_dir, checkpoint))


def train(run: RunState, num_steps: int) -> None:
    for _ in range(num_steps):
        inputs = torch.randn(4, 2, generator=torch.Generator().manual_seed(run.batch_index))
        for name in NAMES:
            loss = run.models[name](inputs).square().mean() + run.models[name](inputs).mean()
            run.accelerator.backward(loss)
            run.optimizers[name].step()
            run.optimizers[name].zero_grad()
            run.lr_schedulers[name].step()
        run.averages["generator"].step(run.models["generator"].parameters())
        run.spike_guard.check(loss.item(), 1.0)
        run.step, run.batch_index = run.step + 1, run.batch_index + 1


def everything(run: RunState) -> dict:
    content = {}
    for name in run.models:
        content |= {f"{name}.{key}": value.clone() for key, value in run.models[name].state_dict().items()}
        for number, state in enumerate(run.optimizers[name].state_dict()["state"].values()):
            content |= {
                f"{name}.optimizer.{number}.{key}": torch.as_tensor(value).clone() for key, value in state.items()
            }
        content[f"{name}.lr"] = torch.tensor(run.lr_schedulers[name].get_last_lr(), dtype=torch.float64)
    for decay, shadows in run.averages.get("generator", ()):
        content |= {f"ema.{decay}.{number}": shadow.clone() for number, shadow in enumerate(shadows)}
    content["losses"] = torch.tensor(list(run.spike_guard.losses), dtype=torch.float64)
    content["counts"] = torch.tensor(
        [run.step, run.batch_index, run.averages["generator"].num_steps if run.averages else 0]
    )
    return content


def assert_identical(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.equal(value, b[key]), key


@pytest.fixture
def saved(tmp_path):
    """A folder with the checkpoints of steps 2 and 4, and everything as it is after step 6."""
    run = make_run(tmp_path)
    for _ in range(2):
        train(run, 2)
        run.save()
    train(run, 2)
    return tmp_path, everything(run)


def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(saved):
    folder, expected = saved
    for checkpoint, num_steps in (("latest", 2), (str(folder / "checkpoint-4"), 2)):
        torch.manual_seed(99)  # other first weights, which the checkpoint replaces
        lines = []
        run = make_run(folder, report=lines.append)
        resume(run, checkpoint)
        assert lines == [f"resumed from {folder}/checkpoint-4, step 4"]
        train(run, num_steps)
        assert_identical(everything(run), expected)


def test_latest_without_a_checkpoint_begins_anew(tmp_path, capsys):
    run = make_run(tmp_path / "none")
    resume(run, "latest")
    assert run.step == 0
    assert capsys.readouterr().out.splitlines() == [f"no checkpoint in {tmp_path}/none: training begins anew"]


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(saved, capsys):
    folder, expected = saved
    file = folder / "checkpoint-4" / "generator.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    run = make_run(folder, report=print)
    resume(run, "latest")
    assert capsys.readouterr().out.splitlines() == [
        f"{file} is damaged: its SHA-256 sum is not the one it was written with. The one before it is used.",
        f"resumed from {folder}/checkpoint-2, step 2",
    ]
    train(run, 2)
    run.save()  # the damaged one is out of the way, but not deleted
    train(run, 2)
    assert_identical(everything(run), expected)
    assert (folder / "checkpoint-4.damaged-1").is_dir()
    with pytest.raises(ValueError, match=r"checkpoint-4\.damaged-1/generator\.safetensors is damaged"):
        resume(make_run(folder), str(folder / "checkpoint-4.damaged-1"))


def test_nothing_but_damaged_checkpoints_is_an_error(saved):
    folder, _ = saved
    for step in (2, 4):
        (folder / f"checkpoint-{step}" / "state.json").unlink()
    with pytest.raises(ValueError, match=r"There is no earlier checkpoint in .* to resume from"):
        resume(make_run(folder), "latest")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 4}, "checkpoint-4 has `generator.width` 3, this run 4; required: the same architecture"),
        ({"seed": 6}, "`seed` is 6; required: 5, as in the checkpoint"),
        ({"decays": (0.5,)}, r"the EMA decay 0\.5 is not in the checkpoint"),
        (
            {"names": ("generator",)},
            "checkpoint-4 has the models critic, generator, this run generator; required: the same models",
        ),
        (
            {"critic_optimizer": torch.optim.AdamW},
            "the optimiser of `critic` is AdamW; required: SGD, whose state is in the checkpoint",
        ),
    ],
)
def test_a_checkpoint_of_another_run_changes_nothing(saved, arguments, message):
    folder, _ = saved
    run = make_run(folder, **arguments)
    before = everything(run)
    with pytest.raises(ValueError, match=message):
        resume(run, "latest")
    assert_identical(everything(run), before)


@pytest.mark.parametrize(
    ("saved_with", "resumed_with", "message"),
    [
        ({"names": ("generator",)}, {}, "has the models generator, this run critic, generator; required: the same"),
        ({"decays": ()}, {}, r"the EMA decay 0\.9 is not in the checkpoint"),
    ],
)
def test_a_checkpoint_of_less_than_the_run_changes_nothing(tmp_path, saved_with, resumed_with, message):
    make_run(tmp_path, **saved_with).save()
    run = make_run(tmp_path, **resumed_with)
    before = everything(run)
    with pytest.raises(ValueError, match=message):
        resume(run, "latest")
    assert_identical(everything(run), before)


def test_averages_that_are_not_wanted_any_more_are_left_out(saved):
    folder, _ = saved
    run = make_run(folder, decays=())
    resume(run, "latest")
    assert run.step == 4


def write_state(checkpoint: Path, state: dict) -> None:
    """Replace the state of a checkpoint by another one, with which its manifest agrees."""
    content = json.dumps(state).encode()
    (checkpoint / "state.json").write_bytes(content)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["state.json"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("optimizers", None),
        ("step", "4"),
        ("position", True),
        ("optimizer_values", {"generator": 3, "critic": {}}),
        ("lr_schedulers", {"generator": 4}),
        ("averages", {}),
        ("guard", {"losses": 3}),
        ("identity", []),
    ],
)
def test_a_state_of_another_kind_is_one_line_before_anything_is_loaded(saved, entry, value):
    folder, _ = saved
    state = json.loads((folder / "checkpoint-4" / "state.json").read_text())
    write_state(folder / "checkpoint-4", {**state, entry: value})
    run = make_run(folder)
    before = everything(run)
    with pytest.raises(ValueError, match=r"state\.json.* required: as it was written") as error:
        resume(run, "latest")
    assert "\n" not in str(error.value)
    assert_identical(everything(run), before)


def test_moments_of_another_shape_are_one_line(saved):
    folder, _ = saved
    file = folder / "checkpoint-4" / "generator.optimizer.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "0.weight|exp_avg": torch.zeros(7)}, file)
    manifest = json.loads((folder / "checkpoint-4" / "manifest.json").read_text())
    content = file.read_bytes()
    manifest[file.name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "checkpoint-4" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"has `0.weight\|exp_avg` of shape \[7\]; required: the state of this run's"):
        resume(make_run(folder), "latest")


def test_an_optimiser_that_has_not_begun_is_saved_as_it_is(tmp_path):
    """As a discriminator's before its first step: torch's gathering would take a step with it, which Adam counts."""
    run = make_run(tmp_path)
    run.save()
    assert not run.optimizers["generator"].state
    other = make_run(tmp_path)
    resume(other, "latest")
    assert not other.optimizers["generator"].state


def test_changed_shapes_that_the_arguments_do_not_tell(saved):
    folder, _ = saved
    run = make_run(folder)
    run.models["critic"].weight = nn.Parameter(torch.zeros(1, 5))
    with pytest.raises(ValueError, match=r"critic.safetensors has `weight` of shape \[1, 2\]; required: \[1, 5\]"):
        resume(run, "latest")


def test_a_path_that_is_none_or_would_be_overtaken(saved):
    folder, _ = saved
    with pytest.raises(ValueError, match="`resume_from_checkpoint` is '/no/such'; required: latest, or the folder"):
        resume(make_run(folder), "/no/such")
    with pytest.raises(ValueError, match=r"checkpoint-2', but .*checkpoint-4 is later; required: latest, or another"):
        resume(make_run(folder), str(folder / "checkpoint-2"))
    run = make_run(folder / "other")
    resume(run, str(folder / "checkpoint-2"))
    assert run.step == 2


def test_settings_may_change_and_are_said(saved):
    folder, _ = saved
    lines = []
    run = make_run(folder, learning_rate=0.2, report=lines.append)
    resume(run, "latest")
    assert lines[0] == "`learning_rate` is now 0.2; the checkpoint was trained with 0.1"
    assert run.optimizers["generator"].param_groups[0]["lr"] == pytest.approx(0.2 / 5)  # at step 4 of its schedule


def test_a_limit(tmp_path):
    run = make_run(tmp_path, total_limit=2)
    for _ in range(4):
        train(run, 1)
        run.save()
    assert list_checkpoints(tmp_path) == [3, 4]


def test_a_full_disk(saved, monkeypatch):
    folder, _ = saved
    run = make_run(folder)
    resume(run, "latest")
    train(run, 1)
    free = shutil.disk_usage(folder)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(CheckpointWriteError, match=r"the disk has 1e-08 GB left; the checkpoint of step 4 is kept\.$"):
        run.save()
    assert list_checkpoints(folder) == [2, 4]


def test_roll_back_goes_on_with_later_data(saved):
    folder, _ = saved
    lines = []
    run = make_run(folder, report=lines.append)
    resume(run, "latest")
    good = everything(run)
    train(run, 1)
    for _ in range(10):
        run.spike_guard.check(math.nan, 1.0)
        run.step, run.batch_index = run.step + 1, run.batch_index + 1
    assert run.spike_guard.must_roll_back
    run.roll_back()
    assert lines[-1].startswith("10 steps in a row were bad at step 15: back to ")
    assert (run.step, run.batch_index) == (4, 15)
    assert (run.spike_guard.num_skipped, run.spike_guard.num_rollbacks) == (10, 1)
    restored = everything(run)
    assert_identical({**restored, "counts": good["counts"]}, good)
    # the batch_index is saved as well
    train(run, 1)
    run.save()
    other = make_run(folder)
    resume(other, "latest")
    assert (other.step, other.batch_index) == (5, 16)


def test_a_roll_back_leaves_the_checkpoints_on_schedule(tmp_path):
    """A checkpoint that was due among the bad steps is not made up for after the return: it would push out another."""
    run = make_run(tmp_path, total_limit=2)
    for _ in range(2):
        train(run, 2)
        assert not run.secure(2, 100)
    for _ in range(10):
        run.spike_guard.check(math.nan, 1.0)
        run.step, run.batch_index = run.step + 1, run.batch_index + 1
        went_back = run.secure(2, 100)
    assert went_back and run.step == 4
    train(run, 1)
    run.secure(2, 100)
    assert list_checkpoints(tmp_path) == [2, 4]
    train(run, 1)
    run.secure(2, 100)
    assert list_checkpoints(tmp_path) == [4, 6]


def test_roll_back_without_a_checkpoint(tmp_path):
    run = make_run(tmp_path)
    with pytest.raises(TrainingDiverged, match="has no checkpoint to return to; required: a lower `learning_rate`"):
        run.roll_back()
