# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Stochastic sampling of a straight-path flow model (SiT, arXiv 2401.08740, section 2.3).

Self-contained (torch and diffusers only): this file is uploaded to the Hub as it is.

Time: t in [0, 1], 0 = noise, 1 = data; in diffusers' words sigma = 1 - t, and the model output of a flow scheduler is
d sample / d sigma = -velocity.
"""

import math
from numbers import Integral, Real

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor

SOLVER_TYPES = ("euler", "heun")
DIFFUSION_FORMS = ("sigma", "linear", "decreasing")
LAST_STEPS = ("mean", "euler", None)


def check_count(name: str, value) -> None:
    """Raise ValueError unless a value is a whole number from 1 to a million."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= value <= 1_000_000:
        raise ValueError(f"`{name}` is {value!r}; required: an integer of at least 1 and at most 1000000.")


class FlowMatchSDEScheduler(SchedulerMixin, ConfigMixin):
    """Samples with the stochastic equation that has the flow's own marginals at every t, for any diffusion w >= 0:

        dx = (v + w s) dt + sqrt(2 w) dW,    s = (t v - x) / (1 - t)

    with velocity v and score s, the gradient of log p_t. A scheduler and not a pipeline, since only the rule of a step
    changes: labels, guidance, callbacks and other parts are those of any pipeline that it is put into.

    The grid has equal steps in t, without a shift, from 0 to 1 - `last_step_size`. There one last step without noise
    leads to t = 1, because the score's 1 / (1 - t) must not be evaluated too close to the data. The last step is
    counted: N inference steps are the N states that the original returns for `num_steps=N`.

    "euler" evaluates the model once a step. "heun" adds a step's noise first and then takes a trapezoidal step, which
    needs two evaluations (but one in the last step). Since the model has to be evaluated on the noised sample, `step`
    returns it with the next step's noise already in it; the first step's noise is part of the initial noise, whose
    variance it raises from 1 to `init_noise_sigma ** 2`.

    Args:
        num_train_timesteps: scale of `timesteps` = `num_train_timesteps` * sigma.
        solver_type: "euler" or "heun".
        diffusion_form: w, "sigma" and "linear": norm (1 - t), the same function on the straight path; "decreasing":
            (norm cos(pi t) + 1)^2 / 4.
        diffusion_norm: norm; 0 makes the first two the deterministic flow.
        last_step: "mean": the drift v + w s; "euler": the velocity alone; None: no last step, the grid ends at t = 1.
        last_step_size: length of the last step in t, without effect if `last_step` is None.

    Raises:
        ValueError: for a value outside these; for "heun" and "decreasing" without a last step, whose drift diverges at
            t = 1.

    Example:
        >>> from diffusers import DiffusionPipeline
        >>> from diffusers_lightningdit import FlowMatchSDEScheduler
        >>> pipe = DiffusionPipeline.from_pretrained("model_cards/lightningdit-digits")
        >>> pipe.scheduler = FlowMatchSDEScheduler(solver_type="heun", diffusion_norm=0.5)
        >>> image = pipe("seven", num_inference_steps=25).images[0]
    """

    _compatibles = []
    # Saved beside the weights, for those who have not installed the package; see HubMixin of the pipelines.
    _source_code = __spec__.loader.get_source(__name__)

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        solver_type: str = "euler",
        diffusion_form: str = "sigma",
        diffusion_norm: float = 1.0,
        last_step: str | None = "mean",
        last_step_size: float = 0.04,
    ):
        check_count("num_train_timesteps", num_train_timesteps)
        for name, value, known in (
            ("solver_type", solver_type, SOLVER_TYPES),
            ("diffusion_form", diffusion_form, DIFFUSION_FORMS),
            ("last_step", last_step, LAST_STEPS),
        ):
            if not isinstance(value, (str, type(None))) or value not in known:
                raise ValueError(f"`{name}` is {value!r}; required: one of {known}.")
        if not (isinstance(diffusion_norm, Real) and 0 <= diffusion_norm < math.inf):
            raise ValueError(f"`diffusion_norm` is {diffusion_norm!r}; required: a finite number of at least 0.")
        if not (isinstance(last_step_size, Real) and 0 < last_step_size < 1):
            raise ValueError(f"`last_step_size` is {last_step_size!r}; required: between 0 and 1, both excluded.")
        if last_step is None and (solver_type, diffusion_form) == ("heun", "decreasing"):
            raise ValueError(
                "`last_step` is None with solver_type='heun' and diffusion_form='decreasing', whose drift diverges at "
                "t = 1; required: 'mean' or 'euler'."
            )
        self.sigmas = self.timesteps = self.num_inference_steps = None
        self._step_index = self._begin_index = None

    # -- grid -----------------------------------------------------------------------------------------------------

    @property
    def order(self) -> int:
        """Model evaluations in a step."""
        return 2 if self.config.solver_type == "heun" else 1

    @property
    def step_index(self) -> int | None:
        """How many model evaluations have been stepped through."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The index of the first step, set by `set_begin_index`; None before."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at this index of `timesteps` (image-to-image)."""
        self._begin_index = begin_index

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Set `sigmas` and `timesteps`, one entry for each evaluation of the model (`sigmas` has one more at its end).

        Args:
            num_inference_steps: steps, the last one included; at least 1.
            device: where `timesteps` are put; `sigmas` stay on the CPU.

        Raises:
            ValueError: if `num_inference_steps` is no such number.
        """
        check_count("num_inference_steps", num_inference_steps)
        if self.config.last_step is None:
            grid = torch.linspace(1, 0, num_inference_steps + 1, dtype=torch.float64)
        else:
            grid = torch.linspace(1, self.config.last_step_size, num_inference_steps, dtype=torch.float64)
        # A trapezoidal step is evaluated at both of its ends: every point inside the grid twice.
        sigmas = grid.repeat_interleave(2)[1:] if self.order == 2 else grid
        if self.config.last_step is not None:
            sigmas = torch.cat([sigmas, sigmas.new_zeros(1)])
        self.sigmas = sigmas.float()
        self.timesteps = (self.sigmas[:-1] * self.config.num_train_timesteps).to(device)
        self.num_inference_steps = num_inference_steps
        self._step_index = self._begin_index = None
        self._sample = self._drift = None

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial noise, greater than 1 where it holds the first step's noise as well."""
        if self.sigmas is None:
            raise ValueError("`init_noise_sigma` depends on the grid; call `set_timesteps` first.")
        return math.sqrt(1 + self._noise_scale(0) ** 2) if self.order == 2 else 1.0

    # -- equation -------------------------------------------------------------------------------------------------

    def _diffusion_over_sigma(self, sigma: float) -> float:
        """w / (1 - t): the factor that meets the score's numerator, finite at t = 1 where w and 1 - t cancel."""
        if self.config.diffusion_form == "decreasing":
            return self._diffusion(sigma) / sigma
        return self.config.diffusion_norm

    def _diffusion(self, sigma: float) -> float:
        """w of the class's equation."""
        if self.config.diffusion_form == "decreasing":
            return (self.config.diffusion_norm * math.cos(math.pi * (1 - sigma)) + 1) ** 2 / 4
        return self.config.diffusion_norm * sigma

    def _noise_scale(self, index: int) -> float:
        """sqrt(2 w dt) of the step whose first evaluation is `index`; 0 for the last step and beyond the end."""
        if index >= len(self.timesteps) or self._is_last_step(index):
            return 0.0
        sigma, sigma_next = self.sigmas[index : index + 2].tolist()
        return math.sqrt(2 * self._diffusion(sigma) * (sigma - sigma_next))

    def _is_last_step(self, index: int) -> bool:
        return self.config.last_step is not None and index == len(self.timesteps) - 1

    # -- step -----------------------------------------------------------------------------------------------------

    def index_for_timestep(self, timestep: float | torch.Tensor) -> int:
        """Index in `timesteps`; of the two evaluations at an inner point the one that starts a step."""
        return (self.timesteps == timestep).nonzero()[-1].item()

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """From one evaluation of the model to the next.

        Args:
            model_output: -velocity at `sample`, [B, C, height, width].
            timestep: entry of `timesteps`; only the first call reads it, and only if no begin index is set.
            sample: what the model was evaluated on, [B, C, height, width].
            generator: one, or one for each image, to draw the noise with.
            variance_noise: standard normal noise to use instead, [B, C, height, width].
            return_dict: return a `SchedulerOutput` instead of a tuple.

        Raises:
            ValueError: if `set_timesteps` has not been called, or all steps are done.
        """
        if self.sigmas is None:
            raise ValueError("`step` needs a grid; call `set_timesteps` first.")
        if self._step_index is None:
            self._step_index = self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index
        index = self._step_index
        if index >= len(self.timesteps):
            raise ValueError(f"`step` was called {index + 1} times; the grid has {len(self.timesteps)} evaluations.")

        sample, velocity = sample.float(), -model_output.float()
        sigma, sigma_next = self.sigmas[index : index + 2].tolist()
        is_corrector = self.order == 2 and index % 2 == 1
        if self._is_last_step(index) and self.config.last_step == "euler":
            drift = velocity
        else:
            drift = velocity + self._diffusion_over_sigma(sigma) * ((1 - sigma) * velocity - sample)

        noise_scale = 0.0
        if self.order == 1:
            prev_sample = sample + (sigma - sigma_next) * drift
            noise_scale = self._noise_scale(index)
        elif not is_corrector:
            prev_sample = sample + (sigma - sigma_next) * drift
            self._sample, self._drift = sample, drift
        else:
            dt = float(self.sigmas[index - 1]) - sigma
            prev_sample = self._sample + dt / 2 * (self._drift + drift)
            noise_scale = self._noise_scale(index + 1)
        if noise_scale > 0:
            if variance_noise is None:
                variance_noise = randn_tensor(
                    sample.shape, generator=generator, device=sample.device, dtype=torch.float32
                )
            prev_sample = prev_sample + noise_scale * variance_noise.to(prev_sample)

        self._step_index += 1
        prev_sample = prev_sample.to(model_output.dtype)
        if not return_dict:
            return (prev_sample,)
        return SchedulerOutput(prev_sample=prev_sample)
