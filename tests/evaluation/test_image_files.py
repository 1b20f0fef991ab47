import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusers_lightningdit.evaluation import image_files
from diffusers_lightningdit.evaluation.image_files import ImageWriter, decode_rgb


def test_all_files_are_there_at_the_end(tmp_path):
    arrays = np.random.default_rng(0).integers(0, 256, (30, 8, 6, 3), dtype=np.uint8)
    with ImageWriter(num_threads=3, max_waiting=4) as writer:
        for index, array in enumerate(arrays):
            writer.write(tmp_path / f"{index}.png", array)
    assert len(list(tmp_path.iterdir())) == 30
    for index, array in enumerate(arrays):
        assert np.array_equal(np.array(Image.open(tmp_path / f"{index}.png")), array)


def test_only_so_many_images_wait_in_memory(tmp_path, monkeypatch):
    """While the threads are blocked, the third image has to wait, and the time is recorded."""
    may_go_on = threading.Event()
    write = image_files.write_png
    monkeypatch.setattr(image_files, "write_png", lambda *arguments: (may_go_on.wait(), write(*arguments)))
    image = np.zeros((2, 2, 3), np.uint8)
    with ImageWriter(num_threads=1, max_waiting=2) as writer:
        for name in ("a", "b"):
            writer.write(tmp_path / f"{name}.png", image)
        assert writer.seconds_waited == 0
        threading.Timer(0.2, may_go_on.set).start()
        writer.write(tmp_path / "c.png", image)
        assert writer.seconds_waited > 0.1
    assert len(list(tmp_path.iterdir())) == 3


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path, monkeypatch):
    seen = []
    replace = os.replace

    def spy(source: Path, target: Path) -> None:
        seen.append((target.exists(), np.array(Image.open(source)).shape))
        replace(source, target)

    monkeypatch.setattr(os, "replace", spy)
    with ImageWriter() as writer:
        writer.write(tmp_path / "a.png", np.zeros((2, 3, 3), np.uint8))
    assert seen == [(False, (2, 3, 3))]
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_what_cannot_be_written_is_told(tmp_path):
    with pytest.raises(FileNotFoundError), ImageWriter() as writer:
        writer.write(tmp_path / "missing" / "a.png", np.zeros((2, 2, 3), np.uint8))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK"])
def test_any_mode_of_8_bits_becomes_rgb(mode, tmp_path):
    image = Image.effect_noise((6, 4), 60).convert(mode)
    image.save(tmp_path / "an image", format="TIFF")
    decoded = decode_rgb("an image", tmp_path / "an image")
    assert decoded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("mode", "arguments", "message"),
    [
        ("I;16", {}, "row 3 has mode 'I;16'; required: one of 1, L, LA"),
        ("RGBA", {"modes": ("L", "RGB")}, "row 3 has mode 'RGBA'; required: one of L, RGB."),
    ],
)
def test_another_mode(mode, arguments, message, tmp_path):
    Image.new(mode, (6, 4)).save(tmp_path / "row.png")
    with pytest.raises(ValueError, match=message):
        decode_rgb("row 3", tmp_path / "row.png", **arguments)


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "cannot identify"), (b"\x89PNG\r\n", "cannot identify"), (None, "No such file")]
)
def test_an_image_that_cannot_be_opened(content, reason, tmp_path):
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^row 3 cannot be read \(.*{reason}.*\); required: a PNG file\.$"):
        decode_rgb("row 3", tmp_path / "a.png", kind="a PNG file")
