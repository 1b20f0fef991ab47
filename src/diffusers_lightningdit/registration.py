"""The one place that touches diffusers' private registries. tests/test_registration.py guards each use."""

import sys

import diffusers
from diffusers.hooks import _helpers as hook_helpers
from diffusers.pipelines import pipeline_loading_utils

from .models import AutoencoderVAVAE, LightningDiTTransformer2DModel
from .models.transformer_lightningdit import LightningDiTTransformerBlock
from .pipelines import LightningDiTPipeline

PACKAGE = __name__.partition(".")[0]


def register_with_diffusers() -> None:
    """Make the public classes known to diffusers; calling it again changes nothing.

    After it, `DiffusionPipeline.from_pretrained`, `AutoModel` and `save_pretrained` treat them as diffusers' own (short
    names in model_index.json, Hub loading without `trust_remote_code`), and caches find the transformer's blocks.
    """
    # A string `_class_name` in model_index.json or config.json is looked up as an attribute of `diffusers`.
    for cls in (AutoencoderVAVAE, LightningDiTTransformer2DModel, LightningDiTPipeline):
        setattr(diffusers, cls.__name__, cls)
    # A component's library is accepted, also from the Hub, if it is a key here; `save_pretrained` then writes it.
    pipeline_loading_utils.LOADABLE_CLASSES.setdefault(PACKAGE, {"ModelMixin": ["save_pretrained", "from_pretrained"]})
    # Repositories that also carry the code as `<component>/diffusers_lightningdit.py` use the installed package.
    setattr(diffusers.pipelines, PACKAGE, sys.modules[PACKAGE])
    # FirstBlockCache and its relatives have to know what a block returns.
    hook_helpers.TransformerBlockRegistry.register(
        LightningDiTTransformerBlock, hook_helpers.TransformerBlockMetadata(return_hidden_states_index=0)
    )
