# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Log-likelihoods under LightningDiT (arXiv 2501.01423), by the instantaneous change of variables.

The pipeline is loaded by its class, or as remote code from this file with `lightningdit_sampling.py` beside it:
`DiffusionPipeline.from_pretrained(..., custom_pipeline="pipelines/pipeline_lightningdit_likelihood.py")`.

Along the flow dx/dt = v(x, t) the density of x changes by d log p / dt = -div v (FFJORD, arXiv 1810.01367, equation 2;
score SDE, arXiv 2011.13456, appendix D.2). With t = 0 noise and t = 1 data, the flow is solved backwards from the data
x_1:

    log p(x_1) = log N(x_0; 0, I) - integral from 0 to 1 of div v(x_t, t) dt.

This is a pipeline and not a scheduler, because its result is a number and not a sample, and because its solver chooses
its own steps.
"""

import importlib.util
import math
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor

from .lightningdit_sampling import (
    ClassLabelsMixin,
    HubMixin,
    check_arguments,
    check_components,
    encode,
    image_size,
    is_latents,
    list_images,
    predict_velocity,
    preprocess,
    require,
    require_finite,
    solve_ode,
    vae_geometry,
)

DIVERGENCES = ("hutchinson", "exact")


@dataclass
class LightningDiTLikelihoodOutput(BaseOutput):
    """The densities of B pairs of an image and a class.

    Attributes:
        log_likelihood: The natural logarithm of the density of the normalised latents, float32 [B].
        bits_per_dim: -log_likelihood / (D ln 2) with D = C height width of the latents, [B].
        noise: The noise from which the flow makes the image, [B, C, height, width].
    """

    log_likelihood: torch.Tensor
    bits_per_dim: torch.Tensor
    noise: torch.Tensor


# ---------------------------------------------------------------------------------------------------------------------
# Divergence
# ---------------------------------------------------------------------------------------------------------------------


def exact_divergence(velocity: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Compute the trace of d velocity / d latents with one backward pass for each of the D dimensions.

    Args:
        velocity, latents: [B, C, height, width].

    Returns:
        [B].
    """
    components = velocity.flatten(1).sum(0)  # [D]; the images of a batch do not depend on each other
    divergence = torch.zeros(len(latents), device=latents.device)
    for i, component in enumerate(components):
        (gradient,) = torch.autograd.grad(component, latents, retain_graph=i + 1 < len(components))
        divergence += gradient.flatten(1)[:, i]
    return divergence


def hutchinson_divergence(velocity: torch.Tensor, latents: torch.Tensor, probes: torch.Tensor) -> torch.Tensor:
    """Average e^T (d velocity / d latents) e over probes e; its expectation is the trace (Hutchinson 1989).

    Args:
        velocity, latents: [B, C, height, width].
        probes: [B, number of probes, C, height, width], with independent entries of mean 0 and variance 1.

    Returns:
        [B].
    """
    divergence = torch.zeros(len(latents), device=latents.device)
    num_probes = probes.shape[1]
    for i, probe in enumerate(probes.unbind(1)):
        (gradient,) = torch.autograd.grad(velocity, latents, probe, retain_graph=i + 1 < num_probes)
        divergence += (gradient * probe).flatten(1).sum(1) / num_probes
    return divergence


# ---------------------------------------------------------------------------------------------------------------------
# Pipeline
# ---------------------------------------------------------------------------------------------------------------------


