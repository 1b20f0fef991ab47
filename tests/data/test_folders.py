"""Folders as people have them: every image is used, in the class where its owner put it, or something is said."""

import io
import os
import unicodedata
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from diffusers_lightningdit.data.folders import IMAGE_SUFFIXES, walk
from diffusers_lightningdit.data.images import ImageDataset, UnusableImage, center_crop, open_image
from diffusers_lightningdit.data.rows import ImageRows, open_source
from diffusers_lightningdit.data.streamed_rows import StreamedImages


def write(folder: Path, *names: str) -> str:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (10 * number,) * 3).save(path, format="PNG")
    return str(folder)


def labels(data: str, **arguments) -> dict[str, str]:
    """The name of the class of each image, by its path; the same from a data set and from a stream."""
    dataset, stream = ImageDataset(data, 8, **arguments), StreamedImages(data, 8, **arguments)
    assert list(stream.rows) == list(dataset.rows)
    assert stream.id2label == dataset.id2label
    return {os.path.relpath(row["image"]["path"], data): dataset.id2label[row["label"]] for row in dataset.rows}


@pytest.mark.parametrize(
    "names",
    [
        ["airfield/1.png", "train_interior/1.png", "train_railway/1.png"],
        ["cat/on the train.png", "cat/1.png", "dog/test 2.png", "dog/validation.png"],
        ["bus/1.png", "car/1.png", "train/1.png"],
        ["cat/1.png", "cat/2.png"],
        ["[cat]/1.png", "dog*/?.png"],
        ["cat/a\nb.png", "dog/c\td.png"],
        ["cat/1.JPG", "cat/2.jpeg", "dog/3.webp", "dog/4.tiff", "dog/5.jp2", "dog/6.qoi", "dog/7.avif"],
    ],
)
def test_every_image_is_in_its_folders_class(tmp_path, names):
    expected = {name: name.split("/")[0] for name in names}
    data = write(tmp_path / "[my] images * train", *names)
    assert labels(data) == expected
    assert ImageDataset(data, 8).id2label == dict(enumerate(sorted(set(expected.values()))))


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["cat/2020/1.png", "cat/2021/1.png", "dog/2020/1.png"], ["cat", "cat", "dog"]),
        (["birds/crane/1.png", "birds/owl/1.png", "machines/crane/1.png"], ["birds", "birds", "machines"]),
    ],
)
def test_nested_folders(tmp_path, names, classes):
    assert list(labels(write(tmp_path, *names)).values()) == classes


def test_splits_are_folders_that_are_all_named_so(tmp_path):
    data = write(tmp_path, "train/cat/1.png", "train/dog/1.png", "Val/cat/2.png", "test/owl/3.png")
    assert labels(data) == {"train/cat/1.png": "cat", "train/dog/1.png": "dog"}
    assert labels(data, split="validation") == {"Val/cat/2.png": "cat"}
    assert labels(data, split="test") == {"test/owl/3.png": "owl"}
    with pytest.raises(ValueError, match=r"split 'extra'; required: .*Unknown split .extra.. Should be one of"):
        ImageDataset(data, 8, split="extra")
    part = ImageDataset(data, 8, split="train[1:]")
    assert part.id2label == {0: "cat", 1: "dog"}  # of the whole split
    assert [row["label"] for row in part.rows] == [1]


def test_links_are_followed(tmp_path):
    write(tmp_path / "elsewhere", "1.png", "inner/2.png")
    data = write(tmp_path / "data", "dog/1.png")
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "dog" / "2.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    assert labels(data) == {"cat/1.png": "cat", "cat/inner/2.png": "cat", "dog/1.png": "dog", "dog/2.png": "dog"}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cat/back", "a link to a folder that it lies in"),
        ("cat/gone.png", "a link to nothing"),
        ("cat/notes.txt", "no image"),
        ("cat/.hidden.png", "hidden"),
        (".old", "hidden"),
        ("cat/x.jxl", "Pillow cannot read .jxl here; the package pillow-jxl-plugin can"),
        ("cat/x.zip", "rows beside files of images"),
        ("cat/pipe", "neither a file nor a folder"),
    ],
)
def test_whatever_is_left_out_is_named_and_refused_unless_allowed(tmp_path, name, reason):
    data = write(tmp_path, "cat/1.png", "cat/2.png", "dog/1.png")
    path = tmp_path / name
    if name == "cat/back":
        path.symlink_to(tmp_path)
    elif name == "cat/gone.png":
        path.symlink_to(tmp_path / "nowhere.png")
    elif name == ".old":
        path.mkdir()
    elif name == "cat/pipe":
        os.mkfifo(path)
    else:
        path.touch()
    with pytest.raises(ValueError, match="1 files or folders would be left out") as error:
        ImageDataset(data, 8)
    assert f"{name} ({reason}); required: only what can be used, or `allow_left_out`" in str(error.value)
    dataset = ImageDataset(data, 8, allow_left_out=True)
    assert len(dataset) == 3
    assert dataset.summary() == f"{data}: 3 images, 2 classes of 1 to 2 images: cat 2, dog 1; left out: {name}"


