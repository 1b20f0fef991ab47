# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The Inception network of FID, sFID and the Inception Score, by torch-fidelity, with weights from a file.

torch-fidelity's network is a translation of the TensorFlow graph of 2015 that these measures are defined with, its
resizing of the images included. Its weights are one file, which is never fetched here:
https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth
"""

import io
from pathlib import Path

import torch
from torch import nn

from ..files import check_sha256, one_line, read_checkpoint

PUBLISHED_SHA256 = "6726825d"  # how the hash of the published file begins; it is in the file's name
SPATIAL_CHANNELS = 7  # of the 192; 7 x 17 x 17 = 2023 values


class InceptionFeatures(nn.Module):
    """Features and class probabilities of images, which FID, sFID and the Inception Score are made of.

    - "features" [B, 2048]: the last average pooling (FID, precision and recall);
    - "spatial" [B, 2023]: the first 7 channels of the 1x1 branch in the 17x17 block that TensorFlow calls mixed_6, row
      by row with the channels last, as in the statistics of ADM's evaluation (sFID: arXiv 2103.03841, section 5.1);
    - "probabilities" [B, 1008]: of the classes, from logits without the bias, as the Inception Score is computed.

    Args:
        path: The file of the weights, as torch-fidelity publishes it.
        sha256: The SHA-256 sum of the file, or at least its first 8 digits.

    Raises:
        ValueError: if the file is missing, is another one, or holds anything but these weights.
        ImportError: if torch-fidelity, or torchvision which it needs, cannot be imported.
    """

    def __init__(self, path: str | Path, sha256: str = PUBLISHED_SHA256):
        super().__init__()
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"`inception` is {str(path)!r}; required: a file of weights.")
        self.sha256 = check_sha256(path, sha256, "inception_sha256")
        weights = read_checkpoint(path)
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except (ImportError, RuntimeError) as error:  # the latter from a torchvision of another torch
            raise ImportError(
                '`inception` needs torch-fidelity: pip install "diffusers-lightningdit[inception]" '
                f"({one_line(error)})."
            ) from error
        # It would unpickle the file itself, whatever it holds: it gets what was read above, written anew.
        buffer = io.BytesIO()
        torch.save(weights, buffer)
        buffer.seek(0)
        try:
            self.network = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], buffer)
        except (RuntimeError, TypeError, AttributeError) as error:  # of load_state_dict
            raise ValueError(f"`inception` is {str(path)!r}; required: the weights of torch-fidelity.") from error
        self.network.Mixed_6d.branch1x1.register_forward_hook(self._keep)
        self.num_features = {"features": 2048, "spatial": 2023}
        self.description = {"inception": path.name, "sha256": self.sha256}

    def _keep(self, _module: nn.Module, _inputs: tuple, output: torch.Tensor) -> None:
        self._spatial = output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)  # [B, 2023]

    def check_size(self, height: int, width: int) -> None:
        """Every size is resized to 299x299."""

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images, uint8 [B, 3, height, width] -> float32 tensors by name."""
        features, logits = self.network(images)
        return {"features": features, "spatial": self._spatial.float(), "probabilities": logits.softmax(1)}
