"""Vocabularies, ids of captions, and the files that hold them."""

import json
from pathlib import Path

import pytest
from tiny_change3d import write_caption_files, write_raw_captions

from diffusers_lightningdit.change3d.captions import (
    CaptionFiles,
    build_vocabulary,
    check_caption,
    check_vocabulary,
    encode_caption,
    read_raw_captions,
    tokenize,
    words_of,
)

SAME = ["the", "scene", "is", "the", "same", "as", "before"]
CAPTIONS = [["a", "road", "appears"]] * 6 + [["a", "house"]] * 5


def test_words_are_counted_over_all_captions_and_numbered_as_they_come():
    vocabulary = build_vocabulary(CAPTIONS)
    assert vocabulary == {"<pad>": 0, "a": 1, "road": 2, "appears": 3, "<unk>": 4, "<start>": 5, "<end>": 6}
    assert build_vocabulary(CAPTIONS, 4)["house"] == 4  # 5 times
    assert check_vocabulary(vocabulary, "here") is vocabulary


def test_the_recorded_vocabulary_is_one(golden_change3d):
    assert check_vocabulary(json.loads(golden_change3d("wordmap.json").read_text()), "wordmap.json")["<end>"] == 42


def test_no_word_is_left():
    with pytest.raises(ValueError, match=r"more than 9 times \(the most frequent one 2 times\); required"):
        build_vocabulary([["a", "b"], ["a"]], 9)
    for empty in ({}, {"<pad>": 0, "<unk>": 1, "<start>": 2, "<end>": 3}, {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4}):
        with pytest.raises(ValueError, match=rf"words\.json has {len(empty)} words; required: .* at least one word"):
            check_vocabulary(empty, "words.json")


def test_ids_and_back():
    vocabulary = build_vocabulary(CAPTIONS)
    ids = encode_caption(["a", "new", "road"], vocabulary, 8)
    assert ids == [5, 1, 4, 2, 6, 0, 0, 0]
    assert words_of(ids, vocabulary) == ["a", "<unk>", "road"]
    check_caption(ids, 7, "the caption")
    with pytest.raises(ValueError, match=r"a caption has 7 words; required: 1 to 6"):
        encode_caption(["a"] * 7, vocabulary, 8)
    assert tokenize("A road appears, near it a house.") == ["a", "road", "appears", "near", "it", "a", "house"]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([5, 1, 2, 0], "caption 3 has no <end>; required"),
        ([1, 2, 6, 0], "caption 3 is not <start>, words, <end>"),
        ([5, 0, 6, 0], "caption 3 is not <start>, words, <end>"),
        ([5, 1, 6, 1], "caption 3 is not <start>, words, <end>"),
        ([5, 7, 6, 0], "caption 3 has ids outside of 0 to 6"),
    ],
)
def test_a_caption_that_is_none(ids, message):
    with pytest.raises(ValueError, match=message):
        check_caption(ids, 7, "caption 3")


# -- files --


@pytest.fixture
def caption_files(tmp_path) -> Path:
    pytest.importorskip("h5py")
    vocabulary = build_vocabulary([["a", "road", "appears", "the", "scene", "is", "same", "as", "before"]] * 6)
    return Path(write_caption_files(tmp_path / "files", vocabulary))


def test_hdf5_and_json(caption_files):
    files = CaptionFiles(caption_files, "validation")
    assert len(files) == 4
    assert files[3]["image_after"].shape == (32, 32, 3)
    assert [len(files[3]["captions"]), len(files[3]["captions"][0])] == [5, 52]
    assert words_of(files[3]["captions"][0], files.vocabulary) == SAME


def change(file: Path, number: int, value) -> None:
    content = json.loads(file.read_text())
    content[number] = value
    file.write_text(json.dumps(content))


def test_files_that_cannot_be_used(caption_files):
    captions, lengths = (next(caption_files.glob(f"TRAIN_{kind}_*.json")) for kind in ("CAPTIONS", "CAPLENS"))
    change(lengths, 7, 5)
    with pytest.raises(
        ValueError, match=r"caption 7 \(image 1\) of .*TRAIN_CAPTIONS.* has 9 words; required: 5, as in"
    ):
        CaptionFiles(caption_files, "train")
    whole = captions.read_text()
    change(captions, 7, [*json.loads(whole)[7][:3], *[0] * 49])
    with pytest.raises(ValueError, match=r"caption 7 \(image 1\) of .*TRAIN_CAPTIONS.* has no <end>"):
        CaptionFiles(caption_files, "train")
    captions.write_text(whole[:40])
    with pytest.raises(ValueError, match=r"TRAIN_CAPTIONS.* is damaged"):
        CaptionFiles(caption_files, "train")
    captions.unlink()
    with pytest.raises(ValueError, match=r"has none for TRAIN_CAPTIONS_\*\.json; required: one such file"):
        CaptionFiles(caption_files, "train")
    next(caption_files.glob("TEST_IMAGES_*")).write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"TEST_IMAGES.*hdf5 is damaged"):
        CaptionFiles(caption_files, "test")


def test_raw_captions(tmp_path):
    splits = read_raw_captions(write_raw_captions(tmp_path, number=2))
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 2, "val": 2}
    row = splits["val"][1]
    assert row["image_before"].endswith("images/val/A/val_1.png")
    assert row["captions"] == [SAME] * 5


def test_raw_captions_that_cannot_be_used(tmp_path):
    file = Path(write_raw_captions(tmp_path, number=2))
    content = json.loads(file.read_text())
    (tmp_path / "images" / "val" / "B" / "val_1.png").unlink()
    with pytest.raises(ValueError, match=r"image 3 of .*captions\.json is .*B/val_1\.png, which is missing"):
        read_raw_captions(file)
    content["images"][0]["sentences"] = []
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"image 0 of .*, train_0.png, has no caption"):
        read_raw_captions(file)
    image = {"split": "train", "filename": "train_0.png", "sentences": [{"raw": "a road"}]}
    for changed in (5, "x", {**image, "sentences": ["x"]}, {**image, "sentences": None}, {**image, "split": "\udc00"}):
        file.write_text(json.dumps({"images": [changed]}))
        with pytest.raises(
            ValueError, match=r"image 0 of .*json is of another form \(\w+: .*required: filename, split"
        ):
            read_raw_captions(file)
    file.write_text("{}")
    with pytest.raises(ValueError, match="has no `images`"):
        read_raw_captions(file)
