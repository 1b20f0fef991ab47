"""One of two processes that share the tokens of an image; started by test_features_transformer.py.

Arguments: rank, number of processes, a file to meet at, a file for rank 0's results.
"""

import os
import sys

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from test_features_transformer import MORE, inputs, outputs, tiny

VARIANTS = [{}, {"use_rope": False, "use_qk_norm": True}, MORE]


@torch.no_grad()
def main(rank: int, world_size: int, store: str, results: str) -> None:
    torch.set_num_threads(1)
    # diffusers 0.42 divides by the number of accelerators, also where gloo needs none
    torch.accelerator.device_count = lambda: 1
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    found = []
    for changes in VARIANTS:
        model = tiny(**changes)
        num_tokens = []
        model.transformer_blocks[1].register_forward_pre_hook(lambda _, args, n=num_tokens: n.append(args[0].shape[1]))
        model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=world_size))
        values = outputs(model) if changes == MORE else [model(*inputs()).sample]
        found.append({"outputs": values, "num_tokens": num_tokens})
    if rank == 0:
        torch.save(found, results)
    dist.barrier()
    # Without an end of the interpreter: gloo's threads may outlast the group, and end the process by abort then.
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
