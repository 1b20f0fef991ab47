# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Images through VA-VAE and back (arXiv 2501.01423, section 3): what the latents of a LightningDiT model can hold.

Self-contained (torch and diffusers only): loadable by
`DiffusionPipeline.from_pretrained(..., custom_pipeline="pipelines/pipeline_vavae_reconstruction.py")`.
"""

import os
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderRAE, DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput

# The library of our classes in model_index.json, and the name of the file with their code beside the weights: diffusers
# takes the installed package if it is imported, else, with `trust_remote_code=True`, the file.
# Copied from pipeline_lightningdit.PACKAGE
PACKAGE = "diffusers_lightningdit"


@dataclass
class VAVAEReconstructionOutput(BaseOutput):
    """`images`: list of PIL images, array or tensor; `psnr`: of each in dB, float32 [B]."""

    images: list | np.ndarray | torch.Tensor
    psnr: torch.Tensor


def psnr(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB, 10 log10(peak^2 / mean squared error) with the peak-to-peak value 2 as peak.

    Args:
        images, targets: [B, 3, height, width], within [-1, 1]; `images` are clamped to it.

    Returns:
        [B], infinite where both are equal.
    """
    return 10 * torch.log10(4 / (images.clamp(-1, 1) - targets).square().flatten(1).mean(1))


# ---------------------------------------------------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------------------------------------------------


# Copied from pipeline_lightningdit.vae_geometry
def vae_geometry(vae) -> tuple[int, int]:
    """(latent channels, downsampling factor) of a diffusers image autoencoder; ValueError if it shows neither."""
    if isinstance(vae, AutoencoderRAE):
        return vae.config.encoder_hidden_size, vae.config.patch_size
    latent_channels = vae.config.get("latent_channels")
    if "block_out_channels" in vae.config:
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
    else:
        factor = getattr(vae, "spatial_compression_ratio", None)
    if latent_channels is None or factor is None:
        raise ValueError(
            f"`vae` is {type(vae).__name__}; required: an image autoencoder with `latent_channels` and "
            "`block_out_channels` in its config."
        )
    return latent_channels, factor


# Copied from pipeline_lightningdit.require
def require(condition: bool, name: str, value, requirement: str) -> None:
    if not condition:
        raise ValueError(f"`{name}` is {value!r}; required: {requirement}.")


# Copied from pipeline_lightningdit.is_integer
def is_integer(value) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


# Copied from pipeline_lightningdit_img2img.list_images
def list_images(image, name: str = "image", is_mask: bool = False) -> list:
    """The images in what users call one.

    Args:
        image: PIL image, array [height, width, 3] or tensor [3, height, width] within [0, 1], or a batch or list of
            them; a mask has no channels.
        name: of the argument, for the error.

    Raises:
        ValueError: for anything else.
    """
    ndim = 2 if is_mask else 3
    is_several = isinstance(image, (list, tuple)) or getattr(image, "ndim", 0) == ndim + 1
    images = list(image) if is_several else [image]

    def problem(one) -> str | None:
        if isinstance(one, PIL.Image.Image):
            return None
        if not isinstance(one, (np.ndarray, torch.Tensor)):
            return f"a {type(one).__name__}"
        channel_axis = 2 if isinstance(one, np.ndarray) else 0
        if one.ndim != ndim or not (is_mask or one.shape[channel_axis] == 3):
            return f"the shape {tuple(one.shape)}"
        if not (one.min() >= 0 and one.max() <= 1):
            return f"values from {float(one.min()):g} to {float(one.max()):g}"
        return None

    kinds = (
        "arrays or tensors [height, width]" if is_mask else "arrays [height, width, 3] or tensors [3, height, width]"
    )
    for found in [problem(one) for one in images] or ["nothing"]:
        if found is not None:
            raise ValueError(
                f"`{name}` holds {found}; required: PIL images, or {kinds} with values within [0, 1], or several."
            )
    return images


# Copied from pipeline_lightningdit_img2img.as_float
def as_float(image):
    """Arrays and tensors in float32: diffusers' resizing takes no half precision, integers or booleans."""
    if isinstance(image, np.ndarray):
        return image.astype("float32")
    return image.float() if isinstance(image, torch.Tensor) else image


# Copied from pipeline_lightningdit_img2img.preprocess
def preprocess(images: list, height: int, width: int, factor: int) -> torch.Tensor:
    """Images as users give them, resized -> [number, 3, height, width] in [-1, 1]; sides are multiples of `factor`."""
    processor = VaeImageProcessor(vae_scale_factor=factor, do_convert_rgb=True)
    return torch.cat([processor.preprocess(as_float(image), height, width) for image in images])


def size_of(image) -> tuple[int, int]:
    """(height, width) of one image of `list_images`."""
    if isinstance(image, PIL.Image.Image):
        return image.height, image.width
    return tuple(image.shape[:2] if isinstance(image, np.ndarray) else image.shape[1:])


# ---------------------------------------------------------------------------------------------------------------------
# Pipeline
# ---------------------------------------------------------------------------------------------------------------------


