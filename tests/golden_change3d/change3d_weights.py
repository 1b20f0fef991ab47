"""The weights of the recorded Change3D models, drawn again by the rule of the recording."""

import hashlib
import json
import math
from pathlib import Path

import torch

from diffusers_lightningdit.models.change3d import sinusoidal_positions
from diffusers_lightningdit.original.change3d import (
    NUM_POSITIONS,
    POSITIONS,
    WIDTH,
    change3d_rows,
    empty_change3d,
    unused_shapes,
)

TASKS = {"bcd": "binary", "scd": "semantic", "bda": "damage", "cc": "captioning"}


def recorded_config(case: dict) -> dict:
    """Return the arguments of `Change3DModel` for an entry of configs.json."""
    task = TASKS[case["task"]]
    config = {"task": task, "sample_size": (case["H"], case["W"])}
    if task == "captioning":
        config |= {"vocab_size": case["vocab"], "num_caption_layers": case["n_layer"]}
    elif task != "binary":
        config["num_classes"] = case["num_class"]
    return config


def original_shapes(config: dict) -> dict[str, list[int]]:
    """Return the names and shapes of all tensors of an original checkpoint."""
    model = empty_change3d(config)
    state_dict = model.state_dict()
    used = {row.original: list(row.to_original(state_dict).shape) for row in change3d_rows(model)}
    return used | unused_shapes(config)


def drawn(key: str, shape: list[int], generator: torch.Generator) -> torch.Tensor:
    """Draw a tensor: the first rule that fits its name decides how u, uniform in [0, 1), is scaled."""
    u = torch.rand(shape, generator=generator)
    name = key.rpartition(".")[2]
    if name == "running_var":
        return u + 0.5
    if name == "running_mean":
        return (u * 2 - 1) * 0.2
    if name == "perception_frames" or "embedding" in key:
        return u * 2 - 1
    if len(shape) == 1:
        return u * 0.8 + 0.6 if name == "weight" else (u * 2 - 1) * 0.2
    return (u * 2 - 1) * math.sqrt(3 / math.prod(shape[1:]))


def draw_checkpoint(file: Path, name: str) -> dict[str, torch.Tensor]:
    """Return the state dict of a configuration, in the original's names.

    Args:
        file: The recorded configs.json.
        name: The name of the configuration, such as "bcd_64x64".

    Raises:
        ValueError: If the values are not those of the recording.
    """
    case = json.loads(file.read_text())["configs"][name]
    generator, digest = torch.Generator().manual_seed(case["seed"]), hashlib.sha256()
    state_dict = {}
    for key, shape in sorted(original_shapes(recorded_config(case)).items()):
        if key == POSITIONS:
            state_dict[key] = sinusoidal_positions(NUM_POSITIONS, WIDTH)[:, None]
        elif key.endswith("num_batches_tracked"):
            state_dict[key] = torch.tensor(0)
        else:
            state_dict[key] = drawn(key, shape, generator)
            digest.update(state_dict[key].numpy().tobytes())
    if digest.hexdigest() != case["weights_sha256"]:
        raise ValueError(
            f"{name}: the drawn weights have the sha256 {digest.hexdigest()}; required: {case['weights_sha256']}, as "
            "recorded (another rule, other names or shapes)"
        )
    return state_dict
