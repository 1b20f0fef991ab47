"""Checkpoints of Change3D: every layout there and back, and what is wrong with a file."""

import pytest
import torch
from safetensors.torch import load_file

from diffusers_lightningdit import Change3DModel
from diffusers_lightningdit.original.change3d import (
    UNUSED_FILE,
    build_change3d,
    change3d_from_original,
    change3d_to_original,
    change3d_with_x3d,
    drawn_unused,
    initialize_from_x3d,
    read_change3d,
    read_change3d_folder,
    save_change3d,
    unused_shapes,
)

CONFIGS = {
    "bcd_64x64": {"task": "binary", "sample_size": 64},
    "bcd_96x64": {"task": "binary", "sample_size": (96, 64)},
    "scd_64x64_c7": {"task": "semantic", "sample_size": 64, "num_classes": 7},
    "bda_64x64_c5": {"task": "damage", "sample_size": 64, "num_classes": 5},
    "cc_64x64_v43": {
        "task": "captioning",
        "sample_size": 64,
        "vocab_size": 43,
        "num_caption_layers": 3,
        "max_caption_length": 52,
    },
}


def pair(state_dict: dict) -> dict:
    """The two dictionaries of a captioning checkpoint."""
    parts = {"encoder_image": "encoder.", "decoder": "decoder."}
    return {
        name: {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
        for name, prefix in parts.items()
    }


def kinetics(state_dict: dict) -> dict:
    """X3D_L.pyth with the weights of the encoder of a checkpoint."""
    prefix = "encoder.x3d."
    return {"model_state": {key[len(prefix) :]: v for key, v in state_dict.items() if key.startswith(prefix)}}


def identical(a: dict, b: dict) -> bool:
    if any(isinstance(value, dict) for value in a.values()):
        return a.keys() == b.keys() and all(identical(a[key], b[key]) for key in a)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


# -- There and back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_every_task_there_and_back_through_files(name, change3d_checkpoint, tmp_path):
    checkpoint = change3d_checkpoint(name)
    # as after training: counters that have counted, and a file of the original's own kind
    checkpoint = {k: torch.tensor(7) if k.endswith("num_batches_tracked") else v for k, v in checkpoint.items()}
    torch.save(checkpoint, tmp_path / "original.pth")
    parts = read_change3d(tmp_path / "original.pth")
    assert parts.config == CONFIGS[name]
    assert parts.unused.keys() == unused_shapes(parts.config).keys()
    save_change3d(parts, tmp_path / "saved")
    again = read_change3d_folder(tmp_path / "saved")
    assert identical(again.unused, parts.unused) and identical(again.state_dict, parts.state_dict)
    assert identical(change3d_to_original(again), checkpoint)


@pytest.mark.parametrize("layout", ["flat", "state_dict", "model", "module", "pair", "bfloat16"])
def test_every_layout_there_and_back(layout, change3d_checkpoint, tmp_path):
    checkpoint = change3d_checkpoint("cc_64x64_v43")
    if layout == "pair":
        checkpoint = pair(checkpoint)
    elif layout == "bfloat16":
        checkpoint = {key: value.bfloat16() if value.ndim else value for key, value in checkpoint.items()}
    elif layout != "flat":
        checkpoint = {f"{'module.' if layout == 'module' else ''}{key}": value for key, value in checkpoint.items()}
        checkpoint = {layout: checkpoint} if layout != "module" else checkpoint
    parts = change3d_from_original(checkpoint)
    save_change3d(parts, tmp_path)
    back = change3d_to_original(read_change3d_folder(tmp_path))
    if layout == "module":  # of data-parallel training, which the original takes off as well
        checkpoint = {key.removeprefix("module."): value for key, value in checkpoint.items()}
    assert identical(back, checkpoint)


def test_what_no_forward_pass_uses_is_not_in_the_model(change3d_checkpoint, tmp_path):
    parts = change3d_from_original(change3d_checkpoint("bcd_64x64"))
    save_change3d(parts, tmp_path)
    weights = load_file(tmp_path / "model" / "diffusion_pytorch_model.safetensors")
    floats = sum(value.numel() for key, value in weights.items() if "running" not in key and value.ndim)
    assert floats == build_change3d(parts).num_parameters() == 1_542_656 + 3 * 64 * 64
    assert (tmp_path / "model" / UNUSED_FILE).is_file()


def test_a_model_that_was_trained_here_has_drawn_weights_where_nothing_uses_them(tmp_path):
    for config in ({"task": "damage", "num_classes": 5}, {"task": "captioning", "vocab_size": 9}):
        Change3DModel(**config, sample_size=32).save_pretrained(tmp_path / config["task"])
        parts = read_change3d_folder(tmp_path / config["task"])
        assert not parts.unused
        original = change3d_to_original(parts)
        again = change3d_from_original(original)
        assert identical(again.state_dict, parts.state_dict)
        assert identical(again.unused, drawn_unused(unused_shapes(parts.config)))
        assert all(value.isfinite().all() for value in again.unused.values())


# -- X3D-L -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["binary", "semantic", "captioning"])
def test_an_encoder_begins_as_x3d(task, change3d_checkpoint, tmp_path):
    x3d = kinetics(change3d_checkpoint("scd_64x64_c7"))
    torch.save(x3d, tmp_path / "X3D_L.pyth")
    sizes = {"binary": {}, "semantic": {"num_classes": 3}, "captioning": {"vocab_size": 9}}[task]
    parts = change3d_with_x3d(tmp_path / "X3D_L.pyth", task, 32, **sizes)
    original = change3d_to_original(parts)
    state_dict = {**original["encoder_image"]} if task == "captioning" else original
    start = "" if task == "captioning" else "encoder."
    for key, value in x3d["model_state"].items():  # also its last stage and head
        assert torch.equal(state_dict[f"{start}x3d.{key}"], value), key
    torch.manual_seed(0)
    plain = Change3DModel(task, sample_size=32, **sizes).state_dict()
    for key, value in parts.state_dict.items():
        if not key.startswith(("encoder.stem", "encoder.stages")):
            assert torch.equal(value, plain[key]), key


def test_a_model_of_a_trainings_own_begins_as_x3d(change3d_checkpoint):
    model = Change3DModel(sample_size=32)
    frames = model.encoder.perception_frames.detach().clone()
    initialize_from_x3d(model, kinetics(change3d_checkpoint("bcd_64x64")))
    expected = change3d_from_original(change3d_checkpoint("bcd_64x64")).state_dict
    found = model.state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected if key.startswith("encoder.stages"))
    assert torch.equal(model.encoder.perception_frames, frames)


