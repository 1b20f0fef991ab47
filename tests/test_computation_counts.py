"""Counts that speed depends on and no machine changes: evaluations of the network, waits for the device."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import is_torch_version
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from diffusers_lightningdit import AutoencoderVAVAE, LightningDiTPipeline, LightningDiTTransformer2DModel
from diffusers_lightningdit.flow_matching import flow_matching_losses
from diffusers_lightningdit.keyed_random import KeyedRandom
from diffusers_lightningdit.losses import VAELossSettings, autoencoder_losses, discriminator_losses
from diffusers_lightningdit.training.moving_averages import MovingAverages
from diffusers_lightningdit.training.optimizer_step import finish_step, mean_of_parts
from diffusers_lightningdit.training.optimizers import make_adamw, make_lr_scheduler
from diffusers_lightningdit.training.run_state import RunState
from diffusers_lightningdit.training.spike_guard import SpikeGuard
from diffusers_lightningdit.training.transformer.config import LightningDiTTrainingConfig
from diffusers_lightningdit.training.transformer.data import normalized_latents
from diffusers_lightningdit.training.transformer.loop import NAME, training_loss


class Operations(TorchDispatchMode):
    """Counts what torch executes, by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def transformer(num_layers: int = 1, **arguments) -> LightningDiTTransformer2DModel:
    arguments = {"sample_size": 4, "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, **arguments}
    return LightningDiTTransformer2DModel(num_layers=num_layers, num_classes=10, **arguments)


def tiny_vae() -> AutoencoderVAVAE:
    return AutoencoderVAVAE(block_out_channels=(4, 4), layers_per_block=1, norm_num_groups=2, latent_channels=4)


def inputs(batch_size: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(batch_size, 4, 4, 4), torch.rand(batch_size), torch.arange(batch_size)


# ---------------------------------------------------------------------------------------------------------------------
# Sampling
# ---------------------------------------------------------------------------------------------------------------------


def pipeline(model: LightningDiTTransformer2DModel, scheduler, **recipe) -> LightningDiTPipeline:
    recipe |= {"guidance_scale": 6.7, "guidance_interval": [0.125, 1.0], "guidance_channels": 3}
    pipe = LightningDiTPipeline(model, tiny_vae(), scheduler, sampling_recipe=recipe)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_evaluations_of_the_published_recipe():
    """249 calls; the 168 that lie in the interval of guidance, from t = 0.125 on, have both halves, and no other."""
    model, batch_sizes = transformer(), []
    pipe = pipeline(model, FlowMatchEulerDiscreteScheduler(shift=1 / 0.3), num_inference_steps=249)
    model.register_forward_pre_hook(
        lambda module, args, kwargs: batch_sizes.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    pipe([1, 2, 3], output_type="latent")
    assert Counter(batch_sizes) == {3: 249 - 168, 6: 168}


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(shift=1 / 0.3),
        UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=1.5),
    ],
)
def test_the_host_does_not_wait_at_each_step_of_sampling(scheduler):
    pipe, reads = pipeline(transformer(), scheduler), []
    for num_steps in (4, 12):
        with Operations() as operations:
            pipe([1], output_type="latent", num_inference_steps=num_steps)
        reads.append([operations.counts[name] for name in ("_local_scalar_dense", "nonzero", "equal")])
    assert reads[0] == reads[1] and reads[0] != [0, 0, 0]  # the first step's place, and at the end if all are finite


def test_a_step_of_sampling_does_not_look_through_all_modules(monkeypatch):
    """As diffusers does for the type of a model: with 28 blocks, that takes as long as two of them."""
    pipe, looks, numbers = pipeline(transformer(), FlowMatchEulerDiscreteScheduler(shift=1 / 0.3)), [], []
    named_modules = torch.nn.Module.named_modules

    def counted(self, *args, **kwargs):
        for item in named_modules(self, *args, **kwargs):
            looks.append(item)
            yield item

    monkeypatch.setattr(torch.nn.Module, "named_modules", counted)
    for num_steps in (4, 4, 12):  # the first run of a pipeline does more
        looks.clear()
        pipe([1], output_type="latent", num_inference_steps=num_steps)
        numbers.append(len(looks))
    looks.clear()
    assert pipe.transformer.dtype == torch.float32 and len(looks) > 50
    assert (numbers[2] - numbers[1]) / 8 < 5  # up to the first weights


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


class Waits(TorchDispatchMode):
    """Lists what makes the host wait for the GPU, on fake tensors of one, and how many operations the GPU gets.

    These are numbers that the host reads, sizes that depend on numbers, and copies from memory that is not pinned,
    which begin when all is done that was asked for before.
    """

    def __init__(self):
        super().__init__()
        self.names, self.num_operations, self.pinned = [], 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, kwargs = function.overloadpacket.__name__, kwargs or {}
        if name == "is_pinned":
            return False
        if name == "_pin_memory":  # which fake tensors cannot do
            result = args[0].clone()
            self.pinned.add(result)
            return result
        tensors = [value for value in args if isinstance(value, torch.Tensor)]
        if name == "_local_scalar_dense":
            self.names += [name] * tensors[0].is_cuda
            return 1.0
        result = function(*args, **kwargs)
        self.num_operations += any(value.is_cuda for value in tensors)
        if name in ("nonzero", "masked_select", "unique_dim", "_unique2") and tensors[0].is_cuda:
            self.names.append(name)
        if name in ("_to_copy", "copy_") and result.device != tensors[-1].device:
            if result.is_cuda and tensors[-1] in self.pinned and (kwargs.get("non_blocking") or True in args):
                return result
            self.names.append(f"{name} from {tensors[-1].device.type}")
        return result


