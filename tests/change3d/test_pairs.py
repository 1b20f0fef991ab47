"""Pairs of all layouts, and what is wrong with them, in one line that names the file."""

import os
import random
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from tiny_change3d import SIZE, draw_pair, write_columns, write_folders, write_raw_captions

from diffusers_lightningdit.change3d.captions import build_vocabulary
from diffusers_lightningdit.change3d.pairs import (
    PairDataset,
    PairFormat,
    StreamedPairs,
    UnusablePair,
    known_vocabulary,
)
from diffusers_lightningdit.change3d.sources import open_pairs
from diffusers_lightningdit.change3d.transforms import prepare_pair
from diffusers_lightningdit.data.global_batches import EpochIndex
from diffusers_lightningdit.data.row_stream import RowStream
from diffusers_lightningdit.data.streamed_rows import StreamError
from diffusers_lightningdit.keyed_random import python_random

SAME = ["the", "scene", "is", "the", "same", "as", "before"]
NUM_CLASSES = {"binary": None, "semantic": 3, "damage": 5}
LABELS = {"binary": ["change"], "semantic": ["before", "after", "change"], "damage": ["building", "damage"]}


def form_of(task: str, **settings) -> PairFormat:
    return PairFormat(task, (SIZE, SIZE), **{"num_classes": NUM_CLASSES.get(task), **settings})


def dataset_of(task: str, data: str, split: str = "train", seed: int | None = None, **settings) -> PairDataset:
    return PairDataset(open_pairs(task, data, split), form_of(task, **settings), data, seed)


@pytest.mark.parametrize("task", NUM_CLASSES)
@pytest.mark.parametrize("write", [write_folders, write_columns])
def test_pairs_with_their_labels(tmp_path, task, write):
    dataset = dataset_of(task, write(tmp_path, task), "validation")
    assert len(dataset) == 6
    dataset.check()
    sample, pair = dataset[1], draw_pair(task, 101)
    order = slice(None, None, -1) if task == "damage" else slice(None)
    expected = torch.from_numpy(np.ascontiguousarray(pair["image_after"][..., order])).permute(2, 0, 1) / 255 * 2 - 1
    torch.testing.assert_close(sample["image_after"], expected)
    assert sample["labels"].dtype == (torch.int64 if task == "binary" else torch.uint8)
    assert torch.equal(sample["labels"].long(), torch.from_numpy(np.stack([pair[n] for n in LABELS[task]])).long())


@pytest.mark.parametrize("spelling", ["Val", "validation", "hold"])
def test_splits_in_other_spellings(tmp_path, spelling):
    data = write_folders(tmp_path, "binary", 2, ("Train", spelling))
    assert len(dataset_of("binary", data, "val")) == len(dataset_of("binary", data, "train")) == 2
    with pytest.raises(ValueError, match=f"`split` is 'test', and .* has the splits Train, {spelling}; required"):
        open_pairs("binary", data, "test")


def test_samples_vary_by_seed_epoch_and_index_alone(tmp_path):
    data = write_folders(tmp_path, "semantic")
    dataset = dataset_of("semantic", data, seed=3)
    plain = dataset_of("semantic", data)
    varied = [dataset[EpochIndex(2, epoch)] for epoch in range(6)]
    assert torch.equal(varied[4]["image_before"], dataset[EpochIndex(2, 4)]["image_before"])
    assert len({sample["image_before"].numpy().tobytes() for sample in varied}) > 2
    pair = draw_pair("semantic", 2)
    labels = np.stack([pair[name] for name in LABELS["semantic"]], -1)
    expected = prepare_pair(
        pair["image_before"], pair["image_after"], labels, (SIZE, SIZE), python_random(3, 4, 2), (1, 0, 2)
    )
    for name, tensor in zip(("image_before", "image_after", "labels"), expected, strict=True):
        assert torch.equal(varied[4][name], tensor)
    assert torch.equal(plain[EpochIndex(2, 4)]["image_before"], plain[2]["image_before"])