# -- Bad files ---------------------------------------------------------------------------------------------------------

STEM = "encoder.x3d.blocks.0.conv.conv_t.weight"
HEAD = "encoder.x3d.blocks.5.proj.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(STEM), f"key `{STEM}` is missing"),
        (lambda s: s.pop(HEAD), f"key `{HEAD}` is missing"),
        (lambda s: s.update({"decoder.up_c5.weight": torch.ones(1)}), "key `decoder.up_c5.weight` is unknown"),
        (lambda s: s.update({STEM: torch.ones(24, 3, 5, 1, 1)}), rf"key `{STEM}` has shape \[24, 3, 5, 1, 1\]"),
        (lambda s: s.update({HEAD: torch.ones(174)}), rf"key `{HEAD}` has shape \[174\]; required: \[400\]"),
        (
            lambda s: s.update({HEAD: torch.full((400,), torch.inf)}),
            f"key `{HEAD}` has values that are NaN or infinite",
        ),
        (lambda s: s.update({STEM: s[STEM] * torch.nan}), f"key `{STEM}` has values that are NaN or infinite"),
        (lambda s: s.update({STEM: s[STEM].half()}), "has type torch.float"),
        (lambda s: s.pop("decoder.up_c1.0.weight"), "has none of the keys `decoder_pre.up_c1.0.weight`"),
        (lambda s: s.pop("encoder.perception_frames"), "key `encoder.perception_frames` is missing"),
    ],
)
def test_bad_checkpoints(change, message, change3d_checkpoint):
    checkpoint = dict(change3d_checkpoint("bcd_64x64"))
    change(checkpoint)
    with pytest.raises(ValueError, match=message):
        change3d_from_original(checkpoint)


def test_another_table_of_positions_is_refused(change3d_checkpoint):
    checkpoint = dict(change3d_checkpoint("cc_64x64_v43"))
    checkpoint["decoder.position_encoding.pe"] = checkpoint["decoder.position_encoding.pe"] + 1
    with pytest.raises(ValueError, match=r"`decoder\.position_encoding\.pe` is not the sinusoidal table"):
        change3d_from_original(checkpoint)


def test_bad_files_of_x3d(change3d_checkpoint):
    model = Change3DModel(sample_size=32)
    with pytest.raises(ValueError, match="has no entry `model_state`"):
        initialize_from_x3d(model, change3d_checkpoint("bcd_64x64"))
    x3d = kinetics(change3d_checkpoint("bcd_64x64"))
    del x3d["model_state"]["blocks.1.res_blocks.0.branch2.conv_a.weight"]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"blocks\.1\.res_blocks\.0\.branch2\.conv_a\.weight` is missing"):
        initialize_from_x3d(model, x3d)
    assert identical(before, model.state_dict())
