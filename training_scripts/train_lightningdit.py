# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
r"""Train the transformer (second stage) on the latents of a frozen autoencoder.

    accelerate launch --quiet training_scripts/train_lightningdit.py \
        --config examples/digits/recipes/lightningdit.yaml \
        data=FOLDER_OR_HUB_ID vae=FOLDER_OR_HUB_ID output_dir=FOLDER key=value ...

The result is a complete pipeline folder with EMA weights, which `DiffusionPipeline.from_pretrained` loads. The loss and
the steps, which LoRA training shares, are in `diffusers_lightningdit/training/transformer/loop.py`. docs/training.md
tells more.
"""

import contextlib
from functools import partial

import torch
from accelerate import Accelerator

from diffusers_lightningdit import AutoencoderVAVAE, LightningDiTTransformer2DModel
from diffusers_lightningdit.data.latent_encoding import load_frozen_vae
from diffusers_lightningdit.files import weights_sha256
from diffusers_lightningdit.hub.repository import HubError, create_repository
from diffusers_lightningdit.hub.trained_pipeline import save_trained_pipeline
from diffusers_lightningdit.locks import locked_by_run
from diffusers_lightningdit.networks.foundation_model import FoundationModel
from diffusers_lightningdit.original import read_training_checkpoint
from diffusers_lightningdit.pixels import height_and_width
from diffusers_lightningdit.settings import one_line_errors, parse_config
from diffusers_lightningdit.training.accelerator import make_accelerator
from diffusers_lightningdit.training.batches import DATA_ERRORS, Sampler
from diffusers_lightningdit.training.checkpoints import CheckpointWriteError, find_checkpoint
from diffusers_lightningdit.training.run_state import RunState
from diffusers_lightningdit.training.spike_guard import TrainingDiverged
from diffusers_lightningdit.training.transformer.alignment import PROJECTOR, Alignment
from diffusers_lightningdit.training.transformer.config import LightningDiTTrainingConfig
from diffusers_lightningdit.training.transformer.data import TransformerData, load_data
from diffusers_lightningdit.training.transformer.loop import (
    NAME,
    aligned_loss,
    averaged_pipeline,
    make_transformer_run,
    train,
)
from diffusers_lightningdit.training.transformer.results import flow_pipeline
from diffusers_lightningdit.training.transformer.weight_init import (
    SWITCHES,
    check_switches,
    initialize_weights,
    load_initial_transformer,
)
from diffusers_lightningdit.training.validation_samples import sampler_and_validation

SCRIPT = "train_lightningdit.py"
ADVICE = "a lower `learning_rate` or `max_grad_norm`, `transformer.use_qk_norm`"  # against divergence

# ---------------------------------------------------------------------------------------------------------------------
# Beginning
# ---------------------------------------------------------------------------------------------------------------------


def make_transformer(
    config: LightningDiTTrainingConfig,
    vae: AutoencoderVAVAE,
    data: TransformerData,
    accelerator: Accelerator,
    begins_anew: bool,
) -> LightningDiTTransformer2DModel:
    """The transformer; one that begins anew has the weights of `weight_init` if that is given."""
    torch.manual_seed(config.seed)  # the same first weights on every process
    transformer = LightningDiTTransformer2DModel(
        sample_size=data.sample_size,
        in_channels=vae.config.latent_channels,
        num_classes=data.num_classes,
        **config.transformer,
    )
    if config.weight_init is not None and begins_anew:
        initial, names = load_initial_transformer(config.weight_init)
        check_switches(transformer, initial.config, f"`weight_init` is {config.weight_init!r}", SWITCHES)
        for remark in initialize_weights(transformer, initial.state_dict(), data.id2label, names):
            accelerator.print(remark)
    return transformer


