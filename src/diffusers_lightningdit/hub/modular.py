# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Repositories of modular pipelines, which load without this package: `modular_model_index.json`, blocks and models.

    write_modular_repository("repository", pipe, "user/modular-lightningdit", card)

Every component names the repository that it is loaded from, so that others can take single ones.
"""

import importlib
from pathlib import Path

from diffusers import DiffusionPipeline
from diffusers import __version__ as diffusers_version

from ..files import read_json, write_json
from ..pipelines import modular_lightningdit
from .cards import check_card
from .repository import CARD

INDEX = "modular_model_index.json"
SHARED_CODE = "lightningdit_sampling"
CALL = """```python
from diffusers import ModularPipeline

pipe = ModularPipeline.from_pretrained("{repository}", trust_remote_code=True)
pipe.load_components(trust_remote_code=True)
images = pipe(class_labels={label}, output="images")
```

The blocks draw from noise, from `image=`, or within `mask_image=`; `pipe.doc` lists all inputs. Guidance is a
component: `pipe.update_components(guider=pipe.guider.new(guidance_scale=3.0))`.
"""


def modular_card(pipeline: DiffusionPipeline, repository: str, license: str | None = None) -> str:
    """The card of a modular repository: how to load and call it."""
    labels = [name.partition(",")[0] for name in pipeline.id2label.values()]
    label = repr(labels[0]) if labels else "0"
    lines = ["---", *([f"license: {license}"] if license else []), "library_name: diffusers"]
    lines += [
        "pipeline_tag: unconditional-image-generation",
        "tags:",
        "- lightningdit",
        "- modular-diffusers",
        "---",
        "",
    ]
    title = f"# {repository.rpartition('/')[2]}"
    return "\n".join([*lines, title, "", CALL.format(repository=repository, label=label)])


def write_modular_repository(folder: str | Path, pipeline: DiffusionPipeline, repository: str, card: str) -> None:
    """Write a pipeline as a modular one, with the code of its blocks and models, into a folder.

    Args:
        folder: The folder; files of the same names are replaced.
        pipeline: A `LightningDiTPipeline`, whose models are of this package.
        repository: The repository that the components will be loaded from: user/name, or a local folder.
        card: The text of README.md.

    Raises:
        ValueError: For a model of another package, which has no code to put beside it, or a card that is none.
    """
    folder = Path(folder)
    check_card(card)
    models = {"transformer": pipeline.transformer, "vae": pipeline.vae}
    for name, model in models.items():
        if not vars(type(model)).get("_source_code"):
            raise ValueError(f"`{name}` is a {type(model).__name__}; required: a model of this package, with its code.")
    for name, model in models.items():
        model.save_pretrained(folder / name)
        module = type(model).__module__.rpartition(".")[2]
        (folder / name / f"{module}.py").write_text(type(model)._source_code, encoding="utf-8", newline="\n")
        config = read_json(folder / name / "config.json")
        write_json(
            folder / name / "config.json", {**config, "auto_map": {"AutoModel": f"{module}.{type(model).__name__}"}}
        )
    pipeline.scheduler.save_pretrained(folder / "scheduler")

    blocks = modular_lightningdit.LightningDiTBlocks()
    blocks.save_pretrained(folder)
    package = modular_lightningdit.__name__.rpartition(".")[0]
    for name in (modular_lightningdit.__name__.rpartition(".")[2], SHARED_CODE):
        code = importlib.import_module(f"{package}.{name}").__spec__.loader.get_source(f"{package}.{name}")
        (folder / f"{name}.py").write_text(code, encoding="utf-8", newline="\n")
    index = {
        "_class_name": "ModularPipeline",
        "_diffusers_version": diffusers_version,
        "_blocks_class_name": type(blocks).__name__,
        "id2label": {str(key): name for key, name in pipeline.id2label.items()} or None,
        "sampling_recipe": pipeline.config.sampling_recipe,
    }
    for name in (*models, "scheduler"):
        # the class of a model is in its own code; that of a scheduler is diffusers'
        class_name = [None, None] if name in models else ["diffusers", type(pipeline.scheduler).__name__]
        place = {"pretrained_model_name_or_path": repository, "subfolder": name, "variant": None, "revision": None}
        index[name] = [*class_name, {"type_hint": class_name, **place}]
    write_json(folder / INDEX, index)
    (folder / CARD).write_text(card, encoding="utf-8", newline="\n")
