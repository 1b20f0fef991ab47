"""Change3D's checkpoints of all tasks, and X3D-L of Kinetics-400 for initialisation: names and shapes of both sides.

The original builds all of X3D-L with its head, the enhancement and seven modules of each caption layer that no forward
pass of the task uses. Our model does not have them: their weights are kept apart, as `unused`, for the way back.
"""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..files import read_checkpoint
from ..models import Change3DModel
from ..models.change3d import sinusoidal_positions
from ..pipelines import Change3DPipeline
from .model_folder import load_model_folder
from .translation import (
    COUNTER,
    Row,
    check_keys,
    check_shape,
    check_values,
    naming,
    plain_state_dict,
    shape_of,
    translate_from_original,
    translate_to_original,
)

X3D = "encoder.x3d.blocks"
LAYER = "decoder.transformer.layers"
POSITIONS, NUM_POSITIONS = "decoder.position_encoding.pe", 5000  # the fixed table, [5000, 1, D]
WORD_POSITIONS = "decoder.position_encoding.embedding_1D.weight"  # which nothing uses
UNUSED_FILE = "original_unused.safetensors"  # beside the weights of a converted model
PAIR = ("encoder_image", "decoder")  # the two dictionaries of a captioning checkpoint
WIDTH, HEAD_WIDTHS = 192, (432, 2048, 400)  # of the last stage of X3D-L, and of its head for Kinetics-400

# {task: {the original's decoder: ours}}
DECODERS = {
    "binary": {"decoder": "decoder_change"},
    "semantic": {
        "decoder_pre": "decoder_before",
        "decoder_post": "decoder_after",
        "decoder_change": "decoder_change",
    },
    "damage": {"decoder_cls": "decoder_damage", "decoder_loc": "decoder_building"},
    "captioning": {"decoder": "decoder_caption"},
}
# The keys that tell the tasks apart, and whose rows are the classes or words.
TELLING_KEYS = {
    "semantic": "decoder_pre.up_c1.0.weight",
    "damage": "decoder_cls.up_c1.0.weight",
    "captioning": "decoder.vocab_embedding.weight",
    "binary": "decoder.up_c1.0.weight",
}


@dataclass
class Change3DParts:
    """A checkpoint of the original, translated.

    Attributes:
        config: The arguments of `Change3DModel`.
        state_dict: Its weights.
        unused: The weights that no forward pass of the task uses, under the original's names.
        layout: "flat", "pair" (of captioning), or the name of the entry that held the weights.
    """

    config: dict
    state_dict: dict[str, torch.Tensor]
    unused: dict[str, torch.Tensor] = field(default_factory=dict)
    layout: str = "flat"


# ---------------------------------------------------------------------------------------------------------------------
# Layouts
# ---------------------------------------------------------------------------------------------------------------------


def select_change3d_weights(checkpoint: dict) -> tuple[dict[str, torch.Tensor], str]:
    """Return the state dict in a checkpoint and its layout; see `Change3DParts`.

    Raises:
        ValueError: If it is none of the layouts.
    """
    if all(isinstance(checkpoint.get(name), dict) for name in PAIR):
        merged = {}
        for name, prefix in zip(PAIR, ("encoder.", "decoder."), strict=True):
            part = plain_state_dict(checkpoint[name], f"entry `{name}`")
            merged |= {prefix + key: value for key, value in part.items()}
        return merged, "pair"
    for name in ("state_dict", "model"):
        if isinstance(checkpoint.get(name), dict):
            return plain_state_dict(checkpoint[name], f"entry `{name}`"), name
    return plain_state_dict(checkpoint, "the file"), "flat"