class VAVAEReconstructionPipeline(DiffusionPipeline):
    """Encodes and decodes images. Only the autoencoder of a folder is loaded.

    Args:
        vae: `AutoencoderVAVAE`, or another diffusers image autoencoder.

    Example:
        >>> import torch
        >>> import diffusers_lightningdit
        >>> from diffusers import DiffusionPipeline
        >>> pipe = DiffusionPipeline.from_pretrained("model_cards/lightningdit-digits")
        >>> seven = pipe("seven", generator=torch.Generator().manual_seed(0)).images[0]
        >>> reconstruct = DiffusionPipeline.from_pretrained(
        ...     "model_cards/lightningdit-digits",
        ...     custom_pipeline="pipelines/pipeline_vavae_reconstruction.py",
        ...     trust_remote_code=True,
        ... )
        >>> output = reconstruct(seven)
        >>> image, psnr = output.images[0], float(output.psnr[0])
    """

    model_cpu_offload_seq = "vae"
    # Read with the class, not when it is saved: as remote code, the next repository's file may lie in this one's place.
    # Copied from pipeline_lightningdit.LightningDiTPipeline._source_code
    _source_code = __spec__.loader.get_source(__name__)

    def __init__(self, vae):
        super().__init__()
        self.register_modules(vae=vae)
        self.image_processor = VaeImageProcessor()

    # Copied from pipeline_lightningdit.LightningDiTPipeline.save_config
    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """Write model_index.json and the code of the classes that are not diffusers' own, each beside its weights.

        diffusers' `save_pretrained` and `push_to_hub` end with this call: each folder they write loads both with the
        package and, as remote code, without it. Also if this pipeline was itself loaded as remote code, for which
        diffusers would drop the code and write names that cannot be loaded.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        for name, component in self.components.items():
            cls = type(getattr(component, "_orig_mod", component))  # a compiled model is a wrapper
            code = vars(cls).get("_source_code")  # its own: a subclass is defined in another file
            if code is not None:
                self.register_to_config(**{name: (PACKAGE, cls.__name__)})
                if (folder / name).is_dir():
                    (folder / name / f"{PACKAGE}.py").write_text(code, encoding="utf-8", newline="\n")
        code = vars(type(self)).get("_source_code")
        if code is not None:
            (folder / "pipeline.py").write_text(code, encoding="utf-8", newline="\n")
        names = {key: value for key, value in self.config.items() if key == "id2label"}
        if names:  # of as many classes as the transformer beside it has, those of LoRAs too
            self.register_to_config(id2label=self.id2label or None)
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)
        self.register_to_config(**names)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs) -> DiffusionPipeline:
        """As in diffusers, which would not take over an autoencoder that is not the class of an annotation."""
        return super().from_pipe(pipeline, **{"vae": pipeline.components.get("vae"), **kwargs})

    def check_inputs(self, images, height, width, generator, output_type) -> None:
        """Raises ValueError naming argument, value and requirement, before anything is computed."""
        _, factor = vae_geometry(self.vae)
        sizes = sorted({size_of(image) for image in images})
        if len(sizes) > 1 and (height is None or width is None):
            raise ValueError(f"`image` has the sizes {sizes}; required: one size, or `height` and `width`.")
        for name, value, own in (("height", height, sizes[0][0]), ("width", width, sizes[0][1])):
            value = own if value is None else value
            is_multiple = is_integer(value) and value >= factor and value % factor == 0
            require(is_multiple, name, value, f"a positive multiple of {factor} pixels")
        if isinstance(generator, list) and len(generator) != len(images):
            raise ValueError(f"`generator` is a list of {len(generator)}; required: {len(images)}, one for each image.")
        require(output_type in ("pil", "np", "pt"), "output_type", output_type, "'pil', 'np' or 'pt'")

    @torch.no_grad()
    def __call__(
        self,
        image,
        sample_posterior: bool = False,
        height: int | None = None,
        width: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> VAVAEReconstructionOutput | tuple:
        """Reconstruct images.

        Args:
            image: PIL images, arrays [height, width, 3] or tensors [3, height, width] within [0, 1], or a batch or list
                of them.
            sample_posterior: decode a draw from the posterior, as in training, and not its mean.
            height, width: resize to these, multiples of the VAE's factor; default: the images' own size.
            generator: one, or a list with one for each image; used with `sample_posterior`.
            output_type: "pil" (uint8 as the original: truncation of 127.5 x + 128), "np" [B, height, width, 3] or "pt"
                [B, 3, height, width] in [0, 1].
            return_dict: return a `VAVAEReconstructionOutput` instead of a tuple.

        Returns:
            `images`, and `psnr` [B] against the images as they were encoded.

        Raises:
            ValueError: for any argument that doesn't fit, before anything is computed.
        """
        images = list_images(image)
        self.check_inputs(images, height, width, generator, output_type)

        own_height, own_width = size_of(images[0])
        _, factor = vae_geometry(self.vae)
        targets = preprocess(images, height or own_height, width or own_width, factor).to(self._execution_device)
        encoded = self.vae.encode(targets.to(self.vae.dtype))
        if isinstance(self.vae, AutoencoderRAE):  # has no posterior
            latents = encoded.latent
        elif sample_posterior:
            latents = encoded.latent_dist.sample(generator)
        else:
            latents = encoded.latent_dist.mode()
        images = self.vae.decode(latents, return_dict=False)[0].float()  # [B, 3, height, width]
        quality = psnr(images, targets)
        images = self._postprocess(images, output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (images, quality)
        return VAVAEReconstructionOutput(images=images, psnr=quality)

    # Copied from pipeline_lightningdit.LightningDiTPipeline._postprocess
    def _postprocess(self, images: torch.Tensor, output_type: str):
        if output_type == "pil":
            # uint8 by truncation, as the original; then values k / 255, which diffusers' own conversion keeps exactly
            pixels = (127.5 * images + 128).clamp(0, 255).to(torch.uint8)
            return self.image_processor.numpy_to_pil(pixels.permute(0, 2, 3, 1).cpu().numpy() / 255)
        return self.image_processor.postprocess(images, output_type=output_type)