def test_colours_by_a_palette(tmp_path):
    data = Path(write_folders(tmp_path, "semantic", 2, ("train",)))
    palette = ((255, 255, 255), (0, 0, 255), (128, 0, 0))
    for file in (*(data / "train" / "label1").iterdir(), *(data / "train" / "label2").iterdir()):
        Image.fromarray(np.array(palette, np.uint8)[np.array(Image.open(file))]).save(file)
    with pytest.raises(UnusablePair, match=r"label1/pair_0.png: it has mode 'RGB'; required: .*`label_palette`"):
        dataset_of("semantic", str(data)).check()
    dataset = dataset_of("semantic", str(data), palette=palette)
    assert torch.equal(dataset[1]["labels"][1].long(), torch.from_numpy(draw_pair("semantic", 1)["after"]).long())
    with pytest.raises(UnusablePair, match=r"label1/pair_0.png: it has the colour \[128, 0, 0\] in 144 pixels"):
        dataset_of("semantic", str(data), palette=(*palette[:2], (128, 0, 1)))[0]
    for wrong, message in (
        (palette[:2], "`label_palette` has 2 colours; required: 3, one for each class"),
        ((*palette[:2], (0, 0, 300)), r"`label_palette` has \[0, 0, 300\]; required: numbers from 0 to 255"),
        ((*palette[:2], palette[0]), r"`label_palette` has \[255, 255, 255\]; required: .* no colour twice"),
    ):
        with pytest.raises(ValueError, match=message):
            form_of("semantic", palette=wrong)


def test_changes_follow_from_classes_where_they_have_no_folder(tmp_path):
    data = Path(write_folders(tmp_path, "semantic", 2, ("train",)))
    expected = dataset_of("semantic", str(data))[0]["labels"]
    for file in (data / "train" / "change").iterdir():
        file.unlink()
    (data / "train" / "change").rmdir()
    dataset = dataset_of("semantic", str(data))
    assert torch.equal(dataset[0]["labels"], expected)
    assert "no folder change: changed is where the class in label1 is above 0" in dataset.summary()


def test_names_that_do_not_pair(tmp_path):
    data = Path(write_folders(tmp_path, "damage", 2, ("train",)))
    (data / "train" / "label2" / "area_1_post_disaster_target.png").unlink()
    with pytest.raises(ValueError, match=r"t1/area_1_post_disaster.png has no partner in .*train/label2; required"):
        open_pairs("damage", str(data))
    (data / "train" / "label1" / "other.png").touch()
    with pytest.raises(ValueError, match=r"(label1/other.png|t1/area_1_post_disaster.png) has no partner in"):
        open_pairs("damage", str(data))
    with pytest.raises(ValueError, match=r"has no folder label; required: t1, t2, label"):
        open_pairs("binary", str(data))


def replace(folder: str, name: str, image: Image.Image) -> None:
    image.save(Path(folder) / "train" / name)


L, RGB = (Image.new(mode, (SIZE, SIZE)) for mode in ("L", "RGB"))
XBD = "label2/area_1_post_disaster_target.png"
WRONG_FILES = [
    ("binary", "label/pair_1.png", L.resize((16, 32)), r"pair_1.png has 32x16 pixels .*required: 32x32, as"),
    ("binary", "t2/pair_1.png", RGB.resize((32, 16)), r"t2/pair_1.png has 16x32 pixels .*required: 32x32, as"),
    ("binary", "t1/pair_1.png", L, r"t1/pair_1.png: an image has mode 'L'; required: one of RGB"),
    ("binary", "t2/pair_1.png", Image.new("I;16", (SIZE, SIZE)), "an image has mode 'I;16'; required: one of RGB"),
    ("binary", "label/pair_1.png", L.convert("RGBA"), "pair_1.png: it has mode 'RGBA'; required: one of"),
    ("semantic", "label2/pair_1.png", L.point(lambda _: 3), "pair_1.png: it has the label 3; required: 0 to 2"),
    ("semantic", "change/pair_1.png", L.point(lambda _: 255), "it has the label 255; required: 0 to 1"),
    ("damage", XBD, L.point(lambda _: 5), "target.png: it has the label 5; required: 0 to 4"),
]


@pytest.mark.parametrize(("task", "name", "image", "message"), WRONG_FILES)
def test_files_that_cannot_be_used(tmp_path, task, name, image, message):
    data = write_folders(tmp_path, task, 2, ("train",))
    replace(data, name, image)
    dataset = dataset_of(task, data)
    with pytest.raises(UnusablePair, match=message):
        dataset[1]
    with pytest.raises(UnusablePair, match=message):
        dataset.check()


def test_images_that_lie_on_their_sides_are_checked_as_they_are_read(tmp_path):
    data, (height, width) = Path(write_folders(tmp_path, "binary", 2, ("train",))), (16, 32)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for file in [*(data / "train").glob("t?/*.png"), *(data / "train" / "label").glob("*.png")]:
        image = Image.open(file).resize((width, height))
        if file.parent.name != "label":  # a label map has no camera
            image.transpose(Image.Transpose.ROTATE_90).save(file, exif=exif)
        else:
            image.save(file)
    dataset = PairDataset(open_pairs("binary", str(data)), PairFormat("binary", (height, width)), str(data))
    dataset.check()
    assert dataset[0]["image_before"].shape == (3, height, width)


