# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
r"""Make a complete repository of a checkpoint of the original, or of a pipeline folder, and upload it to the Hub.

    diffusers-lightningdit push --checkpoint lightningdit-xl-imagenet256-800ep.pt --config lightningdit_xl_800ep \
        --vae vavae-imagenet256-f16d32-dinov2.pt --latents_stats latents_stats.pt \
        --card lightningdit-xl-imagenet256-800ep --repository user/lightningdit-xl-imagenet256-800ep
    diffusers-lightningdit push --pipeline FOLDER --repository user/NAME --license mit --dry_run --output_dir repository

The checkpoint is converted and compared with a second implementation of the original's equations on the original's own
weights; a difference ends the command. The repository gets weights, half-precision variants, the code that loads it
without this package, a card, and a grid of samples. `--vae` alone makes the repository of an autoencoder, `--pipeline`
that of a pipeline that was trained or converted before. `--space` adds a Space with a page to draw on. `--dry_run`
writes folders and uploads nothing.
"""

import contextlib
import dataclasses
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from PIL import Image

from ..evaluation.drawn_images import check_sampling, checked_decoding, load_pipeline
from ..files import check_output_dir, file_sha256, new_folder, read_checkpoint, resolve_file
from ..grids import draw_labelled_grid
from ..hub.cards import autoencoder_card, check_card, conversion_section, find_card, pipeline_card, with_section
from ..hub.modular import modular_card, write_modular_repository
from ..hub.repository import CARD, VARIANTS, create_repository, upload_repository, write_repository
from ..hub.space import PACKAGE, write_space
from ..hub.verification import check_autoencoder, check_transformer
from ..models import AutoencoderVAVAE
from ..original import (
    build_autoencoder,
    build_pipeline,
    read_autoencoder,
    select_transformer_weights,
)
from ..original.autoencoder import select_autoencoder_weights
from ..original.checkpoint_settings import OriginalCheckpointSettings
from ..settings import check_repository, check_settings, one_line_errors, parse_config, required, setting
from . import installed_folder


