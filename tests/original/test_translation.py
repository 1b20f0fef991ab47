"""Entries of checkpoints as state dicts."""

import pytest
import torch

from diffusers_lightningdit.original.translation import plain_state_dict


def test_state_dict_prefix_and_types():
    tensor = torch.zeros(1)
    assert plain_state_dict({"module.a": tensor, "module.module.b": tensor}, "x").keys() == {"a", "module.b"}
    assert plain_state_dict({"module.a": tensor, "b": tensor}, "x").keys() == {"module.a", "b"}
    with pytest.raises(ValueError, match="x has the entry `a` of type int"):
        plain_state_dict({"a": 3}, "x")
    for empty in ({}, None, tensor):
        with pytest.raises(ValueError, match="x holds no weights"):
            plain_state_dict(empty, "x")
