# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The pairs that a Change3D is trained and validated with, and the model that fits them."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ...change3d.captions import MAX_LENGTH
from ...change3d.pairs import PairDataset, PairFormat, StreamedPairs, known_vocabulary
from ...change3d.sources import open_pairs
from ...files import read_model
from ...models import Change3DModel
from ...original.change3d import initialize_from_x3d
from ...pipelines import Change3DPipeline
from .config import Change3DTrainingConfig

MODELS = "a folder or Hub id of a Change3DModel or a Change3DPipeline"


@dataclass
class TrainingPairs:
    """The data of a run.

    Attributes:
        train: The pairs that are trained on.
        validation: The pairs to validate with, or None.
        form: The form that the model needs them in.
    """

    train: PairDataset | StreamedPairs
    validation: PairDataset | None
    form: PairFormat


def load_pairs(
    config: Change3DTrainingConfig, model_config: dict, words_of_model: list[str] | None = None
) -> TrainingPairs:
    """Open and check all data.

    Args:
        config: The settings.
        model_config: The arguments of the model.
        words_of_model: The vocabulary of the pipeline that `weight_init` names, if it has one.

    Raises:
        ValueError: In one line, naming the file, for data that cannot be used.
        ImportError: If h5py is needed and not installed.
    """
    size, num_classes = model_config.get("sample_size", 256), model_config.get("num_classes")
    size = (size, size) if isinstance(size, int) else tuple(size)
    if config.class_names is not None and len(config.class_names) != num_classes:
        raise ValueError(
            f"`class_names` has {len(config.class_names)} names; required: {num_classes or 'none'}, one for each class."
        )
    source, vocabulary = None, None
    if config.task == "captioning" or not config.streaming:
        arguments = (config.columns, config.streaming, config.allow_left_out)
        source = open_pairs(config.task, config.data, config.split, *arguments)
    if config.task == "captioning":
        vocabulary = known_vocabulary(source, config.vocabulary, config.min_word_count)
        if config.weight_init is not None:
            _check_words(config.weight_init, vocabulary, model_config["vocab_size"], words_of_model)
    max_caption_length = model_config.get("max_caption_length", MAX_LENGTH)
    form = PairFormat(
        config.task, size, num_classes, config.label_palette, config.resize, vocabulary, max_caption_length
    )
    if config.streaming:
        arguments = (config.split, config.columns, config.allow_left_out, config.random_variation)
        train = StreamedPairs(form, config.data, *arguments)
    else:
        train = PairDataset(source, form, config.data, config.seed, config.random_variation)
    validation = None
    if config.validation_steps is not None:
        validation = _load_validation(config, form)
    for dataset in (train, validation):
        if config.check_data and isinstance(dataset, PairDataset):
            dataset.check()
    return TrainingPairs(train, validation, form)


def _load_validation(config: Change3DTrainingConfig, form: PairFormat) -> PairDataset:
    data = config.validation_data or config.data
    try:
        source = open_pairs(
            config.task, data, config.validation_split, config.columns, allow_left_out=config.allow_left_out
        )
        if source.vocabulary not in (None, form.vocabulary):
            raise ValueError(f"{data} has another vocabulary than the training data; required: the same.")
        dataset = PairDataset(source, form, data)
        if config.num_validation_pairs is not None and config.num_validation_pairs > len(dataset):
            raise ValueError(
                f"`num_validation_pairs` is {config.num_validation_pairs}; required: at most the {len(dataset)} pairs."
            )
    except ValueError as error:
        raise ValueError(f"validation data: {error}") from error
    return dataset


