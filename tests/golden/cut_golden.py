"""Cut the small set of recorded data, which travels with the project, out of the whole one.

    python tests/golden/cut_golden.py ../shared/golden

writes everything beside this script again: the same bytes from the same set. Nothing is rounded: a value that is kept
is kept as it was recorded.
"""

import argparse
import json
import shutil
from fnmatch import fnmatch
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from small_set import write_recipe

HERE = Path(__file__).parent
MAX_FILE, MAX_TOTAL = 2_000_000, 8_000_000  # bytes

# -- Files that are copied: small, or of a format that is itself what is tested --

COPIED = [
    "center_crop/images.safetensors",
    "dit/*/case.json",
    "dit/*/cfg.json",
    "dit/*/config.yaml",
    "fullsize/*.json",
    "fullsize/lightningdit_xl1.safetensors",  # inputs and outputs: the network is drawn by the test
    "latent_dataset/*.json",
    "latent_dataset/*.safetensors",
    "latent_dataset/imagenet_train_64/*",  # shards as the original wrote them
    "sampling/*.json",
    "sampling/*.yaml",
    "sampling/latents_stats.pt",
    "structure/tables.safetensors",
    "train/*.json",
    "train/*.yaml",
    "train/dataset/*",
    "train/losses.safetensors",
    "train/step_plain_ckpt_0000002.pt",  # trained weights, averages and moments: they cannot be drawn again
    "train/weight_init.pt",  # where the steps begin: AdamW makes a difference in the last bit of a drawn weight larger
    "train/weight_init_shape_mismatch.safetensors",
    "uniformity/*",
    "vae/*/case.json",
    "vae/*/config.yaml",
    "vae_train/discriminator_recipe.json",
    "vae_train/forward.safetensors",
    "vae_train/foundation_wrapper.safetensors",
    "vae_train/inputs.safetensors",
]

# Long tables, written without spaces and line ends.
COMPACT = ["structure/*.json", "vae/recipe_nrb2/weights_recipe.json", "vae_train/runs.json"]

LEFT_OUT = ["README.md", "center_crop/info.json", "manifest.json"]

# -- Tensors of which a part is kept --


def whole(value: torch.Tensor) -> torch.Tensor:
    return value


def first(value: torch.Tensor) -> torch.Tensor:
    return value[:1]


def rows(*numbers: int):
    return lambda value: value[list(numbers)]


def every_nth_row(n: int):
    """Keep every n-th row; all, where their number is no multiple of n."""
    return lambda value: value[::n] if len(value) % n == 0 else value


def every_2nd_token(value: torch.Tensor) -> torch.Tensor:
    return value[:, ::2]


def every_2nd_pixel(value: torch.Tensor) -> torch.Tensor:
    return value[:, :, ::2, ::2]


def every_2nd_pixel_nhwc(value: torch.Tensor) -> torch.Tensor:
    return value[:, ::2, ::2]


def every_4th_pixel_nhwc(value: torch.Tensor) -> torch.Tensor:
    return value[:, ::4, ::4]


# {file: {name of a tensor: the part to keep}}; the first pattern that fits decides, for files and for names. A tensor
# that no pattern fits is left out: no test reads it.
CUT = {
    # Two of six samples: t = 0.5 with a class, and t = 1 with the null class. Half the tokens between the blocks.
    "dit/*/io.safetensors": {
        "pos_embed_sincos": whole,
        "attn_probe_in": first,
        "*_probe_out": lambda value: every_2nd_token(first(value)),
        "ema_block*_out": lambda value: every_2nd_token(rows(3, 5)(value)),
        "ema_tokens_in": lambda value: every_2nd_token(rows(3, 5)(value)),
        "*": rows(3, 5),
    },
    # One of two samples, in all 20 settings: its row, and its label with and without condition.
    "dit/*/cfg.safetensors": {"y": rows(0, 2), "*": first},
    # The first sample of every step, and a quarter of the pixels of the states between.
    "sampling/sde.safetensors": {
        "*.noise": lambda value: value[:, :1],
        "*.trajectory": lambda value: value[..., ::2, ::2],
        "*": first,
    },
    # Initial and final latents whole, and a sixteenth of the pixels of each image.
    "sampling/*.safetensors": {
        "batch*_y": whole,
        "batch*_noise": whole,
        "batch?_latents_final": whole,
        "batch*_latents_denorm": whole,
        "time_grid": whole,
        "png_u8_nhwc": every_4th_pixel_nhwc,
    },
    # Draws and losses whole; an eighth of the rows of every weight after the step.
    "train/step_*.safetensors": {"after_step*": every_nth_row(8), "*": whole},
    # The path and prediction that are implemented.
    "train/transport_variants.safetensors": {"x1": whole, "net_output": whole, "Linear_velocity_none.*": whole},
    # One of two square images, the image that is not square, and in vae/vavae the image of 256x256. Inputs are whole; a
    # quarter of the pixels is kept of decoded images, and of the latents of the largest one.
    "vae/*/io.safetensors": {
        "a_decode_mode": lambda value: every_2nd_pixel(first(value)),
        "a_decode_mode_u8_nhwc": lambda value: every_2nd_pixel_nhwc(first(value)),
        "a_*": first,
        "b_decode_mode": every_2nd_pixel,
        "b_decode_mode_u8_nhwc": every_2nd_pixel_nhwc,
        "z": first,
        "z_decode": lambda value: every_2nd_pixel(first(value)),
        "z_decode_u8_nhwc": lambda value: every_2nd_pixel_nhwc(first(value)),
        "c_mean": every_2nd_pixel,
        "c_logvar": every_2nd_pixel,
        "*": whole,
    },
    "fullsize/*vae*.safetensors": {"decode_*": every_2nd_pixel, "*": whole},
    # An eighth of the rows of the two largest tensors; the norms of all gradients are in runs.json.
    "vae_train/*.safetensors": {
        "*encoder.conv_out.weight": every_nth_row(8),
        "linear_proj.weight": every_nth_row(8),
        "*": whole,
    },
}

