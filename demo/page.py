# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The layout of the page, in Gradio, and what its buttons do."""

import contextlib
import functools
import inspect
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from diffusers import DiffusionPipeline

from diffusers_lightningdit.demo.drawing import DRAWINGS, OF_UPLOADS, open_upload
from diffusers_lightningdit.demo.drawing_settings import (
    LABELS,
    MAX_SEED,
    SCHEDULERS,
    SIZES,
    TABS,
    DrawingSettings,
    Limits,
    check_drawing,
    ranges,
    read_query,
    recipe_settings,
    scheduler_names,
    settings_of,
    to_query,
)
from diffusers_lightningdit.files import one_line
from diffusers_lightningdit.pipelines.lightningdit_sampling import image_size

logger = logging.getLogger(__name__)

THEME = gr.themes.Soft(
    primary_hue="indigo", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
).set(
    block_border_width="1px",
    block_title_background_fill="none",
    block_title_background_fill_dark="none",
    block_title_padding="0",
    block_title_text_color="*body_text_color",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_500",
)
CSS = """
.gradio-container {width: 100% !important; max-width: 1200px !important; margin: 0 auto !important;}
/* the buttons of a picture stand above it, not on it */
.picture {padding-top: 2.6em !important;}
.picture .icon-button-wrapper {top: -2.2em !important;}
.picture img {object-fit: contain; width: 100%; max-height: 75vh;}
.status {min-height: 1.6em; font-size: 0.9em; opacity: 0.85;}
"""
# The address bar and the link follow the settings; the page is not loaded anew.
SHOW_LINK = """(query) => {
  if (!query) return '';
  const link = window.location.origin + window.location.pathname + '?' + query;
  window.history.replaceState(null, '', link);
  return link;
}"""
NEW_SEED = f"() => Math.floor(Math.random() * {MAX_SEED})"
# Requests draw one after the other: each takes the whole processor.
ONE_AT_A_TIME = {"concurrency_id": "drawing", "concurrency_limit": 1, "show_progress": "minimal"}
# Of requests that answer at once.
AT_ONCE = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


# ---------------------------------------------------------------------------------------------------------------------
# Page
# ---------------------------------------------------------------------------------------------------------------------


