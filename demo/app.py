# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""A page to draw on: images of classes, interpolations, image to image, reconstructions.

    python demo/app.py --pipeline FOLDER_OR_HUB_ID

serves it on this machine; without settings it draws handwritten digits with the embedded checkpoint, on a CPU, too.
`diffusers-lightningdit push --space user/name` makes a Space of the Hub that calls it.
"""

import os
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from diffusers_lightningdit import LightningDiTPipeline, demo
from diffusers_lightningdit.demo.drawing_settings import Limits
from diffusers_lightningdit.files import one_line, read_model
from diffusers_lightningdit.interruption import interruptible
from diffusers_lightningdit.settings import check_settings, one_line_errors, parse_config, setting

# Not beside this file, which may have been copied.
MODEL_CARDS = Path(demo.__file__).resolve().parent.parent / "model_cards"


@dataclass(frozen=True, kw_only=True)
class PageConfig(Limits):
    """Settings of the page.

    Raises:
        ValueError: If a value cannot be used.
    """

    pipeline: str | None = setting(
        None, "Folder or Hub id of a class-conditional pipeline; null: the embedded handwritten digits.", group="Input"
    )
    host: str | None = setting(
        None,
        "The address to listen at, 0.0.0.0 for other machines; null: that of GRADIO_SERVER_NAME, or this machine only.",
        group="Output",
    )
    port: int | None = setting(None, "The port; null: a free one from 7860 on.", minimum=1)

    def __post_init__(self):
        check_settings(self)


def main(argv: Sequence[str] | None = None) -> None:
    with one_line_errors((ValueError, ImportError, OSError)):
        config = parse_config(PageConfig, argv, __doc__)
        name = config.pipeline or str(MODEL_CARDS / "lightningdit-digits")
        pipeline = read_model(LightningDiTPipeline, name, "pipeline", "folder or Hub id of a LightningDiTPipeline")
        pipeline.to(Accelerator().device)
        with tempfile.TemporaryDirectory(prefix="lightningdit-page-") as folder, interruptible("the page has ended"):
            # before the import, which reads them
            os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
            page_module = import_page()
            page = page_module.build_page(pipeline, config)
            try:
                address = page_module.launch(page, config, server_name=config.host, server_port=config.port)
            except OSError as error:
                at = "null" if config.port is None else config.port
                raise ValueError(f"`port` is {at}; required: one that is free ({one_line(error)}).") from error
            print(f"the page is at {address} until Ctrl-C", flush=True)
            try:
                threading.Event().wait()
            finally:
                page.close(verbose=False)


def import_page():
    """The module of the layout, the only one that needs Gradio; without it, an ImportError says what installs it."""
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ImportError("the page needs gradio; required: pip install diffusers-lightningdit[page]") from error
    from diffusers_lightningdit.demo import page

    return page


if __name__ == "__main__":
    main()
