# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Raw latents of a data set: the moments of their posteriors, and the statistics that normalise them.

Letters in the shape comments: B batch, C latent channels.
"""

import math
from fractions import Fraction

import torch
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm

from ..models import AutoencoderVAVAE

# ---------------------------------------------------------------------------------------------------------------------
# The autoencoder
# ---------------------------------------------------------------------------------------------------------------------


def load_frozen_vae(name: str, with_statistics: bool = True) -> AutoencoderVAVAE:
    """An `AutoencoderVAVAE` from a folder or Hub id, for encoding only.

    Args:
        name: folder or Hub id.
        with_statistics: require the statistics of its latents, which normalising needs and measuring them doesn't.

    Raises:
        ValueError: if there is none, if it is another model, or if its config lacks required statistics.
    """
    try:
        model_class = AutoencoderVAVAE.load_config(name).get("_class_name")
    except (OSError, ValueError) as error:
        raise ValueError(f"`vae` is {name!r}; required: a folder or Hub id with a VAE's config.json.") from error
    if model_class != AutoencoderVAVAE.__name__:
        raise ValueError(f"`vae` is {name!r}, a {model_class}; required: an {AutoencoderVAVAE.__name__}.")
    loaded = AutoencoderVAVAE.from_pretrained(name)
    if with_statistics and loaded.config.latents_mean is None:
        raise ValueError(f"`vae` is {name!r}, without `latents_mean` in its config; required: a VAE with statistics.")
    # `_name_or_path`, the folder here, would be saved with every pipeline that is trained on this VAE
    vae = AutoencoderVAVAE.from_config({k: v for k, v in loaded.config.items() if k != "_name_or_path"})
    vae.load_state_dict(loaded.state_dict())
    return vae.requires_grad_(False).eval()


def latents_size(resolution: int, vae: AutoencoderVAVAE) -> int:
    """Side of the latents of square images; raises ValueError if `resolution` is no multiple of the VAE's factor."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    if resolution < factor or resolution % factor:
        raise ValueError(f"`resolution` is {resolution}; required: a multiple of the VAE's factor, {factor}.")
    return resolution // factor


# ---------------------------------------------------------------------------------------------------------------------
# Encoding
# ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def encode_moments(vae: AutoencoderVAVAE, pixels: torch.Tensor) -> torch.Tensor:
    """Mean and log-variance of the raw latents' posterior: [B, 3, height, width] -> [B, 2 C, height/f, width/f]."""
    return vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.parameters


class MomentsDataset(TensorDataset):
    """A labelled data set of images, encoded once and held in memory.

    Items are `{"moments": float32 [2 C, height, width], "class_labels": int}`.
    """

    def __init__(self, vae: AutoencoderVAVAE, images: DataLoader, show_progress: bool = True):
        moments, class_labels = [], []
        for batch in tqdm(images, desc="encoding", disable=not show_progress):
            moments.append(encode_moments(vae, batch["pixel_values"]).float().cpu())
            class_labels.append(batch["class_labels"])
        super().__init__(torch.cat(moments), torch.cat(class_labels))

    def __getitem__(self, index: int) -> dict:
        moments, class_label = super().__getitem__(index)
        return {"moments": moments, "class_labels": class_label}


# ---------------------------------------------------------------------------------------------------------------------
# Statistics
# ---------------------------------------------------------------------------------------------------------------------


class LatentsStatistics:
    """Mean and unbiased standard deviation per channel, over images and positions, of latents in any order.

    The sums of the values and of their squares are exact integers in units of 2^-48, so that the result has the same
    bits whatever the order, the batches or the processes that the latents came in, and nothing cancels. All that is
    rounded, by at most 2^-49, is each square, and each value below 2^-24.

    Args:
        latent_channels: C.
    """

    LIMIT = 2.0**16  # of a value; its square then is below 2^80 units, two limbs of 32 and 48 bits
    UNIT_BITS = 48
    LIMB_BITS = 32
    CHUNK = 2**14  # values whose upper limbs, below 2^48 each, sum up within an int64

    def __init__(self, latent_channels: int):
        self.count = 0  # values of a channel
        self._sums = [0] * latent_channels
        self._square_sums = [0] * latent_channels

    def update(self, latents: torch.Tensor) -> None:
        """Take in raw latents [B, C, height, width], of any floating-point type.

        Raises:
            ValueError: if a value is not finite or not below `LIMIT` in magnitude; nothing is taken in then.
        """
        values = latents.detach().double().transpose(0, 1).flatten(1)  # [C, B height width]
        if not (values.abs() < self.LIMIT).all():
            raise ValueError(
                f"latents hold {_worst(values)}; required: finite values below {self.LIMIT:.0f} in magnitude."
            )
        self._sums = [a + b for a, b in zip(self._sums, self._exact_sums(values), strict=True)]
        squares = self._exact_sums(values.square())
        self._square_sums = [a + b for a, b in zip(self._square_sums, squares, strict=True)]
        self.count += values.shape[1]

    def _exact_sums(self, values: torch.Tensor) -> list[int]:
        sums = [0] * values.shape[0]
        for chunk in values.split(self.CHUNK, dim=1):
            units = (chunk * 2.0**self.UNIT_BITS).round()
            upper = (units * 2.0**-self.LIMB_BITS).floor()
            lower = units - upper * 2.0**self.LIMB_BITS
            limbs = zip(upper.long().sum(1).tolist(), lower.long().sum(1).tolist(), strict=True)
            for channel, (high, low) in enumerate(limbs):
                sums[channel] += (high << self.LIMB_BITS) + low
        return sums

    @property
    def mean(self) -> list[float]:
        return [float(Fraction(total, self.count << self.UNIT_BITS)) for total in self._sums]

    @property
    def std(self) -> list[float]:
        """sqrt((sum x^2 - (sum x)^2 / n) / (n - 1)), the fraction exact."""
        n, unit = self.count, 1 << self.UNIT_BITS
        return [
            math.sqrt(Fraction(n * squares * unit - total * total, n * (n - 1) * unit * unit))
            for total, squares in zip(self._sums, self._square_sums, strict=True)
        ]

    def state_dict(self) -> dict:
        """Counts and exact sums, as JSON can hold them."""
        return {"count": self.count, "sums": list(self._sums), "square_sums": list(self._square_sums)}

    def merge(self, state: dict) -> None:
        """Take in what another one has seen, by its `state_dict()`."""
        self.count += state["count"]
        self._sums = [a + b for a, b in zip(self._sums, state["sums"], strict=True)]
        self._square_sums = [a + b for a, b in zip(self._square_sums, state["square_sums"], strict=True)]


def _worst(values: torch.Tensor) -> str:
    """What is wrong with values, in words."""
    return "NaN" if values.isnan().any() else f"the value {values.flatten()[values.abs().argmax()].item():g}"
