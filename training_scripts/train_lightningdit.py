# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Train the transformer (second stage) on the latents of a frozen autoencoder.

    accelerate launch training_scripts/train_lightningdit.py \
        --config training_scripts/recipes/digits_lightningdit.yaml \
        data=FOLDER_OR_HUB_ID vae=FOLDER_OR_HUB_ID output_dir=FOLDER key=value ...

Keys are the fields of `LightningDiTTrainingConfig`. The result is a complete pipeline folder with EMA weights, which
`DiffusionPipeline.from_pretrained` loads.
"""

from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from diffusers_lightningdit import AutoencoderVAVAE, LightningDiTPipeline, LightningDiTTransformer2DModel
from diffusers_lightningdit.flow_matching import (
    interpolate,
    sample_logit_normal_times,
    sample_uniform_times,
    velocity_cosine_loss,
    velocity_mse_loss,
    velocity_target,
)
from diffusers_lightningdit.image_data import ImageDataset
from diffusers_lightningdit.latents import (
    MomentsDataset,
    encode_moments,
    latents_size,
    load_frozen_vae,
    sample_latents,
)
from diffusers_lightningdit.training_config import (
    TrainingConfig,
    check_at_least,
    check_choice,
    check_model_arguments,
    check_positive,
    one_line_errors,
    parse_config,
)
from diffusers_lightningdit.training_loop import (
    check_batch_size,
    make_lr_scheduler,
    make_train_dataloader,
    train_batches,
)

TIME_SAMPLERS = {"logit_normal": sample_logit_normal_times, "uniform": sample_uniform_times}


@dataclass(kw_only=True)
class LightningDiTTrainingConfig(TrainingConfig):
    label_column: str = "label"  # of class labels
    vae: str  # folder or Hub id of the frozen autoencoder
    latents_in_memory: bool = False  # encode the data once, instead of every batch anew
    # Arguments of LightningDiTTransformer2DModel, but those that follow from data and VAE
    transformer: dict = field(default_factory=dict)
    time_sampling: str = "logit_normal"
    use_cosine_loss: bool = True
    train_batch_size: int = 256
    max_train_steps: int = 80_000
    learning_rate: float = 2e-4
    adam_betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = 1.0
    ema_decay: float = 0.9999
    # Sampling recipe of the saved pipeline: the published one of 64 epochs
    num_inference_steps: int = 249
    timestep_shift: float = 0.3
    guidance_scale: float = 10.0
    guidance_interval: tuple[float, float] = (0.10, 1.0)
    guidance_channels: int | None = 3
    save_dtype: str = "float32"  # of the saved weights

    def __post_init__(self):
        super().__post_init__()
        check_model_arguments("transformer", self.transformer, LightningDiTTransformer2DModel)
        for name in ("sample_size", "in_channels", "num_classes"):
            if name in self.transformer:
                raise ValueError(f"`transformer.{name}` is given; required: left out, it follows from data and VAE.")
        check_choice("time_sampling", self.time_sampling, TIME_SAMPLERS)
        check_choice("save_dtype", self.save_dtype, ("float32", "bfloat16", "float16"))
        check_at_least("num_inference_steps", self.num_inference_steps, 1)
        check_at_least("guidance_scale", self.guidance_scale, 0)
        for name in ("max_grad_norm", "timestep_shift"):
            check_positive(name, getattr(self, name))
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"`ema_decay` is {self.ema_decay}; required: at least 0 and below 1.")
        start, end = self.guidance_interval
        if not 0 <= start <= end <= 1:
            raise ValueError(f"`guidance_interval` is {[start, end]}; required: [start, end], 0 <= start <= end <= 1.")
        if self.guidance_channels is not None:
            check_at_least("guidance_channels", self.guidance_channels, 1)


def make_transformer(
    config: LightningDiTTrainingConfig, vae: AutoencoderVAVAE, num_classes: int
) -> LightningDiTTransformer2DModel:
    return LightningDiTTransformer2DModel(
        sample_size=latents_size(config.resolution, vae),
        in_channels=vae.config.latent_channels,
        num_classes=num_classes,
        **config.transformer,
    )


def save_pipeline(
    config: LightningDiTTrainingConfig,
    transformer: LightningDiTTransformer2DModel,
    vae: AutoencoderVAVAE,
    id2label: dict[int, str],
) -> None:
    # the original's shift s is diffusers' 1 / s
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1 / config.timestep_shift)
    recipe = {
        "num_inference_steps": config.num_inference_steps,
        "guidance_scale": config.guidance_scale,
        "guidance_interval": list(config.guidance_interval),
        "guidance_channels": config.guidance_channels,
    }
    pipeline = LightningDiTPipeline(transformer, vae, scheduler, id2label=id2label, sampling_recipe=recipe)
    pipeline.to(getattr(torch, config.save_dtype)).save_pretrained(config.output_dir)
    print(f"wrote {config.output_dir}")


def main(argv: list[str] | None = None) -> None:
    with one_line_errors():
        config = parse_config(LightningDiTTrainingConfig, argv, __doc__)
        accelerator = Accelerator(mixed_precision=config.mixed_precision)
        vae = load_frozen_vae(config.vae).to(accelerator.device)
        dataset = ImageDataset(config.data, config.resolution, config.split, config.image_column, config.label_column)
        id2label = dataset.id2label
        set_seed(config.seed)
        transformer = make_transformer(config, vae, num_classes=len(id2label))
        if (config.guidance_channels or 0) > vae.config.latent_channels:
            raise ValueError(
                f"`guidance_channels` is {config.guidance_channels}; required: at most the VAE's `latent_channels`, "
                f"{vae.config.latent_channels}."
            )
        check_batch_size(config, len(dataset), accelerator)

    if config.latents_in_memory:
        images = DataLoader(dataset, batch_size=config.train_batch_size, num_workers=config.num_workers)
        dataset = MomentsDataset(vae, images, show_progress=accelerator.is_main_process)
    optimizer = torch.optim.AdamW(
        transformer.parameters(), lr=config.learning_rate, betas=config.adam_betas, weight_decay=0.0
    )
    model, optimizer, dataloader, lr_scheduler = accelerator.prepare(
        transformer,
        optimizer,
        make_train_dataloader(config, dataset),
        make_lr_scheduler(config, optimizer, accelerator),
    )
    ema = EMAModel(transformer.parameters(), decay=config.ema_decay, foreach=True)
    set_seed(config.seed, device_specific=True)  # from here on every process draws its own noise and times

    model.train()  # labels are dropped in training mode only
    progress_bar = tqdm(total=config.max_train_steps, desc="train", disable=not accelerator.is_main_process)
    for batch in train_batches(config, dataloader, progress_bar):
        moments = batch["moments"] if "moments" in batch else encode_moments(vae, batch["pixel_values"])
        latents = vae.normalize_latents(sample_latents(moments))
        noise = torch.randn_like(latents)
        times = TIME_SAMPLERS[config.time_sampling](latents.shape[0], device=latents.device)

        velocity = model(interpolate(noise, latents, times), times, batch["class_labels"]).sample
        target = velocity_target(noise, latents)
        loss = velocity_mse_loss(velocity, target).mean()
        if config.use_cosine_loss:
            loss = loss + velocity_cosine_loss(velocity, target).mean()

        accelerator.backward(loss)
        grad_norm = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        lr_scheduler.step()
        optimizer.zero_grad()
        ema.step(transformer.parameters())
        progress_bar.set_postfix(loss=f"{loss.item():.4f}", grad_norm=f"{grad_norm.item():.2f}", refresh=False)
    progress_bar.close()

    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        ema.copy_to(transformer.parameters())
        save_pipeline(config, transformer, vae, id2label)
    accelerator.end_training()


if __name__ == "__main__":
    main()
