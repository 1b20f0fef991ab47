# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
r"""Distil a pipeline into one that samples in a few steps (FACM, arXiv 2507.03738).

    accelerate launch --quiet training_scripts/train_lightningdit_few_step.py \
        --config training_scripts/recipes/imagenet256_xl_few_step.yaml \
        pipeline=FOLDER_OR_HUB_ID data=FOLDER_OR_HUB_ID output_dir=FOLDER key=value ...

The result is a complete pipeline folder with EMA weights, whose recipe says how it is sampled. The loss is in
`diffusers_lightningdit/flow_anchored_consistency.py`, the steps, which the other scripts share, in
`diffusers_lightningdit/training/transformer/loop.py`. docs/training.md tells more.
"""

import contextlib
from functools import partial

from diffusers_lightningdit.files import weights_sha256
from diffusers_lightningdit.hub.repository import HubError, create_repository
from diffusers_lightningdit.hub.trained_pipeline import save_trained_pipeline
from diffusers_lightningdit.locks import locked_by_run
from diffusers_lightningdit.settings import one_line_errors, parse_config
from diffusers_lightningdit.training.accelerator import make_accelerator
from diffusers_lightningdit.training.batches import DATA_ERRORS
from diffusers_lightningdit.training.checkpoints import CheckpointWriteError, find_checkpoint
from diffusers_lightningdit.training.spike_guard import TrainingDiverged
from diffusers_lightningdit.training.transformer.data import TransformerData
from diffusers_lightningdit.training.transformer.few_step import (
    NUM_PASSES,
    Distillation,
    FewStepTrainingConfig,
    check_processes,
    load_teacher,
    make_student,
)
from diffusers_lightningdit.training.transformer.loop import (
    averaged_pipeline,
    make_transformer_run,
    train,
)
from diffusers_lightningdit.training.transformer.pipeline_data import load_pipeline_data
from diffusers_lightningdit.training.transformer.results import few_step_pipeline
from diffusers_lightningdit.training.validation_samples import sampler_and_validation

SCRIPT = "train_lightningdit_few_step.py"


def main(argv: list[str] | None = None) -> dict[str, str]:
    with contextlib.ExitStack() as until_the_end:
        with one_line_errors():
            config = parse_config(FewStepTrainingConfig, argv, __doc__)
            accelerator = make_accelerator(config)
            check_processes(config, accelerator)
            pipeline = load_teacher(config.pipeline)
            teacher, vae = pipeline.transformer, pipeline.vae
            data, classes = load_pipeline_data(config, pipeline, config.data, config.split, for_training=True)
            accelerator.print(data.dataset.summary())

            def load_validation(name: str, split: str) -> TransformerData:
                return load_pipeline_data(config, pipeline, name, split, for_training=False)[0]

            sampler, validation = sampler_and_validation(config, data.dataset, load_validation, accelerator)
            must_match = {
                "teacher_sha256": weights_sha256(teacher),
                **{name: getattr(config, name) for name in ("student_times", "use_teacher")},
            }
            vae.to(accelerator.device)
            teacher.to(accelerator.device)
            if config.compile_blocks:
                teacher.compile_repeated_blocks()
            until_the_end.enter_context(locked_by_run(accelerator, config.output_dir))
            checkpoint = find_checkpoint(accelerator, config.output_dir, config.resume_from_checkpoint)
            student = make_student(config, teacher, begins_anew=checkpoint is None)
            distillation = Distillation(config, accelerator, student, teacher)
            state = make_transformer_run(config, accelerator, student, sampler, **must_match)
            state.resume(checkpoint)
        with one_line_errors((CheckpointWriteError, TrainingDiverged, HubError), status=1, of_one_process=DATA_ERRORS):
            if config.push_to_hub and accelerator.is_main_process:
                create_repository(config.hub_model_id)  # now, not after days of training
            pipeline_of = partial(few_step_pipeline, config, teacher=pipeline)
            make_pipeline = partial(averaged_pipeline, config, state, pipeline_of)
            arguments = (NUM_PASSES, classes.ids, distillation)
            train(config, accelerator, vae, data, validation, sampler, state, make_pipeline, *arguments)
            result = make_pipeline()
            if result is not None:
                save_trained_pipeline(config, result, SCRIPT)
            accelerator.wait_for_everyone()
            accelerator.end_training()
    return {"output_dir": config.output_dir}


if __name__ == "__main__":
    main()
