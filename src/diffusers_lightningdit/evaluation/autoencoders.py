# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""What the commands share that measure an autoencoder on images: their settings, and any autoencoder of diffusers.

Letters in the shape comments: B images, C latent channels, (h, w) grid.
"""

import dataclasses

import torch
from diffusers import AutoModel, ModelMixin

from ..data.images import PREPROCESSINGS
from ..data.latents import latents_size, load_frozen_vae
from ..files import first_line, one_line
from ..models import AutoencoderVAVAE
from ..settings import check_at_least, check_choice

HELP = {
    "vae": "folder or Hub id of an AutoencoderVAVAE, or of any other autoencoder of diffusers for images",
    "data": "folder or Hub id of images, for `datasets.load_dataset`",
    "output_dir": "new or empty",
    "split": "of the data set",
    "image_column": "of the data set",
    "resolution": "side of the squares that images become",
    "preprocessing": "how they do: original, or plain, one bicubic step",
    "features": "folder or Hub id of a vision transformer",
    "feature_normalization": "minus_one_to_one, or model: by its preprocessor_config.json",
    "micro_batch_size": "images that the networks take at a time; another one changes the last digits",
    "num_threads": "of each process's networks on a CPU; another number changes the last digits",
    "num_workers": "processes that read images, for each process that computes",
}


@dataclasses.dataclass(kw_only=True)
class AutoencoderConfig:
    """Settings that the commands share; `HELP` says what each is.

    Raises:
        ValueError: for a value that cannot be used.
    """

    vae: str
    data: str
    output_dir: str
    split: str = "train"
    image_column: str = "image"
    num_images: int | None = None
    resolution: int = 256
    preprocessing: str = "original"
    features: str | None = None
    feature_normalization: str = "minus_one_to_one"
    micro_batch_size: int = 16
    num_threads: int = 1
    num_workers: int = 0

    def __post_init__(self):
        for name in ("resolution", "micro_batch_size", "num_threads"):
            check_at_least(name, getattr(self, name), 1)
        check_at_least("num_workers", self.num_workers, 0)
        if self.num_images is not None:
            check_at_least("num_images", self.num_images, 1)
        check_choice("preprocessing", self.preprocessing, PREPROCESSINGS)

    def check_num_images(self, available: int) -> None:
        """Raise ValueError if the data has fewer images than are asked for."""
        if self.num_images is not None and self.num_images > available:
            raise ValueError(f"`num_images` is {self.num_images}; required: at most {available}, which `data` has.")


def load_autoencoder(name: str, resolution: int) -> ModelMixin:
    """An autoencoder for images, frozen, in float32 on the CPU, that gives back squares of this resolution.

    Args:
        name: folder or Hub id. No code of a repository is run.
        resolution: of the images; one of zeros is encoded and decoded.

    Raises:
        ValueError: if there is none, or it does not give back such images.
    """
    try:
        class_name = AutoencoderVAVAE.load_config(name).get("_class_name")
    except (OSError, ValueError) as error:
        raise ValueError(f"`vae` is {name!r}; required: a folder or Hub id with a VAE's config.json.") from error
    if class_name == AutoencoderVAVAE.__name__:
        vae = load_frozen_vae(name, with_statistics=False)
        latents_size(resolution, vae)
        return vae
    try:
        vae = AutoModel.from_pretrained(name).requires_grad_(False).eval()
    except Exception as error:  # diffusers lets through whatever its parts raise
        required = f"required: a folder or Hub id with an undamaged {class_name}"
        raise ValueError(f"`vae` is {name!r}; {required} ({first_line(error)}).") from error
    size = (1, 3, resolution, resolution)
    try:
        with torch.no_grad():
            given_back = decode(vae, mean_latents(vae, torch.zeros(size))).shape
    except Exception as error:  # of a model that is none, or for other images
        reason = one_line(error)[:200]
        raise ValueError(
            f"`vae` is {name!r}, a {class_name}; required: an autoencoder of diffusers for images ({reason})."
        ) from error
    if given_back != size:
        raise ValueError(
            f"`resolution` is {resolution}; required: one that {class_name} gives back, not as {list(given_back[2:])}."
        )
    return vae


def mean_latents(vae: ModelMixin, pixels: torch.Tensor) -> torch.Tensor:
    """The mean of the posterior, or what the encoder returns where it has none: [B, 3, H, W] -> [B, C, h, w]."""
    (encoded,) = vae.encode(pixels, return_dict=False)[:1]
    return encoded if isinstance(encoded, torch.Tensor) else encoded.mode()


def decode(vae: ModelMixin, latents: torch.Tensor) -> torch.Tensor:
    """Pixels, in [-1, 1] but for overshooting: [B, C, h, w] -> [B, 3, H, W]."""
    return vae.decode(latents, return_dict=False)[0]
