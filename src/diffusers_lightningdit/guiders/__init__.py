"""Guiders of diffusers: rules of guidance that pipelines and modular pipelines of any model take."""

from .internal_guidance import InternalGuidance
from .interval_guidance import IntervalGuidance

__all__ = ["InternalGuidance", "IntervalGuidance"]
