import io
import tarfile

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from diffusers_lightningdit.data.latent_caching import ShardedImages


def read_all(rows, size=2, wanted=lambda shard: True):
    return [(shard, [rows.read(index, row) for index, row in part]) for shard, part in rows.shards(size, wanted)]


def image_bytes(shade, format="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (9, 8), (shade,) * 3).save(buffer, format)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """cat/0.png, ..., dog/4.png, the third truncated and the fourth too deep."""
    for number in range(5):
        path = tmp_path / ("cat" if number < 3 else "dog") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(image_bytes(50 * number))
    (tmp_path / "cat" / "2.png").write_bytes(image_bytes(100)[:50])
    Image.new("I;16", (9, 8)).save(tmp_path / "dog" / "3.png")
    return tmp_path


@pytest.mark.parametrize("streaming", [False, True])
def test_image_folder(folder, streaming):
    rows = ShardedImages(8, 3, str(folder), "train", "image", "label", streaming)
    assert rows.num_images == 5
    assert rows.id2label == {0: "cat", 1: "dog"}
    shards = read_all(rows)
    assert [shard for shard, _ in shards] == [0, 1, 2]
    samples = [sample for _, part in shards for sample in part]
    assert [sample.index for sample in samples] == [0, 1, 2, 3, 4]
    for index in (0, 1, 4):
        assert samples[index].error is None
        assert samples[index].label == int(index >= 3)
        torch.testing.assert_close(samples[index].pixels, torch.full((3, 8, 8), 50 * index / 127.5 - 1))
    assert samples[2].name == f"{folder}/cat/2.png (row 2)"
    assert samples[2].error.startswith(("OSError: ", "SyntaxError: "))
    assert samples[3].error.startswith("an image has mode 'I;16'; required")


@pytest.mark.parametrize("streaming", [False, True])
def test_only_the_wanted_shards(folder, streaming):
    rows = ShardedImages(8, 3, str(folder), "train", "image", "label", streaming)
    shards = read_all(rows, wanted=lambda shard: shard != 1)
    assert [(shard, [sample.index for sample in part]) for shard, part in shards] == [(0, [0, 1]), (2, [4])]


@pytest.mark.parametrize("streaming", [False, True])
def test_webdataset(tmp_path, streaming):
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        for number in range(3):
            for suffix, content in (("png", image_bytes(50 * number)), ("cls", str(number).encode())):
                member = tarfile.TarInfo(f"{number:03d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    rows = ShardedImages(8, 3, str(tmp_path), "train", "png", "cls", streaming)
    samples = [sample for _, part in read_all(rows) for sample in part]
    assert rows.id2label is None
    assert [(sample.label, sample.error) for sample in samples] == [(0, None), (1, None), (2, None)]
    torch.testing.assert_close(samples[2].pixels, torch.full((3, 8, 8), 100 / 127.5 - 1))


def test_labels_that_are_none(tmp_path):
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])})
    columns = {"image": [Image.new("L", (8, 8))] * 3, "label": [1, -1, None]}
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "train.parquet")
    (_, samples), *_ = read_all(ShardedImages(8, 3, str(tmp_path), "train", "image", "label"), size=3)
    assert [sample.error for sample in samples] == [
        None,
        "its label is -1",
        "its label is None",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": "/no/such/folder"}, "`data` is '/no/such/folder', split 'train'; required: a folder or Hub id"),
        ({"image_column": "label"}, "`image_column` is 'label'; required: a column of images among image, label, text"),
        ({"label_column": "text"}, "`label_column` is 'text'; required: a column of class labels or whole numbers"),
        ({"label_column": "name"}, "`label_column` is 'name'; required: a column of class labels or whole numbers"),
    ],
)
def test_errors(tmp_path, arguments, message):
    features = Features({"image": ImageFeature(), "label": Value("int32"), "text": Value("string")})
    columns = {"image": [Image.new("L", (8, 8))], "label": [0], "text": ["a"]}
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "train.parquet")
    defaults = {"data": str(tmp_path), "split": "train", "image_column": "image", "label_column": "label"}
    with pytest.raises(ValueError, match=message):
        ShardedImages(8, 3, *{**defaults, **arguments}.values())