def test_names_that_are_not_text(tmp_path):
    data = write(tmp_path, "cat/1.png")
    with open(os.fsencode(tmp_path) + b"/cat/\xff.png", "wb"):
        pass
    with pytest.raises(ValueError, match=r"xff.png \(a name that is not UTF-8\)"):
        ImageDataset(data, 8)


def test_no_data_is_no_loss(tmp_path):
    data = write(tmp_path, "cat/1.png")
    for name in ("README.md", "LICENSE", ".DS_Store", "cat/Thumbs.db", "cat/._1.png", ".gitattributes"):
        (tmp_path / name).touch()
    assert labels(data) == {"cat/1.png": "cat"}


def test_names_of_classes_are_compared_in_nfc(tmp_path):
    data = write(tmp_path, unicodedata.normalize("NFD", "é") + "/1.png")
    assert ImageDataset(data, 8).id2label == {0: unicodedata.normalize("NFC", "é")}
    write(tmp_path, unicodedata.normalize("NFC", "é") + "/2.png")
    with pytest.raises(ValueError, match="the name 'é' is there twice, in two spellings of Unicode"):
        ImageDataset(data, 8)


def test_images_without_a_class(tmp_path):
    data = write(tmp_path, "1.png", "2.png")
    with pytest.raises(ValueError, match=r"`label_column` is 'label'; required: .* as a folder for each class makes"):
        ImageDataset(data, 8)
    assert ImageDataset(data, 8, label_column=None).summary() == f"{data}: 2 images, without labels"
    write(tmp_path, "cat/3.png")
    with pytest.raises(ValueError, match=r"has 2 rows without a label \(1.png, 2.png\)"):
        ImageDataset(data, 8)
    assert len(ImageDataset(data, 8, label_column=None)) == 3


def test_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match=r"`data` is .*, split 'train'; required: a folder or Hub id"):
        ImageDataset(str(tmp_path), 8)


# -- metadata --


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_metadata_give_the_classes(tmp_path, kind):
    data = write(tmp_path, "a/1.png", "a/2.png", "b/3.png")
    table = pandas.DataFrame({"file_name": ["a/2.png", "b/3.png", "a/1.png"], "label": ["dog", "cat", "cat"]})
    path = tmp_path / f"metadata.{kind}"
    if kind == "csv":
        table.to_csv(path, index=False)
    elif kind == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_parquet(path)
    assert labels(data) == {"a/1.png": "cat", "a/2.png": "dog", "b/3.png": "cat"}


def test_metadata_without_classes(tmp_path):
    data = write(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a" / "metadata.csv").write_text("file_name,text\n1.png,one\n")
    with pytest.raises(ValueError, match=r"b/2.png \(no row in the metadata\)"):
        ImageDataset(data, 8)
    (tmp_path / "metadata.csv").write_text("file_name,text\nb/2.png,two\n")
    assert labels(data) == {"a/1.png": "a", "b/2.png": "b"}
    assert [row["text"] for row in open_source(data).rows] == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "metadata.csv cannot be read \\(it is empty\\); required: rows with the column file_name"),
        ("file_name,label\n", "has 0 rows and the columns file_name, label; required: rows with the column file_name"),
        ("name\n1.png\n", "has 1 rows and the columns name; required"),
        ("file_name\n2.png\n", "names 2.png, which is not there; required: each image"),
        ("file_name\na/1.png\na/1.png\n", "names a/1.png, which is there twice"),
    ],
)
def test_metadata_that_cannot_be_used(tmp_path, content, message):
    data = write(tmp_path, "a/1.png")
    (tmp_path / "metadata.csv").write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        ImageDataset(data, 8)
    assert "\n" not in str(error.value)


