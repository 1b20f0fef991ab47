# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Encode the images of a data set to raw latents, once, for training on them.

    accelerate launch training_scripts/cache_latents.py --data FOLDER_OR_HUB_ID --vae FOLDER_OR_HUB_ID \
        --output_dir FOLDER [--resolution 256] [--dtype float16] [--on_error skip]

Writes shards of latents with `latents_stats.pt`, and a copy of the VAE, `vae/`, with their statistics in its config.
Run again after an interruption, it goes on where it was, and leaves the same files. docs/latents.md tells more.
"""

import argparse
import dataclasses
import typing

import datasets

from diffusers_lightningdit.data.latent_caching import CachingConfig, cache_latents
from diffusers_lightningdit.processes import patient_accelerator
from diffusers_lightningdit.settings import one_line_errors

HELP = {
    "data": "folder (imagefolder, parquet, webdataset) or Hub id of labelled images",
    "vae": "folder or Hub id of an AutoencoderVAVAE; it isn't changed",
    "output_dir": "new, empty, or that of an interrupted run",
    "split": "name of the split",
    "image_column": "name of the column of images",
    "label_column": "name of the column of class labels or whole numbers",
    "streaming": "read the data where it is; every process reads all of it",
    "resolution": "side of the centre crops, in pixels",
    "shard_size": "images of a file",
    "batch_size": "images encoded at a time",
    "seed": "of the posterior's noise",
    "dtype": "of the latents in the files: float32, bfloat16 or float16",
    "vae_dtype": "of the computation: float32, bfloat16 or float16",
    "format": "safetensors (the original's shards) or parquet (a data set for `datasets` and the Hub)",
    "on_error": "at an image that cannot be used: fail, or skip and list it in skipped_images.json",
    "num_workers": "threads that read images, of each process",
}


def parse_arguments(argv: list[str] | None) -> CachingConfig:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = typing.get_type_hints(CachingConfig)
    for field in dataclasses.fields(CachingConfig):
        required = field.default is dataclasses.MISSING
        default = "required" if required else f"default: {field.default}"
        options = {"help": f"{HELP[field.name]} ({default})", "required": required}
        if kinds[field.name] is bool:
            parser.add_argument(f"--{field.name}", action="store_true", **options)
        else:
            default = argparse.SUPPRESS if required else field.default
            parser.add_argument(f"--{field.name}", type=kinds[field.name], default=default, **options)
    return CachingConfig(**vars(parser.parse_args(argv)))


def main(argv: list[str] | None = None) -> None:
    with one_line_errors():
        config = parse_arguments(argv)
        datasets.disable_progress_bars()
        accelerator = patient_accelerator()  # a process that is done waits for the slowest one
        cache_latents(config, accelerator)
    accelerator.end_training()


if __name__ == "__main__":
    main()
