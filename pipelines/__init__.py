from .pipeline_lightningdit import LightningDiTPipeline

__all__ = ["LightningDiTPipeline"]
