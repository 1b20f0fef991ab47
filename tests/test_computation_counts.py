"""Counts that speed depends on and no machine changes: evaluations of the network, waits for the device."""

from collections import Counter

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch.utils._python_dispatch import TorchDispatchMode

from diffusers_lightningdit import AutoencoderVAVAE, LightningDiTPipeline, LightningDiTTransformer2DModel
from diffusers_lightningdit.flow_matching import flow_matching_losses


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


def inputs(batch_size: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(batch_size, 4, 4, 4), torch.rand(batch_size), torch.arange(batch_size)


# ---------------------------------------------------------------------------------------------------------------------
# Sampling
# ---------------------------------------------------------------------------------------------------------------------


def test_evaluations_of_the_published_recipe():
    """249 calls; the 168 that lie in the interval of guidance, from t = 0.125 on, have both halves, and no other."""
    model = transformer()
    vae = AutoencoderVAVAE(block_out_channels=(4, 4), layers_per_block=1, norm_num_groups=2, latent_channels=4)
    recipe = {"guidance_scale": 6.7, "guidance_interval": [0.125, 1.0], "guidance_channels": 3}
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1 / 0.3)
    pipe = LightningDiTPipeline(model, vae, scheduler, sampling_recipe={**recipe, "num_inference_steps": 249})
    pipe.set_progress_bar_config(disable=True)
    batch_sizes = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: batch_sizes.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    pipe([1, 2, 3], output_type="latent")
    assert Counter(batch_sizes) == {3: 249 - 168, 6: 168}


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


def test_the_loss_does_not_wait_for_the_device():
    latents, times, labels = inputs()
    with Operations() as operations:
        losses = flow_matching_losses(transformer(), torch.randn_like(latents), latents, times, labels)
        (losses.mse.mean() + losses.cosine.mean()).backward()
    assert operations.counts["mean"] > 0
    assert operations.counts["_local_scalar_dense"] == operations.counts["nonzero"] == 0
