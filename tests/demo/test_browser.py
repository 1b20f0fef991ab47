"""The page as visitors see it, in a browser, at the widths of a desktop and of a phone, in light and dark."""

import dataclasses
import io
import re
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pytest
from PIL import Image

from diffusers_lightningdit.demo.drawing import DRAWINGS
from diffusers_lightningdit.demo.drawing_settings import Limits, read_query, recipe_settings, to_query

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
SECONDS = 1000  # milliseconds, Playwright's unit
PATIENCE = 60 * SECONDS


@pytest.fixture
def defaults(pipeline):
    return recipe_settings(pipeline, Limits())


@pytest.fixture
def visit(browser, page):
    """visit(query) -> the opened page, whose `problems` are requests of other servers, and errors of scripts."""
    contexts = []

    def open_page(query: str = "", viewport: dict = DESKTOP, color_scheme: str = "light"):
        context = browser.new_context(viewport=viewport, color_scheme=color_scheme, accept_downloads=True)
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(PATIENCE)
        tab.problems = []
        tab.on("request", lambda request: is_local(request.url) or tab.problems.append(request.url))
        tab.on("pageerror", lambda error: tab.problems.append(str(error)))
        tab.on("console", lambda message: message.type == "error" and tab.problems.append(message.text))
        tab.goto(f"{page.address}?{query}")
        tab.wait_for_function("document.querySelector('#link input, #link textarea')?.value")  # all is restored
        return tab

    def is_local(url: str) -> bool:
        return url.startswith((page.address, "data:", "blob:"))

    yield open_page
    for context in contexts:
        context.close()


def button(tab, name: str):
    return tab.get_by_role("button", name=name, exact=True)


def query_of(tab) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(tab.url).query, keep_blank_values=True))


def wait_for_setting(tab, name: str, value: str) -> None:
    tab.wait_for_url(lambda url: dict(parse_qsl(urlsplit(url).query, keep_blank_values=True)).get(name) == value)


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_draws_at_every_width_and_in_every_light(viewport, color_scheme, visit):
    tab = visit("classes=3,8&num_images=2&num_inference_steps=20", viewport, color_scheme)
    button(tab, "Draw").click()
    tab.get_by_text("Drawn in").wait_for()
    picture = tab.get_by_alt_text("Drawn images")
    box = picture.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= viewport["width"] and box["width"] > 150
    assert tab.evaluate("document.documentElement.scrollWidth") <= viewport["width"], "it scrolls sideways"
    corner = np.asarray(Image.open(io.BytesIO(tab.screenshot())).convert("L"))[-1, 0]
    assert (corner < 64) == (color_scheme == "dark")
    assert tab.problems == []


def test_the_denoising_is_seen(visit):
    tab = visit("classes=1,2,3,4&num_images=4&num_inference_steps=250")
    tab.evaluate(
        """() => {
          window.seen = new Set();
          const note = () => document.querySelectorAll('.picture img').forEach(image => window.seen.add(image.src));
          new MutationObserver(note).observe(document.body, {subtree: true, childList: true, attributes: true});
        }"""
    )
    button(tab, "Draw").click()
    tab.get_by_text(re.compile(r"Drawing: \d+% of the steps")).wait_for()
    tab.get_by_text("Drawn in").wait_for()
    assert tab.evaluate("window.seen.size") > 5


def test_classes_are_found_by_typing(visit):
    tab = visit("classes=1")
    box = tab.get_by_label("Classes", exact=True)
    box.fill("sev")
    tab.get_by_role("option", name="seven (7)").click()
    wait_for_setting(tab, "classes", "1,7")


def test_the_link_follows_the_settings_and_restores_them(visit, defaults):
    tab = visit()
    tab.get_by_label("number input for Steps").fill("33")
    tab.get_by_label("number input for Steps").press("Tab")
    wait_for_setting(tab, "num_inference_steps", "33")
    button(tab, "New seed").click()
    tab.wait_for_url(lambda url: "seed=" in url and not url.endswith("seed=0"))
    tab.get_by_role("tab", name="Interpolate").click()
    wait_for_setting(tab, "tab", "interpolate")
    link = tab.locator("#link").locator("input, textarea").input_value()
    assert link == tab.url
    settings = read_query(query_of(tab), defaults)
    assert settings == dataclasses.replace(defaults, tab="interpolate", num_inference_steps=33, seed=settings.seed)

    other = visit(urlsplit(link).query)
    button(other, "Interpolate").wait_for()
    assert other.get_by_label("number input for Steps").input_value() == "33"
    assert other.get_by_label("Seed").input_value() == str(settings.seed)


