import numpy as np
import PIL
import pytest
import torch
import torch.nn.functional as F
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from diffusers_lightningdit.data.images import (
    ImageDataset,
    UnusableImage,
    center_crop,
    image_to_pixels,
)
from diffusers_lightningdit.settings import one_line_errors


@pytest.fixture(scope="module")
def recorded(golden):
    return load_file(golden("center_crop/images.safetensors"))


CROPS = ["w311_h173", "w100_h450", "w256_h256", "w63_h100", "w64_h64", "w129_h128", "w45_h33", "gray_w90_h70"]


@pytest.mark.parametrize("name", CROPS)
def test_center_crop_is_the_originals(recorded, name):
    cropped = np.array(center_crop(Image.fromarray(recorded[f"in.{name}"].numpy()), 64))
    difference = np.abs(cropped.astype(int) - recorded[f"crop64.{name}"].numpy())
    # recorded with Pillow 13, whose box filter rounds differently from that of Pillow 12
    assert difference.max() <= (0 if int(PIL.__version__.split(".")[0]) >= 13 else 1)


def test_center_crop_to_another_size(recorded):
    cropped = np.array(center_crop(Image.fromarray(recorded["in.w311_h173"].numpy()), 32))
    np.testing.assert_array_equal(cropped, recorded["crop32.w311_h173"].numpy())


def test_pixels_are_the_originals(recorded):
    pixels = image_to_pixels(Image.fromarray(recorded["in.w311_h173"].numpy()), 64)
    assert torch.equal(pixels, recorded["normalised.w311_h173"])


@pytest.mark.parametrize("name", ["w311_h173", "w100_h450", "w45_h33"])
def test_plain_preprocessing_is_one_bicubic_step(recorded, name):
    image = recorded[f"in.{name}"]
    scale = 64 / min(image.shape[:2])
    size = [round(side * scale) for side in image.shape[:2]]
    resized = F.interpolate(image.permute(2, 0, 1)[None].float(), size, mode="bicubic", antialias=True)[0]
    top, left = (side // 2 - 32 for side in size)
    expected = resized[:, top : top + 64, left : left + 64].clamp(0, 255)
    pixels = image_to_pixels(Image.fromarray(image.numpy()), 64, "plain") * 127.5 + 127.5
    assert (pixels - expected).abs().max() < 2  # Pillow rounds after each direction


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_8_bit_modes_become_rgb(mode):
    pixels = image_to_pixels(Image.new("RGB", (16, 8), "white").convert(mode), 8)
    assert pixels.shape == (3, 8, 8)
    assert torch.equal(pixels, torch.ones(3, 8, 8))


@pytest.mark.parametrize(("size", "fits"), [((1, 1), True), ((1, 100), True), ((1, 101), False), ((404, 4), False)])
def test_lines_of_pixels(size, fits):
    image = Image.new("RGB", size, "white")
    if fits:
        assert torch.equal(image_to_pixels(image, 8), torch.ones(3, 8, 8))
        return
    with pytest.raises(UnusableImage, match=f"{size[0]}x{size[1]} pixels; required: sides that differ by a factor"):
        image_to_pixels(image, 8)


@pytest.mark.parametrize("preprocessing", ["original", "plain"])
def test_a_crop_that_is_no_square(preprocessing):
    image = Image.effect_noise((24, 24), 60).convert("RGB")
    pixels = image_to_pixels(image, (12, 24), preprocessing)
    assert torch.equal(pixels, image_to_pixels(image, 24, preprocessing)[:, 6:18])  # 24 pixels wide: nothing is scaled
    turned = image_to_pixels(image.transpose(Image.Transpose.TRANSPOSE), (24, 12), preprocessing)
    assert torch.equal(turned, pixels.mT)
    assert image_to_pixels(image.resize((55, 31)), (12, 24), preprocessing).shape == (3, 12, 24)


def test_grey_pixels_are_the_luma():
    image = Image.effect_noise((8, 8), 60).convert("RGB")
    image.putpixel((1, 2), (255, 0, 128))
    luma = (np.array(image) @ np.array([0.299, 0.587, 0.114])).round()
    assert ((image_to_pixels(image, 8, channels=1)[0] + 1) * 127.5 - torch.from_numpy(luma)).abs().max() < 1e-3
    grey = image.convert("L")
    assert torch.equal(image_to_pixels(grey, 8, channels=1)[0], image_to_pixels(grey, 8)[2])


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deeper_images_are_refused(mode):
    with pytest.raises(ValueError, match=f"mode '{mode}'; required: one of"):
        image_to_pixels(Image.new(mode, (8, 8)), 8)


# -- data sets --


def test_unknown_preprocessing():
    with pytest.raises(ValueError, match="`preprocessing` is 'other'; required: one of original, plain"):
        ImageDataset("anything", 8, preprocessing="other")


@pytest.fixture(scope="module")
def parquet_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parquet")
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["cat", "dog"]), "number": Value("int64")})
    images = [Image.new("RGB", (20, 16), color) for color in ("black", "white")]
    columns = {"image": images, "label": [1, 0], "number": [5, 6]}
    Dataset.from_dict(columns, features=features).to_parquet(folder / "train.parquet")
    return folder