def make_run(
    config: LightningDiTTrainingConfig,
    accelerator: Accelerator,
    vae: AutoencoderVAVAE,
    data: TransformerData,
    sampler: Sampler,
) -> tuple[RunState, Alignment | None]:
    """Model, optimiser, schedule, averages and spike guard: new, or as in the checkpoint to resume from.

    With them the alignment, if there is one.
    """
    original, checkpoint = None, None
    if (config.resume_from_checkpoint or "").endswith(".pt"):
        original = read_training_checkpoint(config.resume_from_checkpoint)
    else:
        checkpoint = find_checkpoint(accelerator, config.output_dir, config.resume_from_checkpoint)
    begins_anew = original is None and checkpoint is None
    transformer = make_transformer(config, vae, data, accelerator, begins_anew)
    if original is not None:
        place = f"`resume_from_checkpoint` is {config.resume_from_checkpoint!r}"
        keys = tuple(key for key in original.config if key != "mlp_ratio")  # which the shapes tell
        check_switches(transformer, original.config, place, keys)
    classes = None if data.id2label is None else list(data.id2label.values())
    must_match = {"classes": classes, "vae_sha256": weights_sha256(vae)}
    alignment, others = make_alignment(config, accelerator, transformer, data), {}
    if alignment is not None:
        others[PROJECTOR] = alignment.projector, alignment.projector_arguments
    state = make_transformer_run(config, accelerator, transformer, sampler, others, advice=ADVICE, **must_match)
    if original is not None:
        state.adopt(NAME, original.weights, original.average, original.moments, original.num_steps)
        accelerator.print(f"resumed from {config.resume_from_checkpoint}, step {original.num_steps}")
    else:
        state.resume(checkpoint)
    return state, alignment


def make_alignment(
    config: LightningDiTTrainingConfig,
    accelerator: Accelerator,
    transformer: LightningDiTTransformer2DModel,
    data: TransformerData,
) -> Alignment | None:
    """The alignment that the settings ask for, or None.

    Raises:
        ValueError: in one line, if the foundation model, the features or the layer cannot be used.
    """
    settings = config.alignment_settings
    if settings is None:
        return None
    if accelerator.is_fsdp2:
        raise ValueError("`alignment` is given; required: none where weights are sharded.")
    foundation_model, num_channels = None, None
    if settings.model is not None:
        model = FoundationModel.from_pretrained(settings.model, settings.foundation_normalization, "alignment.model")
        foundation_model = model.to(accelerator.device)
    else:
        num_channels, *grid_size = data.dataset.feature_shape
        tokens = [side // transformer.config.patch_size for side in height_and_width(data.sample_size)]
        if grid_size != tokens:
            raise ValueError(
                f"{config.data} holds features on a grid of {grid_size}; required: {tokens}, that of the transformer's "
                "tokens."
            )
    return Alignment(settings, transformer, num_channels, foundation_model)


def main(argv: list[str] | None = None) -> dict[str, str]:
    with contextlib.ExitStack() as until_the_end:
        with one_line_errors():
            config = parse_config(LightningDiTTrainingConfig, argv, __doc__)
            accelerator = make_accelerator(config)
            vae = load_frozen_vae(config.vae)
            with_features = bool(config.alignment) and config.data_kind == "latents"
            data = load_data(config, vae, config.data, config.split, for_training=True, with_features=with_features)
            accelerator.print(data.dataset.summary())
            if (config.guidance_channels or 0) > vae.config.latent_channels:
                raise ValueError(
                    f"`guidance_channels` is {config.guidance_channels}; required: at most the VAE's "
                    f"`latent_channels`, {vae.config.latent_channels}."
                )
            load_validation = partial(load_data, config, vae, for_training=False)
            sampler, validation = sampler_and_validation(config, data.dataset, load_validation, accelerator)
            vae.to(accelerator.device)
            until_the_end.enter_context(locked_by_run(accelerator, config.output_dir))
            state, alignment = make_run(config, accelerator, vae, data, sampler)
        with one_line_errors((CheckpointWriteError, TrainingDiverged, HubError), status=1, of_one_process=DATA_ERRORS):
            if config.push_to_hub and accelerator.is_main_process:
                create_repository(config.hub_model_id)  # now, not after days of training
            pipeline_of = partial(flow_pipeline, config, vae=vae, id2label=data.id2label)
            make_pipeline = partial(averaged_pipeline, config, state, pipeline_of)
            arguments = {}
            if alignment is not None:
                arguments["loss"] = partial(aligned_loss, alignment, state.models[PROJECTOR])
                arguments["trained_at"] = lambda step: [NAME, PROJECTOR][: 1 + alignment.settings.is_active(step)]
            train(config, accelerator, vae, data, validation, sampler, state, make_pipeline, **arguments)
            pipeline = make_pipeline()
            if pipeline is not None:
                save_trained_pipeline(config, pipeline, SCRIPT)
            accelerator.wait_for_everyone()
            accelerator.end_training()
    return {"output_dir": config.output_dir}


if __name__ == "__main__":
    main()
