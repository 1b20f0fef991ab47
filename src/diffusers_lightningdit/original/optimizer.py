"""The optimiser's state in a training checkpoint, and how such a checkpoint is continued."""

import math
from dataclasses import dataclass

import torch

from ..files import read_checkpoint
from .transformer import embedded_config, empty_transformer, transformer_from_original, transformer_rows
from .translation import check_shape, check_values, naming, plain_state_dict

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class OriginalTraining:
    """A training checkpoint in our names: config, weights, averaged weights, AdamW's moments, and steps done."""

    config: dict
    weights: dict[str, torch.Tensor]
    average: dict[str, torch.Tensor]
    moments: dict[str, dict[str, torch.Tensor]]  # by entry, exp_avg and exp_avg_sq, then by parameter
    num_steps: int


def read_training_checkpoint(file: str, num_attention_heads: int | None = None) -> OriginalTraining:
    """Read a checkpoint of the original's training layout, `{"model", "ema", "opt", "config"}`.

    Raises:
        ValueError: in one line, if it is none, or its parts contradict each other.
    """
    checkpoint = read_checkpoint(file)
    with naming(file):
        for entry in ("model", "ema", "opt"):
            if not isinstance(checkpoint.get(entry), dict):
                raise ValueError(f"has no entry `{entry}`; required: a training checkpoint, model, ema and opt.")
        yaml = embedded_config(checkpoint)
        original = plain_state_dict(checkpoint["model"], "entry `model`")
        config, weights = transformer_from_original(original, num_attention_heads, yaml)
        average_config, average = transformer_from_original(
            plain_state_dict(checkpoint["ema"], "entry `ema`"), num_attention_heads, yaml
        )
        if average_config != config:
            raise ValueError("entry `ema` has another architecture than `model`; required: the same.")
        moments, num_steps = _moments(config, original, checkpoint["opt"])
    return OriginalTraining(config, weights, average, moments, num_steps)


def _moments(config: dict, original: dict[str, torch.Tensor], optimizer: dict) -> tuple[dict, int]:
    """AdamW's state under our names. It is an average of gradients and of their squares, entry by entry, so that the
    rows that translate weights translate it as well."""
    # the optimiser counts parameters in the order of the model's, in which buffers (the rotary tables) have no number
    names = [name for name in original if not name.startswith("feat_rope.")]
    groups, states = optimizer.get("param_groups"), optimizer.get("state")
    is_one_group = isinstance(groups, list) and len(groups) == 1 and isinstance(groups[0], dict)
    numbers = groups[0].get("params") if is_one_group else None
    if not isinstance(numbers, list) or not isinstance(states, dict):
        raise ValueError("entry `opt` is no state of an optimiser with one group of parameters.")
    if len(numbers) != len(names):
        raise ValueError(f"entry `opt` has {len(numbers)} parameters; required: {len(names)}, as `model` has.")
    name_of = dict(zip(numbers, names, strict=True))
    steps = set()
    moments = {entry: {} for entry in MOMENTS}
    rows = {row.original: row for row in transformer_rows(empty_transformer(config))}
    for number, name in name_of.items():
        state = states.get(number)
        if name == "pos_embed":  # which the original registers with the optimiser but never trains
            continue
        if not isinstance(state, dict) or not {"step", *MOMENTS} <= state.keys():
            raise ValueError(f"entry `opt` has no state of `{name}`; required: step, exp_avg and exp_avg_sq.")
        step = state["step"]  # a number, or a tensor of one
        if isinstance(step, torch.Tensor) and step.numel() == 1:
            step = step.item()
        if not isinstance(step, int | float) or not 0 <= step < math.inf:
            raise ValueError(f"entry `opt` has the step {step!r} of `{name}`; required: one number, at least 0.")
        steps.add(int(step))
        named = {f"opt.{entry} of {name}": state[entry] for entry in MOMENTS}
        check_values(plain_state_dict(named, "entry `opt`"))
        for entry, (key, values) in zip(MOMENTS, named.items(), strict=True):
            check_shape(key, values, original[name].shape)
            moments[entry] |= rows[name].to_ours(values)
    if len(steps) != 1:
        raise ValueError(f"entry `opt` has parameters at steps {sorted(steps)}; required: one step.")
    return moments, steps.pop()
