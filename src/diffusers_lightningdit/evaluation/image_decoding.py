# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""An image file as 8-bit RGB, or one line that says why not."""

from collections.abc import Callable, Sequence

from PIL import Image

from ..data.images import EIGHT_BIT_MODES
from ..files import one_line


def decode_rgb(
    name: str,
    open_image: Callable[[], Image.Image],
    modes: Sequence[str] = EIGHT_BIT_MODES,
    kind: str = "an undamaged image",
) -> Image.Image:
    """What `open_image` opens, decoded and converted to RGB.

    Args:
        name: of the image, for messages.
        open_image: may raise anything.
        modes: of Pillow that are taken. All of `EIGHT_BIT_MODES` are where images are measured as data sets have them.
        kind: what is required, for messages.

    Raises:
        ValueError: naming the image, if it is damaged or of another mode, as those of more than 8 bits a channel are,
            which Pillow's conversion to RGB would clip.
    """
    try:
        with open_image() as image:
            image.load()
            mode = image.mode
            converted = image.convert("RGB") if mode in modes else None
    except Exception as error:  # Pillow's decoders raise anything
        raise ValueError(f"{name} cannot be read ({one_line(error)}); required: {kind}.") from error
    if converted is None:
        raise ValueError(f"{name} has mode {mode!r}; required: one of {', '.join(modes)}.")
    return converted
