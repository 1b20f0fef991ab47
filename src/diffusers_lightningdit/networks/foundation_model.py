# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The vision foundation model that the latents are aligned to (VA-VAE, arXiv 2501.01423, section 3).

Any vision transformer of `transformers` whose patch tokens form a grid: DINOv2 (with registers), DINOv3, MAE, ViT,
SigLIP, CLIP, ...
Of its last hidden state the patch tokens are kept, row by row; class and register tokens come first and are dropped.

Letters in the shape comments: B images, F channels of a token, P = (height, width) of a patch in pixels, (h, w) grid.
"""

import inspect

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers.image_processing_base import ImageProcessingMixin
from transformers.utils import logging

from ..files import first_line, one_line
from ..metrics.finite import check_finite
from ..pixels import height_and_width
from ..settings import check_choice

HALF = (0.5, 0.5, 0.5)  # mean and standard deviation that turn [0, 1] into [-1, 1]
IMAGE_NORMALIZATIONS = ("minus_one_to_one", "model")
# before the registers: none (SigLIP), a class token (most), a class and a distillation token (DeiT)
MAX_CLASS_TOKENS = 2
MAX_IMAGE_SIZE = 4096  # pixels a side, before memory is taken for a first image
# A checkpoint of a classifier lacks it, and patch tokens do not depend on it.
UNUSED_WEIGHTS = "pooler."


class FoundationModel(nn.Module):
    """A frozen vision transformer that turns images into grids of features.

    It stays in evaluation mode, whatever `train()` says of the module that holds it.

    Where the grid of its patches is another than that of the latents, it is the image that is resized, to the size
    that has a patch for each latent: bilinear, without corner alignment or anti-aliasing. For 256x256 images and
    latents of 16x16 these are the original's 224x224 for DINOv2, of patch 14, and the image as it is for MAE, of patch
    16. Features are never interpolated.

    Args:
        model: The network. Called with `pixel_values`, it returns `last_hidden_state`, [B, tokens, F]. Its config has
            `patch_size`, `hidden_size` and, if there are register tokens, `num_register_tokens`.
        image_mean, image_std: The mean and standard deviation of pixels in [0, 1], per channel, that its input is
            normalised with. The default, 0.5, is pixels in [-1, 1]: what the original gives every model.
    """

    def __init__(
        self,
        model: nn.Module,
        image_mean: tuple[float, ...] = HALF,
        image_std: tuple[float, ...] = HALF,
    ):
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.num_channels = model.config.hidden_size  # F
        self.patch_size = height_and_width(model.config.patch_size)
        self.num_register_tokens = getattr(model.config, "num_register_tokens", 0) or 0
        # pixels in [-1, 1] -> in [0, 1] -> normalised, as one affine map
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (image_mean, image_std))
        self.register_buffer("scale", 0.5 / std, persistent=False)
        self.register_buffer("offset", (0.5 - mean) / std, persistent=False)
        self._interpolates = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        self._masks = hasattr(model.config, "mask_ratio")
        if self._masks:  # of MAE, which shuffles and drops tokens also in evaluation mode
            model.config.mask_ratio = 0.0

    @classmethod
    def from_pretrained(
        cls, name_or_path: str, image_normalization: str = "minus_one_to_one", argument: str = "foundation_model"
    ) -> "FoundationModel":
        """Load a model from a folder or Hub id, as `load_vision_model`.

        Args:
            name_or_path: The folder or Hub id.
            image_normalization: The normalisation of the model's input. "minus_one_to_one", as in the original: pixels
                in [-1, 1]; "model": by mean and standard deviation of the model's own preprocessor_config.json.
            argument: The name of the setting that gives the model, for messages.

        Raises:
            ValueError: as `load_vision_model`, if it is no vision transformer, or if its tokens form no grid.
        """
        model, *statistics = load_vision_model(name_or_path, image_normalization, argument)
        if not (hasattr(model.config, "patch_size") and isinstance(getattr(model.config, "hidden_size", None), int)):
            raise ValueError(
                f"`{argument}` is {name_or_path!r}, of type {model.config.model_type!r}; required: a vision "
                "transformer with `patch_size`."
            )
        try:
            foundation_model = cls(model, *statistics)
            foundation_model._try()
        except Exception as error:  # whatever the model raises whose config does not fit it
            raise ValueError(
                f"`{argument}` is {name_or_path!r}; required: a vision transformer whose patches form a grid "
                f"({one_line(error)})."
            ) from error
        return foundation_model

    def train(self, mode: bool = True) -> "FoundationModel":
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels: torch.Tensor, grid_size: int | tuple[int, int] | None = None) -> torch.Tensor:
        """Features of the patches, row by row.

        Args:
            pixels: Images, [B, 3, height, width] in [-1, 1].
            grid_size: The size of the latents, (h, w) or one number for both; the images are resized to (h, w)
                patches. None leaves the images as they are.

        Returns:
            [B, F, h, w], of the type of `pixels`.

        Raises:
            ValueError: without a grid size, if the image is no multiple of the patch; if the tokens form no grid.
        """
        height, width = pixels.shape[-2:]
        grid_size = self._grid_of(pixels) if grid_size is None else height_and_width(grid_size)
        size = grid_size[0] * self.patch_size[0], grid_size[1] * self.patch_size[1]
        resized = pixels.to(self.scale)
        if size != (height, width):
            resized = F.interpolate(resized, size, mode="bilinear", align_corners=False, antialias=False)
        tokens = self._all_tokens(resized * self.scale + self.offset, grid_size)[:, -grid_size[0] * grid_size[1] :]
        return tokens.transpose(1, 2).unflatten(2, grid_size).to(pixels.dtype)

    @torch.no_grad()
    def class_tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """The first token of the last hidden state: [B, 3, height, width] in [-1, 1] -> [B, F].

        Raises:
            ValueError: if height or width is no multiple of the patch, or there is no class token.
        """
        grid_size = self._grid_of(pixels)
        tokens = self._all_tokens(pixels.to(self.scale) * self.scale + self.offset, grid_size)
        if tokens.shape[1] - grid_size[0] * grid_size[1] <= self.num_register_tokens:
            raise ValueError("the foundation model has no class token; required: one that has.")
        return tokens[:, 0].to(pixels.dtype)

    def _grid_of(self, pixels: torch.Tensor) -> tuple[int, int]:
        height, width = pixels.shape[-2:]
        if height % self.patch_size[0] or width % self.patch_size[1]:
            raise ValueError(
                f"the images are {height}x{width}; required: multiples of the foundation model's patch, "
                f"{self.patch_size[0]}x{self.patch_size[1]}, or `grid_size`."
            )
        return height // self.patch_size[0], width // self.patch_size[1]

    def _all_tokens(self, pixel_values: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
        """[B, class and register tokens + h w, F]."""
        num_patches = grid_size[0] * grid_size[1]
        arguments = {}
        if self._interpolates:  # position embeddings, where the grid is not that of the pretraining
            arguments["interpolate_pos_encoding"] = True
        if self._masks:  # the tokens are sorted by their noise: rising noise keeps their order
            arguments["noise"] = torch.arange(num_patches, device=pixel_values.device).expand(len(pixel_values), -1)
        tokens = self.model(pixel_values=pixel_values, **arguments).last_hidden_state
        others = tokens.shape[1] - num_patches if tokens.ndim == 3 else -1
        if not 0 <= others - self.num_register_tokens <= MAX_CLASS_TOKENS:
            raise ValueError(
                f"the foundation model turns {grid_size[0]}x{grid_size[1]} patches into a state of shape "
                f"{list(tokens.shape)}; required: [B, tokens, channels], a token for each patch after the class token "
                f"and {self.num_register_tokens} register tokens."
            )
        return tokens

    def _try(self) -> None:
        """Run on one black image, so that a model which cannot be used is refused before any work."""
        image_size = getattr(self.model.config, "image_size", None)
        size = height_and_width(image_size or [16 * side for side in self.patch_size])
        if not all(isinstance(side, int) and 0 < side <= MAX_IMAGE_SIZE for side in (*size, *self.patch_size)):
            raise ValueError(f"the sizes of image and patch are {size} and {self.patch_size}, in pixels")
        grid_size = tuple(max(1, pixels // side) for pixels, side in zip(size, self.patch_size, strict=True))
        check_finite(features=self(torch.full((1, len(self.scale), *size), -1.0), grid_size))


def load_vision_model(
    name_or_path: str, image_normalization: str, argument: str = "foundation_model"
) -> tuple[nn.Module, tuple[float, ...], tuple[float, ...]]:
    """A model of images, from safetensors, without code from its repository; of SigLIP and CLIP the image's half.

    Args:
        name_or_path: The folder or Hub id.
        image_normalization: As in `FoundationModel.from_pretrained`.
        argument: The name of the setting that gives the model, for messages.

    Returns:
        The model, in float32; mean and standard deviation, per channel, that its input is normalised with.

    Raises:
        ValueError: if there is no model, if it is none of images, if weights are missing, or if a mean or standard
            deviation is wanted and not there.
    """
    check_choice("image_normalization", image_normalization, IMAGE_NORMALIZATIONS)
    name = f"`{argument}` is {name_or_path!r}"
    try:
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    except Exception as error:  # of a damaged config, anything
        raise ValueError(
            f"{name}; required: a folder or Hub id of a `transformers` model ({first_line(error)})."
        ) from error
    config = getattr(config, "vision_config", config)
    statistics = (HALF, HALF)
    if image_normalization == "model":
        statistics = _image_statistics(name_or_path, argument)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # missing keys are told below; others, as those of a text model, do no harm
    try:
        model, loading = AutoModel.from_pretrained(
            name_or_path,
            config=config,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
        )
    except Exception as error:  # of damaged weights, or of a config that they do not fit, anything
        raise ValueError(
            f"{name}; required: weights as safetensors that fit its config ({first_line(error)})."
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    missing = sorted(key for key in loading["missing_keys"] if not key.startswith(UNUSED_WEIGHTS))
    if missing:
        raise ValueError(
            f"{name}, without {missing[0]} ({len(missing)} missing in all); required: all weights of its model."
        )
    if model.main_input_name != "pixel_values":
        raise ValueError(f"{name}, which takes {model.main_input_name!r}; required: a model of images.")
    return model, *statistics


def _image_statistics(name_or_path: str, argument: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation, per channel, of a model's preprocessor_config.json."""
    required = "required for image_normalization='model': a preprocessor_config.json with `image_mean` and `image_std`"
    try:
        processor, _ = ImageProcessingMixin.get_image_processor_dict(name_or_path)
        mean, std = (torch.tensor(processor[name], dtype=torch.float32) for name in ("image_mean", "image_std"))
        if not (mean.shape == std.shape and mean.ndim == 1 and (mean.isfinite() & std.isfinite() & (std > 0)).all()):
            raise ValueError("image_mean and image_std are no numbers of channels")
    except Exception as error:  # of a damaged file, anything
        raise ValueError(f"`{argument}` is {name_or_path!r}; {required} ({first_line(error)}).") from error
    return processor["image_mean"], processor["image_std"]
