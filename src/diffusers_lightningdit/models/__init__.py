from .autoencoder_vavae import AutoencoderVAVAE
from .change3d import Change3DModel
from .transformer_lightningdit import LightningDiTTransformer2DModel

__all__ = ["AutoencoderVAVAE", "Change3DModel", "LightningDiTTransformer2DModel"]
