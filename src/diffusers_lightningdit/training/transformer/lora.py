# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""LoRA (arXiv 2106.09685) of the transformer, by PEFT, together with rows of the class table for new classes.

While training, the transformer has the new classes as well, and a `NewClassTable` in place of its class table; all
weights but the LoRA's and the new rows are frozen. The result is a LoRA in diffusers' layout, which also holds the new
rows and names: `LightningDiTTransformer2DModel.load_lora_adapter` says where.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model_state_dict
from torch import nn

from ...models import LightningDiTTransformer2DModel
from ...models.transformer_lightningdit import NEW_CLASSES_NAMES, NEW_CLASSES_WEIGHT
from ...pipelines.pipeline_lightningdit import LightningDiTPipeline
from ...settings import required, setting
from .config import FlowTrainingConfig
from .data import TransformerData
from .pipeline_data import Classes, load_pipeline_data

LORA_FILE = "pytorch_lora_weights.safetensors"
MODEL_CARD = """---
library_name: diffusers
pipeline_tag: unconditional-image-generation
tags:
- lightningdit
- lora
{base_model}---

# {title}

A LoRA of rank {rank} for the pipeline `{pipeline}`, trained for {steps} steps on images of {classes}.{new}

```python
import diffusers_lightningdit  # makes its classes known to diffusers
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{pipeline}")
pipe.load_lora_weights("{repository}", weight_name="{file}")
image = pipe({example!r}).images[0]
```
"""

# ---------------------------------------------------------------------------------------------------------------------
# Settings
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class LoraTrainingConfig(FlowTrainingConfig):
    """Settings of train_lightningdit_lora.py.

    Raises:
        ValueError: for a value that cannot be trained with.
    """

    new_classes: dict = setting(
        {},
        "Names of classes that the pipeline does not know, each with the name or id of the class whose embedding it "
        "begins with (null: the mean of all); the other classes of the data are the pipeline's of the same names.",
        group="Data",
    )
    class_name: str | None = setting(
        None, "The class of all images, for a folder of images of one class, which has no labels."
    )
    check_statistics: bool = setting(
        False,
        "Check that latents have the statistics of the VAE; they normalise the latents, whatever those of other data "
        "are.",
    )

    pipeline: str = required("Folder or Hub id of the pipeline that learns.", group="Model")
    rank: int = setting(16, "The LoRA rank.", minimum=1)
    alpha: float | None = setting(
        None, "The LoRA's product is scaled by `alpha` / `rank`; null: `alpha` is `rank`.", above=0
    )
    target_modules: tuple[str, ...] = setting(
        ("to_q", "to_k", "to_v", "to_out.0"),
        "The names of the linear layers that get a LoRA; ff.net.0.proj and ff.net.2 are those of the MLP.",
    )

    global_batch_size: int = 32
    max_train_steps: int = 1000
    learning_rate: float = 5e-4
    ema_decay: float = 0.99
    checkpointing_steps: int | None = 250

    def __post_init__(self):
        super().__post_init__()
        if not self.target_modules:
            raise ValueError("`target_modules` is []; required: at least one name of a linear layer.")
        for name, start in self.new_classes.items():
            if not isinstance(start, str | int | None) or isinstance(start, bool):
                raise ValueError(f"`new_classes.{name}` is {start!r}; required: name or id of a class, or null.")


# ---------------------------------------------------------------------------------------------------------------------
# Data
# ---------------------------------------------------------------------------------------------------------------------


def load_lora_data(
    config: LoraTrainingConfig, pipeline: LightningDiTPipeline, data: str, split: str, for_training: bool
) -> tuple[TransformerData, Classes]:
    """The data with the ids of the pipeline's classes and of the new ones, and these classes.

    Raises:
        ValueError: in one line, if it cannot be read, doesn't fit the pipeline, or has classes that it doesn't know.
    """
    classes = (config.class_name, config.new_classes)
    try:
        return load_pipeline_data(config, pipeline, data, split, for_training, *classes)
    except ValueError as error:
        if "`label_column`" in str(error):
            raise ValueError(f"{error} Images of one class without labels: `class_name`.") from error
        raise


# ---------------------------------------------------------------------------------------------------------------------
# Transformer
# ---------------------------------------------------------------------------------------------------------------------


class NewClassTable(nn.Module):
    """The class table [K + n + 1, D] of a transformer that learns n new classes; all other rows are frozen.

    Args:
        table: The trained table [K + 1, D], the last row that of the null class.
        rows: The first values of the new rows, [n, D].
    """

    def __init__(self, table: nn.Embedding, rows: torch.Tensor):
        super().__init__()
        self.table = table.requires_grad_(False)
        self.new_classes = nn.Parameter(rows)

    def forward(self, class_labels: torch.LongTensor) -> torch.Tensor:
        """The embeddings [B, D] of class ids [B]; the null class stays the last one."""
        weight = self.table.weight
        return F.embedding(class_labels, torch.cat([weight[:-1], self.new_classes, weight[-1:]]))  # [B, D]


