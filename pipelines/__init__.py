from .pipeline_change3d import Change3DPipeline
from .pipeline_lightningdit import LightningDiTPipeline
from .pipeline_lightningdit_img2img import LightningDiTImg2ImgPipeline
from .pipeline_lightningdit_interpolation import LightningDiTInterpolationPipeline
from .pipeline_lightningdit_likelihood import LightningDiTLikelihoodPipeline
from .pipeline_vavae_reconstruction import VAVAEReconstructionPipeline

__all__ = [
    "Change3DPipeline",
    "LightningDiTImg2ImgPipeline",
    "LightningDiTInterpolationPipeline",
    "LightningDiTLikelihoodPipeline",
    "LightningDiTPipeline",
    "VAVAEReconstructionPipeline",
]