# -- Checkpoints of which a recipe is kept --

TRANSFORMER = r"(?!(module\.)?(pos_embed|feat_rope))"  # all but its tables
AUTOENCODER = r"(encoder|decoder|quant_conv|post_quant_conv)\."


def recipes(source: Path) -> dict[str, dict[str, list[dict]]]:
    """Return the draws of the state dicts of each checkpoint. Most seeds are stated by the recording.

    Those of tensors beside an autoencoder are not stated: each of them was drawn alone, from one of the next seeds.
    """

    def stated(file: str) -> dict:
        return json.loads((source / file).read_text())

    def one(names: str, seed: int, std: float) -> list[dict]:
        return [{"names": names, "seed": seed, "std": std}]

    found = {}
    for folder in sorted(path.name for path in (source / "dit").iterdir()):
        case = stated(f"dit/{folder}/case.json")
        draws = {name: one(TRANSFORMER, case[f"seed_weights_{name}"], case["weight_std"]) for name in ("model", "ema")}
        found[f"dit/{folder}/ckpt_train.pt"] = draws
        if folder == "released":
            found[f"dit/{folder}/ckpt_published_ema_only.pt"] = {"ema": draws["ema"]}
            found[f"dit/{folder}/ckpt_module_prefix.pt"] = {"model": draws["model"]}
    runs = stated("sampling/runs.json")
    found["sampling/ckpt_published_ema_only.pt"] = {"ema": one(TRANSFORMER, runs["seed_weights"], runs["weight_std"])}
    case = stated("vae/marvae/case.json")
    found["vae/marvae/marvae.ckpt"] = {"model": one(AUTOENCODER, case["seed"], case["std"])}
    case = stated("vae/vavae/case.json")
    found["vae/vavae/vavae.ckpt"] = {
        "state_dict": one(AUTOENCODER, case["seed"], case["std"])
        + one(r"loss\.discriminator\.main\.0\.weight", 1502, 0.02)
        + one(r"loss\.discriminator\.main\.0\.bias", 1503, 0.02)
        + one(r"linear_proj\.weight", 1506, 0.1)
    }
    found["vae_train/linear_proj.safetensors"] = {
        "tensors": one(r"reverse\.weight", 1901, 0.1)
        + one(r"forward\.weight", 1902, 0.05)
        + one(r"forward\.bias", 1903, 0.1)
    }
    return found


# ---------------------------------------------------------------------------------------------------------------------


def cut(tensors: dict[str, torch.Tensor], parts: dict) -> dict[str, torch.Tensor]:
    kept = {}
    for name, value in tensors.items():
        part = next((part for pattern, part in parts.items() if fnmatch(name, pattern)), None)
        if part is not None:
            kept[name] = part(value).clone()  # a copy alone: saved without the rest of its memory
    return kept


def read(file: Path) -> dict:
    if file.suffix == ".safetensors":
        return {"tensors": load_file(file)}
    return torch.load(file, weights_only=True)


def cut_golden(source: Path, folder: Path) -> None:
    """Write the small form of the recorded set `source` into `folder`.

    Raises:
        ValueError: If a file of the set fits no pattern, if a recipe does not restore its checkpoint bit for bit, or if
            the small set is larger than MAX_FILE or MAX_TOTAL allow.
    """
    names = sorted(str(path.relative_to(source)) for path in source.rglob("*") if path.is_file())
    drawn = recipes(source)
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name in drawn:
            write_recipe(read(source / name), target, drawn[name])
        elif any(fnmatch(name, pattern) for pattern in COPIED):
            shutil.copyfile(source / name, target)
        elif any(fnmatch(name, pattern) for pattern in COMPACT):
            target.write_text(json.dumps(json.loads((source / name).read_text()), separators=(",", ":")) + "\n")
        elif parts := next((parts for pattern, parts in CUT.items() if fnmatch(name, pattern)), None):
            save_file(cut(load_file(source / name), parts), target)
        elif name not in LEFT_OUT:
            raise ValueError(f"{source / name} fits no pattern; required: one of COPIED, COMPACT, CUT or LEFT_OUT")

    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    largest = max(sizes, key=sizes.get)
    if sizes[largest] > MAX_FILE or sum(sizes.values()) > MAX_TOTAL:
        raise ValueError(
            f"{folder} has {sum(sizes.values()):,} bytes, its largest file, {largest.name}, {sizes[largest]:,}; "
            f"required: at most {MAX_TOTAL:,} and {MAX_FILE:,}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="The folder of the whole recorded set.")
    cut_golden(parser.parse_args().source, HERE)
