# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""LoRA (arXiv 2106.09685) of the transformer, by PEFT, together with rows of the class table for new classes.

While training, the transformer has the new classes as well, and a `NewClassTable` in place of its class table; all
weights but the LoRA's and the new rows are frozen. The result is a LoRA in diffusers' layout, which also holds the new
rows and names: `LightningDiTTransformer2DModel.load_lora_adapter` says where.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model_state_dict
from torch import nn
from torch.utils.data import Dataset

from ...data.streamed_rows import StreamedRows
from ...files import read_model
from ...models import AutoencoderVAVAE, LightningDiTTransformer2DModel
from ...models.transformer_lightningdit import NEW_CLASSES_NAMES, NEW_CLASSES_WEIGHT
from ...pipelines.pipeline_lightningdit import LightningDiTPipeline
from ...settings import required, setting
from .config import FlowTrainingConfig
from .data import TransformerData, load_data

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
            if not isinstance(name, str):
                raise ValueError(
                    f"`new_classes` has the key {name!r}; required: names, as '{name}' in quotation marks."
                )
            if not isinstance(start, str | int | None) or isinstance(start, bool):
                raise ValueError(f"`new_classes.{name}` is {start!r}; required: name or id of a class, or null.")


# ---------------------------------------------------------------------------------------------------------------------
# Pipeline
# ---------------------------------------------------------------------------------------------------------------------


def load_pipeline(name: str) -> LightningDiTPipeline:
    """A pipeline in float32, its VAE frozen.

    Raises:
        ValueError: in one line, if there is none, it is another kind, or its VAE has no statistics.
    """
    needed = "folder or Hub id of a LightningDiTPipeline with an AutoencoderVAVAE"
    pipeline = read_model(LightningDiTPipeline, name, "pipeline", needed)
    if not isinstance(pipeline.vae, AutoencoderVAVAE):
        raise ValueError(f"`pipeline` is {name!r}, with a {type(pipeline.vae).__name__}; required: {needed}.")
    if pipeline.vae.config.latents_mean is None:
        raise ValueError(f"`pipeline` is {name!r}, whose VAE has no `latents_mean` in its config; required: {needed}.")
    pipeline.vae.requires_grad_(False).eval()
    return pipeline


# ---------------------------------------------------------------------------------------------------------------------
# Classes
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Classes:
    """The classes of a pipeline that the data has."""

    id_of_label: dict[int | None, int]  # in the pipeline with the new classes; of None if the data has no labels
    new_names: list[str]  # of the new classes, whose ids follow the pipeline's
    first_rows: list[int | None]  # the pipeline's class whose row each of them begins with; None for the mean of all

    @property
    def ids(self) -> list[int]:
        """The ids of the trained classes, each once, in rising order."""
        return sorted(set(self.id_of_label.values()))


def find_classes(
    pipeline: LightningDiTPipeline,
    names: dict[int | None, str] | None,
    new_classes: dict[str, str | int | None],
    num_labels: int = 0,
) -> Classes:
    """Match the classes of the data with those of a pipeline, by name.

    Args:
        pipeline: The pipeline, which knows classes by names and synonyms.
        names: The names of the labels; None if they are unknown, for labels that are the pipeline's ids.
        new_classes: The names of classes that the pipeline does not know, and the classes whose rows they begin with.
        num_labels: The number of labels, if their names are unknown.

    Raises:
        ValueError: for a name that is in neither, or a new class that is not new or not in the data.
    """
    num_classes = pipeline.transformer.config.num_classes
    first_rows = []
    for name, start in new_classes.items():
        if pipeline.labels.get(name):
            raise ValueError(f"`new_classes` has {name!r}, which the pipeline knows; required: another name.")
        if name not in (names or {}).values():
            raise ValueError(
                f"`new_classes` has {name!r}; required: a class of the data, "
                f"{_some((names or {}).values()) or 'which has no names (`class_name` gives one)'}."
            )
        try:
            first_rows += [None] if start is None else pipeline.get_label_ids(start)
        except ValueError as error:
            raise ValueError(f"`new_classes.{name}`: {error}") from error
    if names is None:
        if num_labels > num_classes:
            raise ValueError(
                f"the data has label {num_labels - 1}, and no names of labels; required: names, or labels of the "
                f"pipeline's classes, 0 to {num_classes - 1}."
            )
        return Classes({label: label for label in range(num_labels)}, [], [])
    id_of_label = {}
    for label, name in names.items():
        if name in new_classes:
            id_of_label[label] = num_classes + list(new_classes).index(name)
            continue
        try:
            (id_of_label[label],) = pipeline.get_label_ids(name)
        except ValueError as error:
            near = difflib.get_close_matches(name, pipeline.labels, n=3, cutoff=0.5)
            raise ValueError(
                f"the data has the class {name!r}, which is {'several' if name in pipeline.labels else 'none'} of the "
                f"pipeline's; required: a name of one of them ({_some(near or pipeline.labels) or 'it has no names'}), "
                f"or `new_classes` with {name!r}."
            ) from error
    return Classes(id_of_label, list(new_classes), first_rows)


def _some(names: Sequence[str]) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")


class Relabelled(Dataset):
    """A data set whose items have the pipeline's ids of classes."""

    def __init__(self, dataset: Dataset, id_of_label: dict[int | None, int]):
        self.dataset = dataset
        self.id_of_label = id_of_label

    def summary(self) -> str:
        """The summary of the data set, with the names of its own classes."""
        return self.dataset.summary()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        item = self.dataset[index]  # the index may know its epoch
        label = None if None in self.id_of_label else int(item["class_labels"])
        return {**item, "class_labels": self.id_of_label[label]}


def load_lora_data(
    config: LoraTrainingConfig, pipeline: LightningDiTPipeline, data: str, split: str, for_training: bool
) -> tuple[TransformerData, Classes]:
    """The data with the pipeline's ids of classes, and these classes.

    Raises:
        ValueError: in one line, if it cannot be read, doesn't fit the pipeline, or has classes that it doesn't know.
    """
    try:
        loaded = load_data(config, pipeline.vae, data, split, for_training, labels=config.class_name is None)
    except ValueError as error:
        if "`label_column`" in str(error):
            raise ValueError(f"{error} Images of one class without labels: `class_name`.") from error
        raise
    trained_size = pipeline.transformer.config.sample_size
    if loaded.sample_size != trained_size:
        factor = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
        raise ValueError(
            f"the data has latents of {loaded.sample_size}x{loaded.sample_size}; required: the pipeline's "
            f"{trained_size}x{trained_size} (`resolution` {trained_size * factor})."
        )
    names = loaded.id2label if config.class_name is None else {None: config.class_name}
    classes = find_classes(pipeline, names, config.new_classes, loaded.num_classes)
    if isinstance(loaded.dataset, StreamedRows):
        loaded.dataset.id_of_label = classes.id_of_label
    else:
        loaded.dataset = Relabelled(loaded.dataset, classes.id_of_label)
    return loaded, classes


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
