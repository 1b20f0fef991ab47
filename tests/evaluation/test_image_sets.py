import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import ExifTags, Image

from diffusers_lightningdit.data.images import center_crop
from diffusers_lightningdit.evaluation.image_sets import NumberedImages, cut, open_images

SIZE = (9, 7)  # height, width


@pytest.fixture
def arrays():
    return np.random.default_rng(0).integers(0, 256, (11, *SIZE, 3), dtype=np.uint8)


@pytest.fixture(params=["folder", "npz", "npz compressed", "data set"])
def reference(request, arrays, tmp_path) -> str:
    """The same images as a folder, an archive and a data set."""
    if request.param == "folder":
        (tmp_path / "images" / "b").mkdir(parents=True)
        for index, array in enumerate(arrays):
            folder = tmp_path / "images" / ("b" if index > 5 else "")
            Image.fromarray(array).save(folder / f"{'a' if index <= 5 else 'b'}{index:02d}.png")
        return str(tmp_path / "images")
    if request.param == "data set":
        features = Features({"image": ImageFeature(), "label": ClassLabel(names=["cat", "dog"])})
        rows = {"image": [Image.fromarray(array) for array in arrays], "label": [0, 1] * 5 + [0]}
        (tmp_path / "data").mkdir()
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data" / "train.parquet")
        return str(tmp_path / "data")
    (np.savez if request.param == "npz" else np.savez_compressed)(tmp_path / "images.npz", arrays)
    return str(tmp_path / "images.npz")


def test_every_form_gives_the_same_images(reference, arrays):
    images = open_images(reference)
    assert (images.num_images, tuple(images.size)) == (11, SIZE)
    blocks = cut(11, 4)
    assert [list(block) for block in blocks] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    for block, read in zip(blocks, images.read_blocks(blocks), strict=True):
        assert np.array_equal(read, arrays[block.start : block.stop])
    (last,) = images.read_blocks(blocks[2:])  # what another process reads
    assert np.array_equal(last, arrays[8:])


def test_labels_of_a_data_set(arrays, tmp_path):
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["cat", "dog"]), "text": ImageFeature()})
    pictures = [Image.fromarray(array) for array in arrays[:3]]
    rows = Dataset.from_dict({"image": pictures, "label": [1, 0, 1], "text": pictures}, features=features)
    rows.to_parquet(tmp_path / "train.parquet")
    images = open_images(str(tmp_path), label_column="label")
    assert images.labels.tolist() == [1, 0, 1] and images.num_classes == 2
    with pytest.raises(ValueError, match="`reference_label_column` is 'text'; required: a column of class labels"):
        open_images(str(tmp_path), label_column="text")
    with pytest.raises(ValueError, match="`reference_image_column` is 'label'; required: a column of images among"):
        open_images(str(tmp_path), column="label")
    with pytest.raises(ValueError, match=r"`reference` is .*, split 'test'; required"):
        open_images(str(tmp_path), split="test")


def test_crop(tmp_path):
    image = Image.effect_noise((50, 40), 60).convert("RGB")
    image.save(tmp_path / "a.png")
    images = open_images(str(tmp_path), crop=16)
    assert images.size == (16, 16)
    assert np.array_equal(images[0], np.array(center_crop(image, 16)))


def write(folder, name: str, **options) -> None:
    Image.new(options.get("mode", "RGB"), options.get("size", (7, 9))).save(folder / name)


@pytest.mark.parametrize(
    ("foreign", "reason"), [("notes.txt", "no image"), ("train.parquet", "rows beside files of images")]
)
def test_a_foreign_file(foreign, reason, tmp_path):
    for name in ("a.png", "b.png"):
        write(tmp_path, name)
    (tmp_path / foreign).write_text("seen")
    message = rf"`reference` is .* left out: {foreign} \({reason}\); required: .* or `reference_allow_left_out`"
    with pytest.raises(ValueError, match=message):
        open_images(str(tmp_path))
    assert open_images(str(tmp_path), allow_left_out=True).num_images == 2


