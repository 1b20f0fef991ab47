# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""No number is computed from NaN or infinity."""

import torch


def check_finite(**values: torch.Tensor) -> None:
    """Raise ValueError if a tensor holds NaN or infinity; the message has the keyword that it is given by."""
    for name, tensor in values.items():
        if not tensor.isfinite().all():
            raise ValueError(f"`{name}` holds NaN or infinity; required: finite values.")
