# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
r"""Train Change3D: change maps, classes of change, building damage, or captions of changes.

    accelerate launch --quiet training_scripts/train_change3d.py \
        --config training_scripts/recipes/change3d_levir_cd.yaml data=FOLDER_OR_HUB_ID pretrained_encoder=X3D_L.pyth \
        output_dir=FOLDER key=value ...

The result is the folder of a `Change3DPipeline`, with the weights of the best validation. docs/change3d.md tells more.

Batch norms and the Dice loss look at the batch of one process, so that the number of processes and of accumulation
steps changes what is learnt.
"""

import contextlib
from functools import partial

import torch
from accelerate import Accelerator

from diffusers_lightningdit.change3d.losses import binary_losses, caption_losses, damage_losses, semantic_losses
from diffusers_lightningdit.data.row_stream import RowStream
from diffusers_lightningdit.hub.repository import HubError, create_repository
from diffusers_lightningdit.hub.trained_pipeline import save_trained_pipeline
from diffusers_lightningdit.locks import locked_by_run
from diffusers_lightningdit.models import Change3DModel
from diffusers_lightningdit.settings import one_line_errors, parse_config
from diffusers_lightningdit.training.accelerator import make_accelerator
from diffusers_lightningdit.training.batches import DATA_ERRORS, Sampler, make_batch_sampler, train_steps
from diffusers_lightningdit.training.change3d.config import Change3DTrainingConfig
from diffusers_lightningdit.training.change3d.data import (
    TrainingPairs,
    initial_model,
    initial_model_config,
    load_pairs,
)
from diffusers_lightningdit.training.change3d.result import model_of, trained_pipeline
from diffusers_lightningdit.training.change3d.schedules import make_adam, make_schedule
from diffusers_lightningdit.training.change3d.validation import BestWeights, Change3DValidation
from diffusers_lightningdit.training.checkpoints import CheckpointWriteError, find_checkpoint
from diffusers_lightningdit.training.moving_averages import MovingAverages
from diffusers_lightningdit.training.optimizer_step import accumulating, due, finish_step, mean_of_parts
from diffusers_lightningdit.training.progress import TrainingProgress
from diffusers_lightningdit.training.run_state import RunState, make_run_state
from diffusers_lightningdit.training.spike_guard import TrainingDiverged

SCRIPT = "train_change3d.py"
MODEL = "model"  # in checkpoints
ADVICE = "a lower `learning_rate`, or labels with more classes in a batch"


# ---------------------------------------------------------------------------------------------------------------------
# Beginning
# ---------------------------------------------------------------------------------------------------------------------


def make_run(
    config: Change3DTrainingConfig,
    accelerator: Accelerator,
    model: Change3DModel,
    pairs: TrainingPairs,
    sampler: Sampler,
) -> RunState:
    """Model, optimiser, schedule, average and spike guard: new, or as in the checkpoint to resume from."""
    if config.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    if config.channels_last:
        model.to(memory_format=torch.channels_last_3d)
    if config.compile_model:
        model.compile()
    architectures = {MODEL: dict(model.config)}
    model, optimizer = accelerator.prepare(model.train(), make_adam(config, model))
    averages = {}
    if config.ema_decay is not None:
        averages[MODEL] = MovingAverages(model.parameters(), (config.ema_decay,), config.ema_warmup)
    must_match = {}
    if pairs.form.vocabulary is not None:  # the words in the order of their ids
        must_match["vocabulary"] = sorted(pairs.form.vocabulary, key=pairs.form.vocabulary.get)
    state = make_run_state(
        config,
        accelerator,
        sampler,
        {MODEL: model},
        {MODEL: optimizer},
        averages,
        architectures,
        advice=ADVICE,
        make_schedule=partial(make_schedule, steps_per_epoch=steps_per_epoch(sampler)),
        **must_match,
    )
    state.resume(find_checkpoint(accelerator, config.output_dir, config.resume_from_checkpoint))
    return state


def steps_per_epoch(sampler: Sampler) -> int | None:
    """The steps of an epoch; None of a stream."""
    return None if isinstance(sampler, RowStream) else sampler.num_samples // sampler.global_batch_size


