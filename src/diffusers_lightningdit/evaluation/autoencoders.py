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
from ..networks.foundation_model import IMAGE_NORMALIZATIONS
from ..settings import check_settings, required, setting


@dataclasses.dataclass(kw_only=True)
class AutoencoderConfig:
    """Settings that the commands share.

    Raises:
        ValueError: for a value that cannot be used.
    """

    vae: str = required(
        "Folder or Hub id of an AutoencoderVAVAE, or of any other autoencoder of diffusers for images.", group="Input"
    )

    data: str = required("Folder or Hub id of the images, for `datasets.load_dataset`.", group="Data")
    split: str = setting("train", "The split of the data set.")
    image_column: str = setting("image", "The column of the images.")
    num_images: int | None = setting(None, "The number of images that are measured; null: all.", minimum=1)
    resolution: int = setting(256, "The side in pixels of the squares that images are cropped to.", minimum=1)
    preprocessing: str = setting(
        "original",
        "The way to these squares: the centre crop of ADM, as in the original, or plain, one bicubic step and a crop.",
        choices=tuple(PREPROCESSINGS),
    )

    features: str | None = setting(
        None, "Folder or Hub id of a vision transformer; null: what needs one is left out.", group="Measures"
    )
    feature_normalization: str = setting(
        "minus_one_to_one",
        "The input of the vision transformer: pixels in [-1, 1], or `model`, by its preprocessor_config.json.",
        choices=IMAGE_NORMALIZATIONS,
    )

    micro_batch_size: int = setting(
        16,
        "Images that the networks take at a time; another number changes the last digits.",
        group="Computation",
        minimum=1,
    )
    num_threads: int = setting(
        1, "Threads of each process's networks on a CPU; another number changes the last digits.", minimum=1
    )
    num_workers: int = setting(0, "Processes that read images, for each process that computes.", minimum=0)

    output_dir: str = required("Folder of the numbers, new or empty.", group="Output")

    def __post_init__(self):
        check_settings(self)

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
