# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Numbers as they are written beside what they depend on: with the digits that reproduce."""

from typing import Any

SIGNIFICANT_DIGITS = 6


def significant(value: Any, digits: int = SIGNIFICANT_DIGITS) -> Any:
    """Floats rounded to so many significant digits, also those in lists and dictionaries; anything else as it is."""
    if isinstance(value, dict):
        return {name: significant(inner, digits) for name, inner in value.items()}
    if isinstance(value, list):
        return [significant(inner, digits) for inner in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value