def _check_words(weight_init: str, vocabulary: dict[str, int], vocab_size: int, words: list[str] | None) -> None:
    """Raise ValueError if the words of the data are not those that the first weights were trained on."""
    advice = "which its WORDMAP file as `vocabulary` gives"
    if len(vocabulary) != vocab_size:
        raise ValueError(
            f"`data` has a vocabulary of {len(vocabulary)} words; required: {vocab_size}, as `weight_init` "
            f"{weight_init!r} has, {advice}."
        )
    if words is not None and sorted(vocabulary, key=vocabulary.get) != words:
        raise ValueError(
            f"`data` has another vocabulary than `weight_init` {weight_init!r}; required: the same, {advice}."
        )


def initial_model_config(
    config: Change3DTrainingConfig,
) -> tuple[dict, Change3DModel | None, list[str] | None]:
    """The arguments of the model; and the model itself and its words, where `weight_init` names them.

    Raises:
        ValueError: If there is no such model, or one of another task.
    """
    if config.weight_init is None:
        return {"task": config.task, **config.model}, None, None
    model, words = _read_model(config.weight_init, "weight_init", MODELS)
    if model.config.task != config.task:
        raise ValueError(
            f"`weight_init` is {config.weight_init!r}, of the task {model.config.task!r}; required: {config.task!r}."
        )
    return dict(model.config), model, words


def _read_model(name: str, argument: str, required: str) -> tuple[Change3DModel, list[str] | None]:
    """The model of a folder or Hub id, and the words of a pipeline that has them."""
    try:
        pipeline_config = Change3DPipeline.load_config(name)
    except Exception:  # diffusers raises many kinds where there is no model_index.json
        pipeline_config = {}
    subfolder = "model" if pipeline_config.get("_class_name") == Change3DPipeline.__name__ else None
    model = read_model(Change3DModel, name, argument, required, subfolder=subfolder)
    return model, pipeline_config.get("vocabulary")


def initialize_encoder(model: Change3DModel, name: str) -> None:
    """Load a pretrained encoder: X3D-L of Kinetics-400, or that of a Change3D of any task.

    Of a Change3D, the stem and the stages that both models have are taken, and the perception frames if their number
    and size are the same.

    Args:
        model: The model to be trained.
        name: The file X3D_L.pyth, or `user/name:file` on the Hub; or folder or Hub id of a model or pipeline.

    Raises:
        ValueError: In one line, if it cannot be used.
    """
    is_hub_id = "/" in name and ":" not in name and not Path(name).is_file()
    if not (Path(name).is_dir() or is_hub_id):
        try:
            initialize_from_x3d(model, name)
        except ValueError as error:
            raise ValueError(f"`pretrained_encoder`: {error}") from error
        return
    source, _ = _read_model(name, "pretrained_encoder", f"the file X3D_L.pyth, or {MODELS}")
    widths = ("width_factor", "depth_factor")
    found, wanted = ({key: each.config[key] for key in widths} for each in (source, model))
    if found != wanted:
        raise ValueError(f"`pretrained_encoder` is {name!r}, an X3D with {found}; required: {wanted}, as `model` has.")
    ours, theirs = model.encoder, source.encoder
    ours.stem.load_state_dict(theirs.stem.state_dict())
    for stage, other in zip(ours.stages, theirs.stages, strict=False):  # captioning has one more
        stage.load_state_dict(other.state_dict())
    if ours.perception_frames.shape == theirs.perception_frames.shape:
        ours.perception_frames.data.copy_(theirs.perception_frames)


def initial_model(config: Change3DTrainingConfig, arguments: dict, form: PairFormat) -> Change3DModel:
    """A new model, whose random numbers are torch's global ones, with the weights of `pretrained_encoder`.

    Raises:
        ValueError: In one line, if the file cannot be used.
    """
    if form.vocabulary is not None:
        arguments = {**arguments, "vocab_size": len(form.vocabulary)}
    model = Change3DModel(**arguments)
    if config.pretrained_encoder is not None:
        initialize_encoder(model, config.pretrained_encoder)
        if config.pretrained_channel_order == "rgb":
            with torch.no_grad():
                weight = model.encoder.stem.conv_space.weight
                weight.copy_(weight.flip(1))
    return model
