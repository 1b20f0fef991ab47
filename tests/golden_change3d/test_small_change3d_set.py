"""The small form of what was recorded of Change3D: it is cut from the whole set, and its weights are drawn right."""

import json
import math
import shutil
from pathlib import Path

import pytest
from change3d_weights import draw_checkpoint, original_shapes, recorded_config
from cut_change3d import cut_golden

SMALL_SET = Path(__file__).parent
WHOLE_SET = SMALL_SET.parents[2] / "shared" / "change3d" / "golden"
needs_the_whole_set = pytest.mark.skipif(not WHOLE_SET.is_dir(), reason="the whole recorded set is not here")


@needs_the_whole_set
def test_the_small_set_is_cut_from_the_whole_one(tmp_path):
    cut_golden(WHOLE_SET, tmp_path)
    kept = {file.name for file in SMALL_SET.iterdir() if file.suffix in (".json", ".safetensors")}
    assert kept == {file.name for file in tmp_path.iterdir()}
    for name in kept:
        assert (tmp_path / name).read_bytes() == (SMALL_SET / name).read_bytes(), name


@needs_the_whole_set
def test_names_and_shapes_follow_from_the_code():
    cases = json.loads((SMALL_SET / "configs.json").read_text())["configs"]
    for name, case in cases.items():
        recorded = json.loads((WHOLE_SET / f"shapes_{name}.json").read_text())
        assert original_shapes(recorded_config(case)) == recorded


@pytest.mark.parametrize("name", ["bcd_64x64", "bcd_96x64", "scd_64x64_c7", "bda_64x64_c5", "cc_64x64_v43"])
def test_the_recorded_numbers_of_weights(name):
    """Counted without the tensors that no one trains: norms' buffers and the table of positions."""
    case = json.loads((SMALL_SET / "configs.json").read_text())["configs"][name]
    shapes = original_shapes(recorded_config(case))
    assert len(shapes) == case["n_state_keys"]
    buffers = ("running_mean", "running_var", "num_batches_tracked", ".pe")
    assert sum(math.prod(shape) for key, shape in shapes.items() if not key.endswith(buffers)) == case["n_params"]
    weights = draw_checkpoint(SMALL_SET / "configs.json", name)
    for key, (first, total) in case["weight_spot_checks"].items():
        assert weights[key].flatten()[0].item() == first
        assert weights[key].double().sum().item() == pytest.approx(total, rel=1e-9)


@needs_the_whole_set
def test_a_file_without_a_pattern_is_refused(tmp_path):
    shutil.copyfile(WHOLE_SET / "wordmap.json", tmp_path / "other.json")
    with pytest.raises(ValueError, match="fits no pattern"):
        cut_golden(tmp_path, tmp_path)


def test_other_weights_are_refused(tmp_path):
    content = json.loads((SMALL_SET / "configs.json").read_text())
    content["configs"]["bcd_64x64"]["seed"] += 1
    (tmp_path / "configs.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="bcd_64x64: the drawn weights have the sha256"):
        draw_checkpoint(tmp_path / "configs.json", "bcd_64x64")
