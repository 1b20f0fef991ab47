# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""LPIPS, the perceptual distance on VGG16 (arXiv 1801.03924), in plain torch.

Its weights are one safetensors file, which `conversion/convert_lpips_to_safetensors.py` makes from the published ones.

Letters in the shape comments: B images, W channels of a stage.
"""

import hashlib
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ..files import resolve_file

# VGG16 (arXiv 1409.1556, table 1, column D) up to its last convolution: widths of the convolutions of each stage.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# The statistics of ImageNet that VGG16 was trained with, (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225), in [-1, 1].
PIXELS_MEAN = (-0.030, -0.088, -0.188)
PIXELS_STD = (0.458, 0.448, 0.450)
# How the sha256 of the published weights begin: torchvision's vgg16-397923af.pth, named by it, and lpips 0.1.4's
# weights/v0.1/vgg.pth.
PUBLISHED_SHA256 = {
    "vgg16": "397923af",
    "linear": "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
}
ORIGIN = "lpips_origin"  # in the file's metadata: a JSON object, sha256 of both sources and of the tensors
EPS = 1e-10  # added to the length of a feature vector
SMALLEST = 2 ** (len(STAGES) - 1)  # pixels that four poolings leave one of


class LPIPS(nn.Module):
    """d(x, y) = sum over stages of mean over positions of sum over W of w (f(x) - f(y))^2.

    f are VGG16's features at the end of each stage, divided by their length along W; w >= 0 was fitted to human
    judgements (version 0.1 of the published weights). All weights are frozen. A new object holds random weights, of
    no use but for tests: see `from_file`.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor(PIXELS_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(PIXELS_STD).view(1, 3, 1, 1), persistent=False)
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
            file: a path, or `user/repo:file.safetensors` on the Hub; nothing else is ever fetched.
            sha256: of the file, in hexadecimal; None accepts a file that was converted from the published weights
                and holds what it held then, by the hashes that the conversion noted in it.

        Raises:
            ValueError: in one line, if the file is missing, no safetensors file, has another hash or is none of the
                published weights, or lacks a tensor, has one too many, or one of another shape or with values out of
                range.
        """
        path = resolve_file(file)
        if path.suffix != ".safetensors":
            raise ValueError(f"{file}: required: a .safetensors file, see conversion/convert_lpips_to_safetensors.py.")
        if not path.is_file():
            raise ValueError(f"{file}: is a folder; required: a .safetensors file.")
        content = path.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if sha256 is not None and found != sha256.lower():
            raise ValueError(f"{file}: has the sha256 {found}; required: {sha256}.")
        weights = _parse(content, file)
        with torch.device("meta"):
            model = cls()
        _check_weights(weights, model.state_dict(), file)
        if sha256 is None:
            _check_origin(content, weights, file)
        # the buffers, which are not in the file, came without values as well
        model.mean, model.std = torch.tensor(PIXELS_MEAN).view(1, 3, 1, 1), torch.tensor(PIXELS_STD).view(1, 3, 1, 1)
        model.load_state_dict(weights, assign=True)
        return model.requires_grad_(False).eval()

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Distances of pairs of images, 0 for equal ones.

        Args:
            x, y: [B, 3, height, width] in [-1, 1], at least 16 x 16 pixels.

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
        hidden_states = (torch.cat([x, y]) - self.mean) / self.std
        distance = 0.0
        for i, (convolutions, weight) in enumerate(zip(self.stages, self.linear, strict=True)):
            if i > 0:
                hidden_states = F.max_pool2d(hidden_states, 2)
            for convolution in convolutions:
                hidden_states = F.relu(convolution(hidden_states))  # [2 B, W, height / 2^i, width / 2^i]
            of_x, of_y = _unit_length(hidden_states.float()).chunk(2)
            squares = (of_x - of_y).square() * weight.view(1, -1, 1, 1)
            distance = distance + squares.sum(1, keepdim=True).mean((2, 3), keepdim=True)  # [B, 1, 1, 1]
        return distance


def _unit_length(features: torch.Tensor) -> torch.Tensor:
    # vector_norm, and no root of a sum: its gradient is 0 and not NaN where all features are 0
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + EPS)


def _parse(content: bytes, file: str | Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load

    try:
        return load(content)
    except Exception as error:  # a damaged file can raise nearly anything
        raise ValueError(f"{file}: is damaged or no safetensors file ({type(error).__name__}).") from error


def tensors_sha256(weights: dict[str, torch.Tensor]) -> str:
    """Of names and values, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode() + b"\0" + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _check_origin(content: bytes, weights: dict[str, torch.Tensor], file: str | Path) -> None:
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])  # `_parse` has read it
    required = "required: a file by conversion/convert_lpips_to_safetensors.py, or the sha256 of this one"
    try:
        origin = json.loads(header["__metadata__"][ORIGIN])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{file}: does not say what it was converted from; {required}.") from error
    for source, published in PUBLISHED_SHA256.items():
        found = str(origin.get(source))
        if not found.startswith(published):
            raise ValueError(f"{file}: was converted from {source} weights of sha256 {found}; {required}.")
    if origin.get("tensors") != tensors_sha256(weights):
        raise ValueError(f"{file}: holds other values than were converted; {required}.")


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