def test_the_downloaded_picture_is_that_of_the_link(visit, defaults, pipeline, tmp_path):
    settings = dataclasses.replace(
        defaults, tab="interpolate", start=3, end=8, num_between=4, seed=11, num_inference_steps=9,
        scheduler="UniPCMultistepScheduler", guidance_scale=2.5, guidance_start=0.1, guidance_end=0.9,
        guidance_channels=3,
    )  # fmt: skip
    tab = visit(to_query(settings))
    button(tab, "Interpolate").click()
    tab.get_by_text("Drawn in").wait_for()
    with tab.expect_download() as download:
        tab.get_by_label("Download").click()
    download.value.save_as(tmp_path / "picture.png")
    *_, expected = DRAWINGS["interpolate"](pipeline, settings)
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.info["settings"] == to_query(settings)
        assert (np.asarray(picture.convert("RGB")) == np.asarray(expected.picture)).all()


def test_a_drawing_can_be_stopped(visit):
    tab = visit("classes=1,2,3,4&num_images=8&num_inference_steps=250&scheduler=FlowMatchHeunDiscreteScheduler")
    button(tab, "Draw").click()
    tab.get_by_text("% of the steps").wait_for()
    button(tab, "Stop").click()
    tab.get_by_text("Stopped.").wait_for()
    other = visit("classes=1&num_images=1&num_inference_steps=2")
    button(other, "Draw").click()
    other.get_by_text("Drawn in").wait_for()
    assert tab.get_by_text("Drawn in").count() == 0


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("classes=1,2&num_images=32", "These are 64 images; this page draws at most 32 at a time."),
        ("classes=77", "“Classes” is 77; it can be 0 to 9 here."),
        ("seed=much", "The link has 'much' for “Seed”; it should be a whole number."),
    ],
)
def test_links_that_cannot_be_followed_say_why(query, message, visit, defaults):
    tab = visit(query)
    tab.get_by_text(message).wait_for()
    wait_for_setting(tab, "seed", "0")
    assert read_query(query_of(tab), defaults) == defaults


def test_what_cannot_be_drawn_is_a_message(visit):
    tab = visit("classes=1")
    box = tab.get_by_label("Classes", exact=True)
    box.press("Backspace")
    box.press("Tab")  # which closes the list
    wait_for_setting(tab, "classes", "")
    button(tab, "Draw").click()
    tab.get_by_text("Choose at least one class.").wait_for()
    assert tab.get_by_text("Traceback").count() == 0


def test_images_are_uploaded_reconstructed_and_drawn_anew(visit, tmp_path):
    Image.effect_noise((50, 70), 60).save(tmp_path / "image.png")
    tab = visit("tab=reconstruct&size=own", PHONE)
    tab.locator("input[type=file]").first.set_input_files(tmp_path / "image.png")
    tab.get_by_label("Remove Image").wait_for()
    button(tab, "Reconstruct").click()
    tab.get_by_text(re.compile(r"48x64 pixels, PSNR \d+\.\d\d dB")).wait_for()

    tab = visit("tab=edit&edit_classes=3,8&num_inference_steps=20")
    button(tab, "Draw it anew").click()
    tab.get_by_text("Choose an image first.").wait_for()
    tab.locator("input[type=file]").first.set_input_files(tmp_path / "image.png")
    tab.get_by_label("Remove Image").wait_for()
    button(tab, "Draw it anew").click()
    tab.get_by_text("Drawn in").wait_for()


def test_large_uploads_are_a_message(visit, tmp_path):
    Image.effect_noise((1100, 1100), 90).save(tmp_path / "heavy.png")
    tab = visit("tab=reconstruct")
    tab.locator("input[type=file]").first.set_input_files(tmp_path / "heavy.png")
    tab.get_by_text(re.compile("maximum|too large|exceed", re.IGNORECASE)).first.wait_for()
