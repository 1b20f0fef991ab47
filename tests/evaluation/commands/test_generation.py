import json
import shutil
from pathlib import Path

import accelerate
import numpy as np
import pytest
import scipy.linalg
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from diffusers_lightningdit.evaluation.commands import generation
from diffusers_lightningdit.evaluation.image_sets import open_images
from diffusers_lightningdit.metrics.precision_recall import precision_and_recall
from diffusers_lightningdit.networks.vision_features import VisionFeatures

NUM_IMAGES = 39  # no multiple of anything

pytestmark = pytest.mark.usefixtures("fresh_accelerate_state")


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu():
    """Run on the CPU, as the processes of the launcher do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        yield


@pytest.fixture(scope="module")
def arguments(digits_pipeline, real_digits, vision_transformer) -> list[str]:
    settings = {
        "pipeline": digits_pipeline,
        "reference": real_digits,
        "reference_label_column": "label",
        "features": vision_transformer,
        "num_images": NUM_IMAGES,
        "sampling.num_inference_steps": 3,
    }
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def run(arguments: list[str], folder: Path, *changes: str) -> dict:
    generation.main([*arguments, "--output_dir", str(folder), *changes])
    return json.loads((folder / "generation.json").read_text())


def images_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "images").iterdir()}


@pytest.fixture(scope="module")
def first_run(arguments, tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("first_run") / "out"
    record = run(arguments, folder)
    AcceleratorState._reset_state(reset_partial_state=True)
    return folder, record


def measured(record: dict) -> tuple:
    return record["results"], record["samples"], record["reference"], record["weights_sha256"], record["warnings"]


# ---------------------------------------------------------------------------------------------------------------------
# The numbers
# ---------------------------------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_files(first_run, real_digits, vision_transformer):
    """They are computed from the PNG files in another way: all images at once, with scipy's matrix square root."""
    folder, record = first_run
    paths = sorted((folder / "images").iterdir())
    assert [path.name for path in paths] == [f"{index:06d}.png" for index in range(NUM_IMAGES)]
    real = open_images(real_digits)
    network = VisionFeatures(vision_transformer)
    features = []
    for arrays in ([np.array(Image.open(path)) for path in paths], [real[index] for index in range(60)]):
        features.append(network(torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2))["features"].double())
    (m_1, c_1), (m_2, c_2) = ((part.mean(0).numpy(), part.T.cov().numpy()) for part in features)
    root = scipy.linalg.sqrtm(c_1 @ c_2).real
    expected = ((m_1 - m_2) ** 2).sum() + np.trace(c_1) + np.trace(c_2) - 2 * np.trace(root)
    assert record["results"]["frechet_distance"] == pytest.approx(expected, rel=1e-4)
    precision, recall = precision_and_recall(*features)
    assert record["results"]["precision"] == pytest.approx(precision, rel=1e-5)
    assert record["results"]["recall"] == pytest.approx(recall, rel=1e-5)
    assert 0.1 < record["results"]["accuracy"] <= 1


def test_what_they_depend_on_lies_beside_them(first_run):
    _, record = first_run
    assert record["settings"]["num_images"] == record["samples"]["num_images"] == NUM_IMAGES
    assert record["samples"]["sampling"] == {
        "guidance_channels": None,
        "guidance_interval": [0.0, 1.0],
        "guidance_scale": 1.0,
        "num_inference_steps": 3,
    }
    assert record["samples"]["scheduler"]["shift"] == 2.0
    assert set(record["weights_sha256"]) == {"transformer", "vae", "features"}
    assert {"torch", "diffusers", "python"} <= set(record["versions"])
    assert (record["num_processes"], record["reference"]["num_images"]) == (1, 60)
    assert record["warnings"] == [
        "accuracy takes the classes of the reference for those of the pipeline by their numbers, since their names "
        "differ: class 0, '0', is 'zero' there."
    ]


