"""Cut the small set of recorded data of Change3D, which travels with the project, out of the whole one.

    python tests/golden_change3d/cut_change3d.py ../shared/change3d/golden

writes everything beside this script again: the same bytes from the same set. A value that is kept is kept as it was
recorded.
"""

import argparse
import json
import shutil
from fnmatch import fnmatch
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
MAX_TOTAL = 4_000_000  # bytes

COPIED = [
    "caption_metrics.json",
    "cc_64x64_v43.safetensors",
    "cc_decode.*",
    "configs.json",
    "losses.*",
    "metrics.json",
    "transforms.*",
    "wordmap.json",
]
COMPACT = ["train_bcd_64x64.json"]  # long tables, written without spaces and line ends
LEFT_OUT = ["README.md", "shapes_*.json"]  # names and shapes follow from the code, and weights have a recorded sha256


def whole(value: torch.Tensor) -> torch.Tensor:
    return value


def every_nth_pixel(n: int):
    return lambda value: value[..., ::n, ::n]


# {file: {name of a tensor: the part to keep}}; the first pattern that fits decides, for files and for names.
MAPS = {
    "pre": whole,
    "post": whole,
    "feat_s0_*": every_nth_pixel(8),
    "feat_*": every_nth_pixel(4),
    "*": every_nth_pixel(2),
}
CUT = {
    "x3d_bcd_64x64.safetensors": {
        "clip_*": whole,
        "*_block0": every_nth_pixel(8),
        "*_enhanced0": every_nth_pixel(8),
        "*_block4": whole,
        "T[45]_block3": whole,  # of 4x6
        "*": every_nth_pixel(4),
    },
    "train_bcd_64x64.safetensors": {"*": whole},
    "*_*x*.safetensors": MAPS,
}


def cut_golden(source: Path, folder: Path) -> None:
    """Write the small form of the recorded set `source` into `folder`.

    Raises:
        ValueError: If a file of the set fits no pattern, or the small set is larger than MAX_TOTAL.
    """
    for file in sorted(source.iterdir()):
        name, target = file.name, folder / file.name
        if any(fnmatch(name, pattern) for pattern in COPIED):
            shutil.copyfile(file, target)
            target.chmod(0o644)
        elif any(fnmatch(name, pattern) for pattern in COMPACT):
            target.write_text(json.dumps(json.loads(file.read_text()), separators=(",", ":")) + "\n")
        elif parts := next((parts for pattern, parts in CUT.items() if fnmatch(name, pattern)), None):
            kept = {}
            for key, value in load_file(file).items():
                part = next(part for pattern, part in parts.items() if fnmatch(key, pattern))
                kept[key] = part(value).clone()
            save_file(kept, target)
        elif not any(fnmatch(name, pattern) for pattern in LEFT_OUT):
            raise ValueError(f"{file} fits no pattern; required: one of COPIED, COMPACT, CUT or LEFT_OUT")
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if total > MAX_TOTAL:
        raise ValueError(f"{folder} has {total:,} bytes; required: at most {MAX_TOTAL:,}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="The folder of the whole recorded set.")
    cut_golden(parser.parse_args().source, HERE)
