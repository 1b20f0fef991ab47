# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The networks whose features images are compared by.

Each takes images, uint8 [B, 3, height, width], and returns float32 tensors by name, "features" [B, D] at least. Its
`description` goes into the JSON file beside the numbers.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..files import one_line, weights_sha256
from ..metrics.finite import check_finite
from ..pixels import from_8_bits
from ..settings import check_choice
from .foundation_model import FoundationModel, load_vision_model

# What a model gives of an image, and how the JSON file describes it.
POOLINGS = {
    "patch_mean": "mean of the patch tokens",
    "class_token": "class token",
    "pooler": "pooler_output",
}


class VisionFeatures(nn.Module):
    """Features of a vision model of `transformers`, one vector for each image.

    With DINOv2's class token, its own normalisation and a size of 224 the Fréchet distance is FD-DINOv2 (arXiv
    2306.04675).

    Args:
        name_or_path: The folder or Hub id.
        image_normalization: As in `FoundationModel.from_pretrained`.
        size: The side in pixels to resize images to; None leaves them as they are. With "patch_mean" bilinear, as
            for the alignment of latents, and a multiple of the patch; else bicubic with anti-aliasing, as Pillow's.
        pooling: One of `POOLINGS`. "patch_mean", the mean of the patch tokens of a vision transformer; "class_token",
            its class token; "pooler", the model's own `pooler_output`, which convolutional networks have as well.

    Raises:
        ValueError: as `load_vision_model`, for a size that is no multiple of the patch, or if there is no such output.
    """

    def __init__(
        self,
        name_or_path: str,
        image_normalization: str = "minus_one_to_one",
        size: int | None = None,
        pooling: str = "patch_mean",
    ):
        super().__init__()
        check_choice("feature_pooling", pooling, POOLINGS)
        self.size, self.pooling, self.name = size, pooling, name_or_path
        self.patch_size = (1, 1)
        if pooling == "pooler":
            model, mean, std = load_vision_model(name_or_path, image_normalization, "features")
            self.network = model.requires_grad_(False).eval()
            self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
            self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        else:
            self.network = FoundationModel.from_pretrained(name_or_path, image_normalization, "features")
            self.patch_size, model = self.network.patch_size, self.network.model
        if size is not None:
            self._check("`feature_size` is", size, size)
        self.description = {
            "features": name_or_path,
            "pooling": POOLINGS[pooling],
            "image_normalization": image_normalization,
            "size": size,
            "sha256": weights_sha256(model),
        }

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError if images of this size cannot be taken as they are, and aren't to be resized."""
        if self.size is None:
            self._check("`feature_size` is None and the images are", height, width)

    def _check(self, what: str, height: int, width: int) -> None:
        patch = self.patch_size
        if height < patch[0] or width < patch[1] or height % patch[0] or width % patch[1]:
            raise ValueError(
                f"{what} {height}x{width}; required: multiples of the patch of `features`, {patch[0]}x{patch[1]}."
            )
        try:
            features = self(torch.zeros(1, 3, height, width, dtype=torch.uint8))["features"]
            check_finite(features=features)
        except Exception as error:  # of the model, for images it cannot take or an output it hasn't
            raise ValueError(
                f"`features` is {self.name!r}; required: a model that gives its {self.pooling} for images of "
                f"{height}x{width} pixels ({one_line(error)})."
            ) from error

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images, uint8 [B, 3, height, width] -> {"features": float32 [B, D]}."""
        pixels = from_8_bits(images)
        if self.pooling == "patch_mean":
            grid_size = None if self.size is None else tuple(self.size // side for side in self.patch_size)
            return {"features": self.network(pixels, grid_size).mean((2, 3))}
        if self.size is not None and images.shape[-2:] != (self.size, self.size):
            pixels = F.interpolate(pixels, (self.size, self.size), mode="bicubic", antialias=True).clamp(-1, 1)
        if self.pooling == "class_token":
            return {"features": self.network.class_tokens(pixels)}
        output = self.network(pixel_values=(pixels / 2 + 0.5 - self.mean) / self.std)
        return {"features": output.pooler_output.flatten(1)}
