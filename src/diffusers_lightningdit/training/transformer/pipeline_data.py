# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The pipeline whose transformer is trained further, and data with the ids of its classes."""

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from ...files import read_model
from ...models import AutoencoderVAVAE
from ...pipelines.pipeline_lightningdit import LightningDiTPipeline
from ...pixels import height_and_width, square_or_pair
from .config import FlowTrainingConfig
from .data import TransformerData, load_data, relabel

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
    new_classes: dict[str, str | int | None] | None,
    num_labels: int = 0,
) -> Classes:
    """Match the classes of the data with those of a pipeline, by name.

    Args:
        pipeline: The pipeline, which knows classes by names and synonyms.
        names: The names of the labels; None if they are unknown, for labels that are the pipeline's ids.
        new_classes: The names of classes that the pipeline does not know, and the classes whose rows they begin with;
            None where there can be none.
        num_labels: The number of labels, if their names are unknown.

    Raises:
        ValueError: for a name that is in neither, or a new class that is not new or not in the data.
    """
    num_classes = pipeline.transformer.config.num_classes
    first_rows = []
    for name, start in (new_classes or {}).items():
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
        if name in (new_classes or ()):
            id_of_label[label] = num_classes + list(new_classes).index(name)
            continue
        try:
            (id_of_label[label],) = pipeline.get_label_ids(name)
        except ValueError as error:
            near = difflib.get_close_matches(name, pipeline.labels, n=3, cutoff=0.5)
            raise ValueError(
                f"the data has the class {name!r}, which is {'several' if name in pipeline.labels else 'none'} of the "
                f"pipeline's; required: a name of one of them ({_some(near or pipeline.labels) or 'it has no names'})"
                + ("." if new_classes is None else f", or `new_classes` with {name!r}.")
            ) from error
    return Classes(id_of_label, list(new_classes or ()), first_rows)


def _some(names: Sequence[str]) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")


def load_pipeline_data(
    config: FlowTrainingConfig,
    pipeline: LightningDiTPipeline,
    data: str,
    split: str,
    for_training: bool,
    class_name: str | None = None,
    new_classes: dict[str, str | int | None] | None = None,
) -> tuple[TransformerData, Classes]:
    """The data with the pipeline's ids of classes, and these classes.

    Args:
        config: The settings.
        pipeline: The pipeline.
        data, split: The data set and its split.
        for_training: Whether it is trained with.
        class_name: The class of all images, of data without labels.
        new_classes: As in `find_classes`.

    Raises:
        ValueError: in one line, if it cannot be read, doesn't fit the pipeline, or has classes that it doesn't know.
    """
    if config.label_column is None and class_name is None and pipeline.transformer.config.num_classes > 1:
        raise ValueError("`label_column` is null; required: the column of the class labels, by which they are known.")
    loaded = load_data(config, pipeline.vae, data, split, for_training, labels=class_name is None)
    size = height_and_width(loaded.sample_size)
    trained_size = height_and_width(pipeline.transformer.config.sample_size)
    if size != trained_size:
        factor = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
        resolution = square_or_pair(*[side * factor for side in trained_size])
        raise ValueError(
            f"the data has latents of {size[0]}x{size[1]}; required: the pipeline's {trained_size[0]}x"
            f"{trained_size[1]} (`resolution` {json.dumps(resolution)})."
        )
    names = loaded.id2label if class_name is None else {None: class_name}
    classes = find_classes(pipeline, names, new_classes, loaded.num_classes)
    if config.label_column is not None or class_name is not None:
        loaded.dataset = relabel(loaded.dataset, classes.id_of_label)
    return loaded, classes
