# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Model cards: those of `model_cards/`, those that are composed of a pipeline, and what every card has to have.

A card begins with the class-conditional call, because the Hub shows a text-prompt snippet for every diffusers pipeline.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from ..files import one_line
from ..settings import settings_of

OWNER = "user"  # of the repositories in the snippets of `model_cards/`
REQUIRED_DATA = ("library_name", "pipeline_tag", "tags")
PRIVATE_SETTINGS = ("output_dir", "push_to_hub", "hub_model_id", "report_to", "resume_from_checkpoint")
MODEL_CARD = """---
library_name: diffusers
pipeline_tag: image-to-image
tags:
- va-vae
- autoencoder
---

# {title}

```python
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import load_image

from diffusers_lightningdit import {class_name}

vae = {class_name}.from_pretrained("{repository}"{subfolder})
processor = VaeImageProcessor(vae_scale_factor={factor})
pixels = processor.preprocess(load_image("image.png"))  # [1, 3, height, width] in [-1, 1]
latents = vae.encode(pixels).latent_dist.mode()
image = processor.postprocess(vae.decode(latents).sample.detach())[0]
```

{remote_code}An image autoencoder ([arXiv 2501.01423](https://arxiv.org/abs/2501.01423)) with {parameters:,} parameters:
an image becomes latents of {channels} channels, whose height and width are those of the image divided by
{factor}.{statistics}
"""
REMOTE_CODE = """Without the package diffusers-lightningdit, the file `autoencoder_vavae.py` of this repository is run:

```python
from diffusers import AutoModel

vae = AutoModel.from_pretrained("{repository}"{subfolder}, trust_remote_code=True)
```

"""


def find_card(name: str, repository: str, folder: Path) -> str:
    """A card of the project, or of a file, for a repository.

    Args:
        name: The name of a folder in `model_cards/`, or a README.md.
        repository: The repository, whose name takes the place of `user/NAME` in the card's snippets.
        folder: The folder `model_cards/`.

    Raises:
        ValueError: If there is no such card, or it is none that the Hub accepts.
    """
    known = {file.parent.name: file for file in sorted(folder.glob("*/README.md"))}
    file = known.get(name, Path(name))
    if not file.is_file():
        raise ValueError(f"`card` is {name!r}; required: a README.md, or one of {', '.join(known)}.")
    text = file.read_text(encoding="utf-8")
    if name in known:
        text = text.replace(f'"{OWNER}/{name}"', f'"{repository}"').replace(f'"model_cards/{name}"', f'"{repository}"')
    check_card(text, str(file))
    return text


def pipeline_card(pipeline: DiffusionPipeline, repository: str, **data) -> str:
    """The card of any pipeline of this package: how to call it, its parts, its classes and its sampling recipe.

    Args:
        pipeline: The pipeline.
        repository: The repository: user/name.
        data: Metadata beside that of the pipeline, as `license`, `base_model` and `datasets`; None is left out.
    """
    return _with_data(pipeline._model_card(repository), data)


def autoencoder_card(vae: torch.nn.Module, repository: str, subfolder: str | None = None, **data) -> str:
    """The card of an autoencoder: how to load and call it, and its sizes.

    Args:
        vae: The autoencoder.
        repository: The repository: user/name.
        subfolder: The folder of the repository that it lies in.
        data: Metadata, as in `pipeline_card`.
    """
    statistics = ""
    if vae.config.latents_mean is not None:
        statistics = " Their mean and standard deviation are in config.json, and pipelines normalise by them."
    place = {"repository": repository, "subfolder": "" if subfolder is None else f', subfolder="{subfolder}"'}
    text = MODEL_CARD.format(
        **place,
        title=repository.rpartition("/")[2],
        class_name=type(vae).__name__,
        remote_code=REMOTE_CODE.format(**place) if "auto_map" in vae.config else "",  # the code lies beside it
        parameters=vae.num_parameters(),
        channels=vae.config.latent_channels,
        factor=2 ** (len(vae.config.block_out_channels) - 1),
        statistics=statistics,
    )
    return _with_data(text, data)


def training_section(config: Any, script: str, step: int | None = None) -> str:
    """The settings of a training that are not the defaults, as a table; of local paths the last name alone.

    Args:
        config: The dataclass of the settings.
        script: The name of the training script.
        step: The step whose checkpoint it is made of; None for the result of the whole training.
    """
    origin = "" if step is None else f" Made of the checkpoint of step {step:,}."
    lines = [f"By `{script}` of diffusers-lightningdit.{origin} Settings that are not its defaults:"]
    lines += ["", "| | |", "|---|---|"]
    for name, field in settings_of(type(config)).items():
        value = getattr(config, name)
        if name in PRIVATE_SETTINGS or (not field.is_required and value == field.default):
            continue
        shown = Path(value).name if isinstance(value, str) and Path(value).exists() else value
        lines.append(f"| `{name}` | `{shown}` |")
    return "\n".join(lines)


def conversion_section(files: Mapping[str, str]) -> str:
    """The files that a model was converted from.

    Args:
        files: The SHA-256 sum of each file by its name.
    """
    lines = [f"- `{name}`, SHA-256 `{digits}`" for name, digits in files.items()]
    return "Converted by diffusers-lightningdit from the files of the authors:\n\n" + "\n".join(lines)


def with_section(card: str, title: str, content: str) -> str:
    """The card with one more section at its end."""
    return f"{card.rstrip()}\n\n## {title}\n\n{content.strip()}\n"


def _with_data(text: str, data: dict) -> str:
    card = ModelCard(text, ignore_metadata_errors=True)
    for name, value in data.items():
        if value is not None:
            setattr(card.data, name, value)
    return str(card)


def check_card(text: str, name: str = "the card") -> ModelCardData:
    """Raise ValueError for a card that the Hub would refuse, or that does not begin with how to call the model.

    What can be checked without a network is: the metadata is read by huggingface_hub's own classes, results go through
    a `model-index` and come back, a first code block stands before all other text but the title.

    Args:
        text: The card, metadata and all.
        name: The name of the file, for messages.

    Returns:
        The metadata.
    """
    try:
        data = ModelCard(text).data
        values = data.to_dict()
        if data.eval_results:
            again = model_index_to_eval_results(eval_results_to_model_index(data.model_name, data.eval_results))[1]
            # they come back grouped by task and data set
            lost = [result for result in data.eval_results if result not in again]
            if lost or len(again) != len(data.eval_results):
                raise ValueError("results do not survive a `model-index`")
    except Exception as error:  # of YAML, and of the classes of the metadata
        raise ValueError(f"{name}: its metadata cannot be used ({one_line(error)[:300]}).") from error
    missing = [key for key in REQUIRED_DATA if not values.get(key)]
    if missing:
        raise ValueError(f"{name}: its metadata lacks {', '.join(missing)}; required: {', '.join(REQUIRED_DATA)}.")
    body = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL).strip()
    if not re.match(r"# [^\n]+\n+```python\n", body):
        raise ValueError(f"{name}: does not begin with a title and a block of Python; required: how to call the model.")
    return data
