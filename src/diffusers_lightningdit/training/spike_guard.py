# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The judge of training steps: when to skip one, and when to go back to a checkpoint."""

import math
import statistics
from collections import deque
from collections.abc import Mapping


class TrainingDiverged(RuntimeError):
    """Training cannot go on; the message is one line."""


class SpikeGuard:
    """Judges each step by its loss and its gradient norm (before clipping), both over the whole global batch.

    A step is bad if either is NaN or infinite. Once there are `window / 4` good steps, it is also bad if either is a
    spike: with the median m over the last `window` good steps, the value x is a spike if

        x > m + (factor - 1) s,    s = m                                      if all remembered values are positive,
                                   s = max(|m|, 5 median of |x_i - m|)        otherwise.

    For positive values this is x > factor * m. A loss that may be negative (a log-likelihood) has no ratio to its
    median; s is then the size of the median or, for losses around zero, 5 times the median absolute deviation, which is
    3.4 standard deviations of normally distributed losses. `patience` bad steps in a row mean that the weights
    themselves are bad.

    Args:
        loss_factor: The factor for losses, above 1.
        grad_norm_factor: The factor for gradient norms, above 1. Clipping tames those below.
        window: The number of good steps that are remembered, at least 4.
        patience: The number of bad steps in a row that lead back to a checkpoint, at least 1.
        max_rollbacks: The number of returns to one checkpoint; one more raises `TrainingDiverged`.
        advice: Settings of the run that may help then, for that message.
    """

    def __init__(
        self,
        loss_factor: float = 3.0,
        grad_norm_factor: float = 10.0,
        window: int = 200,
        patience: int = 10,
        max_rollbacks: int = 3,
        advice: str = "a lower `learning_rate` or `max_grad_norm`",
    ):
        self.loss_factor = loss_factor
        self.grad_norm_factor = grad_norm_factor
        self.window = window
        self.patience = patience
        self.max_rollbacks = max_rollbacks
        self.advice = advice
        self.losses: deque[float] = deque(maxlen=window)
        self.grad_norms: deque[float] = deque(maxlen=window)
        self.num_skipped = 0  # in the whole run
        self.num_bad_in_a_row = 0
        self.num_rollbacks = 0  # in the whole run
        self.rollbacks_from = (-1, 0)  # step of a checkpoint, and how often it was gone back to

    def check(
        self,
        loss: float,
        grad_norm: float,
        may_overflow: bool = False,
        only_finite: Mapping[str, float] | None = None,
    ) -> str | None:
        """Judge a step: None for a good one, else the reason why it is bad, in words.

        Args:
            loss, grad_norm: The loss and the gradient norm of the step.
            may_overflow: Leave infinite or NaN gradients of a finite loss to a loss scaler (fp16).
            only_finite: Other numbers of the step by name, which have no history.
        """
        reason = self._spike("loss", loss, self.losses, self.loss_factor)
        for name, value in (only_finite or {}).items():
            if reason is None and not math.isfinite(value):
                reason = f"{name} is {value}"
        overflow = may_overflow and reason is None and not math.isfinite(grad_norm)
        if reason is None and not overflow:
            reason = self._spike("gradient norm", grad_norm, self.grad_norms, self.grad_norm_factor)
        if reason is not None:
            self.num_skipped += 1
            self.num_bad_in_a_row += 1
            return reason
        self.num_bad_in_a_row = 0
        if not overflow:
            self.losses.append(loss)
            self.grad_norms.append(grad_norm)
        return None

    def _spike(self, name: str, value: float, history: deque[float], factor: float) -> str | None:
        if not math.isfinite(value):
            return f"{name} is {value}"
        if len(history) >= self.window // 4:
            median = statistics.median(history)
            if min(history) > 0:
                if value > factor * median:
                    return f"{name} is {value:.4g}, over {factor:g} times its median of {median:.4g}"
            else:
                deviation = statistics.median(abs(past - median) for past in history)
                limit = median + (factor - 1) * max(abs(median), 5 * deviation)
                if value > limit:
                    return f"{name} is {value:.4g}, over {limit:.4g}, the limit for its median of {median:.4g}"
        return None

    def forget_history(self) -> None:
        """Forget the good steps, before the first step towards another objective, whose losses are of another size."""
        self.losses.clear()
        self.grad_norms.clear()

    @property
    def must_roll_back(self) -> bool:
        """Whether as many steps in a row were skipped as `patience` allows."""
        return self.num_bad_in_a_row >= self.patience

    def state_after_rollback(self, checkpoint_step: int, checkpoint_state: dict) -> dict:
        """The state to go on with: a checkpoint's history, and what has been counted since.

        Raises:
            TrainingDiverged: if `max_rollbacks` from this checkpoint have not helped.
        """
        step, count = self.rollbacks_from
        count = count + 1 if step == checkpoint_step else 1
        if count > self.max_rollbacks:
            raise TrainingDiverged(
                f"training went bad again after {self.max_rollbacks} returns to the checkpoint of step "
                f"{checkpoint_step}; required: {self.advice}, or an earlier checkpoint in `resume_from_checkpoint`."
            )
        return {
            **checkpoint_state,
            "num_skipped": self.num_skipped,
            "num_bad_in_a_row": 0,
            "num_rollbacks": self.num_rollbacks + 1,
            "rollbacks_from": [checkpoint_step, count],
        }

    # -- saved with a checkpoint --

    def state_dict(self) -> dict:
        """The state in plain values, which JSON holds without a loss of bits."""
        return {
            "losses": list(self.losses),
            "grad_norms": list(self.grad_norms),
            "num_skipped": self.num_skipped,
            "num_bad_in_a_row": self.num_bad_in_a_row,
            "num_rollbacks": self.num_rollbacks,
            "rollbacks_from": list(self.rollbacks_from),
        }

    def load_state_dict(self, state: dict) -> None:
        """Take over the state that `state_dict` returned."""
        self.losses = deque(state["losses"], maxlen=self.window)
        self.grad_norms = deque(state["grad_norms"], maxlen=self.window)
        self.num_skipped = state["num_skipped"]
        self.num_bad_in_a_row = state["num_bad_in_a_row"]
        self.num_rollbacks = state["num_rollbacks"]
        self.rollbacks_from = tuple(state["rollbacks_from"])