class LightningDiTLikelihoodPipeline(ClassLabelsMixin, HubMixin, DiffusionPipeline):
    """The log-likelihood of images' latents under a LightningDiT transformer, given a class or without one.

    Args:
        transformer, vae, id2label: Those of `LightningDiTPipeline`, whose folders this pipeline loads.

    Raises:
        ValueError: For a key of `id2label` that is not a class.

    Example:
        >>> import torch
        >>> import diffusers_lightningdit
        >>> from diffusers import DiffusionPipeline
        >>> pipe = DiffusionPipeline.from_pretrained("model_cards/lightningdit-digits")
        >>> seven = pipe("seven", generator=torch.Generator().manual_seed(0)).images[0]
        >>> likelihood = DiffusionPipeline.from_pretrained(
        ...     "model_cards/lightningdit-digits",
        ...     custom_pipeline="pipelines/pipeline_lightningdit_likelihood.py",
        ...     trust_remote_code=True,
        ... )
        >>> output = likelihood(seven, class_labels=["one", "seven"], ode_rtol=1e-3)
        >>> log_likelihoods = output.log_likelihood.tolist()
    """

    model_cpu_offload_seq = "vae->transformer"
    _source_code = __spec__.loader.get_source(__name__)  # see `SHARED_CODE`

    def __init__(self, transformer, vae, id2label: dict | None = None):
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae)
        self._register_id2label(id2label)

    @torch.no_grad()
    def __call__(
        self,
        image=None,
        class_labels: int | str | list[int | str] | torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        divergence: str = "hutchinson",
        num_probes: int = 1,
        height: int | None = None,
        width: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        ode_atol: float = 1e-5,
        ode_rtol: float = 1e-5,
        return_dict: bool = True,
        check_finite: bool = True,
    ) -> LightningDiTLikelihoodOutput | tuple:
        """Compute the log-likelihood of each image, given its class.

        The density is that of the normalised latents under the flow without guidance, since a guided velocity belongs
        to no distribution that was learnt. For raw latents, subtract the sum over all entries of log(std /
        scaling_factor). As the density of a continuous variable it may exceed 1, so that bits per dimension may be
        negative. They cannot be compared with those of 8-bit pixels, or across autoencoders.

        Args:
            image: PIL images, arrays [height, width, 3] or tensors [3, height, width] within [0, 1], or a batch or list
                of them. They are encoded as the mean of the posterior.
            class_labels: A class id, a name of `id2label`, or a list of both: as many as images; one for all of them;
                or several for one image. None: without a class (the null class).
            latents: Normalised latents [B, C, height, width] in place of `image`.
            divergence: "hutchinson" is an unbiased estimate, from one backward pass for each probe; "exact" takes one
                for each of the C height width dimensions.
            num_probes: The number of random vectors of signs that "hutchinson" averages over, the same at all t.
            height, width: The size to which images are resized, multiples of the VAE's factor times the patch size; by
                default the size of the training.
            generator: One generator of the probes, or a list with one for each result.
            ode_atol, ode_rtol: The tolerances of dopri5, whose steps are common to the batch.
            return_dict: Whether to return a `LightningDiTLikelihoodOutput` instead of a tuple.
            check_finite: Whether NaN or infinity in the result is an error.

        Returns:
            `log_likelihood`, `bits_per_dim`, `noise`.

        Raises:
            ValueError: For an argument or a component that does not fit, before anything is computed; for a result
                that is not finite.
            ImportError: If torchdiffeq is not installed.
        """
        images = None if image is None else list_images(image)
        class_ids = self.get_label_ids(class_labels)
        height, width = image_size(self.transformer, self.vae, height, width)
        self.check_inputs(
            images,
            latents,
            class_ids,
            generator,
            divergence=divergence,
            num_probes=num_probes,
            height=height,
            width=width,
            ode_atol=ode_atol,
            ode_rtol=ode_rtol,
            check_finite=check_finite,
            return_dict=return_dict,
        )

        # 1. Latents, labels and probes, one for each result
        device = self._execution_device
        if latents is None:
            latents = encode(self.vae, preprocess(images, height, width, self.vae).to(device))
            if check_finite:
                require_finite("vae", self.vae, latents)
        else:
            latents = latents.to(device, torch.float32)
        class_ids = torch.tensor(class_ids, device=device)
        batch_size = max(len(latents), len(class_ids))
        latents = latents.expand(batch_size, *latents.shape[1:])
        class_ids = class_ids.expand(batch_size)
        probes = None
        if divergence == "hutchinson":
            shape = (batch_size, num_probes, *latents.shape[1:])
            probes = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32).sign()

        # 2. Solve latents and log-density together, from data (t = 1) to noise (t = 0)
        def derivative(t: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
            with torch.enable_grad():
                x = state[0].detach().requires_grad_()
                velocity = predict_velocity(self.transformer, x, float(t), class_ids)
                trace = exact_divergence(velocity, x) if probes is None else hutchinson_divergence(velocity, x, probes)
            return velocity.detach(), trace

        state = (latents, latents.new_zeros(batch_size))
        times = latents.new_tensor([1.0, 0.0])
        noise, change = solve_ode(derivative, state, times, "dopri5", ode_atol, ode_rtol)
        noise, change = noise[-1], change[-1]  # change = -integral of div v
        if check_finite:
            require_finite("transformer", self.transformer, torch.cat([noise.flatten(1), change[:, None]], dim=1))

        # 3. Likelihood
        num_dims = noise[0].numel()
        log_prior = -0.5 * (noise.square().flatten(1).sum(1) + num_dims * math.log(2 * math.pi))
        log_likelihood = log_prior + change
        bits_per_dim = -log_likelihood / (num_dims * math.log(2))
        self.maybe_free_model_hooks()
        if not return_dict:
            return (log_likelihood, bits_per_dim, noise)
        return LightningDiTLikelihoodOutput(log_likelihood=log_likelihood, bits_per_dim=bits_per_dim, noise=noise)

    def check_inputs(self, images, latents, class_ids: list[int], generator, **arguments) -> None:
        """Raise ValueError for a component or an argument that does not fit, before anything is computed."""
        if (images is None) == (latents is None):
            given = "neither" if images is None else "both"
            raise ValueError(f"`image` and `latents`: {given} given; required: one of the two.")
        check_components(self.transformer, self.vae)
        in_channels, patch_size = self.transformer.config.in_channels, self.transformer.config.patch_size
        if images is None:
            shape = tuple(latents.shape) if is_latents(latents) else ()
            is_shape = len(shape) == 4 and 0 not in shape and shape[1] == in_channels
            require(
                is_shape and not shape[2] % patch_size and not shape[3] % patch_size,
                "latents",
                latents,
                f"[B, {in_channels}, height, width], finite floating-point numbers, height and width multiples of "
                f"{patch_size}",
            )
        num_images, num_labels = len(latents if images is None else images), len(class_ids)
        if num_labels != num_images and 1 not in (num_labels, num_images):
            raise ValueError(
                f"`class_labels` has {num_labels} for {num_images} images; required: one class for each image, or one "
                "class, or one image."
            )
        check_arguments(
            {"generator": generator, **arguments},
            number=max(num_images, num_labels),
            multiple=vae_geometry(self.vae)[1] * patch_size,
            divergences=DIVERGENCES,
        )
        if self.transformer.is_cache_enabled:
            raise ValueError(
                "`transformer` has a cache, whose states are not derivatives; required: `transformer.disable_cache()`."
            )
        if importlib.util.find_spec("torchdiffeq") is None:
            raise ImportError("likelihoods need torchdiffeq: pip install diffusers-lightningdit[ode]")