def test_every_file_of_a_folder_is_used_or_named(tmp_path):
    data = Path(write_folders(tmp_path, "binary", 2, ("train",)))
    inner = [data / "train" / name for name in ("t1", "t2", "label")]
    for folder in inner:
        (folder / "Thumbs.db").touch()
        (folder / "README.md").touch()
        (folder / "more").mkdir()
        shutil.copy(folder / "pair_0.png", folder / "more" / "pair_9.png")
        spelling = "NFD" if folder.name == "t2" else "NFC"
        os.rename(folder / "pair_1.png", folder / (unicodedata.normalize(spelling, "\u00e9\n") + ".png"))
    pairs = open_pairs("binary", str(data))
    assert [Path(row["label"]).parent.name for row in pairs.rows] == ["more", "label", "label"]
    os.symlink(".", inner[0] / "loop")
    os.symlink("nowhere", inner[1] / "lost.png")
    (inner[2] / "notes.txt").touch()
    with pytest.raises(ValueError, match="3 files or folders would be left out: ") as error:
        open_pairs("binary", str(data))
    for reason in ("t1/loop (a link to a folder that", "t2/lost.png (a link to nothing)", "label/notes.txt (no image)"):
        assert reason in str(error.value)
    assert "left out: t1/loop, " in open_pairs("binary", str(data), allow_left_out=True).remark
    next(inner[1].glob("*\n.png")).unlink()
    with pytest.raises(ValueError, match=r"\\n.png has no partner in .*t2; required") as error:
        open_pairs("binary", str(data), allow_left_out=True)
    assert "\n" not in str(error.value)


def test_one_split_in_two_folders(tmp_path):
    data = write_folders(tmp_path, "binary", 2, ("train", "Training", "val", "validation"))
    with pytest.raises(ValueError, match=r"has the splits val, validation; required: one of them, or `allow_left_out`"):
        open_pairs("binary", data, "val")
    assert len(open_pairs("binary", data, "val", allow_left_out=True).rows) == 2


def test_columns_of_folders(tmp_path):
    with pytest.raises(ValueError, match=r"`columns` is \{'label': 'mask'\}, and .* has folders; required: none"):
        open_pairs("binary", write_folders(tmp_path, "binary", 2), columns={"label": "mask"})


def test_images_of_another_size(tmp_path):
    data = write_folders(tmp_path, "binary", 2, ("train",))
    small = PairFormat("binary", (16, 16))
    with pytest.raises(UnusablePair, match=r"t1/pair_0.png has 32x32 pixels .*; required: 16x16, or `resize`"):
        PairDataset(open_pairs("binary", data), small, data).check()
    resized = PairDataset(open_pairs("binary", data), PairFormat("binary", (16, 16), resize=True), data)[0]
    assert resized["image_before"].shape == (3, 16, 16)
    assert resized["labels"].shape == (1, 16, 16)


# -- captions --


def test_each_caption_is_a_sample_of_training(tmp_path):
    file = write_raw_captions(tmp_path)
    source = open_pairs("captioning", file, "train")
    vocabulary = known_vocabulary(source, None, 5)
    assert len(vocabulary) == 9 + 4
    dataset = PairDataset(source, form_of("captioning", vocabulary=vocabulary), file, seed=0)
    assert len(dataset) == 30
    dataset.check()
    sample = dataset[7]
    assert sample["captions"].shape == (52,)
    assert sample["captions"][:3].tolist() == [len(vocabulary) - 2, vocabulary["the"], vocabulary["scene"]]
    swapped = [
        torch.equal(dataset[EpochIndex(0, epoch)]["image_before"], dataset[0]["image_after"]) for epoch in range(20)
    ]
    assert 0 < sum(swapped) < 20
    evaluated = PairDataset(source, form_of("captioning", vocabulary=vocabulary), file)
    assert len(evaluated) == 6
    assert "captions" not in evaluated[1]
    assert evaluated.reference_words(1) == [SAME] * 5
    assert evaluated.references(1)[0] == [vocabulary[word] for word in SAME]


def test_captions_of_columns(tmp_path):
    source = open_pairs("captioning", write_columns(tmp_path, "captioning"), "validation")
    vocabulary = known_vocabulary(source, None, 5)
    dataset = PairDataset(source, form_of("captioning", vocabulary=vocabulary), "here", seed=0)
    assert len(dataset) == 18
    assert dataset.reference_words(0) == [["a", "road", "appears"]] * 3


