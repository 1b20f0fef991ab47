# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
r"""Fine-tune a pipeline on own images by LoRA: its own classes, or new ones, whose class embeddings are trained.

    accelerate launch --quiet training_scripts/train_lightningdit_lora.py \
        --config examples/digits/recipes/lora.yaml \
        pipeline=FOLDER_OR_HUB_ID data=FOLDER_OR_HUB_ID output_dir=FOLDER key=value ...

The result, averaged weights in `pytorch_lora_weights.safetensors`, is for `pipe.load_lora_weights`. The loss and the
steps, which full training shares, are in `diffusers_lightningdit/training/transformer/loop.py`. docs/training.md tells
more.
"""

import contextlib
from functools import partial

import torch
from accelerate import Accelerator

from diffusers_lightningdit import LightningDiTPipeline
from diffusers_lightningdit.files import weights_sha256, write_result
from diffusers_lightningdit.hub.repository import CARD, HubError, create_repository, upload_repository
from diffusers_lightningdit.locks import locked_by_run
from diffusers_lightningdit.settings import one_line_errors, parse_config
from diffusers_lightningdit.training.accelerator import make_accelerator
from diffusers_lightningdit.training.batches import DATA_ERRORS
from diffusers_lightningdit.training.checkpoints import CheckpointWriteError, find_checkpoint
from diffusers_lightningdit.training.run_state import RunState
from diffusers_lightningdit.training.spike_guard import TrainingDiverged
from diffusers_lightningdit.training.transformer.data import TransformerData
from diffusers_lightningdit.training.transformer.loop import NAME, make_transformer_run, train
from diffusers_lightningdit.training.transformer.lora import (
    LORA_FILE,
    LoraTrainingConfig,
    add_lora,
    load_lora_data,
    lora_file_content,
    save_lora,
)
from diffusers_lightningdit.training.transformer.pipeline_data import Classes, load_pipeline
from diffusers_lightningdit.training.validation_samples import sampler_and_validation

NUM_PASSES = 2  # a forward pass, and back for the activations alone


def main(argv: list[str] | None = None) -> dict[str, str]:
    with contextlib.ExitStack() as until_the_end:
        with one_line_errors():
            config = parse_config(LoraTrainingConfig, argv, __doc__)
            accelerator = make_accelerator(config)
            pipeline = load_pipeline(config.pipeline)
            transformer, vae = pipeline.transformer, pipeline.vae
            data, classes = load_lora_data(config, pipeline, config.data, config.split, for_training=True)
            accelerator.print(data.dataset.summary())

            def load_validation(name: str, split: str) -> TransformerData:
                return load_lora_data(config, pipeline, name, split, for_training=False)[0]

            sampler, validation = sampler_and_validation(config, data.dataset, load_validation, accelerator)
            must_match = {
                "pipeline_sha256": weights_sha256(transformer),  # before the LoRA: the weights that no checkpoint holds
                "new_classes": classes.new_names,
                "classes": None if data.id2label is None else list(data.id2label.values()),
                "alpha": config.alpha or config.rank,  # which no shape tells
            }
            vae.to(accelerator.device)
            add_lora(transformer, config.rank, config.alpha, config.target_modules, classes, config.seed)
            until_the_end.enter_context(locked_by_run(accelerator, config.output_dir))
            state = make_transformer_run(config, accelerator, transformer, sampler, **must_match)
            state.resume(find_checkpoint(accelerator, config.output_dir, config.resume_from_checkpoint))
        with one_line_errors((CheckpointWriteError, TrainingDiverged, HubError), status=1, of_one_process=DATA_ERRORS):
            if config.push_to_hub and accelerator.is_main_process:
                create_repository(config.hub_model_id)  # now, not after training
            make = partial(make_pipeline, config, state, vae, classes)
            train(config, accelerator, vae, data, validation, sampler, state, make, NUM_PASSES, classes.ids)
            save(config, accelerator, state, classes, pipeline)
    return {"output_dir": config.output_dir}


# ---------------------------------------------------------------------------------------------------------------------
# Result
# ---------------------------------------------------------------------------------------------------------------------


def make_pipeline(
    config: LoraTrainingConfig, state: RunState, vae: torch.nn.Module, classes: Classes
) -> LightningDiTPipeline | None:
    """The original pipeline with the averaged LoRA, on the CPU of the main process, None on others.

    Every process has to call it.
    """
    weights = state.average(NAME, config.ema_decay)
    if not state.accelerator.is_main_process:
        return None
    tensors, metadata = lora_file_content(state.model(NAME), weights, classes.new_names)
    pipeline = load_pipeline(config.pipeline)
    pipeline.register_modules(vae=vae)
    pipeline.transformer.load_lora_adapter(tensors, prefix=None, metadata=metadata)
    return pipeline


def save(
    config: LoraTrainingConfig,
    accelerator: Accelerator,
    state: RunState,
    classes: Classes,
    pipeline: LightningDiTPipeline,
) -> None:
    weights = state.average(NAME, config.ema_decay)
    if accelerator.is_main_process:
        with write_result(config.output_dir) as folder:
            save_lora(folder, config, state.model(NAME), weights, classes, pipeline.id2label)
        print(f"wrote {config.output_dir}")
        if config.push_to_hub:
            upload_repository(config.output_dir, config.hub_model_id, [LORA_FILE, CARD], keep_card=True)
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
