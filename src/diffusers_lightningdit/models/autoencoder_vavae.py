# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""VA-VAE: a KL autoencoder whose latents are aligned with a vision foundation model (arXiv 2501.01423, section 3).

This file imports torch and diffusers only, because it is uploaded to the Hub, together with `model_mixin.py`.
"""

import torch
from diffusers import AutoencoderKL
from diffusers.configuration_utils import register_to_config

from .model_mixin import LightningDiTModelMixin, self_contained


class AutoencoderVAVAE(LightningDiTModelMixin, AutoencoderKL):
    """diffusers' `AutoencoderKL` in the shape of VA-VAE, with the statistics that normalise its latents.

    The network is `AutoencoderKL` with attention at the lowest resolution. This class derives the types of the blocks
    from `block_out_channels` and holds the mean and standard deviation of the latents. The defaults are the published
    f16d32. MAR-VAE, whose decoder has no attention in its up path, is
    `up_block_types=("UpDecoderBlock2D",) * 5, latent_channels=16`.

    Args:
        block_out_channels: The width of each level; the downsampling factor is 2 ** (number of levels - 1).
        layers_per_block: The number of residual blocks of a level of the encoder; the decoder has one more.
        latent_channels: The number of latent channels; 16, 32 or 64 in the published models.
        down_block_types, up_block_types: The types of the blocks. None: they are derived from `block_out_channels`.
        scaling_factor: A factor of normalised latents (the original's `latent_multiplier`).
        latents_mean, latents_std: The statistics of raw latents per channel, [latent_channels] each, or None for both.

        sample_size: The size of the images in training, in pixels: (height, width) or one number for both.

        The other arguments are those of `AutoencoderKL`. Images are [B, in_channels, height, width] in [-1, 1].

    Raises:
        ValueError: If the statistics are not one number per latent channel, or a standard deviation is not positive.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] | None = None,
        up_block_types: tuple[str, ...] | None = None,
        block_out_channels: tuple[int, ...] = (128, 128, 256, 256, 512),
        layers_per_block: int = 2,
        act_fn: str = "silu",
        latent_channels: int = 32,
        norm_num_groups: int = 32,
        sample_size: int | tuple[int, int] = 256,
        scaling_factor: float = 1.0,
        shift_factor: float | None = None,
        latents_mean: list[float] | None = None,
        latents_std: list[float] | None = None,
        force_upcast: bool = False,
        use_quant_conv: bool = True,
        use_post_quant_conv: bool = True,
        mid_block_add_attention: bool = True,
    ):
        num_levels = len(block_out_channels)
        if down_block_types is None:
            down_block_types = ("DownEncoderBlock2D",) * (num_levels - 1) + ("AttnDownEncoderBlock2D",)
        if up_block_types is None:
            up_block_types = ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * (num_levels - 1)
        check_latents_statistics(latents_mean, latents_std, latent_channels)
        if latents_mean is not None and shift_factor:
            raise ValueError(
                f"`shift_factor` is {shift_factor} beside `latents_mean`; required: one of the two, "
                "which are subtracted."
            )
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            act_fn=act_fn,
            latent_channels=latent_channels,
            norm_num_groups=norm_num_groups,
            sample_size=sample_size,
            scaling_factor=scaling_factor,
            shift_factor=shift_factor,
            latents_mean=latents_mean,
            latents_std=latents_std,
            force_upcast=force_upcast,
            use_quant_conv=use_quant_conv,
            use_post_quant_conv=use_post_quant_conv,
            mid_block_add_attention=mid_block_add_attention,
        )

    def normalize_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Normalise raw latents [B, C, height, width] for the transformer: (latents - mean) / std * scaling_factor.

        Without statistics, the mean is `shift_factor` and std is 1, as in `AutoencoderKL`.
        """
        mean, std = self._latents_statistics(latents)
        return (latents - mean) / std * self.config.scaling_factor

    def denormalize_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Invert `normalize_latents`, for `decode`: latents * std / scaling_factor + mean."""
        mean, std = self._latents_statistics(latents)
        return latents * std / self.config.scaling_factor + mean

    def set_latents_statistics(self, mean: list[float] | torch.Tensor, std: list[float] | torch.Tensor) -> None:
        """Store the statistics of raw latents per channel in the config, lists or tensors [C] or [1, C, 1, 1].

        A `scaling_factor` and `shift_factor` without statistics normalise in their place (0.18215 is one over the
        deviation of Stable Diffusion's latents), so that the first statistics replace them.

        Raises:
            ValueError: If they are not one number per latent channel, or a standard deviation is not positive.
        """
        mean, std = (value.flatten().tolist() if hasattr(value, "flatten") else value for value in (mean, std))
        check_latents_statistics(mean, std, self.config.latent_channels)
        if self.config.latents_mean is None:
            self.register_to_config(scaling_factor=1.0, shift_factor=None)
        self.register_to_config(latents_mean=list(mean), latents_std=list(std))

    def _latents_statistics(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.config.latents_mean is None:
            return latents.new_tensor([self.config.shift_factor or 0.0]), latents.new_ones(1)
        statistics = torch.tensor([self.config.latents_mean, self.config.latents_std], dtype=latents.dtype)
        if latents.is_cuda:  # from other memory, the copy would wait until the GPU has done all before it
            statistics = statistics.pin_memory().to(latents.device, non_blocking=True)
        mean, std = statistics.to(latents.device).view(2, 1, -1, 1, 1)
        return mean, std

    # -----------------------------------------------------------------------------------------------------------------
    # Services: see LightningDiTModelMixin
    # -----------------------------------------------------------------------------------------------------------------

    _foreign_configs = ("AutoencoderKL",)  # as which others export the same network
    _source_code = self_contained(__spec__.loader.get_source(__name__))
    _model_card = """---
library_name: diffusers
tags:
- lightningdit
---

# {title}

```python
import diffusers_lightningdit  # makes its classes known to diffusers

model = diffusers_lightningdit.AutoencoderVAVAE.from_pretrained("{repository}")
```

A VA-VAE ([arXiv 2501.01423](https://arxiv.org/abs/2501.01423)): images in [-1, 1] to raw latents by
`model.encode(images).latent_dist`, back by `model.decode(latents).sample`.
Where this repository also holds Python code, the model loads without the package diffusers-lightningdit, by running it:
`diffusers.AutoModel.from_pretrained("{repository}", trust_remote_code=True)`.
"""


def check_latents_statistics(mean: list[float] | None, std: list[float] | None, latent_channels: int) -> None:
    """Raise ValueError unless there is one mean and one positive deviation per latent channel, or none of both."""
    if mean is None and std is None:
        return
    for name, value in (("latents_mean", mean), ("latents_std", std)):
        if value is None or len(value) != latent_channels:
            raise ValueError(
                f"`{name}` has {None if value is None else len(value)} values; required: one for each of the "
                f"{latent_channels} latent channels, or None for both `latents_mean` and `latents_std`."
            )
        if not all(abs(number) < float("inf") for number in value):  # false of NaN, too
            raise ValueError(f"`{name}` is {list(value)}; required: finite numbers.")
    if not all(value > 0 for value in std):
        raise ValueError(f"`latents_std` has the value {min(std)}; required: positive numbers.")
