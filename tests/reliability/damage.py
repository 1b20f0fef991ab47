"""Ways to damage a file, each by a seeded generator: of any kind, tensors, JSON, YAML, images, archives."""

import contextlib
import io
import json
import os
import random
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file

Damage = Callable[[Path, random.Random], None]


# ---------------------------------------------------------------------------------------------------------------------
# Any file
# ---------------------------------------------------------------------------------------------------------------------


def cut(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.choice([1, 7, len(content) // 2, len(content) - 1])])


def empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def zeros(path: Path, rng: random.Random) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def noise(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.randbytes(path.stat().st_size))


def text(path: Path, rng: random.Random) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n")


def removed(path: Path, rng: random.Random) -> None:
    path.unlink()


def folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def dangling_link(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to("gone")


def link_to_itself(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


def pickled_code(path: Path, rng: random.Random) -> None:
    class Code:
        def __reduce__(self):
            return os.system, ("echo code was run",)

    torch.save({"weight": Code()}, path)


ANY_FILE = (cut, empty, zeros, noise, text, removed, folder, dangling_link, link_to_itself)


# ---------------------------------------------------------------------------------------------------------------------
# Tensors
# ---------------------------------------------------------------------------------------------------------------------


def tensors(path: Path, rng: random.Random) -> None:
    """One tensor of a safetensors file: missing, renamed, of another shape or type, or not finite."""
    content = load_file(path)
    key = rng.choice(sorted(content))
    tensor = content.pop(key)
    change = rng.choice(["missing", "renamed", "added", "shape", "integers", "flat", "nan", "inf", "complex"])
    if change == "renamed":
        content[key + "s"] = tensor
    elif change == "added":
        content |= {key: tensor, "unknown": torch.zeros(3)}
    elif change == "shape":
        content[key] = torch.cat([tensor, tensor]) if tensor.ndim else tensor.view(1)
    elif change == "integers":
        content[key] = torch.full(tensor.shape, 3, dtype=torch.int32)
    elif change == "flat":
        content[key] = tensor.flatten()[:-1].clone() if tensor.numel() > 1 else torch.zeros(5)
    elif change in ("nan", "inf"):
        content[key] = torch.full(tensor.shape, float(change))
    elif change == "complex":
        content[key] = tensor.to(torch.complex64)
    save_file(content, path, metadata={"format": "pt"})


def tensors_header(path: Path, rng: random.Random) -> None:
    """The header of a safetensors file: 8 bytes with its length, then JSON."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    key = rng.choice(sorted(set(header) - {"__metadata__"}))
    change = rng.choice(["length", "huge", "negative", "overlap", "type", "deep", "list"])
    if change == "length":
        path.write_bytes(struct.pack("<Q", rng.choice([0, 1, size + 1, 2**40, 2**63])) + content[8:])
        return
    if change == "huge":
        header[key]["shape"] = [10**12]
    elif change == "negative":
        header[key]["shape"] = [-4]
    elif change == "overlap":
        header[key]["data_offsets"] = [0, 8]
    elif change == "type":
        header[key]["dtype"] = rng.choice(["F1", "I64", "BOOL", None])
    text = "[" * 5000 if change == "deep" else "[1, 2]" if change == "list" else json.dumps(header)
    path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + content[8 + size :])


WEIGHTS = (*ANY_FILE, *[tensors] * 6, *[tensors_header] * 4)


def checkpoint(path: Path, rng: random.Random) -> None:
    """A .pt file with weights, EMA weights and optimiser of a training run."""
    content = torch.load(path, weights_only=True)
    part = rng.choice(sorted(content))
    change = rng.choice(["missing", "none", "list", "text", "meta", "key", "nested", "nan", "numbers", "type"])
    value = content[part]
    key = rng.choice(sorted(value)) if isinstance(value, dict) and value else None
    if change == "missing":
        content.pop(part)
    elif change in ("none", "list", "text"):
        content[part] = {"none": None, "list": [1], "text": "weights"}[change]
    elif change == "nested":
        content = [content]
    elif key is not None and isinstance(value[key], torch.Tensor):
        changed = {
            "meta": value[key].to("meta"),
            "nan": torch.full_like(value[key], float("nan")),
            "numbers": 3,
            "type": value[key].to(torch.int64),
        }
        value[key] = changed.get(change, value[key])
        if change == "key":
            value[7] = value.pop(key)
    elif isinstance(value, dict):
        value["unknown"] = 3
    torch.save(content, path)


# ---------------------------------------------------------------------------------------------------------------------
# JSON and YAML
# ---------------------------------------------------------------------------------------------------------------------

VALUES = (None, True, -1, 0, 3, 10**30, 1e308, float("inf"), float("nan"), "", "text", [], {}, [[]], [1], {"a": 1})


def json_value(path: Path, rng: random.Random) -> None:
    """One value anywhere in a JSON file: missing, of another kind or size; or an unknown key."""
    content = json.loads(path.read_text())
    node = content
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = rng.choice(keys)
        if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.7:
            node = node[key]
            continue
        break
    change = rng.random()
    if change < 0.2 and isinstance(node, dict):
        node.pop(key)
    elif change < 0.3 and isinstance(node, dict):
        node["unknown"] = rng.choice(VALUES)
    else:
        node[key] = rng.choice(VALUES)
    path.write_text(json.dumps(content))


def json_text(path: Path, rng: random.Random) -> None:
    content = path.read_text()
    texts = ["[" * 5000, '{"a":' * 5000, "[]", "3", "null", '"text"', content[:-2], content + "}", "\ufeff" + content]
    path.write_text(rng.choice(texts))


def not_utf8(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"\xff\xfe" + path.read_bytes())


JSON = (*ANY_FILE, not_utf8, *[json_text] * 3, *[json_value] * 14)

YAML_VALUES = (
    ".nan",
    ".inf",
    "1e999",
    "-1",
    "0",
    "yes",
    "~",
    "[1, 2",
    "{a: b}",
    "2026-01-01",
    "0x10",
    "1_000",
    "'1e-3'",
)
YAML_VALUES += (
    "!!python/object/apply:os.system ['echo code was run']",
    "&a [*a]",
    "[]",
    "[[1]]",
    "10000000000000000000000",
)
YAML_KEYS = (
    "1: 2",
    "null: 3",
    "[a]: 4",
    "true: 5",
    "? {a: b}\n: 6",
    "unknown: 1",
    "2026-01-01: 1",
    "1.5: 1",
    "<<: 3",
    "''",
)


def yaml_value(path: Path, rng: random.Random) -> None:
    """One value of a recipe, in words that YAML reads in other ways than people."""
    recipe = yaml.safe_load(path.read_text())
    key = rng.choice(sorted(recipe))
    lines = yaml.safe_dump({name: value for name, value in recipe.items() if name != key})
    path.write_text(f"{lines}{key}: {rng.choice(YAML_VALUES)}\n")


def yaml_key(path: Path, rng: random.Random) -> None:
    path.write_text(f"{path.read_text()}{rng.choice(YAML_KEYS)}\n")


def yaml_text(path: Path, rng: random.Random) -> None:
    content = path.read_text()
    path.write_text(rng.choice(["[" * 5000, "- a\n- b\n", "text", "3", "\t" + content, content + "\x00", "a: &b [*b"]))


RECIPE = (*ANY_FILE, not_utf8, *[yaml_value] * 14, *[yaml_key] * 6, *[yaml_text] * 3)


# ---------------------------------------------------------------------------------------------------------------------
# Images and archives
# ---------------------------------------------------------------------------------------------------------------------


def _png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def png_header(path: Path, rng: random.Random) -> None:
    """A small file whose header promises a line, a huge image, or no pixel; or 16 bits."""
    sizes = {"line": (1_500_000, 1), "column": (1, 1_500_000), "huge": (60_000, 60_000), "none": (0, 0)}
    kind = rng.choice([*sizes, "16 bits"])
    if kind == "16 bits":
        rows = b"".join(b"\0" + struct.pack(">16H", *[rng.randrange(65536) for _ in range(16)]) for _ in range(16))
        path.write_bytes(_png(16, 16, 16, 0, rows))
    else:
        rows = bytes(sizes[kind][0] * 3 + 1) if kind == "line" else bytes(64)
        path.write_bytes(_png(*sizes[kind], 8, 2, rows))


IMAGE = (*ANY_FILE, *[png_header] * 6)


def npz_header(path: Path, rng: random.Random) -> None:
    """An archive whose array is described wrongly."""
    shape = rng.choice(["(1000000000000, 8, 8, 3)", "(-1, 8, 8, 3)", "(0, 8, 8, 3)", "(4, 8, 8)", "(4, 8, 8, 4)", "()"])
    kind = rng.choice(["<f8", "|O", "<i8", "|b1", "no type"])
    if rng.random() < 0.5:
        kind = "|u1"
    else:
        shape = "(4, 8, 8, 3)"
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    if rng.random() < 0.15:
        header = "(" * 3000 + ")" * 3000
    header = header.ljust(64 * (len(header) // 64 + 1) - 11) + "\n"
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) % 65536) + header.encode() + bytes(768)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", array)


def npz_members(path: Path, rng: random.Random) -> None:
    images = np.zeros((4, 8, 8, 3), np.uint8)
    choices: list[dict[str, Any]] = [
        {},
        {"other": images},
        {"mu": np.zeros(3)},
        {"mu": np.zeros(3), "sigma": np.ones(3)},
    ]
    choices += [
        {"mu": np.full(12, np.nan), "sigma": np.eye(12)},
        {"arr_0": images.astype(float)},
        {"arr_0": np.array("x")},
    ]
    np.savez(path, **rng.choice(choices))


NPZ = (*ANY_FILE, *[npz_header] * 8, *[npz_members] * 4)


# ---------------------------------------------------------------------------------------------------------------------
# Copies
# ---------------------------------------------------------------------------------------------------------------------


def damaged_copy(source: Path, target: Path, file: str, ways: tuple[Damage, ...], rng: random.Random) -> str:
    """Copy a folder, damage one file in it, and return the name of the damage."""
    shutil.copytree(source, target)
    way = rng.choice(ways)
    with contextlib.redirect_stdout(io.StringIO()):
        way(target / file, rng)
    return way.__name__
