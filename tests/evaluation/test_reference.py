import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from diffusers_lightningdit.evaluation.drawn_images import load_pipeline
from diffusers_lightningdit.evaluation.generation_config import GenerationConfig
from diffusers_lightningdit.evaluation.image_sets import open_images
from diffusers_lightningdit.evaluation.reference import (
    archive_names,
    check_labels,
    compare_class_names,
    content_sha256,
    open_reference,
    read_statistics,
)
from diffusers_lightningdit.networks.vision_features import VisionFeatures

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def pipeline(digits_pipeline):
    return load_pipeline(digits_pipeline)


def data_set(folder: Path, names: list[str], labels: list[int], gray: int = 0) -> str:
    images = [Image.new("RGB", (32, 32), (gray, 20 * index, 0)) for index in range(len(labels))]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=names)})
    folder.mkdir()
    Dataset.from_dict({"image": images, "label": labels}, features=features).to_parquet(folder / "train.parquet")
    return str(folder)


def config_of(reference: str, **settings) -> GenerationConfig:
    return GenerationConfig(pipeline="p", output_dir="o", reference=reference, features="f", **settings)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (NAMES[1:] + NAMES[:1], "class 0 is 'one'; required: the pipeline's order, in which it is 'zero'."),
        (
            NAMES[:3] + NAMES[8:2:-1] + NAMES[9:],
            "class 3 is 'eight'; required: the pipeline's order, in which it is 't",
        ),
    ],
)
def test_the_same_names_in_another_order(pipeline, names, message, tmp_path):
    config = config_of(data_set(tmp_path / "data", names, [0, 1]), reference_label_column="label")
    with pytest.raises(ValueError, match="`reference_label_column` is 'label', where ") as error:
        compare_class_names(config, open_images(config.reference, label_column="label"), pipeline)
    assert message in str(error.value)


def test_other_names_are_a_warning(pipeline, tmp_path, monkeypatch):
    config = config_of(data_set(tmp_path / "a", [*NAMES[:9], "neuf"], [0, 1]), reference_label_column="label")
    (line,) = compare_class_names(config, open_images(config.reference, label_column="label"), pipeline)
    assert line.endswith("since their names differ: class 9, 'neuf', is 'nine' there.")
    config = config_of(data_set(tmp_path / "b", NAMES, [0, 1]), reference_label_column="label")
    assert compare_class_names(config, open_images(config.reference, label_column="label"), pipeline) == []
    monkeypatch.setattr(pipeline, "_internal_dict", {**pipeline.config, "id2label": None})
    (line,) = compare_class_names(config, open_images(config.reference, label_column="label"), pipeline)
    assert line.endswith("class 0, 'zero', has no name there.")


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        (
            NAMES,
            [3, 3, 3, 3],
            "with images of class 3 only; required with `reference_label_column`: at least 2 classes.",
        ),
        (NAMES[:4], [0, 1, 2, 3], "with 4 classes; required: 10, as the pipeline's."),
    ],
)
def test_labels_that_cannot_be_used(pipeline, vision_transformer, names, labels, message, tmp_path):
    config = config_of(data_set(tmp_path / "data", names, labels), reference_label_column="label")
    with pytest.raises(ValueError, match="`reference` is ") as error:
        open_reference(config, VisionFeatures(vision_transformer), (32, 32), pipeline)
    assert str(error.value).endswith(message)


def test_a_label_beyond_the_classes(pipeline, tmp_path):
    """`datasets` itself accepts such labels in a file that others wrote."""
    config = config_of(data_set(tmp_path / "data", NAMES, [0, 1]), reference_label_column="label")
    images = open_images(config.reference, label_column="label")
    images.labels = torch.tensor([0, 10])
    with pytest.raises(ValueError, match="with the label 10; required: 0 to 9"):
        check_labels(config, images, pipeline)


def test_the_hash_is_of_what_the_reference_holds(tmp_path):
    def hash_of(reference: str, **settings) -> str:
        config = config_of(reference, **settings)
        return content_sha256(config, open_images(reference, label_column=config.reference_label_column))

    labelled = {"reference_label_column": "label"}
    first = data_set(tmp_path / "first", NAMES, [0, 1, 2])
    shutil.copytree(first, tmp_path / "copy")
    assert hash_of(str(tmp_path / "copy"), **labelled) == hash_of(first, **labelled)
    for number, changed in enumerate([{"gray": 1, "labels": [0, 1, 2]}, {"labels": [0, 1, 3]}, {"labels": [0, 1]}]):
        assert hash_of(data_set(tmp_path / str(number), NAMES, **changed), **labelled) != hash_of(first, **labelled)

    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(2):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / f"{index}.png")
    before = hash_of(str(folder))
    Image.new("RGB", (8, 8), (9, 0, 0)).save(folder / "1.png")
    assert hash_of(str(folder)) != before

    np.savez(tmp_path / "a.npz", np.zeros((2, 8, 8, 3), np.uint8))
    before = hash_of(str(tmp_path / "a.npz"))
    np.savez(tmp_path / "a.npz", np.ones((2, 8, 8, 3), np.uint8))
    assert hash_of(str(tmp_path / "a.npz")) != before


