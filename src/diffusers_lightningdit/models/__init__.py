from .autoencoder_vavae import AutoencoderVAVAE
from .transformer_lightningdit import LightningDiTTransformer2DModel

__all__ = ["AutoencoderVAVAE", "LightningDiTTransformer2DModel"]
