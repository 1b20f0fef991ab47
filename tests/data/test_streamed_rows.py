import numpy as np
import pytest
import torch
from datasets import Array3D, ClassLabel, Features, Value
from datasets import Dataset as Rows
from datasets import Image as ImageFeature
from PIL import Image

from diffusers_lightningdit import AutoencoderVAVAE
from diffusers_lightningdit.data.images import ImageDataset
from diffusers_lightningdit.data.streamed_latents import StreamedLatents
from diffusers_lightningdit.data.streamed_rows import StreamedImages, StreamError
from diffusers_lightningdit.files import weights_sha256, write_json

LABELS = ClassLabel(names=["cat", "dog"])


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> str:
    """Five images of two classes, with an unused column of text."""
    folder = tmp_path_factory.mktemp("images")
    pictures = [Image.effect_noise((12, 8), 40 + number).convert("RGB") for number in range(5)]
    columns = {"image": pictures, "label": [0, 1, 0, 1, 0], "text": list("abcde")}
    features = Features({"image": ImageFeature(), "label": LABELS, "text": Value("string")})
    Rows.from_dict(columns, features=features).to_parquet(folder / "train.parquet")
    return str(folder)


def write_latents(folder, latents, labels, label=LABELS, **columns) -> str:
    features = {"latents": Array3D((2, 2, 2), "float32"), "label": label}
    columns = {"latents": list(latents), "label": labels, **columns}
    if "latents_flip" in columns:
        features["latents_flip"] = features["latents"]
    Rows.from_dict(columns, features=Features(features)).to_parquet(folder / "train.parquet")
    return str(folder)


@pytest.fixture(scope="module")
def latents(tmp_path_factory) -> str:
    values = np.random.default_rng(0).normal([[[3]], [[-1]]], [[[2]], [[0.5]]], (64, 2, 2, 2)).astype(np.float32)
    folder = tmp_path_factory.mktemp("latents")
    return write_latents(folder, values, [0, 1] * 32, latents_flip=list(values[..., ::-1]))


def test_images_are_those_of_the_data_set(images):
    streamed, dataset = StreamedImages(images, 8), ImageDataset(images, 8)
    first = streamed.first(9)
    assert len(first) == len(dataset) == 5
    assert streamed.id2label == dataset.id2label == {0: "cat", 1: "dog"}
    for index in range(5):
        assert torch.equal(first[index]["pixel_values"], dataset[index]["pixel_values"])
        assert first[index]["class_labels"] == dataset[index]["class_labels"]
        mirrored = streamed.sample(first.rows[index], "here", variation=True)
        assert torch.equal(mirrored["pixel_values"], dataset[index]["pixel_values"].flip(-1))
    assert streamed.rows.column_names == ["image", "label"]  # no other one is read
    assert len(streamed.first(3)) == 3


def test_images_without_labels(images):
    assert StreamedImages(images, 8, label_column=None).first(1)[0].keys() == {"pixel_values"}


def test_labels_by_other_numbers(images):
    streamed = StreamedImages(images, 8)
    streamed.id_of_label = {0: 7, 1: 5}
    assert [item["class_labels"] for item in streamed.first(3)] == [7, 5, 7]
    streamed = StreamedImages(images, 8, label_column=None)
    streamed.id_of_label = {None: 4}
    assert streamed.first(1)[0]["class_labels"] == 4


def test_latents(latents):
    streamed = StreamedLatents(latents)
    assert (streamed.shape, streamed.num_classes, streamed.id2label) == ((2, 2, 2), 2, {0: "cat", 1: "dog"})
    first = streamed.first(2)
    assert first[1]["class_labels"] == 1
    mirrored = streamed.sample(first.rows[1], "here", variation=True)
    assert torch.equal(mirrored["latents"], first[1]["latents"].flip(-1))


