"""VA-VAE and LightningDiT (arXiv 2501.01423) for diffusers. Importing this package makes its classes loadable there."""

# diffusers looks up `ModelMixin` in a third-party package's namespace to learn how its components load.
from diffusers import ModelMixin

from .models import AutoencoderVAVAE, LightningDiTTransformer2DModel
from .pipelines import LightningDiTPipeline
from .registration import register_with_diffusers

__version__ = "0.1.0.dev0"
__all__ = ["AutoencoderVAVAE", "LightningDiTPipeline", "LightningDiTTransformer2DModel", "ModelMixin"]

register_with_diffusers()