def test_captions_that_are_too_long(tmp_path):
    file = write_raw_captions(tmp_path, number=2)
    source = open_pairs("captioning", file, "train")
    source.rows[1]["captions"][2] = ["a"] * 51
    form = form_of("captioning", vocabulary=known_vocabulary(source, None, 1))
    with pytest.raises(UnusablePair, match=r"A/train_1.png: a caption has 51 words; required: 1 to 50"):
        PairDataset(source, form, file).check()


def test_captions_for_a_model_of_shorter_ones(tmp_path):
    """Words are as many ids as the model reads; ids that are there already are refused if they are more."""
    file = write_raw_captions(tmp_path, number=2)
    source = open_pairs("captioning", file, "train")
    form = form_of("captioning", vocabulary=known_vocabulary(source, None, 1), max_caption_length=8)
    assert PairDataset(source, form, file, seed=0)[0]["captions"].shape == (8,)
    source.rows[1]["captions"][2] = ["a"] * 7
    with pytest.raises(UnusablePair, match=r"A/train_1.png: a caption has 7 words; required: 1 to 6"):
        PairDataset(source, form, file).check()
    source.rows[1]["captions"] = [[11, 1, 12, *[0] * 49]]
    with pytest.raises(UnusablePair, match=r"train_1.png: a caption has 52 ids; required: at most 8, the model's"):
        PairDataset(source, form, file).check()


@pytest.mark.parametrize(
    ("captions", "message"),
    [(None, "has no caption; required: at least one"), ([None], "a caption has 0 words; required: 1 to 50")],
)
def test_a_row_without_captions(tmp_path, captions, message):
    source = open_pairs("captioning", write_raw_captions(tmp_path, number=2), "train")
    vocabulary = build_vocabulary([SAME], 0)
    source.rows[1]["captions"] = captions
    with pytest.raises(UnusablePair, match=message):
        PairDataset(source, form_of("captioning", vocabulary=vocabulary), "here", seed=0).check()


# -- columns and streams --


def test_columns_of_other_names(tmp_path):
    data = write_columns(tmp_path, "binary")
    with pytest.raises(
        ValueError, match=r"`label` is the column 'mask'; required: a column of images among image_before"
    ):
        open_pairs("binary", data, columns={"label": "mask"})
    with pytest.raises(ValueError, match=r"`columns` has 'labels'; required for the task 'binary': of image_before"):
        open_pairs("binary", data, columns={"labels": "label"})
    with pytest.raises(ValueError, match=r"`image_before` is the column 'label_before'|`label_before`"):
        open_pairs("semantic", data)


@pytest.mark.parametrize("task", NUM_CLASSES)
def test_streams_have_the_same_samples(tmp_path, task):
    data = write_columns(tmp_path, task)
    streamed, dataset = StreamedPairs(form_of(task), data, "train"), dataset_of(task, data)
    first = streamed.first(6)
    for index in range(6):
        for name, tensor in dataset[index].items():
            assert torch.equal(first[index][name], tensor)
    batch = next(iter(RowStream(streamed, 4, seed=1)))[0]
    assert batch["image_before"].shape == (4, 3, SIZE, SIZE)
    varied = streamed.sample(first.rows[0], "here", random.Random(1))
    assert not torch.equal(varied["image_before"], first[0]["image_before"])


def test_a_stream_of_captions_takes_one_at_random(tmp_path):
    data = write_columns(tmp_path, "captioning")
    vocabulary = known_vocabulary(open_pairs("captioning", data), None, 5)
    streamed = StreamedPairs(form_of("captioning", vocabulary=vocabulary), data, "train")
    batch = next(iter(RowStream(streamed, 4)))[0]
    assert batch["captions"].shape == (4, 52)
    with pytest.raises(ValueError, match="`vocabulary` is null with `streaming`"):
        known_vocabulary(open_pairs("captioning", data, streaming=True), None, 5)


def test_streams_name_what_cannot_be_used(tmp_path):
    streamed = StreamedPairs(PairFormat("binary", (16, 16)), write_columns(tmp_path, "binary"), "train")
    with pytest.raises(StreamError, match=r"row 0: .* has 32x32 pixels .*; required: 16x16"):
        streamed.first(1)[0]
    with pytest.raises(
        ValueError, match=r"`streaming` is true, and `data` .* has folders; required: false, or columns"
    ):
        open_pairs("binary", write_folders(tmp_path / "folders", "binary", 1), streaming=True)
