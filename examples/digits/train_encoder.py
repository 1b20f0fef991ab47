# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Train the foundation model of the digits: a small encoder of DINOv2's architecture, on the labels of the images.

    python examples/digits/train_encoder.py data=outputs/digits/data output_dir=outputs/digits/encoder

The result is a folder of a `transformers` Dinov2Model, which
`FoundationModel.from_pretrained` reads, with metrics.json: the accuracy on images that were held out of training. The
same settings give the same weights on the same machine with the same number of threads.

The classifier takes the class token and the mean of the patch tokens, as DINOv2's own does: the labels then reach the
last layer of every patch token, which is what the autoencoder is aligned to. With the class token alone they would not.
"""

import json
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import OneCycleLR
from tqdm.auto import tqdm
from transformers import Dinov2Config, Dinov2ForImageClassification

from diffusers_lightningdit.data.images import ImageDataset
from diffusers_lightningdit.files import check_output_dir, write_json, write_result
from diffusers_lightningdit.settings import (
    check_settings,
    one_line_errors,
    parse_config,
    required,
    setting,
)

# Letters in the shape comments: B images. Pixels are [B, 3, height, width] in [-1, 1].


@dataclass(kw_only=True)
class DigitsEncoderConfig:
    """Settings of train_encoder.py.

    Raises:
        ValueError: for a value that cannot be trained with.
    """

    data: str = required("Folder of labelled images, as prepare.py writes them.", group="Data")
    resolution: int = setting(32, "The side of the images in pixels.")
    max_shift: int = setting(2, "Pixels that an image is moved by, at most, in each direction.", minimum=0)
    held_out_part: float = setting(0.2, "The part of the images, between 0 and 1, that is held out of training.")

    patch_size: int = setting(
        8,
        "The side of a patch in pixels; 8 gives 4x4 patches, the grid of the latents of recipes/vavae.yaml.",
        group="Model",
        above=0,
    )
    hidden_size: int = setting(96, "The width of the encoder.", above=0)
    num_layers: int = setting(4, "The number of its layers.", above=0)
    num_attention_heads: int = setting(4, "The number of attention heads of each layer.", above=0)

    num_train_steps: int = setting(900, "Optimiser steps of the whole training.", group="Optimisation", minimum=2)
    batch_size: int = setting(64, "Images of one optimiser step.", minimum=1)
    learning_rate: float = setting(1e-3, "The peak learning rate of AdamW.", above=0)
    weight_decay: float = setting(0.05, "AdamW's weight decay.", minimum=0)
    seed: int = setting(0, "The seed of weights, batches, shifts and of what is held out.")

    output_dir: str = required("Folder of the encoder, new or empty.", group="Output")

    def __post_init__(self):
        check_settings(self)
        check_output_dir(self.output_dir)
        if self.resolution < self.patch_size or self.resolution % self.patch_size:
            raise ValueError(
                f"`resolution` is {self.resolution}; required: a multiple of the patch, {self.patch_size}."
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` is {self.hidden_size}; required: a multiple of the {self.num_attention_heads} heads."
            )
        if not 0 < self.held_out_part < 1:
            raise ValueError(f"`held_out_part` is {self.held_out_part}; required: a number between 0 and 1.")


# ---------------------------------------------------------------------------------------------------------------------
# Images
# ---------------------------------------------------------------------------------------------------------------------


def load_images(config: DigitsEncoderConfig) -> tuple[torch.Tensor, torch.Tensor, dict[int, str]]:
    """Pixels, labels [B] and the names of the labels."""
    dataset = ImageDataset(config.data, config.resolution)
    items = [dataset[index] for index in range(len(dataset))]
    labels = torch.tensor([item["class_labels"] for item in items])
    return torch.stack([item["pixel_values"] for item in items]), labels, dataset.id2label


def shifted(pixels: torch.Tensor, max_shift: int, generator: torch.Generator) -> torch.Tensor:
    """Each image moved by up to `max_shift` pixels in each direction; what comes in is black."""
    size = pixels.shape[-2:]
    padded = F.pad(pixels, [max_shift] * 4, value=-1.0)
    offsets = torch.randint(2 * max_shift + 1, (len(pixels), 2), generator=generator).tolist()
    moved = [image[:, y : y + size[0], x : x + size[1]] for image, (y, x) in zip(padded, offsets, strict=True)]
    return torch.stack(moved)


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


def make_classifier(config: DigitsEncoderConfig, id2label: dict[int, str]) -> Dinov2ForImageClassification:
    architecture = Dinov2Config(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_attention_heads,
        image_size=config.resolution,
        patch_size=config.patch_size,
        use_mask_token=False,
        id2label=id2label,
        label2id={name: label for label, name in id2label.items()},
    )
    return Dinov2ForImageClassification(architecture)


def train(
    config: DigitsEncoderConfig,
    classifier: Dinov2ForImageClassification,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    generator: torch.Generator,
) -> None:
    """`num_train_steps` steps on the cross entropy; every epoch goes through all images in a new order."""
    device = next(classifier.parameters()).device
    classifier.train()
    optimizer = torch.optim.AdamW(
        classifier.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, foreach=True
    )
    scheduler = OneCycleLR(optimizer, config.learning_rate, config.num_train_steps, pct_start=0.1)
    order = torch.empty(0, dtype=torch.long)
    for _ in tqdm(range(config.num_train_steps), desc="training"):
        while len(order) < config.batch_size:
            order = torch.cat([order, torch.randperm(len(pixels), generator=generator)])
        batch, order = order.split([config.batch_size, len(order) - config.batch_size])
        inputs = shifted(pixels[batch], config.max_shift, generator)
        loss = F.cross_entropy(classifier(inputs.to(device)).logits, labels[batch].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()


@torch.no_grad()
def accuracy(classifier: Dinov2ForImageClassification, pixels: torch.Tensor, labels: torch.Tensor) -> float:
    """Part of the images that are taken for what they are."""
    classifier.eval()
    device = next(classifier.parameters()).device
    predicted = [classifier(batch.to(device)).logits.argmax(1).cpu() for batch in pixels.split(256)]
    return (torch.cat(predicted) == labels).double().mean().item()


# ---------------------------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> dict:
    with one_line_errors():
        config = parse_config(DigitsEncoderConfig, argv, __doc__)
        pixels, labels, id2label = load_images(config)
        num_held_out = round(config.held_out_part * len(pixels))
        if not 0 < num_held_out < len(pixels):
            raise ValueError(
                f"`held_out_part` is {config.held_out_part}, {num_held_out} of {len(pixels)} images; required: some "
                "images held out, and some to train on."
            )
    torch.manual_seed(config.seed)  # the first weights
    generator = torch.Generator().manual_seed(config.seed)
    held_out, training = torch.randperm(len(pixels), generator=generator).split(
        [num_held_out, len(pixels) - num_held_out]
    )
    classifier = make_classifier(config, id2label).to("cuda" if torch.cuda.is_available() else "cpu")
    train(config, classifier, pixels[training], labels[training], generator)

    encoder = classifier.dinov2
    metrics = {
        "num_parameters": encoder.num_parameters(),
        "num_train_steps": config.num_train_steps,
        "num_held_out": num_held_out,
        "held_out_accuracy": round(accuracy(classifier, pixels[held_out], labels[held_out]), 4),
        "training_accuracy": round(accuracy(classifier, pixels[training], labels[training]), 4),
    }
    print(json.dumps(metrics, indent=2))

    with one_line_errors((OSError,), status=1), write_result(config.output_dir) as folder:
        encoder.save_pretrained(folder)
        write_json(folder / "metrics.json", metrics)
        # the pixels in [-1, 1] that it was trained on, for who asks for the model's own normalization
        statistics = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        write_json(folder / "preprocessor_config.json", statistics)
    print(f"wrote {config.output_dir}")
    return metrics


if __name__ == "__main__":
    main()