class FakeDraws(KeyedRandom):
    """Draws what a GPU's own generators would, which need one."""

    def normal(self, purpose, shape):
        return torch.randn(len(self.samples), *shape, device=self.device)


def run_of(network: torch.nn.Module, config: LightningDiTTrainingConfig, folder: Path) -> RunState:
    accelerator = Accelerator(cpu=True)
    parameters = list(network.parameters())
    optimizer = make_adamw(config.optimizer, parameters, 1e-4, config.adam_betas, 0.0)
    prepared = accelerator.prepare_optimizer(optimizer, device_placement=False)
    averages, schedule = MovingAverages(parameters, (0.5, 0.9)), make_lr_scheduler(config, optimizer)
    by_name = [{NAME: value} for value in (network, prepared, schedule, averages)]
    return RunState(accelerator, str(folder), *by_name, SpikeGuard(), {}, {}, {})


TIMES = [{"time_sampling": name} for name in ("logit_normal", "arctan", "uniform")] + [{"expanded_times": True}]


@pytest.mark.skipif(
    is_torch_version("<", "2.7") and not torch.cuda.is_available(), reason="fake tensors of a GPU need one in torch 2.6"
)
@pytest.mark.parametrize("times", TIMES, ids=lambda times: str(*times.values()))
@pytest.mark.parametrize("data", ["latents", "moments"])
def test_the_host_waits_for_the_gpu_once_in_a_step_of_training(tmp_path, monkeypatch, times, data):
    """It reads the mean loss and the norm of the gradients, and the GPU has the rest of the time something to do."""
    settings = {"data": "data", "vae": "vae", "output_dir": str(tmp_path), "transformer": {}, "num_classes": 10}
    settings |= {"global_batch_size": 2, "max_train_steps": 4, "max_grad_norm": 1.0, **times}
    config = LightningDiTTrainingConfig(**settings)
    vae = tiny_vae()
    vae.set_latents_statistics([0.0] * 4, [1.0] * 4)
    with FakeTensorMode(allow_non_fake_inputs=True), Waits() as waits:
        monkeypatch.setattr(FakeTensor, "tolist", lambda self: waits.names.append("tolist") or [1.0] * len(self))
        with torch.device("cuda"):
            network = transformer(class_dropout_prob=0.1).train()
            network.class_embedder.eval()
            batch = {"class_labels": torch.zeros(2, dtype=torch.long)}
            batch[data] = torch.randn(2, 4 if data == "latents" else 8, 4, 4)
        state = run_of(network, config, tmp_path)
        for _ in range(2):
            waits.names.clear()
            draws = FakeDraws(0, state.batch_index, range(2), "cuda")
            latents = normalized_latents(batch, vae, draws)
            losses = training_loss(config, network, latents, batch["class_labels"], draws, 0, network, batch)
            for parameter in network.parameters():  # the backward pass needs a GPU; nothing in it is ours
                parameter.grad = torch.randn_like(parameter)
            losses = {name: value.detach() for name, value in losses.items()}
            finish_step(state, mean_of_parts([losses]), lambda means: means["loss"], 1.0, [NAME])
            assert waits.num_operations > 100
            assert waits.names == ["tolist"]


@torch.no_grad()
def test_the_losses_of_the_autoencoder_do_not_wait_for_the_gpu():
    settings = VAELossSettings(disc_start=0)
    with FakeTensorMode(), Waits() as waits, torch.device("cuda"):
        images, moments, features, logits = (
            torch.rand(2, 3, 8, 8),
            torch.rand(2, 4, 4, 4),
            torch.rand(2, 6, 4, 4),
            torch.rand(2),
        )
        weights = {"last_decoder_weight": torch.rand(3), "last_encoder_weight": torch.rand(3)}
        outputs = {"logits_fake": logits, "latents_for_vf": features, "features": features}
        autoencoder_losses(settings, images, images, moments, moments, step=1, **weights, **outputs)
        discriminator_losses(settings, logits, logits, step=1)
    assert waits.num_operations > 30 and waits.names == []


def test_the_loss_does_not_wait_for_the_device():
    latents, times, labels = inputs()
    with Operations() as operations:
        losses = flow_matching_losses(transformer(), torch.randn_like(latents), latents, times, labels)
        (losses.mse.mean() + losses.cosine.mean()).backward()
    assert operations.counts["mean"] > 0
    assert operations.counts["_local_scalar_dense"] == operations.counts["nonzero"] == 0