# ---------------------------------------------------------------------------------------------------------------------
# Published statistics
# ---------------------------------------------------------------------------------------------------------------------


def moments(size: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(size, dtype=np.float64), np.eye(size)


def test_statistics_of_both_kinds(tmp_path):
    (mu, sigma), (mu_s, sigma_s) = moments(4), moments(3)
    images = np.zeros((1, 2, 2, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images, mu=mu, sigma=sigma, mu_s=mu_s, sigma_s=sigma_s)
    assert set(archive_names(tmp_path / "a.npz")) == {"arr_0", "mu", "sigma", "mu_s", "sigma_s"}
    statistics = read_statistics(tmp_path / "a.npz")
    assert list(statistics) == ["features", "spatial"]
    assert torch.equal(statistics["features"][0], torch.arange(4.0, dtype=torch.float64))
    assert torch.equal(statistics["spatial"][1], torch.eye(3, dtype=torch.float64))
    np.savez(tmp_path / "b.npz", mu=mu.astype(np.float32), sigma=sigma)
    assert list(read_statistics(tmp_path / "b.npz")) == ["features"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mu": np.array([{}, {}, {}, {}])}, r"a\.npz holds mu of object; required: .*not pickled"),
        ({"mu": np.full(4, np.nan)}, "finite floating-point numbers"),
        ({"mu": np.arange(4)}, "holds mu of int64; required: mean and covariance, finite floating-point"),
        (
            {"sigma": np.triu(np.ones((4, 4)))},
            r"sigma of .*a\.npz differs from its transpose by 1; required: a symmetric",
        ),
        ({"sigma": np.diag([1, 1, -0.5, 1])}, r"sigma of .*a\.npz has the eigenvalue -0\.5; required: a covariance"),
        ({"sigma": np.eye(3)}, r"mu, sigma of \[4\] and \[3, 3\]; required: \[D\], \[D, D\]"),
    ],
)
def test_statistics_that_are_refused(changed, message, tmp_path):
    mu, sigma = moments(4)
    np.savez(tmp_path / "a.npz", **{"mu": mu, "sigma": sigma, **changed})
    with pytest.raises(ValueError, match=message):
        read_statistics(tmp_path / "a.npz")


@pytest.mark.parametrize("sigma", [np.zeros((4, 4)), np.outer(np.arange(4.0), np.arange(4.0)) - 1e-9 * np.eye(4)])
def test_singular_covariances_are_accepted(sigma, tmp_path):
    np.savez(tmp_path / "a.npz", mu=np.zeros(4), sigma=sigma)
    assert torch.equal(read_statistics(tmp_path / "a.npz")["features"][1], torch.from_numpy(sigma))


def test_files_without_statistics(tmp_path):
    np.savez(tmp_path / "half.npz", mu=np.zeros(4))
    with pytest.raises(ValueError, match=r"half\.npz has no sigma; required: mean and covariance"):
        read_statistics(tmp_path / "half.npz")
    (tmp_path / "a.npz").write_text("nothing")
    for name in ("a.npz", "missing.npz"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read \(.*\); required: an \.npz file"):
            archive_names(tmp_path / name)


@pytest.mark.parametrize(
    "arrays",
    [
        {"mu": np.zeros(0), "sigma": np.zeros((0, 0))},
        {"mu": np.zeros(3), "sigma": np.full((3, 3), np.nan)},
        {"mu": np.array([{}, {}]), "sigma": np.eye(2)},
        {"mu": np.zeros(2)},
        {"mu": np.zeros(2, int), "sigma": np.eye(2, dtype=int)},
        {"mu": np.zeros(2), "sigma": np.eye(3)},
        {"mu": np.zeros((2, 2)), "sigma": np.eye(2)},
    ],
)
def test_statistics_of_other_shapes_and_kinds(arrays, tmp_path):
    np.savez(tmp_path / "reference.npz", **arrays)
    with pytest.raises(ValueError, match=r"reference\.npz .*required: ") as error:
        read_statistics(tmp_path / "reference.npz")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("order", ["C", "F"])
def test_statistics_are_read_as_numpy_reads_them(order, tmp_path):
    sigma = np.asarray(np.cov(np.random.default_rng(0).normal(size=(3, 9))), order=order)
    np.savez(tmp_path / "reference.npz", mu=np.arange(3.0), sigma=sigma)
    mean, covariance = read_statistics(tmp_path / "reference.npz")["features"]
    np.testing.assert_array_equal(covariance, sigma)
    np.testing.assert_array_equal(mean, np.arange(3.0))


def test_an_image_that_is_a_mere_line(tmp_path):
    """A crop to a square would enlarge 1,500,000 x 1 pixels to 9.6 GB."""
    for name, size in (("0", (9, 9)), ("1", (1_500_000, 1))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    images = open_images(str(tmp_path), crop=8)
    assert images[0].shape == (8, 8, 3)
    with pytest.raises(ValueError, match=r"1\.png.* 1500000x1 pixels; required: sides that differ"):
        images[1]
