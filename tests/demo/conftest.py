"""The page of demo/, served by a process of its own, and a browser. `make test-page` runs the tests that need them."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from diffusers_lightningdit import LightningDiTPipeline
from diffusers_lightningdit.demo.drawing_settings import Limits

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SECONDS_TO_START = 600  # of a busy machine, which imports slowly


@pytest.fixture(scope="session")
def pipeline(digits_pipeline) -> LightningDiTPipeline:
    loaded = LightningDiTPipeline.from_pretrained(digits_pipeline)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture
def limits() -> Limits:
    return Limits()


@pytest.fixture(scope="session")
def serve(repository, tmp_path_factory):
    """serve("--max_steps", "10") -> a context of the page's `address`, its `process` and its `folder` for files."""
    if not os.environ.get("TEST_PAGE"):
        pytest.skip("serves the page, which `make test-page` tests")
    pytest.importorskip("gradio")

    @contextlib.contextmanager
    def serving(*settings: str) -> Iterator[SimpleNamespace]:
        folder = tmp_path_factory.mktemp("served")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        log = folder.parent / f"{folder.name}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, repository / "demo" / "app.py", "--port", str(port), *settings],
                env={**os.environ, "TMPDIR": str(folder)},
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            address = f"http://127.0.0.1:{port}/"
            _wait_for(address, process, log)
            yield SimpleNamespace(address=address, process=process, folder=folder, log=log)
        finally:
            process.terminate()
            process.wait(timeout=60)

    return serving


def _wait_for(address: str, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + SECONDS_TO_START
    while f"the page is at {address}" not in log.read_text():
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.2)
    urllib.request.urlopen(address).close()


@pytest.fixture(scope="session")
def page(serve) -> Iterator[SimpleNamespace]:
    """The page with the embedded checkpoint, and uploads of at most 1 MB and a million pixels."""
    with serve("--max_upload_megabytes", "1", "--max_upload_pixels", "1000000") as served:
        yield served


@pytest.fixture(scope="session")
def browser(serve):
    """A browser without a window."""
    sync_api = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"there is no browser: none of {', '.join(BROWSERS)} is installed")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


def pytest_terminal_summary(terminalreporter):
    """Say it in a line of its own if the page was tested without a browser."""
    if os.environ.get("TEST_PAGE") and not any(map(shutil.which, BROWSERS)):
        terminalreporter.section("no browser")
        terminalreporter.line(f"None of {', '.join(BROWSERS)} is installed: the page was not tested in a browser.")
