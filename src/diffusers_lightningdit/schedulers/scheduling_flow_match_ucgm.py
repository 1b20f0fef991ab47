# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""UCGM-S, a sampler of straight-path flow models that extrapolates between steps (arXiv 2505.07447, algorithm 2).

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


def check_count(name: str, value) -> None:
    """Raise ValueError unless a value is a whole number from 1 to a million."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= value <= 1_000_000:
        raise ValueError(f"`{name}` is {value!r}; required: an integer of at least 1 and at most 1000000.")


class FlowMatchUCGMScheduler(SchedulerMixin, ConfigMixin):
    """Steps along estimates of data and noise, which are extrapolated over the evaluations.

    An evaluation at t_i gives the estimates data x^ = x + (1 - t_i) v and noise z^ = x - t_i v with the velocity v.
    From the third evaluation on, both are carried further by their last change, x~ = x^ + r (x^ - x^_before) with the
    `extrapolation_ratio` r. The next sample is

        x = t_(i+1) x~ + (1 - t_(i+1)) (sqrt(1 - s) z~ + sqrt(s) noise)

    with the `stochastic_ratio` s: 0 for flows, of which another narrows the distribution, and 1 for networks that were
    distilled to a few steps. The result is x^ of the last evaluation. With ratios of 0 this is Euler's method. It stays
    a method of first order: extrapolation about halves the error of 5 to 10 evaluations, and gains little from 50 on.

    The times of the evaluations are the warp (1 - (1 - u^a)^b)^c of equal steps in u from `start_gap` to 1 - `end_gap`.

    The defaults are the published setting of LightningDiT. Tuned few-step networks of the same paper were sampled with
    `time_warp=(1, 1, 1)`, `extrapolation_ratio=0`, `stochastic_ratio=1`, `end_gap=0.6`.

    Args:
        num_train_timesteps: The scale of `timesteps` = `num_train_timesteps` * sigma.
        time_warp: (a, b, c), positive.
        extrapolation_ratio: r, within [0, 1].
        stochastic_ratio: s, within [0, 1]; "auto": |t_1 - t_0| 2 (1 - t_0) / (1 - t_1)^2 of the first step, at most 1.
        solver_order: 1; or 2, which evaluates the model again on the sample of each step, and steps anew with the mean
            of both estimates of the noise.
        start_gap: The first u, within [0, 1). Order 2 divides by the first t: greater than 0.
        end_gap: 1 minus the last u, within [0, 1 - `start_gap`). 0: the last step ends there, and begins before.

    Raises:
        ValueError: For a value outside these.

    Example:
        >>> from diffusers import DiffusionPipeline
        >>> from diffusers_lightningdit import FlowMatchUCGMScheduler
        >>> pipe = DiffusionPipeline.from_pretrained("model_cards/lightningdit-digits")
        >>> pipe.scheduler = FlowMatchUCGMScheduler()
        >>> image = pipe("seven", num_inference_steps=10).images[0]
    """

    _compatibles = []
    # Saved beside the weights, for those who have not installed the package; see HubMixin of the pipelines.
    _source_code = __spec__.loader.get_source(__name__)

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        time_warp: tuple[float, float, float] = (1.17, 0.8, 1.1),
        extrapolation_ratio: float = 0.5,
        stochastic_ratio: float | str = 0.0,
        solver_order: int = 1,
        start_gap: float = 0.001,
        end_gap: float = 0.001,
    ):
        check_count("num_train_timesteps", num_train_timesteps)

        def is_ratio(value) -> bool:
            return isinstance(value, Real) and 0 <= value <= 1

        is_warp = isinstance(time_warp, (tuple, list)) and len(time_warp) == 3
        is_start = is_ratio(start_gap) and start_gap < 1
        for name, value, fits, required in (
            ("time_warp", time_warp, is_warp and all(isinstance(x, Real) and 0 < x < math.inf for x in time_warp),
             "three positive numbers (a, b, c)"),
            ("extrapolation_ratio", extrapolation_ratio, is_ratio(extrapolation_ratio), "within [0, 1]"),
            ("stochastic_ratio", stochastic_ratio,
             is_ratio(stochastic_ratio) or (isinstance(stochastic_ratio, str) and stochastic_ratio == "auto"),
             "within [0, 1], or 'auto'"),
            ("solver_order", solver_order, isinstance(solver_order, Integral) and solver_order in (1, 2), "1 or 2"),
            ("start_gap", start_gap, is_start and (start_gap > 0 or solver_order == 1),
             "within [0, 1), and above 0 with solver_order=2, which divides by the first t"),
            ("end_gap", end_gap, is_start and is_ratio(end_gap) and end_gap < 1 - start_gap,
             f"within [0, {1 - start_gap if is_start else 1}), 1 minus the first u"),
        ):  # fmt: skip
            if not fits:
                raise ValueError(f"`{name}` is {value!r}; required: {required}.")
        self.sigmas = self.timesteps = self.num_inference_steps = None
        self._step_index = self._begin_index = None

    # -- grid -----------------------------------------------------------------------------------------------------

    @property
    def order(self) -> int:
        """Model evaluations in a step."""
        return self.config.solver_order

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

    def time_grid(self, num_points: int) -> torch.Tensor:
        """t of the points at which the data are estimated, float64 [num_points]."""
        first, last = self.config.start_gap, 1 - self.config.end_gap
        if self.config.end_gap == 0:
            u = torch.linspace(first, last, num_points + 1, dtype=torch.float64)[:-1]
        else:
            u = torch.linspace(first, last, num_points, dtype=torch.float64)
        a, b, c = self.config.time_warp
        return (1 - (1 - u**a) ** b) ** c

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Set `sigmas` and `timesteps`, one entry for each evaluation of the model (`sigmas` has a 0 at its end).

        Args:
            num_inference_steps: The number of evaluations, at least 1. Order 2 takes an odd number of them: of an even
                one, it leaves out the last.
            device: Where `timesteps` are put; `sigmas` stay on the CPU.

        Raises:
            ValueError: If `num_inference_steps` is no such number.
        """
        check_count("num_inference_steps", num_inference_steps)
        times = self.time_grid(num_inference_steps if self.order == 1 else (num_inference_steps + 1) // 2)
        if self.order == 2:  # every point but the first is visited twice, on the step's sample and on the corrected one
            times = times.repeat_interleave(2)[1:]
        self._times = times.tolist()
        sigmas = 1 - times
        self.sigmas = torch.cat([sigmas, sigmas.new_zeros(1)]).float()
        self.timesteps = (sigmas * self.config.num_train_timesteps).to(device, torch.float32)
        self.num_inference_steps = num_inference_steps
        self._step_index = self._begin_index = None
        self._estimates: list[tuple[torch.Tensor, torch.Tensor]] = []  # (data, noise) of the last two points
        self._state = self._start = None

    # -- step -----------------------------------------------------------------------------------------------------

    def index_for_timestep(self, timestep: float | torch.Tensor) -> int:
        """Index in `timesteps`; of the two evaluations at an inner point the one that starts a step."""
        return (self.timesteps == timestep).nonzero()[-1].item()

    def _stochastic_ratio(self) -> float:
        if self.config.stochastic_ratio != "auto":
            return self.config.stochastic_ratio
        first, second = self._times[:2]
        return min(abs(second - first) * 2 * (1 - first) / (1 - second) ** 2, 1.0)

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
            timestep: An entry of `timesteps`; only the first call reads it, and only if no begin index is set.
            sample: The model was evaluated on it, [B, C, height, width].
            generator: One, or one for each image, to draw the noise with. None is drawn for `stochastic_ratio` 0.
            variance_noise: Standard normal noise to use instead, [B, C, height, width].
            return_dict: Whether to return a `SchedulerOutput` instead of a tuple.

        Raises:
            ValueError: If `set_timesteps` has not been called, or all evaluations are done.
        """
        if self.sigmas is None:
            raise ValueError("`step` needs a grid; call `set_timesteps` first.")
        if self._step_index is None:
            self._step_index = self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index
        index = self._step_index
        if index >= len(self.timesteps):
            raise ValueError(f"`step` was called {index + 1} times; the grid has {len(self.timesteps)} evaluations.")

        t, state = self._times[index], self._unrounded(sample)
        velocity = -model_output.to(state.dtype)
        if self.order == 2 and index % 2 == 1:
            state = self._correct(t, state, velocity)
        elif index < len(self.timesteps) - 1:
            state = self._predict(t, self._times[index + 1], state, velocity, generator, variance_noise)
        else:
            state = state + (1 - t) * velocity

        self._step_index += 1
        self._state = state
        prev_sample = state.to(model_output.dtype)
        if not return_dict:
            return (prev_sample,)
        return SchedulerOutput(prev_sample=prev_sample)

    def _unrounded(self, sample: torch.Tensor) -> torch.Tensor:
        """The state that was returned as `sample`, in float64, unless somebody has changed the sample since.

        Differences of estimates, and quotients of times by the first t, make the rounding of samples visible.
        """
        if self._state is not None and torch.equal(self._state.to(sample.dtype), sample):
            return self._state
        return sample.to(torch.float32 if sample.device.type == "mps" else torch.float64)

    def _predict(self, t, t_next, state, velocity, generator, variance_noise) -> torch.Tensor:
        """The state at `t_next`, by extrapolated estimates."""
        data, noise = state + (1 - t) * velocity, state - t * velocity
        extrapolated, mixed = data, noise
        if len(self._estimates) == 2:
            ratio = self.config.extrapolation_ratio
            data_before, noise_before = self._estimates[-1]
            extrapolated, mixed = data + ratio * (data - data_before), noise + ratio * (noise - noise_before)
        self._estimates = [*self._estimates[-1:], (data, noise)]
        self._start = t, state, mixed

        stochastic_ratio = self._stochastic_ratio()
        if stochastic_ratio > 0:
            if variance_noise is None:
                variance_noise = randn_tensor(
                    state.shape, generator=generator, device=state.device, dtype=torch.float32
                )
            mixed = (1 - stochastic_ratio) ** 0.5 * mixed + stochastic_ratio**0.5 * variance_noise.to(mixed)
        return t_next * extrapolated + (1 - t_next) * mixed

    def _correct(self, t, state, velocity) -> torch.Tensor:
        """The state at t, stepped to anew with the mean of the noise at both ends of the step."""
        start, state_at_start, noise_at_start = self._start
        noise = (noise_at_start + state - t * velocity) / 2
        return t / start * (state_at_start - (1 - start) * noise) + (1 - t) * noise
