"""From a transformer, an autoencoder and the original's YAML to a pipeline that samples as the authors did."""

import json
from pathlib import Path

from diffusers import FlowMatchEulerDiscreteScheduler

from ..models import AutoencoderVAVAE, LightningDiTTransformer2DModel
from ..pipelines import LightningDiTPipeline
from .config import OriginalConfig


def imagenet_labels() -> dict[int, str]:
    """{class id: names} of ImageNet-1k, synonyms separated by commas; ids in the order of the WordNet numbers."""
    names = json.loads((Path(__file__).parent / "imagenet_labels.json").read_text(encoding="utf-8"))
    return dict(enumerate(names))


def build_pipeline(
    transformer: LightningDiTTransformer2DModel, vae: AutoencoderVAVAE, config: OriginalConfig | None = None
) -> LightningDiTPipeline:
    """Put a pipeline together; with the original's YAML it carries the sampling recipe, shift and latent multiplier.

    Without a YAML nothing is known about sampling: no recipe, no shift, and the VAE's own `scaling_factor`.

    Raises:
        ValueError: if the parts do not belong together, or statistics of latents are missing (forgetting them
            leaves a working pipeline with useless images).
    """
    if vae.config.latent_channels != transformer.config.in_channels:
        raise ValueError(
            f"the VAE has {vae.config.latent_channels} latent channels; required: {transformer.config.in_channels}, "
            "the transformer's input channels."
        )
    if config is not None:
        _check_vae_yaml(vae, config)
        vae.register_to_config(scaling_factor=config.latent_multiplier)
    return LightningDiTPipeline(
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=1.0 if config is None else config.scheduler_shift,
            stochastic_sampling=config is not None and config.is_consistency,
        ),
        id2label=imagenet_labels() if transformer.config.num_classes == 1000 else None,
        sampling_recipe=None if config is None else config.sampling_recipe(transformer.config.in_channels),
    )


def _check_vae_yaml(vae: AutoencoderVAVAE, config: OriginalConfig) -> None:
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    ratio = config.get("vae.downsample_ratio", int, factor)
    if ratio != factor:
        raise config.error("vae.downsample_ratio", ratio, f"{factor}, as the VAE has it")
    latent_norm = config.get("data.latent_norm", bool)
    if latent_norm is True and vae.config.latents_mean is None:
        raise ValueError(
            f"{config.name}: `data.latent_norm` is True, but neither latents_stats is given nor does the VAE carry "
            "statistics; required: --latents_stats FILE, the latents_stats.pt of the latents it was trained on."
        )
    if latent_norm is False and vae.config.latents_mean is not None:
        raise config.error("data.latent_norm", False, "True, since statistics of the latents are given")