def test_another_batch_size(arguments, first_run, tmp_path):
    record = run(arguments, tmp_path / "out", "--batch_size", "7", "--num_workers", "1", "--format", "npz")
    assert measured(record) == measured(first_run[1])
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["generation.json", "images.npz", "samples.json"]
    with np.load(tmp_path / "out" / "images.npz", allow_pickle=False) as archive:
        assert archive["arr_0"].shape == (NUM_IMAGES, 32, 32, 3)
    modified = (tmp_path / "out" / "images.npz").stat().st_mtime_ns
    assert measured(run(arguments, tmp_path / "out", "--format", "npz")) == measured(record)
    assert (tmp_path / "out" / "images.npz").stat().st_mtime_ns == modified


def test_two_processes_go_on_after_a_kill(arguments, first_run, tmp_path):
    """Some files of two blocks of 16 are missing, and one is half written."""
    shutil.copytree(first_run[0], tmp_path / "out")
    (tmp_path / "out" / "generation.json").unlink()
    for index in (3, 4, 20):
        (tmp_path / "out" / "images" / f"{index:06d}.png").unlink()
    (tmp_path / "out" / "images" / "000020.png.partial").write_bytes(b"\x89PNG")
    accelerate.debug_launcher(generation.main, ([*arguments, "--output_dir", str(tmp_path / "out")],), 2)
    record = json.loads((tmp_path / "out" / "generation.json").read_text())
    assert record["num_processes"] == 2
    assert measured(record) == measured(first_run[1])
    assert images_of(tmp_path / "out") == images_of(first_run[0])


