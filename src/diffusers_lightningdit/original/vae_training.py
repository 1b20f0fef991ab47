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


def _model_of(name: str, weights: dict[str, torch.Tensor]) -> FoundationProjection | PatchGANDiscriminator | None:
    """The model, without values, that has exactly these weights, or None."""
    first = weights.get("proj.weight" if name == "projection" else "layers.0.weight")
    if first is None or first.ndim != 4:
        return None
    rows, columns = first.shape[:2]
    if name == "projection":
        cls, reverse = FoundationProjection, "proj.bias" not in weights
        latent_channels, feature_channels = (columns, rows) if reverse else (rows, columns)
        arguments = {"latent_channels": latent_channels, "feature_channels": feature_channels, "reverse": reverse}
    else:
        last = max(int(number[1]) for key in weights if (number := re.match(r"layers\.(\d+)\.", key)))
        num_layers = (last - 2) // 3  # two layers, then three for each, then one
        cls, arguments = (
            PatchGANDiscriminator,
            {"in_channels": columns, "base_channels": rows, "num_layers": num_layers},
        )
        if num_layers < 1:
            return None
    with torch.device("meta"):
        model = cls(**arguments)
    shapes = {key: value.shape for key, value in weights.items()}
    return model if {key: value.shape for key, value in model.state_dict().items()} == shapes else None
