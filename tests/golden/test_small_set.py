"""The small form of the recorded set: its size, its recipes, and that it is cut from the whole set."""

import json
from pathlib import Path

import pytest
import torch
from cut_golden import MAX_FILE, MAX_TOTAL, cut_golden
from safetensors.torch import load_file, save_file
from small_set import TENSORS, read_recipe, recorded_part, write_recipe

SMALL_SET = Path(__file__).parent
WHOLE_SET = SMALL_SET.parents[2] / "shared" / "golden"


def recorded_files(folder: Path) -> dict[str, Path]:
    return {
        str(path.relative_to(folder)): path
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc", ".md")
    }


def state_dict() -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Two parameters drawn by the rule, a table that is not, and their draws."""
    generator = torch.Generator().manual_seed(5)
    weights = {"norm.weight": 1 + 0.1 * torch.randn(4, generator=generator), "table": torch.arange(3.0)}
    weights["proj.weight"] = 0.1 * torch.randn(2, 3, generator=generator)
    return weights, [{"names": "norm|proj", "seed": 5, "std": 0.1}]


def test_size():
    sizes = [path.stat().st_size for path in recorded_files(SMALL_SET).values()]
    assert max(sizes) <= MAX_FILE
    assert sum(sizes) <= MAX_TOTAL


def test_a_recipe_restores_the_checkpoint(tmp_path):
    weights, draws = state_dict()
    file = tmp_path / "ckpt.pt"
    write_recipe({"ema": weights, "model": weights, "step": 3}, file, {"ema": draws, "model": draws})
    restored = read_recipe(file)
    assert restored["step"] == 3
    for entry in ("ema", "model"):
        assert list(restored[entry]) == list(weights)
        assert all(torch.equal(restored[entry][name], value) for name, value in weights.items())
    assert load_file(tmp_path / f"ckpt.pt{TENSORS}").keys() == {"ema/table"}  # stored once


def test_other_numbers_are_refused(tmp_path):
    weights, draws = state_dict()
    file = tmp_path / "ckpt.pt"
    draws[0]["seed"] = 6
    with pytest.raises(ValueError, match=r"ckpt\.pt: the drawn values of `ema` sum to"):
        write_recipe({"ema": weights}, file, {"ema": draws})
    draws[0]["seed"] = 5
    with pytest.raises(ValueError, match="does not restore its entry `ema`"):
        weights["norm.weight"] = weights["norm.weight"].flip(0)
        write_recipe({"ema": weights}, file, {"ema": draws})


def test_recorded_part():
    values = torch.arange(24).view(4, 6)
    assert torch.equal(recorded_part(values, values), values)
    assert torch.equal(recorded_part(values, values[::2, ::3]), values[::2, ::3])


@pytest.mark.skipif(not WHOLE_SET.is_dir(), reason="cuts the whole recorded set, which is not beside this checkout")
def test_cutting_the_whole_set_gives_the_small_one(tmp_path):
    cut_golden(WHOLE_SET, tmp_path)
    ours, again = recorded_files(SMALL_SET), recorded_files(tmp_path)
    assert ours.keys() == again.keys()
    for name, path in ours.items():
        if path.suffix == ".safetensors":  # other versions may arrange the same tensors differently
            before, after = load_file(path), load_file(again[name])
            assert before.keys() == after.keys()
            assert all(torch.equal(before[key], after[key]) for key in before), name
        else:
            assert path.read_bytes() == again[name].read_bytes(), name


def test_a_file_of_no_pattern_is_named(tmp_path):
    (tmp_path / "whole" / "dit").mkdir(parents=True)
    for file, content in (
        ("sampling/runs.json", {"seed_weights": 1, "weight_std": 0.1}),
        ("vae/marvae/case.json", {"seed": 1, "std": 0.1}),
        ("vae/vavae/case.json", {"seed": 1, "std": 0.1}),
    ):
        (tmp_path / "whole" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "whole" / file).write_text(json.dumps(content))
    save_file({"x": torch.zeros(1)}, tmp_path / "whole" / "new.safetensors")
    with pytest.raises(ValueError, match=r"new\.safetensors fits no pattern; required: one of COPIED"):
        cut_golden(tmp_path / "whole", tmp_path / "small")
