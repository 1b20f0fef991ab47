"""The one place that touches diffusers' private registries. tests/test_registration.py guards each use."""

import logging
import sys

import diffusers
from diffusers.hooks import _helpers as hook_helpers
from diffusers.loaders import single_file_model
from diffusers.pipelines import pipeline_loading_utils

from . import pipelines
from .guiders import InternalGuidance, IntervalGuidance
from .models import AutoencoderVAVAE, Change3DModel, LightningDiTTransformer2DModel
from .models.transformer_lightningdit import LightningDiTAttnProcessor, LightningDiTTransformerBlock
from .original.change3d_single_file import CHANGE3D_SINGLE_FILE_CLASSES
from .original.single_file import SINGLE_FILE_CLASSES
from .schedulers import FlowMatchAdamsBashforthScheduler, FlowMatchSDEScheduler, FlowMatchUCGMScheduler

PACKAGE = __name__.partition(".")[0]

# `ModelMixin.to(dtype)` of diffusers 0.42 warns about "modules that should be kept in float32". It turns the None of a
# model without such modules into an empty list, and then warns unless the list is None: at every cast of every model.
CASTING_LOGGER = "diffusers.models.modeling_utils"


def _names_a_module(record: logging.LogRecord) -> bool:
    return "should be kept in float32: []" not in record.getMessage()


def register_with_diffusers() -> None:
    """Make the public classes known to diffusers; calling it again changes nothing.

    Afterwards, `DiffusionPipeline.from_pretrained`, `AutoModel` and `save_pretrained` treat them as diffusers' own:
    they have short names in model_index.json, and load from the Hub without `trust_remote_code`. `from_single_file`
    reads original checkpoints, caches and layer skipping find the transformer's blocks, and casting a model prints no
    empty warning.
    """
    # diffusers looks up a string `_class_name` of model_index.json or config.json as its own attribute.
    schedulers = [FlowMatchAdamsBashforthScheduler, FlowMatchSDEScheduler, FlowMatchUCGMScheduler]
    guiders = [InternalGuidance, IntervalGuidance]
    classes = [AutoencoderVAVAE, Change3DModel, LightningDiTTransformer2DModel, *schedulers, *guiders]
    for cls in [*classes, *(getattr(pipelines, name) for name in pipelines.__all__)]:
        setattr(diffusers, cls.__name__, cls)
    # diffusers accepts the library of a component, also from the Hub, if it is a key here. `save_pretrained` writes it.
    methods = ["save_pretrained", "from_pretrained"]
    bases = ("ModelMixin", "SchedulerMixin", "BaseGuidance")
    pipeline_loading_utils.LOADABLE_CLASSES.setdefault(PACKAGE, dict.fromkeys(bases, methods))
    # Repositories that also carry the code as `<component>/diffusers_lightningdit.py` use the installed package.
    setattr(diffusers.pipelines, PACKAGE, sys.modules[PACKAGE])
    # `from_single_file` takes the first class here that a model is a subclass of; AutoencoderVAVAE must come before its
    # base class AutoencoderKL, whose mapping is another.
    classes = single_file_model.SINGLE_FILE_LOADABLE_CLASSES
    own = SINGLE_FILE_CLASSES | CHANGE3D_SINGLE_FILE_CLASSES
    known = {name: functions for name, functions in classes.items() if name not in own}
    classes.clear()
    classes.update(own | known)
    # FirstBlockCache and its relatives have to know what a block returns ...
    hook_helpers.TransformerBlockRegistry.register(
        LightningDiTTransformerBlock, hook_helpers.TransformerBlockMetadata(return_hidden_states_index=0)
    )
    # ... and skipping attention alone (SLG, PAG) what an attention that does nothing returns: its first argument.
    hook_helpers.AttentionProcessorRegistry.register(
        LightningDiTAttnProcessor,
        hook_helpers.AttentionProcessorMetadata(
            skip_processor_output_fn=hook_helpers._skip_attention___ret___hidden_states
        ),
    )
    logging.getLogger(CASTING_LOGGER).addFilter(_names_a_module)
