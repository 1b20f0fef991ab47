"""Commands that meet another one in their folder, that a signal ends, or whose folder cannot be written."""

import os
import signal

import numpy as np
import pytest
from reliability.forked import run_forked

from diffusers_lightningdit.evaluate import main
from diffusers_lightningdit.evaluation import image_files, ordered_batches
from diffusers_lightningdit.locks import locked

pytestmark = pytest.mark.usefixtures("fresh_accelerate_state")


@pytest.fixture(params=["generation", "sweep", "reconstruction", "latents", "unpack"])
def words(request, digits_pipeline, real_digits, vision_transformer, tmp_path) -> list[str]:
    """A command that writes into the folder `out`."""
    drawn = [f"reference={real_digits}", f"features={vision_transformer}", "num_images=20", "micro_batch_size=4"]
    drawn += ["sampling.num_inference_steps=1", "batch_size=4"]
    images = [f"vae={digits_pipeline}/vae", f"data={real_digits}", "resolution=32", "micro_batch_size=4"]
    np.savez(tmp_path / "set.npz", np.zeros((9, 8, 8, 3), np.uint8))
    command, *others = {
        "generation": ["generation", f"pipeline={digits_pipeline}", *drawn],
        "sweep": ["sweep", f"pipeline={digits_pipeline}", "guidance_scales=[1,2]", *(f"generation.{w}" for w in drawn)],
        "reconstruction": ["reconstruction", *images],
        "latents": ["latents", *images, "perplexity=5"],
        "unpack": ["tools", "unpack", f"archive={tmp_path / 'set.npz'}"],
    }[request.param]
    return [command, *others, "output=out" if request.param == "unpack" else "output_dir=out"]


def test_a_second_run_says_who_writes_there(words, error_line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with locked("out"):
        error = error_line(*words)
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".lock", ".lock.json"]
    assert error.startswith(f"out is being written by process {os.getpid()} on ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_one_line_and_the_command_can_be_run_again(words, number, status, tmp_path):
    """It is sent when the third image is written, or the third batch taken in hand."""
    (tmp_path / "work").mkdir()

    def signalled() -> None:
        count, write, collate = [0], image_files.write_png, ordered_batches.DataLoader

        def told() -> None:
            count[0] += 1
            if count[0] == 3:
                os.kill(os.getpid(), number)

        def write_and_be_told(*arguments) -> None:
            write(*arguments)
            told()

        class Loader(collate):
            def __iter__(self):
                for batch in super().__iter__():
                    told()
                    yield batch

        ordered_batches.DataLoader = Loader
        image_files.write_png = write_and_be_told
        from diffusers_lightningdit.evaluation import image_archive

        image_archive.write_png = write_and_be_told
        main(words)

    ended = run_forked(signalled, tmp_path / "work")
    assert ended.status == status, ended.output
    then = "resumes" if words[0] in ("generation", "sweep") else "starts from the beginning"
    assert f"interrupted; run again, the command {then}." in ended.output.replace("\r", "\n").splitlines()
    assert "Traceback" not in ended.output and ended.errors == []
    left = [path.name for path in (tmp_path / "work").rglob("*") if "partial" in path.name or "lock" in path.name]
    assert left == []
    again = run_forked(lambda: main(words), tmp_path / "work")
    assert again.status == 0, again.output


def test_a_folder_that_cannot_be_made(words, error_line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    error = error_line(*(word.replace("=out", "=file/out") for word in words))
    assert "file/out" in error
