"""LightningDiT (arXiv 2501.01423) and Change3D (2503.18803). Importing this package makes them known to diffusers."""

# diffusers looks up these three in a third-party package's namespace to learn how its components load.
from diffusers import ModelMixin, SchedulerMixin
from diffusers.guiders import BaseGuidance

from .guiders import InternalGuidance, IntervalGuidance
from .models import AutoencoderVAVAE, Change3DModel, LightningDiTTransformer2DModel
from .pipelines import Change3DPipeline, LightningDiTPipeline
from .registration import register_with_diffusers
from .schedulers import FlowMatchAdamsBashforthScheduler, FlowMatchSDEScheduler, FlowMatchUCGMScheduler

__version__ = "0.1.0.dev0"
__all__ = [
    "AutoencoderVAVAE",
    "BaseGuidance",
    "Change3DModel",
    "Change3DPipeline",
    "FlowMatchAdamsBashforthScheduler",
    "FlowMatchSDEScheduler",
    "FlowMatchUCGMScheduler",
    "InternalGuidance",
    "IntervalGuidance",
    "LightningDiTPipeline",
    "LightningDiTTransformer2DModel",
    "ModelMixin",
    "SchedulerMixin",
]

register_with_diffusers()
