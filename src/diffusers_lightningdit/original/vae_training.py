"""The projection and the discriminator in an original checkpoint, as models of their own, for training on."""

import re
from pathlib import Path

import torch

from ..files import read_checkpoint
from ..losses.adversarial import PatchGANDiscriminator
from ..losses.vision_foundation import FoundationProjection

# beside a converted autoencoder: a folder for each of these models, and a file for what is left
TRAINING_FOLDER = "training"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
LOGVAR = "loss.logvar"  # log of the likelihood's scale, which the original never trains
LOSS_FILE = "loss.safetensors"  # of it, and of whatever else of the original's `loss` makes no model
# {folder: (prefix of the original's keys, prefix of ours)}
PREFIXES = {"projection": ("linear_proj.", "proj."), "discriminator": ("loss.discriminator.main.", "layers.")}


def training_models(
    training: dict[str, torch.Tensor],
) -> tuple[dict[str, FoundationProjection | PatchGANDiscriminator], dict[str, torch.Tensor]]:
    """The models among the training weights of a checkpoint.

    Args:
        training: The weights `AutoencoderParts.training`, under the original's names.

    Returns:
        (models, left over): `projection` and `discriminator`, those that are there and whole, in the type of their
        weights; and what belongs to neither, under its original names: `loss.logvar`, and discriminators of another
        architecture or with weights missing.
    """
    models, left_over = {}, dict(training)
    for name, (theirs, ours) in PREFIXES.items():
        weights = {ours + key.removeprefix(theirs): value for key, value in training.items() if key.startswith(theirs)}
        model = _model_of(name, weights)
        if model is None:
            continue
        model.load_state_dict(weights, assign=True)
        models[name] = model.eval()
        left_over = {key: value for key, value in left_over.items() if not key.startswith(theirs)}
    return models, left_over


def read_training_folder(folder: str | Path) -> dict[str, torch.Tensor]:
    """The training weights beside the autoencoder in `folder`, under the original's names; none if there are none.

    Raises:
        ValueError: if a file is damaged or another model's, or a model lacks weights.
    """
    folder = Path(folder) / TRAINING_FOLDER
    training = {}
    for name, (theirs, ours) in PREFIXES.items():
        if (folder / name).is_dir():
            weights = read_checkpoint(folder / name / WEIGHTS_FILE)
            for key in weights:
                if not key.startswith(ours):
                    raise ValueError(f"{folder / name}: key `{key}` is unknown; required: only `{ours}*`.")
            if _model_of(name, weights) is None:
                raise ValueError(f"{folder / name}: holds no whole {name}; required: all weights of one.")
            training |= {theirs + key.removeprefix(ours): value for key, value in weights.items()}
    for file in sorted(folder.glob("*.safetensors")):
        training |= read_checkpoint(file)
    return training


def _projection(weights: dict[str, torch.Tensor]) -> FoundationProjection | None:
    """The model, without values, of the shape of its weight; its bias tells the direction."""
    if "proj.weight" not in weights or weights["proj.weight"].ndim != 4:
        return None
    to, of = weights["proj.weight"].shape[:2]
    reverse = "proj.bias" not in weights
    latent_channels, feature_channels = (of, to) if reverse else (to, of)
    with torch.device("meta"):
        # by name: diffusers takes what comes by place for default values, and `from_config` leaves it out
        return FoundationProjection(latent_channels=latent_channels, feature_channels=feature_channels, reverse=reverse)


def _discriminator(weights: dict[str, torch.Tensor]) -> PatchGANDiscriminator | None:
    """The model, without values, of the shape of its first weight and the number of its last layer."""
    first = weights.get("layers.0.weight")
    if first is None or first.ndim != 4:
        return None
    last = max(int(number[1]) for key in weights if (number := re.match(r"layers\.(\d+)\.", key)))
    num_layers = (last - 2) // 3  # two layers, then three for each, then one
    if num_layers < 1:
        return None
    with torch.device("meta"):
        return PatchGANDiscriminator(in_channels=first.shape[1], base_channels=first.shape[0], num_layers=num_layers)


def _model_of(name: str, weights: dict[str, torch.Tensor]) -> FoundationProjection | PatchGANDiscriminator | None:
    """The model, without values, that has exactly these weights, or None."""
    model = {"projection": _projection, "discriminator": _discriminator}[name](weights)
    shapes = {key: value.shape for key, value in weights.items()}
    if model is None or {key: value.shape for key, value in model.state_dict().items()} != shapes:
        return None
    return model