NEW_ROWS = "class_embedder.embedding_table.new_classes"  # of a transformer with such a table


def check_target_modules(transformer: LightningDiTTransformer2DModel, target_modules: Sequence[str]) -> None:
    """Raise ValueError if a name isn't the end of the name of a linear layer of the transformer."""
    linear = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    for target in target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            known = dict.fromkeys(re.sub(r"^transformer_blocks\.\d+\.", "", name) for name in linear)
            raise ValueError(
                f"`target_modules` has {target!r}; required: names of linear layers, or their ends: {', '.join(known)}."
            )


def add_lora(
    transformer: LightningDiTTransformer2DModel,
    rank: int,
    alpha: float | None,
    target_modules: Sequence[str],
    classes: Classes,
    seed: int,
) -> None:
    """Freeze a transformer, and give it a LoRA that changes nothing yet, and rows for the new classes.

    Raises:
        ValueError: for a target that is no linear layer of it.
    """
    check_target_modules(transformer, target_modules)
    transformer.requires_grad_(False)
    torch.manual_seed(seed)  # the same first weights on every process
    alpha = rank if alpha is None else alpha
    transformer.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(target_modules)))
    if classes.new_names:
        embedder = transformer.class_embedder
        rows = embedder.embedding_table.weight.data[:-1]
        rows = torch.stack([rows.mean(0) if row is None else rows[row] for row in classes.first_rows])
        embedder.embedding_table = NewClassTable(embedder.embedding_table, rows)
        embedder.num_classes += len(rows)
        transformer.register_to_config(num_classes=embedder.num_classes)


def lora_file_content(
    transformer: LightningDiTTransformer2DModel, weights: dict[str, torch.Tensor], new_names: Sequence[str]
) -> tuple[dict[str, torch.Tensor], dict]:
    """(tensors, metadata) of a LoRA, as `LightningDiTPipeline.save_lora_weights` takes them.

    Args:
        transformer: The transformer, with a LoRA by `add_lora`.
        weights: Its state dict, or at least the trained weights of it.
        new_names: The names of the new classes.
    """
    tensors = get_peft_model_state_dict(transformer, state_dict=weights)
    metadata = transformer.peft_config["default"].to_dict()
    if new_names:
        tensors[NEW_CLASSES_WEIGHT] = weights[NEW_ROWS]
        metadata[NEW_CLASSES_NAMES] = list(new_names)
    return tensors, metadata


# ---------------------------------------------------------------------------------------------------------------------
# Result
# ---------------------------------------------------------------------------------------------------------------------


def save_lora(
    folder: Path,
    config: LoraTrainingConfig,
    transformer: LightningDiTTransformer2DModel,
    weights: dict[str, torch.Tensor],
    classes: Classes,
    id2label: dict[int, str],
    step: int | None = None,
) -> None:
    """Write a LoRA in diffusers' layout, and its card.

    Args:
        folder: The folder to write into.
        config: The settings of the training.
        transformer: The transformer, with a LoRA by `add_lora`.
        weights: Its state dict, or at least the trained weights of it.
        classes, id2label, step: As in `model_card`.
    """
    tensors, metadata = lora_file_content(transformer, weights, classes.new_names)
    tensors = {name: tensor.to(getattr(torch, config.save_dtype)) for name, tensor in tensors.items()}
    LightningDiTPipeline.save_lora_weights(folder, tensors, transformer_lora_adapter_metadata=metadata)
    (folder / "README.md").write_text(model_card(config, classes, id2label, step), encoding="utf-8")


def model_card(config: LoraTrainingConfig, classes: Classes, id2label: dict[int, str], step: int | None = None) -> str:
    """The card of a LoRA: how to load and call it, and what it was trained on.

    Args:
        config: The settings of the training.
        classes: The classes that are trained.
        id2label: The names of the pipeline's classes.
        step: The step whose checkpoint it is made of; None for the result of the whole training.
    """
    first_new = max(classes.ids) + 1 - len(classes.new_names)
    names = {**id2label, **{first_new + number: name for number, name in enumerate(classes.new_names)}}
    labels = [names.get(class_id, class_id) for class_id in classes.ids]
    new = ", ".join(map(repr, classes.new_names))
    repository = config.hub_model_id or config.output_dir
    return MODEL_CARD.format(
        base_model="" if Path(config.pipeline).is_dir() else f"base_model: {config.pipeline}\n",
        title=Path(repository).name,
        rank=config.rank,
        pipeline=config.pipeline,
        steps=step or config.max_train_steps,
        classes=", ".join(map(repr, labels[:20])) + (", ..." if len(labels) > 20 else ""),
        new=new and f" New classes, while it is loaded: {new}.",
        repository=repository,
        file=LORA_FILE,
        example=(classes.new_names or labels)[0],
    )
