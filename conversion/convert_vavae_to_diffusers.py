r"""Convert an original VA-VAE, LDM or MAR-VAE checkpoint, or a plain AutoencoderKL folder, to AutoencoderVAVAE.

    python conversion/convert_vavae_to_diffusers.py --checkpoint vavae-imagenet256-f16d32-dinov2.pt \
        --latents_stats latents_stats.pt --output_dir vavae-f16d32

What only training needs goes to OUTPUT_DIR/training, so that training can go on: `projection` between latents and the
foundation model's features and `discriminator`, as model folders, and under its original names what is left.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from diffusers_lightningdit.files import check_output_dir, new_folder
from diffusers_lightningdit.hub.cards import autoencoder_card
from diffusers_lightningdit.hub.repository import write_conversion_card
from diffusers_lightningdit.original import build_autoencoder, read_autoencoder, training_models
from diffusers_lightningdit.original.vae_training import TRAINING_FOLDER
from diffusers_lightningdit.settings import one_line_errors, parse_config, required, setting


@dataclass(kw_only=True)
class ConversionConfig:
    """Settings of convert_vavae_to_diffusers.py."""

    checkpoint: str = required(
        "The original's checkpoint: a path, user/repo:file of the Hub, or an AutoencoderKL folder."
    )
    config: str | None = setting(
        None, "The original's YAML of the autoencoder, which the checkpoint is checked against."
    )
    latents_stats: str | None = setting(None, "The original's latents_stats.pt, which goes into the config.")

    output_dir: str = required("Folder of the AutoencoderVAVAE, new or empty.", group="Output")


def convert(config: ConversionConfig) -> dict[str, Any]:
    check_output_dir(config.output_dir)
    parts = read_autoencoder(config.checkpoint, config.config)
    vae = build_autoencoder(parts, config.latents_stats)
    models, left_over = training_models(parts.training)
    files: dict[str, dict] = {}
    for key, value in left_over.items():  # loss.safetensors
        files.setdefault(key.split(".")[0], {})[key] = value
    with new_folder(config.output_dir) as folder:
        vae.save_pretrained(folder)
        card = autoencoder_card(vae, f"user/{Path(config.output_dir).name}")
        write_conversion_card(folder, card, (config.checkpoint, config.latents_stats))
        for name, model in models.items():
            model.save_pretrained(folder / TRAINING_FOLDER / name)
        for name, tensors in files.items():
            (folder / TRAINING_FOLDER).mkdir(exist_ok=True)
            save_file(tensors, folder / TRAINING_FOLDER / f"{name}.safetensors")

    print(
        f"{config.output_dir}: {type(vae).__name__}; widths {list(vae.config.block_out_channels)}, "
        f"{vae.config.latent_channels} latent channels, {vae.num_parameters():,} parameters, "
        f"scaling_factor {vae.config.scaling_factor:.6g}, "
        f"latents statistics: {'none' if vae.config.latents_mean is None else 'in the config'}"
    )
    for name, model in models.items():
        kind, number = type(model).__name__, model.num_parameters()
        print(f"kept for training: {TRAINING_FOLDER}/{name}, {kind}, {number:,} parameters")
    for name, tensors in files.items():
        print(f"kept for training: {TRAINING_FOLDER}/{name}.safetensors, {len(tensors)} tensors")
    for name, number in Counter(".".join(key.split(".")[:2]) for key in parts.left_out).items():
        print(f"left out: {name}.*, {number} tensors (a published network of its own)")
    return {"output_dir": config.output_dir, "class": type(vae).__name__, "kept_for_training": [*models, *files]}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    with one_line_errors((ValueError, OSError)):
        return convert(parse_config(ConversionConfig, arguments, __doc__))


if __name__ == "__main__":
    main()