@dataclasses.dataclass(kw_only=True)
class PushConfig(OriginalCheckpointSettings):
    """Settings of `diffusers-lightningdit push`.

    Raises:
        ValueError: If a value cannot be used, or the settings name no source, or several.
    """

    pipeline: str | None = setting(None, "Folder of a pipeline, in place of `checkpoint` and `vae`.")

    seed: int = setting(0, "The seed of the samples.", group="Sampling", minimum=0)
    classes: tuple[int | str, ...] | None = setting(
        None, "Ids or names of the classes of the samples; null: eight, evenly spread."
    )
    num_samples_per_class: int = setting(4, "Samples of each class; 0: no picture.", minimum=0, below=1000)
    sampling: dict = setting(
        {}, "Arguments of the pipeline's call for the samples, as sampling.num_inference_steps=50."
    )

    repository: str = required("The repository on the Hub: user/name.", group="Output")
    subfolder: str | None = setting(
        None, "The folder of the repository that an autoencoder goes into, in a repository of several."
    )
    private: bool = setting(True, "Make the repository private, if it is made.")
    card: str | None = setting(
        None, "A README.md, or the name of a folder in model_cards; null: a card composed of the pipeline."
    )
    license: str | None = setting(None, "The licence of the weights, by its name on the Hub, for a composed card.")
    variants: tuple[str, ...] = setting(
        ("fp16", "bf16"), "Half-precision copies beside the weights.", choices=tuple(VARIANTS)
    )
    modular: bool = setting(
        False, "Make a repository of modular blocks in place of a pipeline, which `ModularPipeline` loads."
    )
    max_shard_size: str = setting("10GB", "The size above which weights are split into several files.")
    space: str | None = setting(
        None,
        "A Space with a page to draw on with the repository: user/name. A dry run writes it into `output_dir`-space.",
    )
    space_requirement: str = setting(
        PACKAGE, "The line of the Space's requirements.txt that installs this package with its extra page."
    )
    dry_run: bool = setting(False, "Write the folder `output_dir`, and upload nothing.")
    output_dir: str | None = setting(
        None, "Folder of the repository, new or empty, which is kept; null: one that is removed after the upload."
    )

    def __post_init__(self):
        check_settings(self)
        if self.pipeline is None and self.checkpoint is None and self.vae is None:
            raise ValueError(
                "neither `checkpoint`, `vae` nor `pipeline` is given; required: one source of the weights."
            )
        if self.pipeline is not None and (self.checkpoint is not None or self.vae is not None):
            raise ValueError("`pipeline` is given beside `checkpoint` or `vae`; required: one source of the weights.")
        if self.checkpoint is not None and self.vae is None:
            raise ValueError("`checkpoint` is given without `vae`; required: both, for a pipeline.")
        for name, value in (("repository", self.repository), ("space", self.space)):
            if value is not None:
                check_repository(name, value)
        for name, form, wanted in (
            ("license", r"[a-z0-9][a-z0-9.+-]*", "its name on the Hub, as apache-2.0"),
            ("max_shard_size", r"[1-9]\d*[KMGT]B", "a size, as 10GB"),
        ):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(form, value, re.IGNORECASE):
                raise ValueError(f"`{name}` is {value!r}; required: {wanted}.")
        if self.card is None and self.license is None:
            raise ValueError(
                "neither `card` nor `license` is given; required: one of them, since a card names a licence."
            )
        if self.subfolder is not None and (self.pipeline is not None or self.checkpoint is not None):
            raise ValueError(f"`subfolder` is {self.subfolder!r}; required: null, but for an autoencoder alone.")
        if self.modular and ((self.pipeline is None and self.checkpoint is None) or self.variants):
            raise ValueError("`modular` is true; required: a pipeline, and `variants=[]`.")
        if self.space is not None and (self.modular or (self.pipeline is None and self.checkpoint is None)):
            raise ValueError(f"`space` is {self.space!r}; required: null, but for a pipeline without `modular`.")
        if self.dry_run and self.output_dir is None:
            raise ValueError("`dry_run` is true without `output_dir`; required: the folder that is to be written.")
        if self.output_dir is not None:
            check_output_dir(self.output_dir)
            if self.space is not None:
                check_output_dir(f"{self.output_dir}-space")


@dataclasses.dataclass
class Source:
    """A model to push, and what is known of its conversion.

    Attributes:
        model: The pipeline or autoencoder.
        differences: The largest relative differences from the original's equations, by part.
        files: The SHA-256 sums of the original's files, by their names.
    """

    model: DiffusionPipeline | AutoencoderVAVAE
    differences: dict[str, float] = dataclasses.field(default_factory=dict)
    files: dict[str, str] = dataclasses.field(default_factory=dict)


def read_source(config: PushConfig) -> Source:
    """Read or convert the model, and compare what was converted with the original.

    Raises:
        ValueError: In one line, for files that cannot be used, or a conversion that differs.
    """
    if config.pipeline is not None:
        return Source(load_pipeline(config.pipeline))
    parts = read_autoencoder(config.vae)
    vae = build_autoencoder(parts, config.latents_stats)
    source = Source(vae)
    if resolve_file(config.vae).is_file():
        weights = select_autoencoder_weights(read_checkpoint(config.vae))
        source.differences["vae"] = check_autoencoder(vae, weights)
        source.files[Path(config.vae.rpartition(":")[2]).name] = file_sha256(resolve_file(config.vae))
        del weights
    if config.checkpoint is None:
        vae.register_to_config(auto_map={"AutoModel": "autoencoder_vavae.AutoencoderVAVAE"})  # code beside the weights
        return source
    transformer, original, checkpoint = config.load_transformer()
    weights = select_transformer_weights(checkpoint, config.weights)
    source.differences["transformer"] = check_transformer(transformer, weights)
    source.files[Path(config.checkpoint.rpartition(":")[2]).name] = file_sha256(resolve_file(config.checkpoint))
    source.model = build_pipeline(transformer, vae, original)
    return source


