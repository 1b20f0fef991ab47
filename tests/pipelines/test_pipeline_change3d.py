"""Change3DPipeline: tiles, kinds of images and outputs, files, bad input."""

import itertools

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DiffusionPipeline

from diffusers_lightningdit import Change3DModel, Change3DPipeline
from diffusers_lightningdit.pipelines.pipeline_change3d import default_palette, tile_starts, tile_weights

TINY = {"sample_size": 32, "width_factor": 0.7, "depth_factor": 0.4}
WORDS = ["<pad>", "a", "road", "appears", "<unk>", "<start>", "<end>"]
TASKS = {
    "binary": ({"task": "binary"}, {}),
    "semantic": ({"task": "semantic", "num_classes": 3}, {"id2label": {0: "none", 1: "water", 2: "tree"}}),
    "damage": ({"task": "damage", "num_classes": 5}, {}),
    "captioning": ({"task": "captioning", "vocab_size": len(WORDS)}, {"vocabulary": WORDS}),
}


def pipeline(task: str = "binary", **changes) -> Change3DPipeline:
    torch.manual_seed(0)
    config, settings = TASKS[task]
    model = Change3DModel(**TINY | config | changes).eval()
    for value in model.state_dict().values():
        if value.ndim == 1:
            torch.nn.init.uniform_(value, 0.5, 1.5)
    pipe = Change3DPipeline(model, **settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(height: int = 32, width: int = 32, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def model_input(image: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5


# -- Tiles -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "overlap"), [(32, 8), (33, 8), (100, 0), (100, 16), (57, 8), (20, 8), (64, 0)])
def test_tiles_cover_a_side_with_weights_whose_sum_is_one(length, overlap):
    starts, weights = tile_starts(length, 32, overlap), tile_weights(length, 32, overlap)
    total = torch.zeros(max(length, 32))
    for start, weight in zip(starts, weights, strict=True):
        assert (weight > 0).all()
        total[start : start + 32] += weight
    assert torch.allclose(total, torch.ones_like(total))
    assert starts[-1] == max(length - 32, 0)
    assert all(b - a <= 32 - overlap for a, b in itertools.pairwise(starts))


def test_one_tile_is_the_model():
    pipe, before, after = pipeline(), picture(), picture(seed=2)
    output = pipe(before, after, output_type="np")
    expected = pipe.model(model_input(before), model_input(after)).change[0, 0].detach().numpy()
    assert np.array_equal(output.change_probability[0], expected)
    assert np.array_equal(output.change[0], expected > 0.5)


@pytest.mark.parametrize("overlap", [0, 8, 16])
def test_tiles_are_blended_by_their_weights(overlap):
    """Against the sum over all tiles, written plainly."""
    pipe, before, after = pipeline("semantic"), picture(75, 50), picture(75, 50, seed=2)
    total = torch.zeros(7, 75, 50)
    for top, row_weight in zip(tile_starts(75, 32, overlap), tile_weights(75, 32, overlap), strict=True):
        for left, column_weight in zip(tile_starts(50, 32, overlap), tile_weights(50, 32, overlap), strict=True):
            window = np.s_[top : top + 32, left : left + 32]
            output = pipe.model(model_input(before[window]), model_input(after[window]))
            maps = torch.cat([output.before_logits.softmax(1), output.after_logits.softmax(1), output.change], 1)[0]
            total[:, top : top + 32, left : left + 32] += maps.detach() * row_weight[:, None] * column_weight
    found = pipe(before, after, tile_overlap=overlap, output_type="pt", threshold=0.4)
    assert torch.allclose(found.change_probability[0], total[-1], atol=1e-6)
    mask = total[-1] > 0.4
    assert (found.change[0] == mask).float().mean() > 0.999
    for name, maps in (("before", total[:3]), ("after", total[3:6])):
        assert (getattr(found, name)[0] == maps.argmax(0) * mask).float().mean() > 0.999


@pytest.mark.parametrize("task", ["binary", "semantic", "damage"])
def test_the_batch_of_tiles_changes_nothing(task):
    pipe, before, after = pipeline(task), picture(70, 90), picture(70, 90, seed=2)
    results = [pipe(before, after, batch_size=size, output_type="np") for size in (1, 3, 64)]
    for name, values in results[0].items():
        for other in results[1:]:
            # float32 rounds differently in convolutions of another number of images
            tolerance = 1e-6 if name.endswith("probability") else 0
            assert np.abs(values[0].astype(float) - other[name][0]).max() <= tolerance, name


def test_pairs_of_different_sizes_share_batches():
    pipe = pipeline()
    sizes = [(32, 32), (40, 70), (20, 33)]
    before, after = ([picture(*size, seed=i + seed) for i, size in enumerate(sizes)] for seed in (0, 10))
    together = pipe(before, after, batch_size=4, output_type="np").change_probability
    for i, size in enumerate(sizes):
        assert together[i].shape == size
        alone = pipe(before[i], after[i], output_type="np").change_probability[0]
        assert np.abs(together[i] - alone).max() < 1e-6


def test_a_small_image_is_padded_by_its_edges_and_cropped_back():
    pipe, before, after = pipeline(), picture(21, 32), picture(21, 32, seed=2)
    padded = [np.pad(image, ((0, 11), (0, 0), (0, 0)), mode="edge") for image in (before, after)]
    expected = pipe(*padded, output_type="np").change_probability[0][:21]
    assert np.array_equal(pipe(before, after, output_type="np").change_probability[0], expected)


class CountingRaster:
    """An opened raster that makes its pixels up, and notes how many rows were read at once."""

    crs, transform, count, dtypes = None, None, 3, ("uint8",) * 3

    def __init__(self, height: int, width: int, seed: int):
        self.height, self.width, self.seed, self.read_rows = height, width, seed, []

    def read(self, window) -> np.ndarray:
        self.read_rows.append(window.height)
        rows = np.arange(window.row_off, window.row_off + window.height)[:, None]
        plane = (rows * self.seed + np.arange(self.width) * 7) % 256
        return np.stack([plane] * 3).astype(np.uint8)


def test_a_large_scene_is_read_in_rows_of_tiles():
    pytest.importorskip("rasterio")
    pipe = pipeline()
    before, after = CountingRaster(200, 70, 3), CountingRaster(200, 70, 5)
    output = pipe(before, after, output_type="np")
    assert output.change[0].shape == (200, 70)
    starts = tile_starts(200, 32, 8)
    assert before.read_rows == after.read_rows == [32] * len(starts)


def test_progress_counts_tiles(capsys):
    pipe = pipeline()
    pipe.set_progress_bar_config(disable=False)
    pipe(picture(64, 64), picture(64, 64, seed=2), tile_overlap=0)
    assert "4/4" in capsys.readouterr().err


# -- Kinds of images and outputs ---------------------------------------------------------------------------------------


def test_all_kinds_of_images_are_the_same():
    pipe, before, after = pipeline(), picture(40, 50), picture(40, 50, seed=2)
    expected = pipe(before, after, output_type="np").change_probability[0]
    tensors = [torch.from_numpy(image).permute(2, 0, 1) for image in (before, after)]
    for pair in (
        [PIL.Image.fromarray(image) for image in (before, after)],
        [image[None] for image in (before, after)],
        [image.astype(np.float32) / 255 for image in (before, after)],
        tensors,
        [image.float()[None] / 255 for image in tensors],
    ):
        assert np.abs(pipe(*pair, output_type="np").change_probability[0] - expected).max() < 1e-6


@pytest.mark.parametrize("task", ["binary", "semantic", "damage"])
def test_output_types_hold_the_same(task):
    pipe, before, after = pipeline(task), picture(40, 50), picture(40, 50, seed=2)
    outputs = {kind: pipe(before, after, output_type=kind, threshold=0.4) for kind in ("np", "pt", "pil")}
    names = {
        "binary": ["change", "change_probability"],
        "semantic": ["change", "change_probability", "before", "after", "before_picture", "after_picture"],
        "damage": ["damage", "damage_picture", "building", "building_probability"],
    }[task]
    assert [set(output) for output in outputs.values()] == [set(names)] * 3
    for name in names:
        array, tensor, image = (outputs[kind][name][0] for kind in ("np", "pt", "pil"))
        as_array = tensor.numpy() if tensor.ndim == 2 else tensor.permute(1, 2, 0).numpy()
        assert np.array_equal(array, as_array)
        if name.endswith("probability"):
            assert array.dtype == np.float32 and np.abs(np.asarray(image) - 255 * array).max() <= 0.5001
        else:
            assert np.array_equal(np.asarray(image), array * (255 if name in ("change", "building") else 1))
        assert image.mode == ("RGB" if name.endswith("picture") else "L") and image.size == (50, 40)
    for name in ("before", "after", "damage"):
        if name in names:
            classes = outputs["np"][name][0]
            mask = outputs["np"]["building" if task == "damage" else "change"][0]
            assert not classes[mask == 0].any()
            colors = np.array(pipe.config.palette, dtype=np.uint8)
            assert np.array_equal(outputs["np"][f"{name}_picture"][0], colors[classes])
    as_tuple = pipe(before, after, output_type="np", threshold=0.4, return_dict=False)
    assert len(as_tuple) == len(names)


def test_damage_reads_blue_green_red():
    pipe, before, after = pipeline("damage"), picture(), picture(seed=2)
    expected = pipe.model(model_input(before).flip(1), model_input(after).flip(1))
    found = pipe(before, after, output_type="pt")
    assert torch.allclose(found.building_probability[0], expected.building[0, 0], atol=1e-6)
    assert pipe.id2label[4] == "destroyed" and len(pipe.config.palette) == 5


def test_threshold():
    pipe, pair = pipeline(), (picture(), picture(seed=2))
    probability = pipe(*pair, output_type="np").change_probability[0]
    for threshold in (0.0, 0.3, 1.0):
        mask = pipe(*pair, output_type="np", threshold=threshold).change[0]
        assert np.array_equal(mask, probability > threshold)


def test_captions(caplog):
    pipe = pipeline("captioning")
    before, after = ([picture(seed=seed + i) for i in range(3)] for seed in (0, 10))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def normalized(images):
        return torch.stack([((torch.from_numpy(one) / 255 - mean) / std).permute(2, 0, 1) for one in images])

    found = pipe.model.generate(normalized(before), normalized(after), num_beams=2)
    output = pipe(before, after, num_beams=2, batch_size=2)
    assert len(output.captions) == 3 and output.caption_scores == pytest.approx(found.scores, abs=1e-4)
    for caption, sequence in zip(output.captions, found.sequences, strict=True):
        assert caption == (None if sequence is None else pipe.decode(sequence))
    assert pipe.decode([5, 1, 2, 0, 3, 4, 6]) == "a road appears <unk>"


def test_a_caption_without_an_end_is_reported(caplog):
    pipe = pipeline("captioning")
    with torch.no_grad():
        pipe.model.decoder_caption.proj_out.bias[-1] = -1e4
    logger = "diffusers_lightningdit.pipelines.pipeline_change3d"
    with caplog.at_level("WARNING", logger=logger):
        import logging

        logging.getLogger(logger).addHandler(caplog.handler)
        output = pipe([picture()] * 2, [picture()] * 2)
    assert output.captions == [None, None] and output.caption_scores == [None, None]
    assert "No caption of the pairs [0, 1] came to its end within 52 words" in caplog.text


def test_vocabulary_as_in_the_wordmap():
    pipe = Change3DPipeline(pipeline("captioning").model, vocabulary={word: i for i, word in enumerate(WORDS)})
    assert pipe.config.vocabulary == WORDS


def test_default_palettes():
    for num_classes in (2, 7, 40):
        colors = default_palette("semantic", num_classes)
        assert colors[0] == [0, 0, 0] and len({tuple(color) for color in colors}) == num_classes


# -- Rasters -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def rasters(tmp_path):
    """Paths of two GeoTIFF files of 40x50 pixels, and their content."""
    rasterio = pytest.importorskip("rasterio")
    paths, images = [], [picture(40, 50), picture(40, 50, seed=2)]
    for name, image in zip(("before.tif", "after.tif"), images, strict=True):
        paths.append(tmp_path / name)
        transform = rasterio.transform.from_origin(500000.0, 4600000.0, 0.5, 0.5)
        profile = {"height": 40, "width": 50, "count": 3, "dtype": "uint8", "crs": "EPSG:32633"}
        with rasterio.open(paths[-1], "w", driver="GTiff", transform=transform, **profile) as file:
            file.write(image.transpose(2, 0, 1))
    return paths, images


def test_rasters_are_read_as_images(rasters):
    (before, after), images = rasters
    pipe = pipeline()
    expected = pipe(*images, output_type="np").change_probability[0]
    assert np.array_equal(pipe(str(before), after, output_type="np").change_probability[0], expected)


@pytest.mark.parametrize("task", ["binary", "semantic", "damage"])
def test_maps_are_written_to_a_raster(task, rasters, tmp_path):
    import rasterio

    (before, after), images = rasters
    pipe = pipeline(task)
    expected = pipe(*images, output_type="np")
    files = pipe(before, after, output_file=tmp_path / "maps.tif").files
    assert files == [str(tmp_path / "maps.tif")]
    with rasterio.open(files[0]) as found, rasterio.open(before) as place:
        assert (found.crs, found.transform) == (place.crs, place.transform)
        assert set(found.descriptions) == {name for name in expected if not name.endswith("picture")}
        for band, name in enumerate(found.descriptions, start=1):
            values = expected[name][0]
            values = (values * 255).round() if values.dtype == np.float32 else values
            assert np.array_equal(found.read(band), values)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["after.tif", "before.tif", "maps.tif"]


def test_a_raster_that_fails_leaves_no_file(rasters, tmp_path):
    (before, after), _ = rasters
    pipe = pipeline()
    with torch.no_grad():
        pipe.model.decoder_change.conv_out.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"`model` computed NaN or infinity, and its weight `decoder_change.conv_out"):
        pipe(before, after, output_file=tmp_path / "maps.tif")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["after.tif", "before.tif"]


# -- Saving ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_saved_and_loaded(task, tmp_path):
    pipe = pipeline(task)
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded) is Change3DPipeline
    assert loaded.id2label == pipe.id2label
    assert loaded.config.palette == pipe.config.palette and loaded.config.vocabulary == pipe.config.vocabulary
    loaded.set_progress_bar_config(disable=True)
    before, after = picture(), picture(seed=2)
    found, expected = (one(before, after, output_type="np") for one in (loaded, pipe))
    for name, values in expected.items():
        if task == "captioning":
            assert found[name] == pytest.approx(values, abs=1e-4) if name == "caption_scores" else found[name] == values
        else:
            assert np.abs(found[name][0].astype(float) - values[0]).max() < 1e-5
    assert (tmp_path / "pipeline.py").is_file() and (tmp_path / "model" / "diffusers_lightningdit.py").is_file()


# -- Bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_after": picture(32, 40)}, "`image_after` has 32x40 pixels in pair 0; required: 32x32"),
        ({"image_after": [picture()] * 2}, "`image_after` has 2 images; required: 1"),
        ({"image_before": []}, r"`image_before` is \[\]; required: at least one image"),
        ({"image_before": picture()[:, :, :2]}, r"`image_before` holds the shape \(32, 32, 2\); required: RGB images"),
        ({"image_before": PIL.Image.new("RGBA", (32, 32))}, "`image_before` holds a PIL image of mode 'RGBA'"),
        ({"image_before": picture().astype(np.int64)}, "`image_before` holds the type int64"),
        ({"image_before": picture() * 1.0}, "`image_before` holds values from 0 to 255"),
        ({"image_before": 3}, "`image_before` holds a int"),
        ({"image_before": torch.full((3, 32, 32), float("nan"))}, "`image_before` holds values from nan to nan"),
        ({"image_before": torch.zeros(3, 32, 32, device="meta")}, "`image_before` holds a tensor without values"),
        ({"image_before": torch.zeros(3, 32, 32).to_sparse()}, "`image_before` holds a tensor without values"),
        ({"output_file": 5}, "`output_file` is 5; required: the path of a new file"),
        ({"return_dict": torch.zeros(2)}, "`return_dict` is tensor.*; required: True or False"),
        ({"threshold": 1.5}, r"`threshold` is 1.5; required: a number within \[0, 1\]"),
        ({"num_beams": 0}, "`num_beams` is 0; required: an integer from 1"),
        ({"tile_overlap": 17}, "`tile_overlap` is 17; required: an integer from 0 to 16"),
        ({"batch_size": 0}, "`batch_size` is 0"),
        ({"output_type": "latent"}, "`output_type` is 'latent'; required: 'pil', 'np' or 'pt'"),
        ({"output_file": "maps.tif"}, "`output_file` is 'maps.tif'; required: None for what is no raster"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        pipeline()(**{"image_before": picture(), "image_after": picture(), **arguments})


def test_bad_rasters(rasters, tmp_path):
    import rasterio

    (before, after), _ = rasters
    pipe = pipeline()
    moved = tmp_path / "moved.tif"
    with rasterio.open(before) as file:
        content, profile = file.read(), file.profile
    with rasterio.open(moved, "w", **{**profile, "crs": "EPSG:32634"}) as file:
        file.write(content)
    with rasterio.open(tmp_path / "four.tif", "w", **{**profile, "count": 4, "dtype": "uint16"}) as file:
        file.write(np.zeros((4, 40, 50), np.uint16))
    (tmp_path / "damaged.tif").write_bytes(b"II*\0" + b"\1" * 100)
    for arguments, message in (
        ((before, moved), r"`image_after` has the crs .*32634.* in pair 0; required: .*32633"),
        ((before, tmp_path / "four.tif"), "`image_after` holds a raster of 4 bands of the type uint16"),
        ((before, tmp_path / "damaged.tif"), "`image_after` is '.*damaged.tif', which rasterio cannot read"),
        ((tmp_path / "none.tif", after), "`image_before` is '.*none.tif', which rasterio cannot read"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe(*arguments)
    for output_file, message in (
        (after, "`output_file` is '.*after.tif'; required: a new .tif file in an existing folder"),
        (tmp_path / "maps.png", "required: a new .tif file"),
        ([tmp_path / "a.tif", tmp_path / "b.tif"], "required: one path for each of 1 pairs"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe(before, after, output_file=output_file)


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("captioning", {"vocabulary": None}, "`vocabulary` is None; required: the words of a captioning model"),
        ("captioning", {"vocabulary": []}, r"`vocabulary` is \[\]; required: the words"),
        ("captioning", {"vocabulary": WORDS[:-1]}, "`vocabulary` has 6 words; required: 7, the model's `vocab_size`"),
        ("captioning", {"vocabulary": WORDS[::-1]}, "`vocabulary` is .*required: <pad> as the first word"),
        ("captioning", {"vocabulary": {"<pad>": 0, "a": 2}}, "`vocabulary` is .* with the ids from 0 on"),
        ("captioning", {"vocabulary": [*WORDS[:3], "a", *WORDS[4:]]}, "required: no word twice"),
        ("binary", {"vocabulary": WORDS}, "required: None for the task 'binary'"),
        ("semantic", {"palette": [[0, 0, 0]]}, "required: 3 colours, one for each class"),
        ("semantic", {"palette": [[0, 0, 0], [0, 0, 0], [0, 0, 256]]}, r"required: colours \[red, green, blue\]"),
        ("semantic", {"id2label": {3: "x"}}, r"`id2label` is \{3: 'x'\}; required: names of the ids below 3"),
    ],
)
def test_bad_settings(task, settings, message):
    with pytest.raises(ValueError, match=message):
        Change3DPipeline(pipeline(task).model, **settings)


def test_captions_are_of_images_of_the_models_size():
    with pytest.raises(ValueError, match="`image_before` has 40x32 pixels in pair 0; required: 32x32, of which"):
        pipeline("captioning")(picture(40, 32), picture(40, 32))
