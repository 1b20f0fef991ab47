"""A training script, named first, in processes that shard the model by FSDP2 on the CPU.

`accelerate launch` does not offer it. Only the choice of FSDP is made here; the sharding is Accelerate's own.
"""

import importlib
import sys
from pathlib import Path

from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, TorchDynamoPlugin

from diffusers_lightningdit.training.transformer.loop import NAME

sys.path.insert(0, str(Path(__file__).parents[2] / "training_scripts"))

script = importlib.import_module(sys.argv.pop(1))

plugin = FullyShardedDataParallelPlugin(
    fsdp_version=2,
    auto_wrap_policy="transformer_based_wrap",
    transformer_cls_names_to_wrap=["LightningDiTTransformerBlock"],
    reshard_after_forward=True,
)
precision = "bf16" if "mixed_precision=bf16" in sys.argv else "no"
AcceleratorState(precision, cpu=True, dynamo_plugin=TorchDynamoPlugin(), fsdp_plugin=plugin, _from_accelerator=True)
PartialState._shared_state["distributed_type"] = DistributedType.FSDP
AcceleratorState._shared_state["fsdp_plugin"] = plugin

make_run = script.make_transformer_run


def make_and_say(*arguments, **options):
    state = make_run(*arguments, **options)
    print("sharded as", type(state.model(NAME)).__name__)
    return state


script.make_transformer_run = make_and_say
script.main()
