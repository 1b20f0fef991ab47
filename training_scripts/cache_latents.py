# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
r"""Encode the images of a data set to raw latents, once, for training on them.

    accelerate launch training_scripts/cache_latents.py --data FOLDER_OR_HUB_ID --vae FOLDER_OR_HUB_ID \
        --output_dir FOLDER --resolution 256 --dtype float16 --on_error skip

Writes shards of latents with `latents_stats.pt`, and a copy of the VAE, `vae/`, with their statistics in its config.
Run again after an interruption, it goes on where it was, and leaves the same files. docs/latents.md tells more.
"""

import datetime

import datasets
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from diffusers_lightningdit.data.latent_caching import CachingConfig, cache_latents
from diffusers_lightningdit.settings import one_line_errors, parse_config


def main(argv: list[str] | None = None) -> None:
    with one_line_errors():
        config = parse_config(CachingConfig, argv, __doc__)
        datasets.disable_progress_bars()
        # a process that is done waits for the slowest one
        patience = InitProcessGroupKwargs(timeout=datetime.timedelta(days=7))
        accelerator = Accelerator(kwargs_handlers=[patience])
        cache_latents(config, accelerator)
    accelerator.end_training()


if __name__ == "__main__":
    main()