def test_a_kill_at_the_very_beginning_or_end(arguments, first_run, tmp_path):
    """samples.json is half written; or images.npz is complete and only some of images/ are left."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "samples.json.partial").write_text("{")
    record = run(arguments, tmp_path / "out", "--format", "both")
    for path in list((tmp_path / "out" / "images").iterdir())[::2]:
        path.unlink()
    again = run(arguments, tmp_path / "out", "--format", "npz")
    assert measured(again) == measured(record) == measured(first_run[1])
    assert again["speed_of_main_process"]["num_drawn"] == 0
    assert not (tmp_path / "out" / "images").exists()


def test_a_smaller_set_is_the_beginning_of_a_larger_one(arguments, first_run, tmp_path):
    run(arguments, tmp_path / "out", "--num_images", "20")
    assert images_of(tmp_path / "out").items() < images_of(first_run[0]).items()
    assert measured(run(arguments, tmp_path / "out")) == measured(first_run[1])


def test_settings_change_the_numbers(arguments, first_run, tmp_path):
    changed = ["--seed", "1", "--labels", "random", "--sampling.guidance_scale", "3", "--num_images", "12"]
    record = run(arguments, tmp_path / "out", *changed, "--feature_size", "16")
    assert record["results"]["frechet_distance"] != first_run[1]["results"]["frechet_distance"]
    assert record["warnings"][1:] == [
        "a covariance of 12 features from 12 samples has rank 11 at most; a Fréchet distance of it is biased. More "
        "than 12 samples are needed."
    ]


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_itself_as_the_reference(arguments, first_run, kind, tmp_path):
    folder = first_run[0]
    if kind == "npz":
        arrays = [np.array(Image.open(path)) for path in sorted((folder / "images").iterdir())]
        np.savez(tmp_path / "real.npz", np.stack(arrays))
    reference = str(tmp_path / "real.npz") if kind == "npz" else str(folder / "images")
    changed = ["--reference", reference, "--reference_label_column", "null"]
    results = run(arguments, tmp_path / "out", *changed)["results"]
    assert results == {"frechet_distance": pytest.approx(0, abs=1e-9), "precision": 1.0, "recall": 1.0}


def test_without_a_reference_images_are_only_drawn(digits_pipeline, tmp_path):
    arguments = ["--pipeline", digits_pipeline, "--num_images", "2", "--sampling.num_inference_steps", "1"]
    assert run(arguments, tmp_path / "out", "--micro_batch_size", "2")["results"] == {}
    assert len(images_of(tmp_path / "out")) == 2


# ---------------------------------------------------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------------------------------------------------


def error_of(arguments: list[str], folder: Path, changes: dict, capsys) -> str:
    """Return the one line that the command ends with, and check that nothing was measured."""
    record = folder / "generation.json"
    before = record.read_bytes() if record.is_file() else None
    words = [word for key, value in changes.items() for word in (f"--{key}", str(value))]
    with pytest.raises(SystemExit) as exit_:
        generation.main([*arguments, "--output_dir", str(folder), *words])
    assert exit_.value.code == 2
    assert (record.read_bytes() if record.is_file() else None) == before
    output = capsys.readouterr()
    assert "wrote" not in output.out
    lines = [line for line in output.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_images": 3}, "`num_images` is 3; required: at least 4"),
        ({"labels": "sorted"}, "`labels` is 'sorted'; required: one of balanced, random"),
        ({"batch_size": 0}, "`batch_size` is 0; required: at least 1"),
        ({"inception": "a.pth"}, "`features` and `inception` are both given"),
        ({"features": "null"}, "`features` and `inception` are not given"),
        ({"features": "null", "inception": "a.pth"}, "`inception` is 'a.pth'; required: a file of weights"),
        ({"pipeline": "nothing_here"}, "`pipeline` is 'nothing_here'; required"),
        ({"sampling.steps": 3}, "`sampling.steps` is no setting of LightningDiTPipeline"),
        ({"sampling.guidance_scale": "strong"}, "`guidance_scale` is 'strong'; required"),
        ({"feature_size": 12}, "`feature_size` is 12x12; required: multiples of the patch"),
        ({"reference": "nothing_here"}, "`reference` is 'nothing_here', split 'train'; required"),
        (
            {"reference_label_column": "image"},
            "`reference_label_column` is 'image'; required: a column of class labels",
        ),
        ({"precision_recall": "false"}, "`reference_label_column` is 'label'; required with it"),
        ({"num_image": 4}, "`num_image` is no key"),
    ],
)
def test_settings_that_cannot_be_used(arguments, changes, message, tmp_path, capsys):
    arguments = list(arguments)
    for key in changes:  # given once only
        if f"--{key}" in arguments:
            index = arguments.index(f"--{key}")
            del arguments[index : index + 2]
    if next(iter(changes)) == "num_image":
        with pytest.raises(SystemExit):
            generation.main([*arguments, "--output_dir", str(tmp_path / "out"), "num_image=4"])
        assert message in capsys.readouterr().err
        return
    assert message in error_of(arguments, tmp_path / "out", changes, capsys)
    assert not (tmp_path / "out").exists()


def without_labels(arguments: list[str]) -> list[str]:
    index = arguments.index("--reference_label_column")
    return arguments[:index] + arguments[index + 2 :]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"arr_0": np.zeros((9, 16, 16, 3), np.uint8)}, "with images of 16x16 pixels; required: 32x32"),
        ({"arr_0": np.zeros((3, 32, 32, 3), np.uint8)}, "with 3 images; required: at least 4"),
        ({"arr_0": np.array([{}] * 9)}, "holds arr_0 of object"),
        ({"mu": np.zeros(2048), "sigma": np.eye(2048)}, "which holds mu, sigma; required: images (arr_0)."),
    ],
    ids=["resolution", "too few", "pickled", "statistics of other features"],
)
def test_references_that_cannot_be_used(arguments, content, message, tmp_path, capsys):
    np.savez(tmp_path / "reference.npz", **content)
    changes = {"reference": tmp_path / "reference.npz"}
    assert message in error_of(without_labels(arguments), tmp_path / "out", changes, capsys)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def copy_of_first_run(first_run, tmp_path) -> Path:
    return Path(shutil.copytree(first_run[0], tmp_path / "out"))


def test_another_seed_in_the_same_folder(arguments, copy_of_first_run, capsys):
    error = error_of(arguments, copy_of_first_run, {"seed": 1}, capsys)
    assert "whose images were drawn with seed = 0; required: the same, not 1, or another folder" in error


def test_a_foreign_file_among_the_images(arguments, copy_of_first_run, capsys):
    (copy_of_first_run / "images" / "mine.png").touch()
    assert "where images/mine.png was not drawn" in error_of(arguments, copy_of_first_run, {}, capsys)


def test_a_folder_of_something_else(arguments, copy_of_first_run, capsys):
    (copy_of_first_run / "samples.json").unlink()
    assert "which exists without samples.json" in error_of(arguments, copy_of_first_run, {}, capsys)


def test_a_damaged_image_among_them(arguments, copy_of_first_run, capsys):
    file = copy_of_first_run / "images" / "000007.png"
    file.write_bytes(file.read_bytes()[:-40])
    error = error_of(arguments, copy_of_first_run, {}, capsys)
    assert "000007.png cannot be read" in error


@pytest.mark.parametrize("state", ["finished", "interrupted", "growing", "becoming an archive"])
@pytest.mark.parametrize("source", ["of the same set", "of another set", "saved again"])
def test_an_image_that_was_replaced(arguments, copy_of_first_run, tmp_path, capsys, state, source):
    """The other image can be read and has the right size and name."""
    images = copy_of_first_run / "images"
    if source == "of the same set":
        shutil.copy(images / "000003.png", images / "000002.png")
    elif source == "of another set":
        run(
            arguments[:2], tmp_path / "other", "--seed", "1", "--num_images", "3", "--sampling.num_inference_steps", "3"
        )
        AcceleratorState._reset_state(reset_partial_state=True)
        capsys.readouterr()
        shutil.copy(tmp_path / "other" / "images" / "000002.png", images / "000002.png")
    else:
        Image.open(images / "000002.png").rotate(90).save(images / "000002.png")
    changes = {"growing": {"num_images": NUM_IMAGES + 2}, "becoming an archive": {"format": "npz"}}.get(state, {})
    if state == "interrupted":
        (copy_of_first_run / "generation.json").unlink()
        (images / "000020.png").unlink()
    error = error_of(arguments, copy_of_first_run, changes, capsys)
    assert (
        f"{images / '000002.png'} is not the image that was drawn there; required: images as they were drawn" in error
    )


def test_an_archive_that_was_replaced(arguments, tmp_path, capsys):
    run(arguments, tmp_path / "out", "--format", "npz")
    AcceleratorState._reset_state(reset_partial_state=True)
    capsys.readouterr()
    np.savez(tmp_path / "out" / "images.npz", np.zeros((NUM_IMAGES, 32, 32, 3), np.uint8))
    error = error_of(arguments, tmp_path / "out", {"format": "npz"}, capsys)
    assert "whose images are not those that generation.json tells of (pixels_sha256" in error


@pytest.mark.parametrize("format", ["png", "npz"])
def test_an_archive_of_fewer_images(digits_pipeline, tmp_path, capsys, format):
    """It would be left beside more PNG files than it holds, or be measured in place of more images."""
    arguments = ["--pipeline", digits_pipeline, "--sampling.num_inference_steps", "1", "--micro_batch_size", "2"]
    run([*arguments, "--num_images", "2"], tmp_path / "out", "--format", "both" if format == "png" else "npz")
    AcceleratorState._reset_state(reset_partial_state=True)
    capsys.readouterr()
    error = error_of(arguments, tmp_path / "out", {"num_images": 4, "format": format}, capsys)
    assert error.startswith("error: `num_images` is 4; required: 2, as in ")
    assert ("`format` both, which writes it anew" in error) == (format == "png")
    if format == "png":
        run([*arguments, "--num_images", "4"], tmp_path / "out", "--format", "both")
        with np.load(tmp_path / "out" / "images.npz", allow_pickle=False) as archive:
            assert len(archive["arr_0"]) == 4


def test_labels_of_an_archive(arguments, tmp_path, capsys):
    np.savez(tmp_path / "reference.npz", np.zeros((9, 32, 32, 3), np.uint8))
    error = error_of(arguments, tmp_path / "out", {"reference": tmp_path / "reference.npz"}, capsys)
    assert error.endswith("reference.npz'; required with `reference_label_column`: a data set, whose labels these are.")


def test_images_that_are_not_finite(arguments, broken_pipeline, tmp_path, capsys):
    """Its 8-bit values would look like those of any other image."""
    with pytest.raises(SystemExit):
        generation.main([*arguments, "--output_dir", str(tmp_path / "out"), "--pipeline", broken_pipeline])
    error = capsys.readouterr().err
    assert "NaN or infinity" in error and "`proj_out.bias` is not finite" in error
    assert not (tmp_path / "out" / "generation.json").exists()
