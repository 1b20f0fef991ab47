# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
r"""Encode the images of a data set to raw latents, once, for training on them.

    accelerate launch --quiet training_scripts/cache_latents.py --data FOLDER_OR_HUB_ID --vae FOLDER_OR_HUB_ID \
        --output_dir FOLDER --resolution 256 --dtype float16 --on_error skip

Writes shards of latents with `latents_stats.pt`, and a copy of the VAE, `vae/`, with their statistics in its config.
Run again after an interruption, it goes on where it was, and leaves the same files. docs/latents.md tells more.
"""

import datasets

from diffusers_lightningdit.data.latent_caching import CachingConfig, cache_latents
from diffusers_lightningdit.processes import patient_accelerator
from diffusers_lightningdit.settings import one_line_errors, parse_config


def main(argv: list[str] | None = None) -> dict[str, str]:
    with one_line_errors():
        config = parse_config(CachingConfig, argv, __doc__)
        datasets.disable_progress_bars()
        accelerator = patient_accelerator()  # a process that is done waits for the slowest one
        cache_latents(config, accelerator)
    accelerator.end_training()
    return {"output_dir": config.output_dir}


if __name__ == "__main__":
    main()
