"""Archives against numpy's own reader and writer."""

import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusers_lightningdit.evaluation.image_archive import ImageArchive, pack_folder, unpack_archive, write_npz


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 5, 7, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path, images):
    """Sorted as text, numbers without leading zeros would have 10 before 2."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


def test_numpy_reads_what_is_packed(folder, images, tmp_path):
    assert pack_folder(folder, tmp_path / "set.npz") == 12
    with np.load(tmp_path / "set.npz") as archive:
        assert archive.files == ["arr_0"]
        np.testing.assert_array_equal(archive["arr_0"], images)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_unpacks_what_numpy_wrote(save, images, tmp_path):
    save(tmp_path / "set.npz", images, np.arange(12))  # ADM's samples have labels as arr_1
    assert unpack_archive(tmp_path / "set.npz", tmp_path / "folder") == 12
    assert pack_folder(tmp_path / "folder", tmp_path / "again.npz") == 12
    np.testing.assert_array_equal(list(ImageArchive(tmp_path / "again.npz")), images)


def test_gray_images_become_rgb(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("L", (3, 2), 7).save(tmp_path / "images" / "0.png")
    pack_folder(tmp_path / "images", tmp_path / "set.npz")
    np.testing.assert_array_equal(list(ImageArchive(tmp_path / "set.npz")), np.full((1, 2, 3, 3), 7))


def damage(path):
    path.write_bytes(path.read_bytes()[:-60])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "notes.txt").write_text("x"), r"holds notes.txt; required: PNG files only"),
        (lambda folder: (folder / "9").mkdir(), r"holds 9; required: PNG files only"),
        (lambda folder: damage(folder / "3.png"), r"3\.png cannot be read .*required: a PNG file"),
        (lambda folder: Image.new("RGB", (4, 4)).save(folder / "4.png"), r"4\.png has 4x4 pixels, 0\.png 7x5"),
        (
            lambda folder: Image.new("RGBA", (7, 5)).save(folder / "4.png"),
            r"4\.png has mode 'RGBA'; required: one of L, RGB",
        ),
    ],
)
def test_bad_folders_leave_no_file(folder, spoil, message, tmp_path):
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        pack_folder(folder, tmp_path / "set.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_where_nothing_can_be_written(folder, images, tmp_path):
    (tmp_path / "there.npz").touch()
    for output in ("there.npz", "set.zip"):
        with pytest.raises(ValueError, match=r"required: a new \.npz file"):
            pack_folder(folder, tmp_path / output)
    write_npz(tmp_path / "set.npz", images, 12)
    with pytest.raises(ValueError, match="images', which exists; required: a new or an empty folder"):
        unpack_archive(tmp_path / "set.npz", folder)


def test_empty_or_missing_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "missing"):
        with pytest.raises(ValueError, match="required: a folder of PNG files"):
            pack_folder(tmp_path / name, tmp_path / "set.npz")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": np.zeros((2, 4, 4, 3))}, r"arr_0 of float64 and shape \[2, 4, 4, 3\]"),
        ({"arr_0": np.zeros((2, 3, 4, 4), np.uint8)}, r"shape \[2, 3, 4, 4\]"),
        ({"arr_0": np.array([{}])}, "arr_0 of object"),  # pickled
        ({"mu": np.zeros(3)}, "has no arr_0"),
    ],
)
def test_other_archives(arrays, message, tmp_path):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        ImageArchive(tmp_path / "set.npz")


HEADER = "{{'descr': '{}', 'fortran_order': False, 'shape': {}, }}"


def write_header(path: Path, text: str, content: bytes, compression: int = zipfile.ZIP_STORED) -> None:
    header = text.ljust(64 * (len(text) // 64 + 1) - 11) + "\n"
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + content
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("arr_0.npy", array)


@pytest.mark.parametrize(
    "shape", [(10**12, 8, 8, 3), (-4, 8, 8, 3), (4, -8, -8, 3), (0, 8, 8, 3), (4, 0, 8, 3), (5, 8, 8, 3)]
)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_header_that_tells_of_other_sizes(shape, compression, tmp_path):
    write_header(tmp_path / "set.npz", HEADER.format("|u1", shape), bytes(768), compression)
    with pytest.raises(ValueError, match=r"set\.npz holds arr_0 of uint8 and shape .*not empty and of the size"):
        ImageArchive(tmp_path / "set.npz")


def test_a_small_file_that_tells_of_a_huge_array_twice(tmp_path):
    """Both the header of the array and the directory of the archive promise 10^12 images."""
    path = tmp_path / "set.npz"
    write_header(path, HEADER.format("|u1", (10**7, 8, 8, 3)), bytes(10**6), zipfile.ZIP_DEFLATED)
    content, promised = path.read_bytes(), 10**7 * 192 + 128
    path.write_bytes(content.replace(struct.pack("<I", 10**6 + 128), struct.pack("<I", promised)))
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("arr_0.npy").file_size == promised
    with pytest.raises(ValueError, match="not empty and of the size that it tells"):
        ImageArchive(path)


def test_a_header_nested_by_the_thousand(tmp_path):
    write_header(tmp_path / "set.npz", "(" * 3000 + ")" * 3000, bytes(768))
    with pytest.raises(ValueError, match=r"set\.npz cannot be read") as error:
        ImageArchive(tmp_path / "set.npz")
    assert len(str(error.value)) < 500


def test_damaged_archives(images, tmp_path):
    path = tmp_path / "set.npz"
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"set\.npz cannot be read"):
        ImageArchive(path)
    np.savez(path, np.tile(images, (20, 1, 1, 1)))  # more than is read ahead with the header
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"set\.npz is damaged"):
        list(ImageArchive(path))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (0.0, "cannot be read .Error -3 while decompressing"),  # in the header of the array
        (0.02, "is damaged .Error -3 while decompressing"),
        (0.5, "is damaged .Bad CRC-32"),
    ],
)
def test_damaged_compressed_archives(place, message, tmp_path):
    path = tmp_path / "set.npz"
    shades = np.random.default_rng(0).integers(0, 16, (200, 40, 40, 3), dtype=np.uint8)  # random bytes would be stored
    np.savez_compressed(path, shades)
    content = bytearray(path.read_bytes())
    start = 100 + int(place * len(content))  # behind the header of the archive
    content[start : start + 3000] = bytes([255]) * 3000
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"set\.npz {message}"):
        unpack_archive(path, tmp_path / "folder")
    assert os.listdir(tmp_path) == ["set.npz"]


def test_unpacks_all_images_or_none(images, tmp_path, monkeypatch):
    np.savez(tmp_path / "set.npz", images)
    folder = tmp_path / "folder"
    (folder / "unpacking.partial").mkdir(parents=True)  # of a run that was killed
    (folder / "unpacking.partial" / "000099.png").touch()
    rename = Path.rename
    interrupted_at = folder / "000007.png"

    def rename_or_be_interrupted(path, to):
        if to == interrupted_at:
            raise KeyboardInterrupt
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", rename_or_be_interrupted)
    with pytest.raises(KeyboardInterrupt):
        unpack_archive(tmp_path / "set.npz", folder)
    assert os.listdir(folder) == []
    monkeypatch.undo()
    unpack_archive(tmp_path / "set.npz", folder)
    assert sorted(os.listdir(folder)) == [f"{number:06d}.png" for number in range(12)]


def test_an_archive_that_says_more_images_than_it_has(images, tmp_path):
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive, archive.open("arr_0.npy", "w") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (13, *images.shape[1:])}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(images.tobytes())
    with pytest.raises(
        ValueError, match=r"arr_0 of uint8 and shape \[13, 5, 7, 3\], in .*not empty and of the size that it tells"
    ):
        unpack_archive(tmp_path / "set.npz", tmp_path / "folder")
    assert os.listdir(tmp_path) == ["set.npz"]


@pytest.mark.parametrize("num_images", [11, 13])
def test_another_number_of_images_than_was_said(images, num_images, tmp_path):
    with pytest.raises(ValueError, match=f"`num_images` is {num_images}, but 12 came"):
        write_npz(tmp_path / "set.npz", iter(images), num_images)
    assert not os.listdir(tmp_path)
