# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The base of the commands that measure an autoencoder on images: settings, any autoencoder of diffusers, the data.

Letters in the shape comments: B images, C latent channels, (h, w) grid.
"""

import dataclasses
import json

import torch
from diffusers import AutoModel, ModelMixin

from ..data.images import PREPROCESSINGS, ImageDataset
from ..data.latent_encoding import load_frozen_vae, resolution_for
from ..files import first_line, one_line
from ..models import AutoencoderVAVAE
from ..networks.foundation_model import IMAGE_NORMALIZATIONS
from ..pixels import RESOLUTION_HELP, height_and_width, square_or_pair
from ..settings import check_settings, required, setting

METRICS_FILE = "metrics.json"


@dataclasses.dataclass(kw_only=True)
class AutoencoderConfig:
    """Settings of all commands that measure an autoencoder.

    Raises:
        ValueError: For a value that cannot be used.
    """

    vae: str = required(
        "Folder or Hub id of an AutoencoderVAVAE, or of any other autoencoder of diffusers for images.", group="Input"
    )

    data: str = required("Folder or Hub id of the images, for `datasets.load_dataset`.", group="Data")
    split: str = setting("train", "The split of the data set.")
    image_column: str = setting("image", "The column of the images.")
    allow_left_out: bool = setting(False, "Accept that files in a local folder of `data` are left out; they are named.")
    num_images: int | None = setting(None, "The number of images that are measured; null: all.", minimum=1)
    resolution: int | tuple[int, int] | None = setting(None, RESOLUTION_HELP, minimum=1)
    preprocessing: str = setting(
        "original",
        "The way to this size: the centre crop of ADM, as in the original, or plain, one bicubic step and a crop.",
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


def load_autoencoder(
    name: str, resolution: int | tuple[int, int] | None = None
) -> tuple[ModelMixin, int | tuple[int, int]]:
    """Load an autoencoder for images, frozen, in float32 on the CPU.

    Args:
        name: The folder or Hub id. No code of a repository is run.
        resolution: The size of the images in pixels, (height, width) or one number for both; by default the
            autoencoder's `sample_size`. An image of this size is encoded and decoded to check that the autoencoder can
            be used.

    Returns:
        The autoencoder, and the size of the images.

    Raises:
        ValueError: If there is no such autoencoder, its reconstructions have another size than the images, or neither
            `resolution` nor its config tells this size.
    """
    try:
        class_name = AutoencoderVAVAE.load_config(name).get("_class_name")
    except Exception as error:  # of a damaged config, anything
        raise ValueError(f"`vae` is {name!r}; required: a folder or Hub id with a VAE's config.json.") from error
    is_own = class_name == AutoencoderVAVAE.__name__
    try:
        vae = load_frozen_vae(name, with_statistics=False) if is_own else AutoModel.from_pretrained(name)
    except Exception as error:  # diffusers passes on whatever the components raise
        required = f"required: a folder or Hub id with an undamaged {class_name}"
        raise ValueError(f"`vae` is {name!r}; {required} ({first_line(error)}).") from error
    vae.requires_grad_(False).eval()
    resolution = vae.config.get("sample_size") if resolution is None else resolution
    if not isinstance(resolution, int | tuple | list):
        raise ValueError(f"`resolution` is not given; required: a size in pixels, which no {class_name} tells.")
    resolution = square_or_pair(*height_and_width(resolution))
    if is_own:
        resolution_for(vae, resolution)  # which checks it
    size = (1, image_channels(vae), *height_and_width(resolution))
    try:
        with torch.no_grad():
            reconstructed_size = decode(vae, mean_latents(vae, torch.zeros(size))).shape
    except Exception as error:  # the model is no autoencoder, or one of other images
        reason = one_line(error)[:200]
        raise ValueError(
            f"`vae` is {name!r}, a {class_name}; required: an autoencoder of diffusers for images ({reason})."
        ) from error
    if reconstructed_size != size:
        raise ValueError(
            f"`resolution` is {json.dumps(resolution)}; required: one that {class_name} reconstructs, not as "
            f"{list(reconstructed_size[2:])}."
        )
    return vae, resolution


def image_channels(vae: ModelMixin) -> int:
    """The channels of an autoencoder's images: 3 for RGB, as of most, or 1 for grey."""
    return 1 if vae.config.get("in_channels") == 1 else 3


def mean_latents(vae: ModelMixin, pixels: torch.Tensor) -> torch.Tensor:
    """Encode pixels to the mean of the posterior, or to the latents of an encoder without one.

    Args:
        vae: The autoencoder.
        pixels: Pixels [B, 3 or 1, H, W] in [-1, 1].

    Returns:
        Latents [B, C, h, w].

    Raises:
        ValueError: If a latent is NaN or infinite.
    """
    (encoded,) = vae.encode(pixels, return_dict=False)[:1]
    return _finite(encoded if isinstance(encoded, torch.Tensor) else encoded.mode(), "latents")


def decode(vae: ModelMixin, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents [B, C, h, w] to pixels [B, 3 or 1, H, W], in [-1, 1] except for overshooting.

    Raises:
        ValueError: If a pixel is NaN or infinite, which 8 bits would hide.
    """
    return _finite(vae.decode(latents, return_dict=False)[0], "pixels")


def _finite(values: torch.Tensor, kind: str) -> torch.Tensor:
    num_bad = sum(not each.isfinite().all() for each in values)
    if num_bad:
        raise ValueError(
            f"`vae` gives {kind} with NaN or infinity for {num_bad} of {len(values)} images; required: a VAE of finite "
            "weights, in a type that keeps numbers finite."
        )
    return values


def open_dataset(config: AutoencoderConfig, vae: ModelMixin, label_column: str | None = None) -> ImageDataset:
    """Open the images to measure an autoencoder on.

    Raises:
        ValueError: As `ImageDataset`, or if there are fewer than `num_images` images.
    """
    dataset = ImageDataset(
        config.data,
        config.resolution,
        config.split,
        config.image_column,
        label_column,
        config.preprocessing,
        allow_left_out=config.allow_left_out,
        channels=image_channels(vae),
    )
    check_num_images(config.num_images, len(dataset))
    return dataset


def check_num_images(num_images: int | None, available: int) -> None:
    """Raise ValueError if there are fewer than `num_images` images."""
    if num_images is not None and num_images > available:
        raise ValueError(f"`num_images` is {num_images}; required: at most {available}, which `data` has.")