# -- files of rows --


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (shade,) * 3).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["bytes", "bytes and path", "binary"])
def test_parquet_of_other_tools(tmp_path, kind):
    contents = [png(0), png(255)]
    images = {
        "bytes": [{"bytes": content} for content in contents],
        "bytes and path": [{"bytes": content, "path": "x.png"} for content in contents],
        "binary": contents,
    }[kind]
    pandas.DataFrame({"image": images, "label": [1, 0]}).to_parquet(tmp_path / "train.parquet")
    dataset = ImageDataset(str(tmp_path), 8, num_classes=2)
    assert (dataset.id2label, dataset.num_classes) == (None, 2)
    assert [item["class_labels"] for item in dataset] == [1, 0]
    assert torch.equal(dataset[0]["pixel_values"], -torch.ones(3, 8, 8))
    stream = StreamedImages(str(tmp_path), 8, label_column=None)
    assert torch.equal(stream.first(2)[1]["pixel_values"], torch.ones(3, 8, 8))


def test_files_of_rows_that_are_left_out(tmp_path):
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a"])})
    rows = Dataset.from_dict({"image": [Image.new("L", (8, 8))], "label": [0]}, features=features)
    for name in ("train-0", "test-0", "more"):
        rows.to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(ValueError, match=r"would be left out: more.parquet \(no row is read from it"):
        ImageDataset(str(tmp_path), 8)
    assert len(ImageDataset(str(tmp_path), 8, allow_left_out=True)) == 1
    (tmp_path / "more.parquet").unlink()
    assert len(ImageDataset(str(tmp_path), 8)) == len(ImageDataset(str(tmp_path), 8, split="test")) == 1


# -- identity --


def test_the_hash_tells_files_and_classes(tmp_path):
    def data_sha256() -> str:
        hashes = [ImageDataset(data, 8).data_sha256(), StreamedImages(data, 8).data_sha256()]
        assert hashes[0] == hashes[1]
        return hashes[0]

    data = write(tmp_path / "images", "cat/1.png", "dog/2.png")
    before = data_sha256()
    os.utime(tmp_path / "images" / "cat" / "1.png")  # a copy on another machine
    (tmp_path / "images").rename(tmp_path / "moved")
    data = str(tmp_path / "moved")
    assert data_sha256() == before
    (tmp_path / "moved" / "dog").rename(tmp_path / "moved" / "ant")
    renamed = data_sha256()
    assert renamed != before
    (tmp_path / "moved" / "cat" / "1.png").rename(tmp_path / "moved" / "cat" / "0.png")
    assert data_sha256() != renamed


# -- one image --


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(tmp_path, orientation):
    upright = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    # how a camera stores an image that is to be shown so (Exif 2.3, table of the tag Orientation)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: upright.swapaxes(0, 1)[::-1],
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: upright.swapaxes(0, 1)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "cat").mkdir()
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "cat" / "1.png", exif=exif)
    assert np.array_equal(open_image(tmp_path / "cat" / "1.png"), upright)
    content = (tmp_path / "cat" / "1.png").read_bytes()
    assert np.array_equal(open_image({"bytes": content, "path": None}), upright)
    assert ImageRows(str(tmp_path), "train", "image", "label").num_images == 1


def test_huge_images_are_refused_before_they_are_decoded(tmp_path):
    Image.new("1", (1_500_000, 1)).save(tmp_path / "line.png")
    with pytest.raises(UnusableImage, match="1500000x1 pixels; required: sides that differ by a factor of at most 100"):
        center_crop(open_image(tmp_path / "line.png"), 256)
    Image.new("1", (15_000, 15_000)).save(tmp_path / "square.png")
    with pytest.raises(UnusableImage, match=r"DecompressionBombError: .*225000000 pixels"):
        open_image(tmp_path / "square.png")


def test_what_counts_as_an_image():
    assert {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".avif"} <= IMAGE_SUFFIXES
    assert not {".mpg", ".h5", ".pdf", ".eps"} & IMAGE_SUFFIXES


def test_cross_links_end(tmp_path):
    write(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a" / "to_b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "to_a").symlink_to(tmp_path / "a")
    content = walk(tmp_path)
    assert [image.path for image in content.images] == ["a/1.png", "a/to_b/2.png", "b/2.png", "b/to_a/1.png"]
    assert set(content.left_out) == {"a/to_b/to_a", "b/to_a/to_b"}
