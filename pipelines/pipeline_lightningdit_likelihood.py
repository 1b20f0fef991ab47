# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Log-likelihoods under LightningDiT (arXiv 2501.01423), by the instantaneous change of variables.

Self-contained (torch and diffusers only; the solver is torchdiffeq's): loadable by
`DiffusionPipeline.from_pretrained(..., custom_pipeline="pipelines/pipeline_lightningdit_likelihood.py")`.

Along the flow dx/dt = v(x, t) the density of x changes by d log p / dt = -div v (FFJORD, arXiv 1810.01367; score SDE,
arXiv 2011.13456, appendix D.2). With t = 0 noise and t = 1 data, the flow is solved backwards from the data x_1:

    log p(x_1) = log N(x_0; 0, I) - integral from 0 to 1 of div v(x_t, t) dt.

A pipeline and not a scheduler, since the result is no sample but a number, and its solver chooses its own steps.
"""

import difflib
import importlib.util
import math
import os
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderRAE, DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor

# The library of our classes in model_index.json, and the name of the file with their code beside the weights: diffusers
# takes the installed package if it is imported, else, with `trust_remote_code=True`, the file.
# Copied from pipeline_lightningdit.PACKAGE
PACKAGE = "diffusers_lightningdit"

DIVERGENCES = ("hutchinson", "exact")


@dataclass
class LightningDiTLikelihoodOutput(BaseOutput):
    """Densities of normalised latents; B pairs of an image and a class.

    `log_likelihood`: natural logarithm, float32 [B]; `bits_per_dim`: -log_likelihood / (D ln 2) with D = C height width
    of the latents, [B]; `noise`: what the flow makes this image from, [B, C, height, width].
    """

    log_likelihood: torch.Tensor
    bits_per_dim: torch.Tensor
    noise: torch.Tensor


# ---------------------------------------------------------------------------------------------------------------------
# Divergence
# ---------------------------------------------------------------------------------------------------------------------


def exact_divergence(velocity: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Trace of d velocity / d latents, one backward pass for each of the D dimensions: [B, C, h, w] twice -> [B]."""
    components = velocity.flatten(1).sum(0)  # [D]; images of a batch don't depend on each other
    divergence = torch.zeros(len(latents), device=latents.device)
    for i, component in enumerate(components):
        (gradient,) = torch.autograd.grad(component, latents, retain_graph=i + 1 < len(components))
        divergence += gradient.flatten(1)[:, i]
    return divergence


def hutchinson_divergence(velocity: torch.Tensor, latents: torch.Tensor, probes: torch.Tensor) -> torch.Tensor:
    """Mean over probes e of e^T (d velocity / d latents) e, whose expectation is the trace (Hutchinson 1989).

    Args:
        velocity, latents: [B, C, height, width].
        probes: [B, number of probes, C, height, width], of independent entries with mean 0 and variance 1.

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
# Autoencoders
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


# Copied from pipeline_lightningdit_img2img.normalize_latents
def normalize_latents(vae, latents: torch.Tensor) -> torch.Tensor:
    """What `vae.encode` produces -> what the transformer sees: the inverse of `denormalize_latents`."""
    if hasattr(vae, "normalize_latents"):
        return vae.normalize_latents(latents)
    if isinstance(vae, AutoencoderRAE):  # normalises inside encode and decode
        return latents
    scaling_factor = vae.config.get("scaling_factor") or 1.0
    if vae.config.get("latents_mean") is not None:
        mean = latents.new_tensor(vae.config.latents_mean).view(1, -1, 1, 1)
        std = latents.new_tensor(vae.config.latents_std).view(1, -1, 1, 1)
        return (latents - mean) / std * scaling_factor
    return (latents - (vae.config.get("shift_factor") or 0.0)) * scaling_factor


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


# ---------------------------------------------------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------------------------------------------------


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


# ---------------------------------------------------------------------------------------------------------------------
# Pipeline
# ---------------------------------------------------------------------------------------------------------------------


class LightningDiTLikelihoodPipeline(DiffusionPipeline):
    """Log-likelihood of images' latents under a LightningDiT transformer, given a class or without one.

    Args:
        transformer, vae, id2label: as of `LightningDiTPipeline`, whose folders load here.

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
    # Read with the class, not when it is saved: as remote code, the next repository's file may lie in this one's place.
    # Copied from pipeline_lightningdit.LightningDiTPipeline._source_code
    _source_code = __spec__.loader.get_source(__name__)

    def __init__(self, transformer, vae, id2label: dict | None = None):
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae)
        # JSON knows only strings as keys: after loading, "207" is class 207 again.
        self._id2label = {int(key): name for key, name in (id2label or {}).items()}
        self.register_to_config(id2label=self._id2label or None)

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

    # Copied from pipeline_lightningdit.LightningDiTPipeline.from_pipe
    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs) -> DiffusionPipeline:
        """As in diffusers; components are taken over by name.

        diffusers itself compares their classes with the constructor's annotations, which a self-contained file cannot
        give for the transformer, and must not narrow for the autoencoder.
        """
        for name in ("transformer", "vae"):
            if name in pipeline.components:
                kwargs.setdefault(name, pipeline.components[name])
        return super().from_pipe(pipeline, **kwargs)

    # -- labels ---------------------------------------------------------------------------------------------------

    # Copied from pipeline_lightningdit.LightningDiTPipeline.id2label
    @property
    def id2label(self) -> dict[int, str]:
        """Names of the classes: those of the checkpoint, and of the LoRAs that are loaded."""
        return {**self._id2label, **getattr(self.transformer, "new_class_names", {})}

    # Copied from pipeline_lightningdit.LightningDiTPipeline.labels
    @property
    def labels(self) -> dict[str, list[int]]:
        """Every name and synonym with the ids that bear it (ImageNet has two classes called "crane")."""
        labels: dict[str, list[int]] = {}
        for class_id, names in self.id2label.items():
            # the whole entry counts as a name, too
            for name in dict.fromkeys([names.strip(), *map(str.strip, names.split(","))]):
                labels.setdefault(name, []).append(class_id)
        return labels

    # Copied from pipeline_lightningdit.LightningDiTPipeline.get_label_ids
    def get_label_ids(self, class_labels: int | str | list[int | str] | torch.Tensor) -> list[int]:
        """Class ids of ids and names; a name counts as written, otherwise with upper and lower case ignored.

        Raises:
            ValueError: for an unknown name (with the nearest ones), a name of several classes, or an id out of range.
        """
        if hasattr(class_labels, "tolist"):  # a tensor or an array of ids
            class_labels = class_labels.tolist()
        if not isinstance(class_labels, (list, tuple)):
            class_labels = [class_labels]
        if not class_labels:
            raise ValueError("`class_labels` is empty; required: at least one class id or name.")
        labels = self.labels
        ids = []
        for label in class_labels:  # lists of lists, as from a tensor [B, 1], count as one list
            ids += self.get_label_ids(label) if isinstance(label, (list, tuple)) else [self._label_id(label, labels)]
        return ids

    # Copied from pipeline_lightningdit.LightningDiTPipeline._label_id
    def _label_id(self, label: int | str, labels: dict[str, list[int]]) -> int:
        if isinstance(label, str):
            ids = labels.get(label.strip())
            if ids is None:
                wanted = label.strip().lower()
                ids = sorted({i for name, name_ids in labels.items() if name.lower() == wanted for i in name_ids})
            if not ids:
                if not labels:
                    raise ValueError(
                        f"`class_labels` has the name {label!r}; this pipeline has no `id2label`, use ids."
                    )
                by_lower_case = {name.lower(): name for name in labels}
                near = [
                    by_lower_case[m] for m in difflib.get_close_matches(label.lower(), by_lower_case, n=3, cutoff=0.5)
                ]
                hint = f"nearest: {', '.join(map(repr, near))}" if near else "`pipe.labels` lists the names"
                raise ValueError(f"`class_labels` has the unknown name {label!r}; {hint}.")
            if len(ids) > 1:
                raise ValueError(f"`class_labels` has the name {label!r} of several classes; use one of the ids {ids}.")
            return ids[0]
        if not isinstance(label, Integral) or isinstance(label, bool):
            raise ValueError(f"`class_labels` has {label!r}; required: class ids (int) or names (str).")
        num_classes = self.transformer.config.num_classes
        if not 0 <= label < num_classes:
            raise ValueError(f"`class_labels` has the id {label}; required: 0 to {num_classes - 1}.")
        return int(label)

    # -- arguments ------------------------------------------------------------------------------------------------

    def check_inputs(
        self, images, latents, class_ids, divergence, num_probes, height, width, generator, ode_atol, ode_rtol
    ) -> None:
        """Raises ValueError naming argument, value and requirement, before anything is computed."""
        if (images is None) == (latents is None):
            given = "neither" if images is None else "both"
            raise ValueError(f"`image` and `latents`: {given} given; required: one of the two.")
        latent_channels, factor = vae_geometry(self.vae)
        in_channels, patch_size = self.transformer.config.in_channels, self.transformer.config.patch_size
        if latent_channels != in_channels:
            raise ValueError(
                f"`vae` has {latent_channels} latent channels; required: the transformer's `in_channels` {in_channels}."
            )
        if images is None:
            shape = tuple(latents.shape)
            if len(shape) != 4 or shape[1] != in_channels or shape[2] % patch_size or shape[3] % patch_size:
                raise ValueError(
                    f"`latents` has the shape {shape}; required: [B, {in_channels}, height, width], height and width "
                    f"multiples of {patch_size}."
                )
        multiple = factor * patch_size
        for name, value in (("height", height), ("width", width)):
            is_multiple = is_integer(value) and value >= multiple and value % multiple == 0
            require(is_multiple, name, value, f"a positive multiple of {multiple} pixels")
        num_images, num_labels = len(latents if images is None else images), len(class_ids)
        if num_labels != num_images and 1 not in (num_labels, num_images):
            raise ValueError(
                f"`class_labels` has {num_labels} for {num_images} images; required: one class for each image, or one "
                "class, or one image."
            )
        require(divergence in DIVERGENCES, "divergence", divergence, f"one of {DIVERGENCES}")
        require(is_integer(num_probes) and num_probes >= 1, "num_probes", num_probes, "an integer of at least 1")
        batch_size = max(num_images, num_labels)
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"`generator` is a list of {len(generator)}; required: {batch_size}, one for each result.")
        for name, value in (("ode_atol", ode_atol), ("ode_rtol", ode_rtol)):
            require(isinstance(value, Real) and 0 < value < math.inf, name, value, "a positive number")
        if self.transformer.is_cache_enabled:
            raise ValueError(
                "`transformer` has a cache, whose states are not derivatives; required: `transformer.disable_cache()`."
            )
        if importlib.util.find_spec("torchdiffeq") is None:
            raise ImportError("likelihoods need torchdiffeq: pip install diffusers-lightningdit[ode]")

    # -- call -----------------------------------------------------------------------------------------------------

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
    ) -> LightningDiTLikelihoodOutput | tuple:
        """Log-likelihood of each image, given its class.

        The density is that of the normalised latents, of the flow without guidance (a guided velocity belongs to no
        distribution that was learnt). For raw latents subtract the sum over all entries of log(std / scaling_factor).
        As the density of a continuous variable it may exceed 1, so that bits per dimension may be negative, and it
        cannot be compared with bits per dimension of 8-bit pixels or across autoencoders.

        Args:
            image: PIL images, arrays [height, width, 3] or tensors [3, height, width] within [0, 1], or a batch or list
                of them; encoded as the mean of the posterior.
            class_labels: a class id, a name of `id2label`, or a list of both: as many as images; one for all of them;
                or several for one image. None: without a class (the null class).
            latents: normalised latents [B, C, height, width] in place of `image`.
            divergence: "hutchinson": an unbiased estimate, from one backward pass for each probe; "exact": from one for
                each of the C height width dimensions.
            num_probes: random vectors of signs that "hutchinson" averages over, the same at all t.
            height, width: images are resized to these, multiples of the VAE's factor times the patch size; default: the
                trained size.
            generator: draws the probes; one, or a list with one for each result.
            ode_atol, ode_rtol: tolerances of dopri5. Its steps are common to the batch.
            return_dict: return a `LightningDiTLikelihoodOutput` instead of a tuple.

        Returns:
            `log_likelihood`, `bits_per_dim`, `noise`.

        Raises:
            ValueError: for any argument or component that doesn't fit, before anything is computed.
            ImportError: without torchdiffeq.
        """
        images = None if image is None else list_images(image)
        null_ids = [self.transformer.config.num_classes]
        class_ids = null_ids if class_labels is None else self.get_label_ids(class_labels)
        _, factor = vae_geometry(self.vae)
        height = self.transformer.config.sample_size * factor if height is None else height
        width = self.transformer.config.sample_size * factor if width is None else width
        self.check_inputs(
            images, latents, class_ids, divergence, num_probes, height, width, generator, ode_atol, ode_rtol
        )
        from torchdiffeq import odeint

        # 1. Latents, labels and probes, one for each result
        device = self._execution_device
        if latents is None:
            latents = self._encode(preprocess(images, height, width, factor).to(device))
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
                velocity = self._velocity(x, float(t), class_ids, attention_kwargs=None)
                trace = exact_divergence(velocity, x) if probes is None else hutchinson_divergence(velocity, x, probes)
            return velocity.detach(), trace

        state = (latents, latents.new_zeros(batch_size))
        times = latents.new_tensor([1.0, 0.0])
        noise, change = odeint(derivative, state, times, method="dopri5", atol=ode_atol, rtol=ode_rtol)
        noise, change = noise[-1], change[-1]  # change = -integral of div v

        # 3. Likelihood
        num_dims = noise[0].numel()
        log_prior = -0.5 * (noise.square().flatten(1).sum(1) + num_dims * math.log(2 * math.pi))
        log_likelihood = log_prior + change
        bits_per_dim = -log_likelihood / (num_dims * math.log(2))
        self.maybe_free_model_hooks()
        if not return_dict:
            return (log_likelihood, bits_per_dim, noise)
        return LightningDiTLikelihoodOutput(log_likelihood=log_likelihood, bits_per_dim=bits_per_dim, noise=noise)

    # Copied from pipeline_lightningdit_img2img.LightningDiTImg2ImgPipeline._encode
    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, height, width] in [-1, 1] -> the posterior's most likely latents, normalised, in float32."""
        encoded = self.vae.encode(images.to(self.vae.dtype))
        latents = encoded.latent if isinstance(self.vae, AutoencoderRAE) else encoded.latent_dist.mode()
        return normalize_latents(self.vae, latents.float())

    # Copied from pipeline_lightningdit.LightningDiTPipeline._velocity
    def _velocity(
        self,
        latents: torch.Tensor,
        t: float,
        class_ids: torch.Tensor,
        attention_kwargs: dict | None,
        context: str | None = None,
    ) -> torch.Tensor:
        """The network's velocity at time t, in float32. The null class comes first in `class_ids` if it is there."""
        # A cache keeps the states of guided and unguided calls apart: their batches differ.
        with self.transformer.cache_context(context or ("cond" if len(class_ids) == len(latents) else "cond_uncond")):
            repeats = len(class_ids) // len(latents)
            velocity = self.transformer(
                hidden_states=latents.repeat(repeats, 1, 1, 1).to(self.transformer.dtype),
                timestep=torch.full((len(class_ids),), t, dtype=torch.float32, device=latents.device),
                class_labels=class_ids,
                attention_kwargs=attention_kwargs,
                return_dict=False,
            )[0]
        return velocity.float()