def test_parquet_folder(parquet_folder):
    dataset = ImageDataset(str(parquet_folder), resolution=8)
    assert len(dataset) == 2
    assert dataset.id2label == {0: "cat", 1: "dog"}
    assert dataset[0]["class_labels"] == 1
    assert torch.equal(dataset[0]["pixel_values"], -torch.ones(3, 8, 8))
    assert torch.equal(dataset[1]["pixel_values"], torch.ones(3, 8, 8))


def test_image_folder(tmp_path):
    for name, color in (("cat", "black"), ("dog", "white")):
        (tmp_path / name).mkdir()
        Image.new("L", (9, 9), color).save(tmp_path / name / "picture.png")
    dataset = ImageDataset(str(tmp_path), resolution=8)
    assert dataset.id2label == {0: "cat", 1: "dog"}
    assert {dataset.id2label[item["class_labels"]]: item["pixel_values"].mean().item() for item in dataset} == {
        "cat": -1,
        "dog": 1,
    }


def test_images_without_labels(parquet_folder):
    dataset = ImageDataset(str(parquet_folder), resolution=8, label_column=None)
    assert dataset.id2label is None
    assert list(dataset[0]) == ["pixel_values"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": "/no/such/folder"}, "`data` is '/no/such/folder', split 'train'; required: a folder or Hub id"),
        ({"split": "test"}, "split 'test'; required"),
        ({"image_column": "picture"}, "`image_column` is 'picture'; required: a column of images among image, label"),
        ({"image_column": "label"}, "`image_column` is 'label'; required: a column of images"),
        ({"label_column": "image"}, "`label_column` is 'image'; required: a column of class labels or whole numbers"),
    ],
)
def test_errors_name_argument_value_and_requirement(parquet_folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageDataset(**{"data": str(parquet_folder), "resolution": 8, **arguments})


@pytest.mark.parametrize(("label", "message"), [(None, "has 1 rows without a label"), (-1, "labels from -1 to 1")])
def test_rows_without_a_label_are_refused(tmp_path, label, message):
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["cat", "dog"])})
    columns = {"image": [Image.new("RGB", (8, 8))] * 2, "label": [label, 1]}
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=message):
        ImageDataset(str(tmp_path), resolution=8)


def test_a_truncated_parquet_file_is_one_line(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(ValueError, match="`data` is") as error:
        ImageDataset(str(tmp_path), resolution=8)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_image_is_named_in_one_line(tmp_path, capsys, num_workers):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.effect_noise((16, 16), 40).save(tmp_path / name / "0.png")
    file = tmp_path / "dog" / "0.png"
    file.write_bytes(file.read_bytes()[:100])
    images = DataLoader(ImageDataset(str(tmp_path), 8), num_workers=num_workers)
    with pytest.raises(SystemExit), one_line_errors((UnusableImage,)):
        list(images)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {tmp_path}, {file} (row 1): ")
