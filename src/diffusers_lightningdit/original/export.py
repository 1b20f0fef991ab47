"""The way back: folders of diffusers as files that the original loads."""

from pathlib import Path

import torch
import yaml

from ..files import read_json
from ..models import LightningDiTTransformer2DModel
from .autoencoder import AutoencoderParts, autoencoder_to_original, read_autoencoder
from .config import sampling_section
from .model_folder import load_model_folder
from .transformer import MODEL_TYPES, model_section, transformer_to_original
from .translation import naming

TRANSFORMER_CLASS = "LightningDiTTransformer2DModel"
VAE_CLASSES = ("AutoencoderVAVAE", "AutoencoderKL")


def original_files(folder: str | Path) -> tuple[dict[str, dict], list[str]]:
    """The files that the original needs in place of a transformer, autoencoder or pipeline folder.

    Args:
        folder: The folder, as `save_pretrained` writes it.

    Returns:
        The contents of lightningdit.pt, vavae.ckpt (marvae.ckpt), latents_stats.pt and config.yaml by file name, those
        that apply; and remarks on what the original cannot express.

    Raises:
        ValueError: if the folder is none of these, or incomplete.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: is no folder; required: a folder of diffusers.")
    is_pipeline = (folder / "model_index.json").is_file()
    class_name = None if is_pipeline else read_json(folder / "config.json").get("_class_name")
    if not is_pipeline and class_name not in (TRANSFORMER_CLASS, *VAE_CLASSES):
        raise ValueError(
            f"{folder}: holds a {class_name}; required: {TRANSFORMER_CLASS}, {' or '.join(VAE_CLASSES)}, or a pipeline."
        )
    files, remarks, settings = {}, [], {}
    if is_pipeline or class_name == TRANSFORMER_CLASS:
        transformer_folder = folder / "transformer" if is_pipeline else folder
        model = load_model_folder(LightningDiTTransformer2DModel, transformer_folder, (TRANSFORMER_CLASS,))
        with naming(transformer_folder):
            files["lightningdit.pt"] = {"ema": transformer_to_original(dict(model.config), model.state_dict())}
        settings = _architecture_sections(model)
    if is_pipeline or class_name in VAE_CLASSES:
        vae_folder = folder / "vae" if is_pipeline else folder
        parts = read_autoencoder(vae_folder)
        with naming(vae_folder):
            files |= _autoencoder_files(parts)
    if is_pipeline:
        factor = 2 ** (len(parts.config["block_out_channels"]) - 1)
        settings["data"] |= {
            "image_size": settings["data"]["image_size"] * factor,
            "latent_norm": "latents_stats.pt" in files,
            "latent_multiplier": parts.config["scaling_factor"],
        }
        settings["vae"] = {"downsample_ratio": factor}
        recipe = read_json(folder / "model_index.json").get("sampling_recipe") or {}
        scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
        section = sampling_section(recipe, scheduler.get("shift", 1.0), scheduler.get("stochastic_sampling", False))
        if section is not None:
            settings["sample"] = section
        else:
            remarks.append("sampling recipe left out of config.yaml: the original cannot express it, or there is none")
    elif settings:
        del settings["data"]["image_size"]  # in pixels; it takes a VAE to know
    if settings:
        files["config.yaml"] = settings
    return files, remarks


def _architecture_sections(model: LightningDiTTransformer2DModel) -> dict[str, dict]:
    config = model.config
    size = (config.num_layers, model.inner_dim, config.num_attention_heads)
    by_size = {value: name for name, value in MODEL_TYPES.items()}
    # A size that was never published borrows the name of one with its patch size, and says its own beside.
    model_type = by_size.get((*size, config.patch_size)) or f"LightningDiT-XL/{config.patch_size}"
    section = {"model_type": model_type, **model_section(config)}
    if (*size, config.patch_size) not in by_size:
        section["x_test_size"] = {"hidden_size": size[1], "depth": size[0], "num_heads": size[2]}
    return {
        "data": {"image_size": config.sample_size, "num_classes": config.num_classes},
        "model": section,
        "transport": {"path_type": "Linear", "prediction": "velocity"},
    }


def _autoencoder_files(parts: AutoencoderParts) -> dict[str, dict]:
    weights = autoencoder_to_original(parts.config, parts.state_dict)
    # Of the published ones, only MAR-VAE has no attention in the decoder's levels.
    if any("Attn" in block for block in parts.config["up_block_types"]):
        files = {"vavae.ckpt": {"state_dict": weights | parts.training}}
    else:
        files = {"marvae.ckpt": {"model": weights}}
    if parts.config.get("latents_mean") is not None:
        files["latents_stats.pt"] = {
            name: torch.tensor(parts.config[f"latents_{name}"]).view(1, -1, 1, 1) for name in ("mean", "std")
        }
    return files


def write_original_files(files: dict[str, dict], folder: Path) -> None:
    """Write the files of `original_files` into a folder, tensors by torch.save and settings as YAML."""
    for name, content in files.items():
        if name.endswith(".yaml"):
            (folder / name).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        else:
            torch.save(content, folder / name)