def test_latents_in_half_precision(tmp_path):
    values = np.arange(16, dtype=np.float16).reshape(2, 2, 2, 2) / 8
    features = Features({"latents": Array3D((2, 2, 2), "float16"), "label": LABELS})
    Rows.from_dict({"latents": list(values), "label": [0, 1]}, features=features).to_parquet(tmp_path / "train.parquet")
    first = StreamedLatents(str(tmp_path), random_flip=False).first(2)
    assert torch.equal(torch.stack([item["latents"] for item in first]), torch.from_numpy(values).float())


def test_the_vae_that_made_them(tmp_path, latents):
    tiny = {"block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4}
    vae = AutoencoderVAVAE(**tiny, latent_channels=2, sample_size=4)
    StreamedLatents(latents).check_vae(vae)  # nothing tells
    with pytest.raises(ValueError, match="holds latents of 2 channels; required: the VAE's 3"):
        StreamedLatents(latents).check_vae(AutoencoderVAVAE(**tiny, latent_channels=3, sample_size=4))
    data = write_latents(tmp_path, np.zeros((1, 2, 2, 2), np.float32), [0])
    write_json(tmp_path / "latents_info.json", {"vae_sha256": weights_sha256(vae)})
    streamed = StreamedLatents(data, random_flip=False)
    streamed.check_vae(vae)
    torch.nn.init.ones_(vae.encoder.conv_out.weight)
    with pytest.raises(ValueError, match="was made by a VAE with other weights"):
        streamed.check_vae(vae)


# ---------------------------------------------------------------------------------------------------------------------
# What goes wrong
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test"}, "split 'test'; required: a folder or Hub id that `datasets` reads"),
        ({"image_column": "text"}, "`image_column` is 'text'; required: a column of images among image, label, text"),
        ({"label_column": "text"}, "`label_column` is 'text'; required: a column of class labels or whole numbers"),
    ],
)
def test_images_that_cannot_be_streamed(images, arguments, message):
    with pytest.raises(ValueError, match=message):
        StreamedImages(images, 8, **arguments)


def test_a_data_set_without_rows(tmp_path):
    features = Features({"image": ImageFeature(), "label": LABELS})
    Rows.from_dict({"image": [], "label": []}, features=features).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="split 'train', without a row; required: at least one"):
        StreamedImages(str(tmp_path), 8)


def test_latents_that_cannot_be_streamed(tmp_path):
    data = write_latents(tmp_path, np.zeros((1, 2, 2, 2), np.float32), [0], label=Value("int64"))
    with pytest.raises(ValueError, match="has no column `latents_flip`"):
        StreamedLatents(data)
    with pytest.raises(ValueError, match=r"`num_classes` is not given, and the labels of .* have no names"):
        StreamedLatents(data, random_flip=False)
    assert StreamedLatents(data, random_flip=False, num_classes=3).num_classes == 3
    (tmp_path / "latents_rank00_shard000.safetensors").touch()
    with pytest.raises(ValueError, match="shards of latents; required: no streaming of them, or latents that"):
        StreamedLatents(data)


@pytest.mark.parametrize("label", [-1, 3, None])
def test_a_label_out_of_range(tmp_path, label):
    data = write_latents(tmp_path, np.zeros((2, 2, 2, 2), np.float32), [2, label], label=Value("int64"))
    first = StreamedLatents(data, random_flip=False, num_classes=3).first(2)
    assert first[0]["class_labels"] == 2
    with pytest.raises(StreamError, match=f"{data}, row 1, has the label {label}; required: 0 to 2"):
        first[1]


def test_bad_images_are_named(tmp_path):
    columns = {"image": [{"path": "wreck.png", "bytes": b"PNG?"}, None], "label": [0, 0]}
    features = Features({"image": ImageFeature(), "label": LABELS})
    Rows.from_dict(columns, features=features).to_parquet(tmp_path / "train.parquet")
    first = StreamedImages(str(tmp_path), 8).first(2)
    with pytest.raises(StreamError, match=f"{tmp_path}, row 0: wreck.png: UnidentifiedImageError: cannot identify"):
        first[0]
    with pytest.raises(StreamError, match=f"{tmp_path}, row 1: an image: "):
        first[1]