def in_layout(state_dict: dict[str, torch.Tensor], layout: str) -> dict:
    """Put a state dict into the layout that `select_change3d_weights` found; the inverse of it."""
    if layout == "pair":
        return {
            name: {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
            for name, prefix in zip(PAIR, ("encoder.", "decoder."), strict=True)
        }
    return state_dict if layout == "flat" else {layout: state_dict}


def change3d_config(state_dict: dict[str, torch.Tensor]) -> dict:
    """Read the arguments of `Change3DModel` off an original state dict.

    Raises:
        ValueError: If it is not Change3D.
    """
    task = next((task for task, key in TELLING_KEYS.items() if key in state_dict), None)
    if task is None:
        keys = ", ".join(f"`{key}`" for key in TELLING_KEYS.values())
        raise ValueError(f"has none of the keys {keys}; required: one of them, of a Change3D checkpoint.")
    height, width = shape_of(state_dict, "encoder.perception_frames", 5)[3:]
    config = {"task": task, "sample_size": height if height == width else (height, width)}
    if task in ("semantic", "damage"):
        config["num_classes"] = shape_of(state_dict, TELLING_KEYS[task], 4)[0]
    elif task == "captioning":
        config["vocab_size"] = shape_of(state_dict, TELLING_KEYS[task], 2)[0]
        config["num_caption_layers"] = len(
            {key.split(".")[3] for key in state_dict if key.startswith(f"{LAYER}.")}  # by number
        )
        config["max_caption_length"] = shape_of(state_dict, WORD_POSITIONS, 2)[0]
    return config


# ---------------------------------------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------------------------------------


def change3d_rows(model: Change3DModel) -> list[Row]:
    """Return the table: every tensor of our model and where it is in the original."""
    rules = [
        (r"encoder\.perception_frames", "encoder.perception_frames"),
        # The original's names of the stem are exchanged: `conv_t` is the convolution in space.
        (r"encoder\.stem\.conv_space\.(\w+)", rf"{X3D}.0.conv.conv_t.\1"),
        (r"encoder\.stem\.conv_time\.(\w+)", rf"{X3D}.0.conv.conv_xy.\1"),
        (r"encoder\.stem\.norm\.(\w+)", rf"{X3D}.0.norm.\1"),
        (r"encoder\.differences\.(\d+)\.(\w+)", r"encoder.fc.\1.0.\2"),
    ]
    for ours, theirs in (
        (r"shortcut\.conv", "branch1_conv"),
        (r"shortcut\.norm", "branch1_norm"),
        (r"shortcut", "branch1_conv"),
        (r"widen\.conv", "branch2.conv_a"),
        (r"widen\.norm", "branch2.norm_a"),
        (r"depthwise\.conv", "branch2.conv_b"),
        (r"depthwise\.norm", "branch2.norm_b.0"),
        (r"se\.reduce", "branch2.norm_b.1.block.0"),
        (r"se\.expand", "branch2.norm_b.1.block.2"),
        (r"narrow\.conv", "branch2.conv_c"),
        (r"narrow\.norm", "branch2.norm_c"),
    ):
        rules.append((rf"encoder\.stages\.(\d+)\.(\d+)\.{ours}\.(\w+)", rf"{X3D}.STAGE.res_blocks.\2.{theirs}.\3"))
    for theirs, ours in DECODERS[model.config.task].items():
        if model.config.task == "captioning":
            rules += [
                (rf"{ours}\.embedding\.(\w+)", rf"{theirs}.vocab_embedding.\1"),
                (rf"{ours}\.proj_out\.(\w+)", rf"{theirs}.wdc.\1"),
                (rf"{ours}\.blocks\.(\d+)\.(norm[12])\.(\w+)", rf"{LAYER}.\1.\2.\3"),
            ]
            for our_name, their_name in (("attn1", "self_attn"), ("attn2", "multihead_attn2")):
                rules += [
                    (rf"{ours}\.blocks\.(\d+)\.{our_name}\.to_out\.(\w+)", rf"{LAYER}.\1.{their_name}.out_proj.\2"),
                    (rf"{ours}\.blocks\.(\d+)\.{our_name}\.to_q\.(\w+)", rf"{LAYER}.\1.{their_name}.in_proj_\2"),
                ]
        else:
            rules += [
                (rf"{ours}\.up\.(\d+)\.conv\.(\w+)", rf"{theirs}.up_cSTAGE.0.\2"),
                (rf"{ours}\.up\.(\d+)\.upsample\.(\w+)", rf"{theirs}.up_cSTAGE.1.\2"),
                (rf"{ours}\.conv_out\.(\w+)", rf"{theirs}.up_c1.0.\1"),
            ]
    rows = []
    for key, value in model.state_dict().items():
        if re.search(r"\.to_[kv]\.", key):
            continue  # in one matrix with `to_q`
        found = [(match, theirs) for ours, theirs in rules if (match := re.fullmatch(ours, key))]
        assert len(found) == 1, f"the table has {len(found)} rows for {key}"
        match, theirs = found[0]
        if "STAGE" in theirs:  # counted from 1 in X3D, and in the decoders from the map that goes up
            theirs = theirs.replace("STAGE", str(int(match[1]) + (2 if ".up_c" in theirs else 1)))
        if ".to_q." in key:
            ours = tuple(key.replace(".to_q.", f".to_{name}.") for name in "qkv")
            rows.append(Row(match.expand(theirs), ours, "three in one"))
        else:
            of_frames = theirs.startswith(X3D) and value.ndim == 4
            rows.append(Row(match.expand(theirs), (key,), "kernel of one frame" if of_frames else "same"))
    return rows


def unused_shapes(config: dict) -> dict[str, list[int]]:
    """Return the names and shapes of the original's tensors that no forward pass of the task uses."""
    is_captioning = config["task"] == "captioning"
    # What this task does not use of the encoder, the other tasks do.
    other = empty_change3d({"task": "binary"} if is_captioning else {"task": "captioning", "vocab_size": 5})
    of_other = other.state_dict()
    start = "encoder.fc." if is_captioning else f"{X3D}.4."
    rows = [row for row in change3d_rows(other) if row.original.startswith(start)]
    shapes = {row.original: list(row.to_original(of_other).shape) for row in rows}

    pool, (inner, hidden, classes) = f"{X3D}.5.pool", HEAD_WIDTHS
    shapes |= {f"{pool}.pre_conv.weight": [inner, WIDTH, 1, 1, 1], f"{pool}.post_conv.weight": [hidden, inner, 1, 1, 1]}
    shapes |= {f"{pool}.pre_norm.{name}": [inner] for name in ("weight", "bias", "running_mean", "running_var")}
    shapes |= {f"{pool}.pre_norm{COUNTER}": []}
    shapes |= {f"{X3D}.5.proj.weight": [classes, hidden], f"{X3D}.5.proj.bias": [classes]}
    if is_captioning:
        shapes |= {POSITIONS: [NUM_POSITIONS, 1, WIDTH]}
        shapes |= {WORD_POSITIONS: [config.get("max_caption_length", 52), WIDTH]}
        for i in range(config.get("num_caption_layers", 3)):
            layer = f"{LAYER}.{i}"
            linear = {"linear1": (4 * WIDTH, WIDTH), "linear2": (WIDTH, 4 * WIDTH)}
            linear |= {f"fc_alpha{number}": (WIDTH, 2 * WIDTH) for number in (1, 2, 3)}
            for name in ("self_attn2", "multihead_attn", "multihead_attn3"):
                linear[f"{name}.out_proj"] = (WIDTH, WIDTH)
                shapes |= {f"{layer}.{name}.in_proj_weight": [3 * WIDTH, WIDTH]}
                shapes |= {f"{layer}.{name}.in_proj_bias": [3 * WIDTH]}
            for name, shape in linear.items():
                shapes |= {f"{layer}.{name}.weight": list(shape), f"{layer}.{name}.bias": [shape[0]]}
            shapes |= {f"{layer}.norm3.{name}": [WIDTH] for name in ("weight", "bias")}
    return shapes


def empty_change3d(config: dict) -> Change3DModel:
    """Return the model of a config without memory for its weights (on the meta device)."""
    with torch.device("meta"):
        return Change3DModel(**config)


# ---------------------------------------------------------------------------------------------------------------------
# Both ways
# ---------------------------------------------------------------------------------------------------------------------


def change3d_from_original(checkpoint: dict) -> Change3DParts:
    """Translate a checkpoint of any layout, strictly; types are kept.

    Raises:
        ValueError: Naming the first key that is missing, unknown, wrongly shaped or not finite.
    """
    state_dict, layout = select_change3d_weights(checkpoint)
    config = change3d_config(state_dict)
    model = empty_change3d(config)
    shapes = unused_shapes(config)
    unused = {key: value.clone() for key, value in state_dict.items() if key in shapes}
    _check_unused(unused, shapes)
    used = {key: value for key, value in state_dict.items() if key not in unused}
    translated = translate_from_original(change3d_rows(model), used, model.state_dict())
    if POSITIONS in unused:
        _check_positions(unused[POSITIONS])
    return Change3DParts(config, translated, unused, layout)


def change3d_to_original(parts: Change3DParts) -> dict:
    """Translate back, into the layout that the checkpoint had.

    Without `unused` weights, of a model that was trained here, those are drawn as the authors initialise them, from
    the seed 0: the original loads no checkpoint without them, and its results do not depend on them.

    Raises:
        ValueError: Naming the first key that is missing, unknown, wrongly shaped or not finite.
    """
    model = empty_change3d(parts.config)
    translated = translate_to_original(change3d_rows(model), parts.state_dict, model.state_dict())
    shapes = unused_shapes(parts.config)
    unused = parts.unused or drawn_unused(shapes)
    _check_unused(unused, shapes)
    return in_layout(translated | unused, parts.layout)


def drawn_unused(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Draw weights that nothing uses, by the names and shapes of `unused_shapes`; the table of positions is exact."""
    generator = torch.Generator().manual_seed(0)
    drawn = {}
    for key, shape in shapes.items():
        name = key.rpartition(".")[2]
        if key == POSITIONS:
            drawn[key] = sinusoidal_positions(NUM_POSITIONS, WIDTH)[:, None]
        elif key.endswith(COUNTER):
            drawn[key] = torch.tensor(0)
        elif len(shape) == 1:
            drawn[key] = torch.full(shape, float(name in ("weight", "running_var")))
        else:
            drawn[key] = torch.randn(shape, generator=generator) * math.sqrt(2 / math.prod(shape[1:]))
    return drawn


def _check_unused(unused: dict[str, torch.Tensor], shapes: dict[str, list[int]]) -> None:
    check_keys(unused, list(shapes))
    for key, shape in shapes.items():
        check_shape(key, unused[key], torch.Size(shape))
    check_values(unused)


def _check_positions(table: torch.Tensor) -> None:
    expected = sinusoidal_positions(NUM_POSITIONS, WIDTH)
    if not torch.allclose(table[:, 0].float(), expected, atol=1e-2):  # which bfloat16 meets
        raise ValueError(f"key `{POSITIONS}` is not the sinusoidal table; required: that of arXiv 1706.03762.")


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def read_change3d(checkpoint: str | Path) -> Change3DParts:
    """Read a checkpoint of the original, a file (or `user/repo:file` of the Hub); see `change3d_from_original`."""
    content = read_checkpoint(checkpoint)
    with naming(checkpoint):
        return change3d_from_original(content)


def build_change3d(parts: Change3DParts) -> Change3DModel:
    """Return the model of a translated checkpoint, in its type."""
    with torch.random.fork_rng(devices=[]):  # its own values are drawn, and replaced
        model = Change3DModel(**parts.config)
    model.to(parts.state_dict["encoder.perception_frames"].dtype).load_state_dict(parts.state_dict)
    return model.eval()


def save_change3d(parts: Change3DParts, folder: Path, vocabulary: dict | None = None, name: str = "change3d") -> None:
    """Save a `Change3DPipeline` with its card, and beside the model the weights that no forward pass uses.

    Args:
        parts: The translated checkpoint.
        folder: The folder to write.
        vocabulary: {word: id} for captioning. Without it, the model alone is saved, since there is no pipeline.
        name: The name of the folder that it becomes, for the card.
    """
    model = build_change3d(parts)
    model_folder = folder
    if parts.config["task"] == "captioning" and vocabulary is None:
        model.save_pretrained(folder)
    else:
        pipeline = Change3DPipeline(model, vocabulary=vocabulary)
        pipeline.save_pretrained(folder)
        (folder / "README.md").write_text(pipeline._model_card(f"user/{name}"), encoding="utf-8", newline="\n")
        model_folder = folder / "model"
    if parts.unused:
        save_file(parts.unused, model_folder / UNUSED_FILE, {"layout": parts.layout})


def read_change3d_folder(folder: str | Path) -> Change3DParts:
    """Read a model or pipeline of diffusers, with the weights that `save_change3d` put beside, if any.

    Raises:
        ValueError: Naming the folder, file or key that is at fault.
    """
    folder = Path(folder)
    if (folder / "model_index.json").is_file():
        folder = folder / "model"
    model = load_model_folder(Change3DModel, folder, (Change3DModel.__name__,))
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    layout = "pair" if config["task"] == "captioning" else "flat"
    parts = Change3DParts(config, model.state_dict(), layout=layout)
    if (folder / UNUSED_FILE).is_file():
        parts.unused = read_checkpoint(folder / UNUSED_FILE)
        with safe_open(folder / UNUSED_FILE, "pt") as file:
            parts.layout = (file.metadata() or {}).get("layout", layout)
    return parts


# ---------------------------------------------------------------------------------------------------------------------
# X3D-L of Kinetics-400
# ---------------------------------------------------------------------------------------------------------------------


def initialize_from_x3d(model: Change3DModel, checkpoint: str | Path | dict) -> dict[str, torch.Tensor]:
    """Load X3D-L of Kinetics-400, `X3D_L.pyth` with its entry `model_state`, into the encoder of a model.

    Args:
        model: A model of any task; its perception frames, enhancement and decoders stay as they are.
        checkpoint: The file (or `user/repo:file` of the Hub), or its content.

    Returns:
        The weights of X3D-L that the task does not use, under the names of a Change3D checkpoint.

    Raises:
        ValueError: Naming the first key that is missing, unknown, wrongly shaped or not finite.
    """
    content = checkpoint if isinstance(checkpoint, dict) else read_checkpoint(checkpoint)
    with naming("checkpoint" if isinstance(checkpoint, dict) else checkpoint):
        if not isinstance(content.get("model_state"), dict):
            raise ValueError("has no entry `model_state`; required: that of X3D-L, as PyTorchVideo publishes it.")
        weights = plain_state_dict(content["model_state"], "entry `model_state`")
        weights = {f"encoder.x3d.{key}": value for key, value in weights.items()}
        rows = [row for row in change3d_rows(model) if row.original.startswith(X3D)]
        shapes = {key: shape for key, shape in unused_shapes(dict(model.config)).items() if key.startswith(X3D)}
        unused = {key: weights.pop(key).clone() for key in shapes if key in weights}
        _check_unused(unused, shapes)
        state_dict = model.state_dict()
        of_x3d = {key: state_dict[key] for row in rows for key in row.ours}
        translated = translate_from_original(rows, weights, of_x3d)
    model.load_state_dict(state_dict | translated)
    return unused


def change3d_with_x3d(
    checkpoint: str | Path | dict,
    task: str,
    sample_size: int | tuple[int, int] = 256,
    num_classes: int | None = None,
    vocab_size: int | None = None,
) -> Change3DParts:
    """Return a new model, drawn as for training from scratch from the seed 0, whose encoder is X3D-L of Kinetics-400.

    Its `unused` weights are complete: those of X3D-L, and drawn ones for what else the original builds.
    """
    config = {"task": task, "sample_size": sample_size, "num_classes": num_classes, "vocab_size": vocab_size}
    config = {name: value for name, value in config.items() if value is not None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Change3DModel(**config)
    of_x3d = initialize_from_x3d(model, checkpoint)
    unused = drawn_unused(unused_shapes(config)) | of_x3d
    return Change3DParts(config, model.state_dict(), unused, "pair" if task == "captioning" else "flat")
