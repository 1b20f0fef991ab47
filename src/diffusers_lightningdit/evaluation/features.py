# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The networks whose features images are compared by.

Each takes images, uint8 [B, 3, height, width], and returns float32 tensors by name, "features" [B, D] at least. Its
`description` goes into the JSON file beside the numbers.
"""

import torch
from torch import nn

from ..data.images import from_8_bits
from ..data.latent_shards import weights_sha256
from ..foundation_models import FoundationModel


class VisionFeatures(nn.Module):
    """The mean of the patch tokens of a vision transformer of `transformers`.

    With DINOv2 the Fréchet distance is in the spirit of FD-DINOv2 (arXiv 2306.04675), which takes the class token and
    resizes otherwise: figures of the two are not comparable.

    Args:
        name_or_path: folder or Hub id.
        image_normalization: as in `FoundationModel.from_pretrained`.
        size: side in pixels that images are resized to, a multiple of the patch; None leaves them as they are.

    Raises:
        ValueError: as `FoundationModel.from_pretrained`, or for a size that is no multiple of the patch.
    """

    def __init__(self, name_or_path: str, image_normalization: str = "minus_one_to_one", size: int | None = None):
        super().__init__()
        self.network = FoundationModel.from_pretrained(name_or_path, image_normalization)
        self.size = size
        if size is not None:
            self._check("`feature_size` is", size, size)
        self.description = {
            "features": name_or_path,
            "pooling": "mean of the patch tokens",
            "image_normalization": image_normalization,
            "size": size,
            "sha256": weights_sha256(self.network.model),
        }

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError if images of this size can't be cut into patches and aren't to be resized."""
        if self.size is None:
            self._check("`feature_size` is None and the images are", height, width)

    def _check(self, what: str, height: int, width: int) -> None:
        patch = self.network.patch_size
        if height < patch[0] or width < patch[1] or height % patch[0] or width % patch[1]:
            raise ValueError(
                f"{what} {height}x{width}; required: multiples of the patch of `features`, {patch[0]}x{patch[1]}."
            )

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images, uint8 [B, 3, height, width] -> {"features": float32 [B, D]}."""
        grid_size = None if self.size is None else tuple(self.size // side for side in self.network.patch_size)
        return {"features": self.network(from_8_bits(images), grid_size).mean((2, 3))}