def draw_samples(config: PushConfig, pipeline: DiffusionPipeline) -> Image.Image:
    """A grid of samples, with a titled row for each class."""
    num_classes = pipeline.transformer.config.num_classes
    spread = [number * num_classes // min(8, num_classes) for number in range(min(8, num_classes))]
    class_ids = spread if config.classes is None else pipeline.get_label_ids(list(config.classes))
    check_sampling(pipeline, config.sampling)
    pipeline.to(Accelerator().device)
    with checked_decoding(pipeline):
        grid = draw_labelled_grid(
            pipeline, class_ids, config.num_samples_per_class, config.seed, batch_size=16, **config.sampling
        )
    pipeline.to("cpu")
    return grid


def compose_card(config: PushConfig, source: Source) -> str:
    """The card of the repository, with the conversion that was checked."""
    model, data = source.model, {"license": config.license}
    if config.card is not None:
        card = find_card(config.card, config.repository, installed_folder("model_cards"))
    elif config.modular:
        card = modular_card(model, config.repository, config.license)
    elif isinstance(model, DiffusionPipeline):
        card = pipeline_card(model, config.repository, **data)
    else:
        card = autoencoder_card(model, config.repository, config.subfolder, **data)
    if source.files:
        compared = ", ".join(f"{name} {difference:.1g}" for name, difference in source.differences.items())
        card = with_section(
            card,
            "Conversion",
            conversion_section(source.files)
            + "\n\nAfterwards compared with a second implementation of the equations on these files, in float32. "
            f"Largest difference as a part of the largest output: {compared}.",
        )
    return card


def _folder(output_dir: str | None) -> contextlib.AbstractContextManager[str | Path]:
    """The folder of the repository: whole or not at all, or for the time of the upload."""
    return tempfile.TemporaryDirectory() if output_dir is None else new_folder(output_dir)


def push(config: PushConfig) -> dict[str, Any]:
    """Read, convert, compare, draw, write and upload.

    Returns:
        The `repository` and its `url` (None after a dry run), the names of its `files`, and the `differences` from the
        original's equations; the `space_url` of a Space.

    Raises:
        ValueError: In one line, for what cannot be used, converted or uploaded.
    """
    if not config.dry_run:
        create_repository(config.repository, config.private)  # now, not after the conversion
        if config.space is not None:
            create_repository(config.space, config.private, is_space=True)
    source = read_source(config)
    card = compose_card(config, source)
    samples = None
    if isinstance(source.model, DiffusionPipeline) and config.num_samples_per_class and not config.modular:
        samples = draw_samples(config, source.model)
    url = None
    with _folder(config.output_dir) as folder:
        if config.modular:
            write_modular_repository(folder, source.model, config.repository, card)
        else:
            write_repository(
                folder,
                source.model,
                card,
                variants=config.variants,
                samples=samples,
                max_shard_size=config.max_shard_size,
                subfolder=config.subfolder,
            )
        files = sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())
        if not config.dry_run:
            url = upload_repository(folder, config.repository, keep_card=config.card is None)
    result = {"repository": config.repository, "url": url, "files": files, "differences": source.differences}
    if config.space is not None:
        result["space_url"] = push_space(config, check_card(card).license)
    return result


def push_space(config: PushConfig, license: str | None) -> str | None:
    """Write the Space of a repository and upload it; return its address, or None after a dry run."""
    with _folder(f"{config.output_dir}-space" if config.output_dir is not None else None) as folder:
        write_space(folder, config.repository, license, config.space_requirement)
        return None if config.dry_run else upload_repository(folder, config.space, keep_card=True, is_space=True)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    with one_line_errors((ValueError, ImportError, OSError)), torch.no_grad():
        config = parse_config(PushConfig, argv, __doc__)
        result = push(config)
    for name, difference in result["differences"].items():
        print(f"{name}: differs from the original's equations by {difference:.1g} of the largest output")
    where = result["url"] or config.output_dir
    done = "wrote" if config.dry_run else "uploaded"
    print(f"{done} {where}: {len(result['files'])} files, with {CARD}")
    if config.space is not None:
        print(f"{done} {result['space_url'] or f'{config.output_dir}-space'}: a page to draw on")
    return result
