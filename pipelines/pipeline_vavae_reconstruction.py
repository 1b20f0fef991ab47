# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Images through VA-VAE and back (arXiv 2501.01423, section 3): an upper bound on the quality of generated images.

The pipeline is loaded by its class, or as remote code from this file with `lightningdit_sampling.py` beside it:
`DiffusionPipeline.from_pretrained(..., custom_pipeline="pipelines/pipeline_vavae_reconstruction.py")`.
"""

from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderRAE, DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput

from .lightningdit_sampling import (
    HubMixin,
    check_arguments,
    list_images,
    postprocess,
    preprocess,
    require,
    require_finite,
    upcast,
    vae_geometry,
)


@dataclass
class VAVAEReconstructionOutput(BaseOutput):
    """Reconstructions and their quality.

    Attributes:
        images: A list of PIL images, an array or a tensor.
        psnr: The peak signal-to-noise ratio of each image in dB, float32 [B].
    """

    images: list | np.ndarray | torch.Tensor
    psnr: torch.Tensor


def psnr(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Compute the peak signal-to-noise ratio in dB, 10 log10(peak^2 / mean squared error), where the peak is 2.

    Args:
        images, targets: [B, 3, height, width], within [-1, 1]; `images` are clamped to it.

    Returns:
        [B], infinite where both are equal.
    """
    return 10 * torch.log10(4 / (images.clamp(-1, 1) - targets).square().flatten(1).mean(1))


def size_of(image) -> tuple[int, int]:
    """Return (height, width) of an image of `list_images`."""
    if isinstance(image, PIL.Image.Image):
        return image.height, image.width
    return tuple(image.shape[:2] if isinstance(image, np.ndarray) else image.shape[1:])


class VAVAEReconstructionPipeline(HubMixin, DiffusionPipeline):
    """Encodes and decodes images. Only the autoencoder of a folder is loaded.

    Args:
        vae: An `AutoencoderVAVAE`, or another image autoencoder of diffusers.

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
    _source_code = __spec__.loader.get_source(__name__)  # see `SHARED_CODE`

    def __init__(self, vae):
        super().__init__()
        self.register_modules(vae=vae)
        self.image_processor = VaeImageProcessor()

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
        check_finite: bool = True,
    ) -> VAVAEReconstructionOutput | tuple:
        """Reconstruct images.

        Args:
            image: PIL images, arrays [height, width, 3] or tensors [3, height, width] within [0, 1], or a batch or list
                of them.
            sample_posterior: Whether to decode a sample of the posterior, as in training, and not its mean.
            height, width: The size to which images are resized, multiples of the VAE's factor; by default their own.
            generator: One generator, or a list with one for each image, for `sample_posterior`.
            output_type: "pil" (8 bits as in the original, by truncation of 127.5 x + 128), "np" [B, height, width, 3]
                or "pt" [B, 3, height, width] in [0, 1].
            return_dict: Whether to return a `VAVAEReconstructionOutput` instead of a tuple.
            check_finite: Whether NaN or infinity in the images is an error. False: they are drawn as black.

        Returns:
            `images`, and `psnr` [B] against the images as they were encoded.

        Raises:
            ValueError: For an argument that does not fit, before anything is computed; for images that are not finite.
        """
        images = list_images(image)
        sizes = sorted({size_of(one) for one in images})
        if len(sizes) > 1 and (height is None or width is None):
            raise ValueError(f"`image` has the sizes {sizes}; required: one size, or `height` and `width`.")
        height = sizes[0][0] if height is None else height
        width = sizes[0][1] if width is None else width
        factor = vae_geometry(self.vae)[1]
        check_arguments(
            {
                "height": height,
                "width": width,
                "generator": generator,
                "output_type": output_type,
                "sample_posterior": sample_posterior,
                "check_finite": check_finite,
                "return_dict": return_dict,
            },
            multiple=factor,
            number=len(images),
            output_types=("pil", "np", "pt"),
        )

        is_posterior = not (sample_posterior and isinstance(self.vae, AutoencoderRAE))
        require(is_posterior, "sample_posterior", sample_posterior, "False with AutoencoderRAE, which has no posterior")

        targets = preprocess(images, height, width, self.vae).to(self._execution_device)
        with upcast(self.vae):
            encoded = self.vae.encode(targets.to(self.vae.dtype))
            if isinstance(self.vae, AutoencoderRAE):  # has no posterior
                latents = encoded.latent
            elif sample_posterior:
                latents = encoded.latent_dist.sample(generator)
            else:
                latents = encoded.latent_dist.mode()
            images = self.vae.decode(latents, return_dict=False)[0].float()  # [B, 3, height, width]
        if check_finite:
            require_finite("vae", self.vae, images)
        quality = psnr(images, targets)
        images = postprocess(self.image_processor, images, output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (images, quality)
        return VAVAEReconstructionOutput(images=images, psnr=quality)