def build_page(pipeline: DiffusionPipeline, limits: Limits) -> gr.Blocks:
    """The page around a pipeline, which `launch` serves.

    Args:
        pipeline: A `LightningDiTPipeline` on the device that it draws on.
        limits: The bounds of each request.
    """
    defaults = recipe_settings(pipeline, limits)
    make = functools.partial(_component, pipeline, limits, defaults)
    delete_cache = (limits.max_seconds_of_files, limits.max_seconds_of_files)
    with gr.Blocks(title="LightningDiT", analytics_enabled=False, delete_cache=delete_cache) as page:
        gr.Markdown(_introduction(pipeline))
        of, requests = {}, {}
        with gr.Row():
            with gr.Column(scale=3, min_width=320), gr.Tabs() as tabs:
                with gr.Tab(TABS["draw"], id="draw") as draw_tab:
                    of["classes"], of["num_images"] = make("classes"), make("num_images")
                    requests["draw"] = _request("Draw", "Drawn images")
                with gr.Tab(TABS["interpolate"], id="interpolate") as interpolate_tab:
                    with gr.Row():
                        of["start"], of["end"] = make("start"), make("end")
                    of["num_between"] = make("num_between")
                    requests["interpolate"] = _request("Interpolate", "A strip from one class to another")
                with gr.Tab(TABS["edit"], id="edit") as edit_tab:
                    edit_image = _upload(limits)
                    of["edit_classes"], of["strength"] = make("edit_classes"), make("strength")
                    requests["edit"] = _request("Draw it anew", "The image and what is drawn from it", edit_image)
                with gr.Tab(TABS["reconstruct"], id="reconstruct") as reconstruct_tab:
                    image = _upload(limits)
                    of["size"] = make("size")
                    requests["reconstruct"] = _request("Reconstruct", "Image, reconstruction, difference", image)
            with gr.Column(scale=2, min_width=320):
                with gr.Group():
                    of["num_inference_steps"], of["scheduler"] = make("num_inference_steps"), make("scheduler")
                    of["seed"] = make("seed")
                    new_seed = gr.Button("New seed", size="sm")
                with gr.Accordion("Guidance", open=defaults.guidance_scale > 1) as guidance:
                    of["guidance_scale"] = make("guidance_scale")
                    of["guidance_start"], of["guidance_end"] = make("guidance_start"), make("guidance_end")
                    of["guidance_channels"] = make("guidance_channels")
                link = gr.Textbox(
                    label="Link to these settings", interactive=False, buttons=["copy"], max_lines=1, elem_id="link"
                )
        # Tabs are no input of a function, so that a hidden text says which one is open.
        query = gr.Textbox(visible="hidden", container=False)
        tab = gr.Textbox("draw", visible="hidden", container=False)
        restored = gr.Checkbox(False, visible="hidden", container=False)
        components = [of[name] for name in LABELS]

        for name, (start, stop, uploads, outputs) in requests.items():
            draw = functools.partial(_draw, pipeline, limits, defaults, name)
            draw.__signature__ = _signature(["image"] * len(uploads) + list(LABELS))
            request = start.click(draw, [*uploads, *components], outputs, api_name=name, **ONE_AT_A_TIME)
            stop.click(lambda: "Stopped.", None, outputs[1], cancels=[request], **AT_ONCE)

        def restore(request: gr.Request) -> list:
            try:
                settings = read_query(request.query_params, defaults)
                check_drawing(settings, pipeline, limits)
            except ValueError as error:
                gr.Warning(one_line(error), title="This link cannot be followed")
                settings = defaults
            values = [getattr(settings, name) for name in LABELS]
            values = [list(value) if isinstance(value, tuple) else value for value in values]
            return [
                gr.Tabs(selected=settings.tab),
                gr.Accordion(open=settings.guidance_scale > 1),
                True,
                settings.tab,
                *values,
            ]

        def link_of(is_restored: bool, name: str, *values: Any) -> str:
            # before, the components have the recipe's settings, and the link that is followed would be lost
            return to_query(settings_of(name, values, defaults)) if is_restored else ""

        in_queue = AT_ONCE | {"queue": True, "concurrency_limit": None}  # which warnings need; it waits for nobody
        page.load(restore, None, [tabs, guidance, restored, tab, *components], **in_queue)
        gr.on(
            [component.change for component in [restored, tab, *components]],
            link_of,
            [restored, tab, *components],
            query,
            trigger_mode="always_last",
            **AT_ONCE,
        ).then(None, query, link, js=SHOW_LINK)
        for name, each in zip(TABS, (draw_tab, interpolate_tab, edit_tab, reconstruct_tab), strict=True):
            each.select(None, None, tab, js=f"() => '{name}'")
        new_seed.click(None, None, of["seed"], js=NEW_SEED)
    return page


def launch(page: gr.Blocks, limits: Limits, **arguments: Any) -> str:
    """Serve the page in threads of their own, and return its address.

    Args:
        page: The page of `build_page`.
        limits: The bounds of each request.
        arguments: Further arguments of Gradio's `launch`.

    Raises:
        OSError: If the port is in use.
    """
    page.queue(max_size=limits.max_waiting, api_open=False)
    _, address, _ = page.launch(
        theme=THEME,
        css=CSS,
        max_file_size=f"{limits.max_upload_megabytes}mb",
        show_error=True,
        footer_links=["api"],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        quiet=True,
        prevent_thread_lock=True,
        **arguments,
    )
    return address


def _draw(
    pipeline: DiffusionPipeline, limits: Limits, defaults: DrawingSettings, name: str, *values: Any
) -> Iterator[tuple]:
    """Answer a request: the pictures of a drawing as they come, each with its text.

    A ValueError is shown with its words on the page, and others in a line, with a traceback in the log.
    """
    try:
        uploads, values = (values[:1], values[1:]) if name in OF_UPLOADS else ((), values)
        settings = settings_of(name, values, defaults)
        check_drawing(settings, pipeline, limits)
        images = [open_upload(path, limits.max_upload_pixels) for path in uploads]
        with contextlib.closing(DRAWINGS[name](pipeline, settings, *images)) as frames:
            for frame in frames:
                yield frame.picture or gr.skip(), frame.text
    except ValueError as error:
        raise gr.Error(one_line(error), title="This cannot be drawn", print_exception=False) from error
    except Exception as error:
        logger.exception("a drawing failed")
        raise gr.Error(one_line(error)[:300], title="The drawing failed", print_exception=False) from error