def test_images_are_turned_upright(tmp_path):
    """As in training: a camera's photograph is stored as its sensor lies, with its orientation beside it."""
    upright = Image.new("RGB", (6, 4), "black")
    upright.paste("white", (0, 0, 6, 2))
    orientation = Image.Exif()
    orientation[ExifTags.Base.Orientation] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "0.png", exif=orientation)
    upright.save(tmp_path / "1.png")
    (images,) = open_images(str(tmp_path)).read_blocks([range(2)])
    assert np.array_equal(images, [np.array(upright)] * 2)


def test_any_folder_that_training_takes(tmp_path):
    """Folders that are called as splits beside others are classes; words in names mean nothing; links are followed."""
    for name in ("training/test.png", "cat/val_1.png", "other/1.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True)
        write(tmp_path / "data", name)
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "elsewhere", "linked.png")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    images = open_images(str(tmp_path / "data"), label_column="label")
    assert (images.num_images, images.num_classes, images.labels.tolist()) == (4, 4, [0, 1, 2, 3])


@pytest.mark.parametrize("classes", ["", "cat"])
def test_splits_in_folders_of_their_own(classes, tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        (tmp_path / split / classes).mkdir(parents=True)
        for number in range(count):
            write(tmp_path / split / classes, f"{number}.png")
    assert [open_images(str(tmp_path), split=split).num_images for split in ("train", "test")] == [3, 2]
    with pytest.raises(ValueError, match=r"`reference` is .*, split 'nonsense'; required: .*"):
        open_images(str(tmp_path), split="nonsense")


def test_a_split_of_a_folder_that_has_none(tmp_path):
    write(tmp_path, "a.png")
    with pytest.raises(ValueError, match=r"split 'test'; required: .* \(Unknown split \"test\""):
        open_images(str(tmp_path), split="test")


def test_images_with_metadata(tmp_path):
    """An image that the table does not name would be left out."""
    for name in ("a.png", "b.png", "c.png"):
        write(tmp_path, name)
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,one\nb.png,two\n")
    with pytest.raises(ValueError, match=r"1 files or folders would be left out: c.png \(no row in the metadata\)"):
        open_images(str(tmp_path))
    (tmp_path / "c.png").unlink()
    assert open_images(str(tmp_path)).num_images == 2


def test_a_preview_beside_a_table(arrays, tmp_path):
    rows = {"image": [Image.fromarray(array) for array in arrays]}
    Dataset.from_dict(rows, features=Features({"image": ImageFeature()})).to_parquet(tmp_path / "train.parquet")
    write(tmp_path, "preview.png")
    assert open_images(str(tmp_path)).num_images == 11


def test_a_damaged_image(tmp_path):
    for name in ("a.png", "b.png"):
        write(tmp_path, name)
    content = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(content[:-30])
    images = open_images(str(tmp_path))
    with pytest.raises(ValueError, match=r"b\.png cannot be read \(.*\); required: an undamaged image"):
        list(images.read_blocks(cut(2, 1)))


def test_another_size_or_mode(tmp_path):
    write(tmp_path, "a.png")
    write(tmp_path, "b.png", size=(8, 9))
    write(tmp_path, "c.png", mode="I;16")
    images = open_images(str(tmp_path))
    with pytest.raises(ValueError, match=r"b\.png has 8x9 pixels; required: 7x9, as .*a\.png"):
        images[1]
    with pytest.raises(ValueError, match=r"c\.png has mode 'I;16'; required: one of"):
        images[2]


def test_an_image_that_is_not_there(tmp_path):
    write(tmp_path, "000000.png")
    with pytest.raises(ValueError, match=r"000001\.png cannot be read"):
        NumberedImages(tmp_path, 2)[1]
    with pytest.raises(ValueError, match="holds no image"):
        NumberedImages(tmp_path, 0)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([None, "code"], dtype=object), "holds arr_0 of object"),
        (np.zeros((2, 9, 7, 3), dtype=np.float32), "holds arr_0 of float32"),
    ],
)
def test_an_archive_of_something_else(array, message, tmp_path):
    np.savez(tmp_path / "a.npz", array)
    with pytest.raises(ValueError, match=message):
        open_images(str(tmp_path / "a.npz"))


def test_an_archive_that_was_cut_off(arrays, tmp_path):
    np.savez(tmp_path / "a.npz", arrays)
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"a\.npz cannot be read"):
        open_images(str(tmp_path / "a.npz"))
