# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Folders of complete repositories, and their upload: what the command `push` and the training scripts share."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, ModelMixin
from huggingface_hub import HfApi
from PIL import Image

from ..files import file_sha256, first_line, resolve_file
from .cards import check_card, conversion_section, with_section

CARD, SAMPLES = "README.md", "samples.png"
VARIANTS = {"fp16": torch.float16, "bf16": torch.bfloat16}


class HubError(ValueError):
    """The Hub refused something, or could not be reached."""


def write_repository(
    folder: str | Path,
    model: DiffusionPipeline | ModelMixin,
    card: str,
    *,
    variants: Sequence[str] = (),
    samples: Image.Image | None = None,
    max_shard_size: str = "10GB",
    subfolder: str | None = None,
) -> None:
    """Write a pipeline or an autoencoder with code, card, variants and picture into a folder.

    Args:
        folder: The folder, which exists; files of the same names are replaced.
        model: The pipeline or model, whose weights are stored in the type that they have.
        card: The text of README.md.
        variants: The half-precision copies of the weights beside them, of `VARIANTS`.
        samples: The picture that the card ends with.
        max_shard_size: The size above which weights are split into several files, as "5GB".
        subfolder: The folder within it that the weights of a model go into, in a repository of several models.

    Raises:
        ValueError: For a card that the Hub would refuse, or a weight that is out of the range of a variant.
    """
    folder = Path(folder)
    if samples is not None:
        samples.save(folder / SAMPLES)
        card = with_section(card, "Samples", f"![Drawn by this pipeline, one row for each class]({SAMPLES})")
    check_card(card)
    target = folder / subfolder if subfolder else folder
    model.save_pretrained(target, max_shard_size=max_shard_size)
    for variant in variants:
        # read again, so that never two types are in memory, and no variant is made of another
        copy = type(model).from_pretrained(target, dtype=VARIANTS[variant])
        _check_finite(copy, variant)
        copy.save_pretrained(target, variant=variant, max_shard_size=max_shard_size)
        del copy
    (folder / CARD).write_text(card, encoding="utf-8", newline="\n")


def _check_finite(model: DiffusionPipeline | ModelMixin, variant: str) -> None:
    parts = getattr(model, "components", {"": model})
    for name, part in parts.items():
        for key, value in part.state_dict().items() if isinstance(part, torch.nn.Module) else ():
            if value.is_floating_point() and not torch.isfinite(value).all():
                key = ".".join(filter(None, (name, key)))
                raise ValueError(
                    f"`variants` has {variant}, but weight `{key}` is out of its range; required: without {variant}."
                )


def repository_patterns(model: DiffusionPipeline | ModelMixin) -> list[str]:
    """Patterns of the files of a repository in a folder that may hold checkpoints, logs and samples of training too."""
    patterns = ["model_index.json", "config.json", "diffusion_pytorch_model*", "*.py", CARD, SAMPLES]
    return patterns + [f"{name}/*" for name in getattr(model, "components", ())]


def write_conversion_card(folder: str | Path, card: str, files: Iterable[str | None]) -> None:
    """Write the card of a converted model, with the files that it was made of, into the folder that it is saved to.

    Args:
        folder: The folder.
        card: The text of the card.
        files: The files, as `resolve_file` takes them; None is left out.
    """
    paths = [resolve_file(file) for file in files if file is not None]
    sums = {path.name: file_sha256(path) for path in paths if path.is_file()}
    card = with_section(card, "Conversion", conversion_section(sums)) if sums else card
    (Path(folder) / CARD).write_text(card, encoding="utf-8", newline="\n")


def create_repository(repository: str, private: bool = True, is_space: bool = False) -> None:
    """Make a repository on the Hub, before anything takes long; one that is there stays as it is.

    Args:
        repository: The repository: user/name.
        private: Whether it is private if it is made.
        is_space: Whether it is a Space, of Gradio, and not a model.

    Raises:
        HubError: If the Hub refuses it, or cannot be reached.
    """
    try:
        kind = {"repo_type": "space", "space_sdk": "gradio"} if is_space else {}
        HfApi().create_repo(repository, private=private, exist_ok=True, **kind)
    except Exception as error:  # a dozen classes: no network, no token, no permission, no such name
        raise HubError(f"{repository}: cannot be made on the Hub: {first_line(error)}") from error


def upload_repository(
    folder: str | Path,
    repository: str,
    patterns: Sequence[str] | None = None,
    keep_card: bool = False,
    is_space: bool = False,
) -> str:
    """Upload a folder to a repository that exists, in one commit, and return its address.

    Args:
        folder: The folder.
        repository: The repository: user/name.
        patterns: The patterns of the files that are uploaded; None for all.
        keep_card: Leave out README.md where the repository has one already.
        is_space: Whether it is a Space and not a model.

    Raises:
        HubError: If the Hub refuses it, or cannot be reached.
    """
    api, kind = HfApi(), "space" if is_space else "model"
    try:
        kept = [CARD] if keep_card and api.file_exists(repository, CARD, repo_type=kind) else None
        api.upload_folder(
            repo_id=repository,
            repo_type=kind,
            folder_path=folder,
            allow_patterns=patterns,
            ignore_patterns=kept,
            commit_message="Upload",
        )
    except Exception as error:
        raise HubError(f"{repository}: cannot be uploaded to the Hub: {first_line(error)}") from error
    return f"{api.endpoint}/{'spaces/' if is_space else ''}{repository}"
