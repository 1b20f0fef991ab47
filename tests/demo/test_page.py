"""The page over its own protocol, as Gradio's client in Python speaks it."""

import dataclasses
import os
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from diffusers_lightningdit.demo.drawing import DRAWINGS
from diffusers_lightningdit.demo.drawing_settings import LABELS, Limits, recipe_settings, to_query

MEGABYTE = 2**20


@pytest.fixture(scope="module")
def defaults(pipeline):
    return dataclasses.replace(recipe_settings(pipeline, Limits()), num_inference_steps=3, classes=(7,), num_images=2)


@pytest.fixture(scope="module")
def new_client(page, tmp_path_factory):
    """new_client() -> a client of the page, or of another one by its address."""
    gradio_client = pytest.importorskip("gradio_client")
    folder = tmp_path_factory.mktemp("downloads")
    return lambda address=page.address: gradio_client.Client(
        address, download_files=folder, verbose=False, analytics_enabled=False
    )


@pytest.fixture(scope="module")
def client(new_client):
    return new_client()


@pytest.fixture(scope="module")
def upload(tmp_path_factory):
    """An image of 40x60 pixels as the client uploads it."""
    from gradio_client import handle_file

    path = tmp_path_factory.mktemp("images") / "image.png"
    Image.effect_noise((40, 60), 60).convert("RGB").save(path)
    return handle_file(str(path))


def values(settings) -> list:
    each = [getattr(settings, name) for name in LABELS]
    return [list(value) if isinstance(value, tuple) else value for value in each]


def picture_of(result) -> Image.Image:
    picture = result[0]
    return Image.open(picture if isinstance(picture, str) else picture["path"])


@pytest.mark.parametrize("tab", list(DRAWINGS))
def test_each_request_draws_what_its_settings_say(tab, client, upload, pipeline, defaults):
    settings = dataclasses.replace(defaults, tab=tab, seed=4)
    uploads = [upload] if tab in ("edit", "reconstruct") else []
    result = client.predict(*uploads, *values(settings), api_name=f"/{tab}")
    with picture_of(result) as picture:
        images = [Image.open(upload["path"]).convert("RGB")] if uploads else []
        *_, expected = DRAWINGS[tab](pipeline, settings, *images)
        assert picture.info["settings"] == to_query(settings)
        assert (np.asarray(picture.convert("RGB")) == np.asarray(expected.picture)).all()
    assert "Drawn in" in result[1] or "PSNR" in result[1]


def test_previews_come_one_by_one(client, defaults):
    job = client.submit(*values(dataclasses.replace(defaults, num_inference_steps=30)), api_name="/draw")
    job.result(timeout=120)
    texts = [text for _, text in job.outputs()]
    assert len(set(texts)) >= 15 and texts[0].startswith("Drawing: ") and texts[-1].startswith("Drawn in ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ()}, "Choose at least one class."),
        ({"num_images": 32, "classes": (1, 2)}, "These are 64 images; this page draws at most 32 at a time."),
        ({"guidance_start": 0.7, "guidance_end": 0.2}, "Guidance cannot end"),
        ({"num_inference_steps": 10_000}, "10000 is greater than maximum value 250"),
        ({"seed": None}, "“Seed” is empty"),
        ({"classes": (77,)}, "77"),
    ],
)
def test_errors_are_sentences(changes, message, client, defaults):
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError) as error:
        client.predict(*values(dataclasses.replace(defaults, **changes)), api_name="/draw")
    assert message in str(error.value)
    assert "Traceback" not in str(error.value) and "/" not in str(error.value)