# ---------------------------------------------------------------------------------------------------------------------
# Parts
# ---------------------------------------------------------------------------------------------------------------------


def _introduction(pipeline: DiffusionPipeline) -> str:
    height, width = image_size(pipeline.transformer, pipeline.vae, None, None)
    number = pipeline.transformer.num_parameters() / 1e6
    return (
        f"# LightningDiT\n**{Path(str(pipeline.name_or_path)).name}**: "
        f"{pipeline.transformer.config.num_classes} classes, {width}×{height} pixels, {number:.1f} million parameters, "
        f"drawn on the {'CPU' if pipeline.device.type == 'cpu' else 'GPU'}."
    )


def _component(
    pipeline: DiffusionPipeline, limits: Limits, defaults: DrawingSettings, name: str
) -> gr.components.Component:
    """The component of a setting."""
    value, label = getattr(defaults, name), LABELS[name]
    if name in ("classes", "edit_classes", "start", "end"):
        names = pipeline.id2label
        choices = [
            (f"{names[class_id]} ({class_id})" if class_id in names else f"class {class_id}", class_id)
            for class_id in range(pipeline.transformer.config.num_classes)
        ]
        several = isinstance(value, tuple)
        info = "Type to search by name or number." if several else None
        value = list(value) if several else value
        return gr.Dropdown(choices, value=value, multiselect=several, label=label, info=info)
    if name == "scheduler":
        own = type(pipeline.scheduler).__name__
        choices = [
            (SCHEDULERS.get(known, known) + (", the checkpoint's own" if known == own else ""), known)
            for known in scheduler_names(pipeline)
        ]
        return gr.Dropdown(choices, value=value, label=label)
    if name == "size":
        return gr.Radio([(text, size) for size, text in SIZES.items()], value=value, label=label)
    low, high = ranges(pipeline, limits)[name]
    if name == "seed":
        return gr.Number(value, precision=0, minimum=low, maximum=high, label=label)
    info = {
        "guidance_scale": "1: without guidance.",
        "guidance_start": "t = 0 is noise.",
        "guidance_end": "t = 1 is the image.",
        "guidance_channels": f"The first of {high} channels of the latents; {high}: all.",
        "strength": "How far to go back to noise; 1 forgets the image.",
    }.get(name)
    step = 1 if isinstance(value, int) else {"guidance_scale": 0.1, "strength": 0.05}.get(name, 0.005)
    return gr.Slider(low, high, value, step=step, label=label, info=info, buttons=[])


def _signature(names: list[str]) -> inspect.Signature:
    """The signature of a function with these arguments, by which programs call it through Gradio's clients."""
    return inspect.Signature([inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names])


def _upload(limits: Limits) -> gr.Image:
    """An image of the visitor, handed over as the path of its file."""
    image = gr.Image(
        label=f"Image, at most {limits.max_upload_megabytes} MB", sources=["upload", "clipboard"], height=220
    )
    # Gradio would decode any file that it gets, of any size; `open_upload` has limits, and words for files beyond them.
    # (A derived class would do the same, but Gradio writes a stub file beside the source of each.)
    image.preprocess = lambda payload: None if payload is None else payload.path
    return image


def _request(text: str, label: str, *uploads: gr.Image) -> tuple[gr.Button, gr.Button, tuple, list]:
    """The buttons that draw and stop, the inputs beside the settings, and the outputs: a picture and a line of text."""
    with gr.Row():
        start = gr.Button(text, variant="primary", scale=3)
        stop = gr.Button("Stop", variant="secondary", scale=1, min_width=80)
    picture = gr.Image(
        label=label,
        show_label=False,
        format="png",
        interactive=False,
        buttons=["download", "fullscreen"],
        elem_classes="picture",
        alt_text=label,
    )
    return start, stop, uploads, [picture, gr.Markdown(elem_classes="status")]
