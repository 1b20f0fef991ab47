# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Deterministic sampling of a straight-path flow model by the Adams-Bashforth method of order 2, one evaluation a step.

Self-contained (torch and diffusers only): this file is uploaded to the Hub as it is.

Time: t in [0, 1], 0 = noise, 1 = data; in diffusers' words sigma = 1 - t, and the model output of a flow scheduler is
d sample / d sigma = -velocity.
"""

import math
from numbers import Integral, Real

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput


def check_count(name: str, value) -> None:
    """Raise ValueError unless a value is a whole number from 1 to a million."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= value <= 1_000_000:
        raise ValueError(f"`{name}` is {value!r}; required: an integer of at least 1 and at most 1000000.")


class FlowMatchAdamsBashforthScheduler(SchedulerMixin, ConfigMixin):
    """Integrates the velocity's line through this evaluation and the one before over each step:

        x <- x + h ((1 + h / (2 k)) v - h / (2 k) v'),

    with the step h, the step k before it, and the velocities v and v' at their beginnings (Hairer, Norsett, Wanner,
    Solving Ordinary Differential Equations I, section III.5). On a straight path the velocity is what varies least, so
    that it is the velocity that is extrapolated, and not the data as in DPM-Solver.

    The line must not reach over a time at which the velocity jumps, as it does where guidance begins or ends within the
    image's way. Such times are put on the grid, in place of the nearest of its points, and the method starts there
    anew, with a step of Euler's, as it does at t = 0.

    Args:
        num_train_timesteps: scale of `timesteps` = `num_train_timesteps` * sigma.
        shift: the grid's shift as in `FlowMatchEulerDiscreteScheduler`, sigma <- shift sigma / (1 + (shift - 1) sigma);
            the published recipe's is 1 / 0.3. 1 leaves steps of equal length, which this method does best with.
        restart_times: times t between 0 and 1 at which the velocity jumps, such as the start of `guidance_interval`.

    Raises:
        ValueError: for a value outside these.

    Example:
        >>> from diffusers import DiffusionPipeline
        >>> from diffusers_lightningdit import FlowMatchAdamsBashforthScheduler
        >>> pipe = DiffusionPipeline.from_pretrained("model_cards/lightningdit-digits")
        >>> pipe.scheduler = FlowMatchAdamsBashforthScheduler(restart_times=[0.125])
        >>> image = pipe("seven", guidance_scale=2.0, guidance_interval=(0.125, 1), num_inference_steps=48).images[0]
    """

    _compatibles = []
    # Saved beside the weights, for those who have not installed the package; see HubMixin of the pipelines.
    _source_code = __spec__.loader.get_source(__name__)
    order = 1  # evaluations in a step

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, shift: float = 1.0, restart_times: list[float] | tuple[float, ...] = ()
    ):
        check_count("num_train_timesteps", num_train_timesteps)
        if not (isinstance(shift, Real) and 0 < shift < math.inf):
            raise ValueError(f"`shift` is {shift!r}; required: a positive number.")
        if not isinstance(restart_times, (tuple, list)):
            raise ValueError(f"`restart_times` is {restart_times!r}; required: a list of times.")
        for time in restart_times:
            if not (isinstance(time, Real) and 0 < time < 1):
                raise ValueError(f"`restart_times` has {time!r}; required: times between 0 and 1, both excluded.")
        self.sigmas = self.timesteps = self.num_inference_steps = None
        self._step_index = self._begin_index = None

    # -- grid -----------------------------------------------------------------------------------------------------

    @property
    def step_index(self) -> int | None:
        """How many model evaluations have been stepped through."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The index of `timesteps` that sampling begins at; None for the first."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at this index of `timesteps` (image-to-image)."""
        self._begin_index = begin_index

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Set `sigmas` and `timesteps`, one entry for each step (`sigmas` has one more at its end, 0).

        Args:
            num_inference_steps: steps; more than there are `restart_times`, each of which is a point of the grid.
            device: where `timesteps` are put; `sigmas` stay on the CPU.

        Raises:
            ValueError: for too few steps.
        """
        check_count("num_inference_steps", num_inference_steps)
        restarts = sorted(set(self.config.restart_times))
        if num_inference_steps <= len(restarts):
            raise ValueError(
                f"`num_inference_steps` is {num_inference_steps}; required: at least {len(restarts) + 1}, with "
                f"{len(restarts)} `restart_times`."
            )
        grid = torch.linspace(1, 0, num_inference_steps + 1, dtype=torch.float64)
        sigmas = self.config.shift * grid / (1 + (self.config.shift - 1) * grid)
        moved = {0, num_inference_steps}
        for time in restarts:
            distances = (sigmas - (1 - time)).abs()
            distances[list(moved)] = math.inf
            nearest = int(distances.argmin())
            moved.add(nearest)
            sigmas[nearest] = 1 - time
        self.sigmas = sigmas.sort(descending=True).values.float()
        restart_sigmas = torch.tensor([1.0, *(1 - time for time in restarts)], dtype=torch.float64).float()
        self._restarts = torch.isin(self.sigmas, restart_sigmas).tolist()
        self.timesteps = (self.sigmas[:-1] * self.config.num_train_timesteps).to(device)
        self.num_inference_steps = num_inference_steps
        self._step_index = self._begin_index = None
        self._velocity = None

    # -- step -----------------------------------------------------------------------------------------------------

    def index_for_timestep(self, timestep: float | torch.Tensor) -> int:
        """Index in `timesteps`."""
        return (self.timesteps == timestep).nonzero()[0].item()

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """From one evaluation of the model to the next.

        Args:
            model_output: -velocity at `sample`, [B, C, height, width].
            timestep: entry of `timesteps`; only the first call reads it, and only if no begin index is set.
            sample: the sample that the model was evaluated on, [B, C, height, width].
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

        velocity = -model_output.float()
        sigma, sigma_next = self.sigmas[index : index + 2].tolist()
        length, mean_velocity = sigma - sigma_next, velocity
        if self._velocity is not None and not self._restarts[index]:
            ratio = length / (2 * (float(self.sigmas[index - 1]) - sigma))
            mean_velocity = (1 + ratio) * velocity - ratio * self._velocity
        prev_sample = (sample.float() + length * mean_velocity).to(model_output.dtype)

        self._velocity = velocity
        self._step_index += 1
        if not return_dict:
            return (prev_sample,)
        return SchedulerOutput(prev_sample=prev_sample)
