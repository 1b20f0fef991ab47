# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""VA-VAE: a KL autoencoder whose latents are aligned with a vision foundation model (arXiv 2501.01423, section 3).

This file imports torch and diffusers only, because it is uploaded to the Hub as it is.
"""

import inspect
import os
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from diffusers.configuration_utils import register_to_config


class AutoencoderVAVAE(AutoencoderKL):
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

        The other arguments are those of `AutoencoderKL`. Images are [B, 3, height, width] in [-1, 1].

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
        sample_size: int = 256,
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
        """Normalise raw latents [B, C, height, width] for the transformer: (latents - mean) / std * scaling_factor."""
        mean, std = self._latents_statistics(latents)
        return (latents - mean) / std * self.config.scaling_factor

    def denormalize_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Invert `normalize_latents`, for `decode`: latents * std / scaling_factor + mean."""
        mean, std = self._latents_statistics(latents)
        return latents * std / self.config.scaling_factor + mean

    def set_latents_statistics(self, mean: list[float], std: list[float]) -> None:
        """Store the statistics of raw latents per channel in the config.

        Raises:
            ValueError: If they are not one number per latent channel, or a standard deviation is not positive.
        """
        check_latents_statistics(mean, std, self.config.latent_channels)
        self.register_to_config(latents_mean=list(mean), latents_std=list(std))

    def _latents_statistics(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.config.latents_mean is None:
            return latents.new_zeros(1), latents.new_ones(1)
        mean = latents.new_tensor(self.config.latents_mean).view(1, -1, 1, 1)
        std = latents.new_tensor(self.config.latents_std).view(1, -1, 1, 1)
        return mean, std

    # -----------------------------------------------------------------------------------------------------------------
    # Services: what diffusers does with a model beside calling it
    # -----------------------------------------------------------------------------------------------------------------

    # -- Hub and files ---------------------------------------------------------------------------------------------

    # This section stands in both model files with the same words (but for the keys that are refused): a model file is
    # uploaded alone, and as remote code cannot import another file. tests/hub/test_code_files.py compares the two.
    #
    # The source code is read on import and not when a model is saved, because as remote code the files of both models
    # run in one module, one after the other. For the same reason the card belongs to the class and not to the file.
    _source_code = __spec__.loader.get_source(__name__)
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

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | os.PathLike, *args, **kwargs):
        """Load as diffusers does, but say so if the Hub is out of reach; diffusers says that the file is missing."""
        try:
            return super().load_config(pretrained_model_name_or_path, *args, **kwargs)
        except OSError as error:
            if type(error.__context__).__name__ != "LocalEntryNotFoundError":
                raise
            raise OSError(
                f"Cannot load {pretrained_model_name_or_path}: not in the cache, and the Hub is offline or out of "
                "reach; required: a network connection, a folder, or a repository that was loaded before."
            ) from error

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike | None, **kwargs):
        """Load as diffusers does, but refuse files that lack weights of the model.

        Raises:
            OSError: Naming the missing weights.
        """
        if kwargs.get("use_flashpack", False):  # a format that is checked while it is read
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        output_loading_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        cls._check_complete(model, info, pretrained_model_name_or_path, kwargs.get("device_map"))
        return (model, info) if output_loading_info else model

    @staticmethod
    def _check_complete(model: torch.nn.Module, info: dict, source: str | os.PathLike, device_map=None) -> None:
        """Raise OSError for missing weights, which diffusers leaves uninitialised with no more than a warning."""
        missing = set(info["missing_keys"])
        if device_map is None:  # weights that the index names, but that are in none of the shards
            missing |= {name for name, parameter in model.named_parameters() if parameter.is_meta}
        if missing:
            raise OSError(
                f"The weights in {source} lack {len(missing)} tensors of {type(model).__name__}, first "
                f"`{min(missing)}`; required: all. A file is damaged, or config.json is another model's."
            )

    @classmethod
    def extract_init_dict(cls, config_dict: dict, **kwargs) -> tuple[dict, dict, dict]:
        """Read a config as diffusers does, but refuse unknown keys, which diffusers would ignore.

        The config of a plain AutoencoderKL, as which others export the same network, is left to diffusers.

        Raises:
            ValueError: Naming the keys of an AutoencoderVAVAE's config.json that are not arguments of this class.
        """
        # diffusers' EMAModel adds its settings to the config.json that it saves.
        ema = {"decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"}
        known = {*inspect.signature(cls.__init__).parameters, "auto_map", "quantization_config", *ema}
        unknown = sorted(key for key in config_dict if key not in known and not key.startswith("_"))
        if unknown and config_dict.get("_class_name", cls.__name__) == cls.__name__:
            raise ValueError(
                f"config.json of {cls.__name__} has the unknown key {', '.join(map(repr, unknown))}; required: only "
                f"arguments of the class, {', '.join(inspect.signature(cls).parameters)}. A newer version may know it."
            )
        return super().extract_init_dict(config_dict, **kwargs)

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """Save the config, and after `register_for_auto_class()`, or loaded from such a folder, the code beside it."""
        cls = type(self)
        if (self._auto_class or "auto_map" in self.config) and vars(cls).get("_source_code"):
            module = cls.__module__.rpartition(".")[2]
            self.register_to_config(auto_map={"AutoModel": f"{module}.{cls.__name__}"})
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            Path(save_directory, f"{module}.py").write_text(cls._source_code, encoding="utf-8", newline="\n")
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    def _upload_folder(self, working_dir: str | os.PathLike, repo_id: str, **kwargs):
        """Replace the generic model card of diffusers, mostly blanks, in the last step of a push."""
        card = Path(working_dir) / "README.md"
        if card.is_file() and "This model card has been automatically generated." in card.read_text(encoding="utf-8"):
            text = self._model_card.format(title=repo_id.rpartition("/")[2], repository=repo_id)
            card.write_text(text, encoding="utf-8", newline="\n")
        return super()._upload_folder(working_dir, repo_id, **kwargs)

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path_or_dict: str | dict | None = None, **kwargs):
        """Load a VA-VAE, LDM or MAR-VAE file; this needs the package diffusers_lightningdit.

        Without `config` and `original_config` the architecture is derived from the weights; `latents_mean`,
        `latents_std` and `scaling_factor` may be given beside it.
        """
        if kwargs.get("config") is None and kwargs.get("original_config") is None:
            kwargs["original_config"] = {}
        return super().from_single_file(pretrained_model_link_or_path_or_dict, **kwargs)


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
    if not all(value > 0 for value in std):
        raise ValueError(f"`latents_std` has the value {min(std)}; required: positive numbers.")