def main(argv: list[str] | None = None) -> dict[str, str]:
    with contextlib.ExitStack() as until_the_end:
        with one_line_errors((ValueError, ImportError, OSError)):
            config = parse_config(Change3DTrainingConfig, argv, __doc__)
            accelerator = make_accelerator(config)
            if accelerator.is_fsdp2:
                raise ValueError("a model this small is not sharded (FSDP2); required: data-parallel training.")
            arguments, model, words = initial_model_config(config)
            pairs = load_pairs(config, arguments, words)
            accelerator.print(pairs.train.summary())
            sampler = make_batch_sampler(config, pairs.train, accelerator)
            torch.manual_seed(config.seed)  # the same first weights on every process
            model = model or initial_model(config, arguments, pairs.form)
            until_the_end.enter_context(locked_by_run(accelerator, config.output_dir))
            state = make_run(config, accelerator, model, pairs, sampler)
            best = BestWeights(
                config.output_dir, accelerator, state.step, state.model(MODEL), config.resume_from_checkpoint
            )
        with one_line_errors((CheckpointWriteError, TrainingDiverged, HubError), status=1, of_one_process=DATA_ERRORS):
            if config.push_to_hub and accelerator.is_main_process:
                create_repository(config.hub_model_id)  # now, not after days of training
            train(config, accelerator, pairs, sampler, state, best)
            save(config, accelerator, pairs, state, best)
    return {"output_dir": config.output_dir}


# ---------------------------------------------------------------------------------------------------------------------
# Steps
# ---------------------------------------------------------------------------------------------------------------------


def train(
    config: Change3DTrainingConfig,
    accelerator: Accelerator,
    pairs: TrainingPairs,
    sampler: Sampler,
    state: RunState,
    best: BestWeights,
) -> None:
    progress = TrainingProgress(config, accelerator, state.step)
    state.report = progress.report
    steps = train_steps(config, pairs.train, sampler, state.batch_index, accelerator)
    validate = pairs.validation and Change3DValidation(config, pairs.validation, accelerator)

    def observe(only_missing: bool = False) -> None:
        """Validate after this step if it is due, or only if a run that was killed after it did not come to it."""
        step = state.step
        if step and due(step, config.validation_steps, config.max_train_steps):
            if only_missing and progress.has_validation(step):
                return
            model = trained_model(config, state)
            score, metrics = validate(model)
            if accelerator.is_main_process:
                best.offer(step, score, model.state_dict())
            progress.record(step, metrics)

    with progress, state.interruption:
        observe(only_missing=True)
        while state.step < config.max_train_steps:
            scalars_of_batches, micro_batches = [], next(steps)
            for number, (batch, _) in enumerate(micro_batches, start=1):
                with accumulating(accelerator, state.models[MODEL], number == len(micro_batches)):
                    losses = losses_of(state.models[MODEL], config.task, batch, accelerator)
                    accelerator.backward(losses["loss"] / len(micro_batches))
                scalars_of_batches.append({name: value.detach() for name, value in losses.items()})
            scalars = mean_of_parts(scalars_of_batches)
            metrics = finish_step(
                state, scalars, lambda means: means["loss"], config.max_grad_norm, [MODEL], config.max_grad_value
            )
            progress.update(state.step, metrics)

            if state.secure(config.checkpointing_steps, config.max_train_steps):
                continue  # back at an earlier step
            observe()
    state.check_result()


def losses_of(
    model: torch.nn.Module, task: str, batch: dict[str, torch.Tensor], accelerator: Accelerator
) -> dict[str, torch.Tensor]:
    """The losses of a batch by name; `loss` is the one that is trained.

    Args:
        model: The prepared model, in training.
        task: Its task.
        batch: `image_before` and `image_after` [B, 3, H, W], and `labels` [B, L, H, W] or `captions` [B, L].
        accelerator: The accelerator, whose precision the model computes in; losses are float32.
    """
    words = (batch["captions"],) if task == "captioning" else ()
    with accelerator.autocast():  # a tuple: Accelerate cannot make output classes of float32 ones anew
        outputs = model(batch["image_before"], batch["image_after"], *words, return_dict=False)
    if task == "captioning":
        return caption_losses(outputs[0], *words)
    *classes, probability = (*outputs[:-1], outputs[-1].float().sigmoid())
    if task == "binary":
        return binary_losses(probability, batch["labels"])
    losses = semantic_losses if task == "semantic" else damage_losses
    return losses(*classes, probability, *batch["labels"].unbind(1))


# ---------------------------------------------------------------------------------------------------------------------
# Result
# ---------------------------------------------------------------------------------------------------------------------


def trained_model(config: Change3DTrainingConfig, state: RunState) -> Change3DModel:
    """A copy of the model as it is to be saved, with averaged weights where there are any."""
    trained = state.model(MODEL)
    weights = trained.state_dict() if config.ema_decay is None else state.averaged_state(MODEL, config.ema_decay)
    return model_of(trained.config, weights)


def save(
    config: Change3DTrainingConfig,
    accelerator: Accelerator,
    pairs: TrainingPairs,
    state: RunState,
    best: BestWeights,
) -> None:
    """The pipeline with the best weights, or the last ones."""
    if accelerator.is_main_process:
        model = trained_model(config, state)
        if config.keep_best and best.step is not None:
            model.load_state_dict(best.load())
            print(f"the weights of step {best.step} are the best ones: validation score {best.score:.4g}")
        save_trained_pipeline(config, trained_pipeline(config, model, pairs.form.vocabulary), SCRIPT)
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
