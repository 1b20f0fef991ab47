# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""LPIPS, the perceptual distance on VGG16 (arXiv 1801.03924), in plain torch.

Its weights are one safetensors file, which `conversion/convert_lpips_to_safetensors.py` makes from the published ones.

Letters in the shape comments: B images, W channels of a stage.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn

from ..files import check_sha256, read_checkpoint, resolve_file

# VGG16 (arXiv 1409.1556, table 1, column D) up to its last convolution: widths of the convolutions of each stage.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# The statistics of ImageNet that VGG16 was trained with, (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225), in [-1, 1].
PIXELS_MEAN = (-0.030, -0.088, -0.188)
PIXELS_STD = (0.458, 0.448, 0.450)
# The sha256 of the published weights, or its first digits: torchvision's vgg16-397923af.pth, whose name has them, and
# weights/v0.1/vgg.pth of lpips 0.1.4.
PUBLISHED_SHA256 = {
    "vgg16": "397923af",
    "linear": "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
}
ORIGIN = "lpips_origin"  # the key in the file's metadata; a JSON object with the sha256 of both published files
EPS = 1e-10  # added to the length of a feature vector
SMALLEST = 2 ** (len(STAGES) - 1)  # side in pixels of which four poolings leave one


class LPIPS(nn.Module):
    """The distance d(x, y) = sum over stages of mean over positions of sum over W of w (f(x) - f(y))^2 (equation 1).

    f are VGG16's features at the end of each stage, divided by their length along W; w >= 0 was fitted to human
    judgements (version 0.1 of the published weights). All weights are frozen. A new object holds random weights, which
    are of use for tests only: see `from_file`.
    """

    def __init__(self):
        super().__init__()
        for name, values in (("mean", PIXELS_MEAN), ("std", PIXELS_STD)):
            # on the CPU also where `from_file` makes the weights on the meta device
            self.register_buffer(name, torch.tensor(values, device="cpu").view(1, 3, 1, 1), persistent=False)
        self.stages, self.linear = nn.ModuleList(), nn.ParameterList()
        channels = 3
        for widths in STAGES:
            convolutions = nn.ModuleList()
            for width in widths:
                convolutions.append(nn.Conv2d(channels, width, 3, padding=1))
                channels = width
            self.stages.append(convolutions)
            self.linear.append(torch.rand(channels))  # w, [W]
        self.requires_grad_(False)

    @classmethod
    def from_file(cls, file: str | Path, sha256: str | None = None) -> "LPIPS":
        """Load the weights.

        Args:
            file: A path, or `user/repo:file.safetensors` on the Hub; nothing else is ever fetched.
            sha256: The SHA-256 sum of the file, or at least its first 8 hexadecimal digits; None requires a file that
                was converted from the published weights, by the note that the conversion left in it.

        Raises:
            ValueError: in one line, if the file is missing, no safetensors file, has another hash or was converted from
                other weights, or lacks a tensor, has one too many, or one of another shape or with values out of range.
        """
        path = resolve_file(file)
        if path.suffix != ".safetensors":
            raise ValueError(f"{file}: required: a .safetensors file, see conversion/convert_lpips_to_safetensors.py.")
        weights = read_checkpoint(path)
        with torch.device("meta"):
            model = cls()
        _check_weights(weights, model.state_dict(), file)
        if sha256 is None:
            _check_origin(path)
        else:
            check_sha256(path, sha256, "lpips_sha256")
        model.load_state_dict(weights, assign=True)
        return model.requires_grad_(False).eval()

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Distances of pairs of images, 0 for equal ones.

        Nothing is kept for the backward pass of an image that requires no gradient, such as the target of a loss.

        Args:
            x, y: Images, [B, 3, height, width] in [-1, 1], at least 16 x 16 pixels.

        Returns:
            [B, 1, 1, 1].

        Raises:
            ValueError: if the shapes differ or are too small.
        """
        if x.ndim != 4 or x.shape != y.shape or x.shape[1] != 3 or min(x.shape[2:]) < SMALLEST:
            raise ValueError(
                f"`x` has shape {list(x.shape)}, `y` {list(y.shape)}; required: the same, [batch, 3, height, width], "
                f"with at least {SMALLEST} pixels each way."
            )
        distance = 0.0
        for of_x, of_y, weight in zip(self._features(x), self._features(y), self.linear, strict=True):
            squares = (of_x - of_y).square() * weight.view(1, -1, 1, 1)
            distance = distance + squares.sum(1, keepdim=True).mean((2, 3), keepdim=True)  # [B, 1, 1, 1]
        return distance

    def _features(self, pixels: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the features of each stage, of length 1 along W: float32 [B, W, height / 2^i, width / 2^i]."""
        hidden_states = (pixels - self.mean) / self.std
        for i, convolutions in enumerate(self.stages):
            if i > 0:
                hidden_states = F.max_pool2d(hidden_states, 2)
            for convolution in convolutions:
                hidden_states = F.relu(convolution(hidden_states))
            yield _unit_length(hidden_states.float())


def _unit_length(features: torch.Tensor) -> torch.Tensor:
    # not the root of a sum of squares, whose gradient is NaN where all features are 0; that of vector_norm is 0
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + EPS)


def _check_origin(path: Path) -> None:
    """Raise ValueError unless the file's metadata names the published weights as its origin."""
    required = "required: a file by conversion/convert_lpips_to_safetensors.py, or the sha256 of this one"
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    try:
        origin = dict(json.loads(metadata[ORIGIN]))
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: does not say what it was converted from; {required}.") from error
    for source, published in PUBLISHED_SHA256.items():
        if not str(origin.get(source)).startswith(published):
            raise ValueError(f"{path}: was converted from {source} weights of sha256 {origin.get(source)}; {required}.")


def _check_weights(weights: dict[str, torch.Tensor], required: dict[str, torch.Tensor], file: str | Path) -> None:
    for key, value in required.items():
        if key not in weights:
            raise ValueError(f"{file}: key `{key}` is missing; required: exactly the tensors of LPIPS on VGG16.")
        if weights[key].shape != value.shape or weights[key].dtype != torch.float32:
            raise ValueError(
                f"{file}: key `{key}` is {weights[key].dtype} of shape {list(weights[key].shape)}; required: "
                f"{torch.float32} of shape {list(value.shape)}."
            )
        if not torch.isfinite(weights[key]).all() or (key.startswith("linear.") and (weights[key] < 0).any()):
            raise ValueError(f"{file}: key `{key}` has values out of range; required: finite, `linear.*` from 0 on.")
    for key in weights:
        if key not in required:
            raise ValueError(f"{file}: key `{key}` is unknown; required: exactly the tensors of LPIPS on VGG16.")
