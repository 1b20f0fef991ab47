import numpy as np
import prepare
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from diffusers_lightningdit.data.images import ImageDataset


def test_a_digit_becomes_an_rgb_image():
    digit = np.zeros((8, 8))
    digit[:, 4:] = 16
    image = np.array(prepare.digit_to_image(digit))
    assert image.shape == (32, 32, 3)
    assert (image[:, :8] == 0).all() and (image[:, -8:] == 255).all()
    assert (image == image[..., :1]).all()


def test_the_data_set_has_all_digits_with_their_names(tmp_path):
    folder = tmp_path / "data"
    prepare.main(["--output_dir", str(folder)])
    dataset = ImageDataset(str(folder), 32)
    assert len(dataset) == 1797
    assert list(dataset.id2label.values()) == prepare.CLASS_NAMES
    assert [dataset[index]["class_labels"] for index in range(3)] == [0, 1, 2]
    assert dataset[0]["pixel_values"].min() == -1
    with pytest.raises(SystemExit):
        prepare.main(["--output_dir", str(folder)])


def test_moved_digits(tmp_path):
    image = prepare.digit_to_image(np.arange(64).reshape(8, 8) % 17)
    moved = np.array(prepare.shifted(image, 2, -1))
    assert (moved[:-1, 2:] == np.array(image)[1:, :-2]).all()
    assert (moved[:-1, :2] == np.array(image)[1:, :1]).all()
    prepare.main(["--output_dir", str(tmp_path / "data"), "--max_shift", "1"])
    dataset = ImageDataset(str(tmp_path / "data"), 32)
    assert len(dataset) == 9 * 1797
    right = dataset[5 * 1797]["pixel_values"]  # the first digit, moved by (1, 0)
    assert (right[:, :, 1:] == dataset[4 * 1797]["pixel_values"][:, :, :-1]).all()
    with pytest.raises(SystemExit):
        prepare.main(["--output_dir", str(tmp_path / "other"), "--max_shift", "32"])


def test_digits_of_one_class_are_turned(tmp_path):
    prepare.main(["--turned", "seven", "--output_dir", str(tmp_path / "sevens")])
    files = sorted((tmp_path / "sevens").iterdir())
    assert len(files) == 179  # as docs/training.md says
    digits = load_digits()
    first = prepare.digit_to_image(digits.images[digits.target == 7][0])
    assert np.array_equal(np.array(Image.open(files[0])), np.array(first)[::-1, ::-1])
    with pytest.raises(SystemExit):
        prepare.main(["--turned", "ten", "--output_dir", str(tmp_path / "tens")])
    assert not (tmp_path / "tens").exists()
