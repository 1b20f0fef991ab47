"""Two processes gather the state of a run, sharded or not, and check what each of them holds then."""

import os
import tempfile

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR

from diffusers_lightningdit.training.checkpoints import find_checkpoint
from diffusers_lightningdit.training.moving_averages import MovingAverages
from diffusers_lightningdit.training.run_state import RunState
from diffusers_lightningdit.training.spike_guard import SpikeGuard


def make_run(accelerator: Accelerator, sharded: bool, output_dir: str) -> RunState:
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    if sharded:
        fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    averages = MovingAverages(model.parameters(), (0.5,))
    model(torch.ones(2, 6)).square().sum().backward()
    optimizer.step()
    averages.step(model.parameters())
    schedule = LambdaLR(optimizer, lambda step: 1.0)
    by_name = [{"model": value} for value in (model, optimizer, schedule, averages)]
    return RunState(accelerator, output_dir, *by_name, SpikeGuard(), {}, {"model": {}}, {}, report=lambda line: None)


accelerator = Accelerator(cpu=True)
(folder,) = broadcast_object_list([tempfile.mkdtemp()])
whole = make_run(accelerator, False, folder)
for sharded in (False, True):
    if sharded and torch.__version__ < "2.8":  # sharding on CPUs
        continue
    run = make_run(accelerator, sharded, f"{folder}/{sharded}")
    files, _ = run._gather()
    average = run.average("model", 0.5)
    assert isinstance(run.models["model"].weight, DTensor) == sharded
    if accelerator.is_main_process:
        assert average["weight"].shape == (4, 6)
        assert {name: len(tensors) for name, tensors in files.items()} == {
            "model.safetensors": 2, "model.ema-0.5.safetensors": 2, "model.optimizer.safetensors": 6
        }  # fmt: skip
    else:
        assert average == {}
        assert all(tensors == {} for tensors in files.values())
    # and what it wrote is what each process gets back
    run.save()
    other = make_run(accelerator, False, f"{folder}/{sharded}")
    with torch.no_grad():
        other.models["model"].weight.zero_()
    other.resume(find_checkpoint(accelerator, other.output_dir, "latest"))
    torch.testing.assert_close(other.models["model"].weight, whole.models["model"].weight)
    moments = [each.optimizers["model"].state[each.models["model"].weight] for each in (other, whole)]
    torch.testing.assert_close(moments[0]["exp_avg"], moments[1]["exp_avg"])
accelerator.wait_for_everyone()
os._exit(0)  # gloo's destructors abort now and then