def test_bad_uploads_are_refused(client, defaults, tmp_path, page):
    import httpx
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    def error_of(path) -> str:
        argument = None if path is None else handle_file(str(path))
        with pytest.raises(AppError) as error:
            client.predict(argument, *values(defaults), api_name="/reconstruct")
        return str(error.value)

    (tmp_path / "text.png").write_text("no image")
    Image.new("RGB", (1200, 1000)).save(tmp_path / "large.png")
    Image.effect_noise((1100, 1100), 90).save(tmp_path / "heavy.png")
    assert (tmp_path / "heavy.png").stat().st_size > MEGABYTE > (tmp_path / "large.png").stat().st_size
    assert error_of(None) == "Choose an image first."
    assert error_of(tmp_path / "text.png").startswith("This file is no image that can be read")
    assert error_of(tmp_path / "large.png") == "This image has 1200×1000 pixels; at most 1,000,000 are possible here."
    # clients and browsers look at the size themselves, but nobody has to use them
    with (tmp_path / "heavy.png").open("rb") as file:
        answer = httpx.post(f"{page.address}gradio_api/upload", files={"files": file})
    assert answer.status_code == 413 and "maximum allowed size" in answer.text
    assert not [path for path in page.folder.rglob("*") if path.is_file() and path.stat().st_size > MEGABYTE]


def test_programs_name_what_differs_from_the_recipe(client, defaults, pipeline):
    drawn = client.predict(classes=[3], num_images=1, num_inference_steps=2, api_name="/draw")
    recipe = recipe_settings(pipeline, Limits())
    settings = dataclasses.replace(recipe, classes=(3,), num_images=1, num_inference_steps=2)
    with picture_of(drawn) as picture:
        assert picture.info["settings"] == to_query(settings)


def test_a_cancelled_request_makes_room_for_the_next(new_client, defaults):
    first, second = new_client(), new_client()
    long = dataclasses.replace(
        defaults,
        classes=(1, 2, 3, 4),
        num_images=8,
        num_inference_steps=250,
        scheduler="FlowMatchHeunDiscreteScheduler",
    )
    job = first.submit(*values(long), api_name="/draw")
    end = time.monotonic() + 60
    while not job.outputs():
        assert time.monotonic() < end and not job.done()
        time.sleep(0.05)
    assert job.cancel()
    number = len(job.outputs())
    second.predict(*values(defaults), api_name="/draw")
    assert len(job.outputs()) <= number + 2, "the first request goes on drawing"


def test_requests_wait_for_each_other_and_do_not_mix(new_client, defaults, pipeline):
    settings = [dataclasses.replace(defaults, seed=seed, num_inference_steps=10 + seed) for seed in range(4)]
    jobs = [new_client().submit(*values(each), api_name="/draw") for each in settings]
    for each, job in zip(settings, jobs, strict=True):
        with picture_of(job.result(timeout=120)) as picture:
            *_, expected = DRAWINGS["draw"](pipeline, each)
            assert (np.asarray(picture.convert("RGB")) == np.asarray(expected.picture)).all()


def test_a_hundred_visitors_leave_memory_and_files_where_they_were(serve, new_client, defaults, upload):
    seconds = 2
    with serve("--max_seconds_of_files", str(seconds)) as served:
        process = psutil.Process(served.process.pid)

        def visit(number: int) -> None:
            visitor = new_client(served.address)
            settings = dataclasses.replace(defaults, seed=number, num_inference_steps=2)
            visitor.predict(*values(settings), api_name="/draw")
            visitor.predict(upload, *values(settings), api_name="/reconstruct")
            visitor.close()

        def files_left() -> list[Path]:
            end = time.monotonic() + 60
            while found := [path for path in served.folder.rglob("*") if path.is_file()]:
                if time.monotonic() > end:
                    break
                time.sleep(0.5)
            return found

        for number in range(20):  # until allocators and caches have what they need
            visit(number)
        assert files_left() == []
        before, threads, handles = process.memory_info().rss, process.num_threads(), process.num_fds()
        for number in range(20, 120):
            visit(number)
        assert files_left() == []
        assert (process.memory_info().rss - before) / MEGABYTE < 30
        assert process.num_threads() <= threads + 5 and process.num_fds() <= handles + 10


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_page_ends_without_leaving_files(number, serve):
    with serve() as served:
        os.kill(served.process.pid, number)
        assert served.process.wait(timeout=60) == 128 + number
        assert served.log.read_text().endswith("the page has ended\n")
        assert list(served.folder.iterdir()) == []
