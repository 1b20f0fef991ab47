# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Evaluate pipelines, autoencoders, latents and change maps, and record everything that the results depend on.

    python -m diffusers_lightningdit.evaluate generation --pipeline P --reference REF --output_dir FOLDER
    accelerate launch --quiet -m diffusers_lightningdit.evaluate reconstruction --vae VAE --data DATA \\
        --output_dir FOLDER

`python -m diffusers_lightningdit.evaluate COMMAND --help` lists what a command takes.
"""

import importlib
import sys

from .settings import one_line_errors

COMMANDS = {
    "generation": "draw images and compare them with a reference: FID, sFID, IS, precision, recall",
    "reconstruction": "rFID, PSNR, SSIM, LPIPS of an autoencoder over a data set",
    "latents": "how well the latents of an autoencoder are organised",
    "change": "F1, IoU, SeK, BLEU, ... of Change3D's maps or captions over a data set",
    "sweep": "generation over guidance scales, intervals, steps and schedulers",
    "tools": "convert folders of PNG files to .npz and back, reference statistics, a labelled grid",
}


def main(argv: list[str] | None = None) -> dict | None:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__.strip() + "\n\n" + "\n".join(f"  {name:<16}{about}" for name, about in COMMANDS.items()))
        return None
    with one_line_errors():
        if argv[0] not in COMMANDS:
            raise ValueError(f"the command is {argv[0]!r}; required: one of {', '.join(COMMANDS)}.")
        command = importlib.import_module(f".evaluation.commands.{argv[0]}", __package__)
    return command.main(argv[1:])


if __name__ == "__main__":
    main()
