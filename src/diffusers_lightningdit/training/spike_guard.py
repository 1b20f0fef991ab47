# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""When to skip an optimiser step, and when to give up on the weights and go back to a checkpoint."""

import math
import statistics
from collections import deque
from collections.abc import Mapping


class TrainingDiverged(RuntimeError):
    """Training cannot go on; the message is one line."""


class SpikeGuard:
    """Judges each step by its loss and its gradient norm (before clipping), both over the whole global batch.

    A step is bad if either is NaN or infinite, or greater than a factor times its median over the last `window` good
    steps, once there are `window / 4` of them. `patience` bad steps in a row mean that the weights themselves are bad.

    Args:
        loss_factor: above 1.
        grad_norm_factor: above 1. Clipping tames what is below.
        window: good steps that are remembered, at least 4.
        patience: at least 1.
        max_rollbacks: from one checkpoint; one more raises `TrainingDiverged`.
        advice: settings of the run that may help then, for that message.
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
        self.num_skipped = 0  # in all
        self.num_bad_in_a_row = 0
        self.num_rollbacks = 0  # in all
        self.rollbacks_from = (-1, 0)  # step of a checkpoint, and how often it was gone back to

    def check(
        self,
        loss: float,
        grad_norm: float,
        may_overflow: bool = False,
        only_finite: Mapping[str, float] | None = None,
    ) -> str | None:
        """What is wrong with a step, in words; None for a good one.

        Args:
            loss, grad_norm: of the step.
            may_overflow: infinite or NaN gradients of a finite loss are a loss scaler's business (fp16), not ours.
            only_finite: other numbers of the step by name, which have no history.
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
            if value > factor * median:
                return f"{name} is {value:.4g}, over {factor:g} times its median of {median:.4g}"
        return None

    def forget_history(self) -> None:
        """Before the first step towards another objective, whose losses and gradients are of another size."""
        self.losses.clear()
        self.grad_norms.clear()

    @property
    def must_roll_back(self) -> bool:
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
        """As JSON can hold it, without a loss of bits."""
        return {
            "losses": list(self.losses),
            "grad_norms": list(self.grad_norms),
            "num_skipped": self.num_skipped,
            "num_bad_in_a_row": self.num_bad_in_a_row,
            "num_rollbacks": self.num_rollbacks,
            "rollbacks_from": list(self.rollbacks_from),
        }

    def load_state_dict(self, state: dict) -> None:
        self.losses = deque(state["losses"], maxlen=self.window)
        self.grad_norms = deque(state["grad_norms"], maxlen=self.window)
        self.num_skipped = state["num_skipped"]
        self.num_bad_in_a_row = state["num_bad_in_a_row"]
        self.num_rollbacks = state["num_rollbacks"]
        self.rollbacks_from = tuple(state["rollbacks_from"])
