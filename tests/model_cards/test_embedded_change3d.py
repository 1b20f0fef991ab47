"""The change detector that lies in the repository: its figures come out again, and scenes have no seams."""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from diffusers import DiffusionPipeline
from PIL import Image

pytest.importorskip("skimage", exc_type=ImportError)
REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "model_cards" / "change3d-buildings"
sys.path.insert(0, str(REPOSITORY / "examples" / "change3d_buildings"))

import draw_pairs  # noqa: E402
import draw_scene  # noqa: E402
import figures  # noqa: E402

from diffusers_lightningdit.files import weights_sha256  # noqa: E402

NUM_PAIRS = 16  # of the split test, the first ones


def read(name: str) -> dict:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pipeline():
    pipe = DiffusionPipeline.from_pretrained(FOLDER)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pairs() -> list[dict[str, Image.Image]]:
    return list(draw_pairs.draw_pairs("test", NUM_PAIRS, 64, 0))


@pytest.fixture(scope="module")
def data(pairs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("buildings") / "data"
    features = Features(dict.fromkeys(("image_before", "image_after", "label"), ImageFeature()))
    folder.mkdir()
    Dataset.from_dict({name: [pair[name] for pair in pairs] for name in features}, features=features).to_parquet(
        folder / "test.parquet"
    )
    return folder


@pytest.fixture
def measure(data, evaluate_change):
    return partial(evaluate_change, FOLDER, data)


def test_the_recorded_figures_come_out_again(measure):
    """Alone, in other batches and on two processes; the libraries that draw and compute may differ by a few pixels."""
    recorded = read("evaluation/first_pairs.json")
    alone = measure("alone", "--micro_batch_size", "1")
    assert alone["results"] == measure("together", "--micro_batch_size", "16")["results"]
    assert alone["results"] == measure("both", "--micro_batch_size", "3", num_processes=2)["results"]
    assert alone["weights_sha256"] == recorded["weights_sha256"]
    assert alone["results"]["num_pairs"] == recorded["results"]["num_pairs"] == NUM_PAIRS
    assert alone["results"]["usual"]["f1"] == pytest.approx(recorded["results"]["usual"]["f1"], abs=2e-3)


def test_the_pipeline_finds_what_was_measured(pipeline, pairs):
    """Its masks have the recorded F1, in batches of any size."""
    before, after = ([pair[f"image_{date}"] for pair in pairs] for date in ("before", "after"))
    found = np.array(pipeline(before, after, batch_size=16, output_type="np").change) > 0
    others = np.array(pipeline(before, after, batch_size=3, output_type="np").change) > 0
    labels = np.array([np.array(pair["label"]) for pair in pairs]) > 0
    f1 = 2 * (found & labels).sum() / (found.sum() + labels.sum())
    assert f1 == pytest.approx(read("evaluation/first_pairs.json")["results"]["usual"]["f1"], abs=2e-3)
    assert (found != others).mean() < 1e-4


def test_a_scene_has_no_seams(pipeline):
    """Neither at the edges of tiles nor in batches of another size; without an overlap there would be some."""
    photograph = draw_pairs.load_photograph("flower.jpg")
    scene = draw_scene.draw_scene(photograph, 330, 200, seed=0)
    images = (scene["image_before"], scene["image_after"])
    maps = {
        (overlap, size): pipeline(*images, tile_overlap=overlap, batch_size=size, output_type="np")
        for overlap, size in ((16, 16), (16, 5), (0, 16))
    }
    probability = maps[16, 16].change_probability[0]
    assert probability.shape == (200, 330)
    assert np.abs(probability - maps[16, 5].change_probability[0]).max() < 1e-5
    ratios = {n: draw_scene.seam_ratio(maps[n, 16].change_probability[0], (64, 64), n) for n in (0, 16)}
    assert ratios[16] < 1.2 < ratios[0]
    label = np.array(scene["label"]) > 0
    found = maps[16, 16].change[0] > 0
    assert 2 * (found & label).sum() / (found.sum() + label.sum()) > 0.85


def test_the_seam_ratio_by_hand():
    """Of a map with steps of 1 at the edges of its tiles, and of 0.5 halfway between them."""
    row = np.repeat(np.cumsum([0, 0.5, 1, 0.5, 1, 0.5]), 8)
    assert draw_scene.seam_ratio(np.tile(row, (48, 1)), (16, 16), 0) == pytest.approx((2 / 4) / (1.5 / 90))


def test_figures_and_pictures_of_a_run(data, measure, tmp_path):
    """figures.py with the evaluation of a few pairs."""
    measure("evaluation")
    (tmp_path / "baseline.json").write_text(json.dumps({"num_pairs": 16, "f1": 0.4, "precision": 0.3, "recall": 0.6}))
    (tmp_path / "out").mkdir()
    places = [f"--evaluation={tmp_path / 'evaluation'}", f"--baseline={tmp_path}", f"--output_dir={tmp_path / 'out'}"]
    figures.main([f"--pipeline={FOLDER}", f"--data={data}", *places])
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert record.keys() == read("metrics.json").keys()
    assert record["image_difference"]["f1"] == 0.4
    for name in ("pairs.png", "before.png"):  # the same pairs, not selected
        with Image.open(tmp_path / "out" / name) as image, Image.open(FOLDER / name) as recorded:
            assert np.abs(np.array(image, int) - np.array(recorded, int)).mean() < 1, name
    (tmp_path / "baseline.json").write_text(json.dumps({"num_pairs": 9}))
    with pytest.raises(SystemExit):
        figures.main([f"--pipeline={FOLDER}", f"--data={data}", *places])


def test_recorded_numbers_pass_the_bars():
    metrics, record = read("metrics.json"), read("evaluation/change.json")
    assert metrics["num_pairs"] == record["results"]["num_pairs"] == 400
    for name in figures.SCORES:
        assert metrics[name] == pytest.approx(record["results"]["usual"][name], abs=1e-4), name
    assert metrics["f1"] >= 0.9
    assert metrics["f1"] - metrics["image_difference"]["f1"] >= 0.3
    assert record["settings"]["split"] == "test" and record["settings"]["threshold"] == 0.5


def test_the_figures_are_of_these_weights(pipeline):
    for name in ("change", "first_pairs"):
        assert read(f"evaluation/{name}.json")["weights_sha256"]["model"] == weights_sha256(pipeline.model)


def test_the_card_quotes_the_recorded_numbers():
    card, metrics = (FOLDER / "README.md").read_text(encoding="utf-8"), read("metrics.json")
    for number in (*(metrics[name] for name in figures.SCORES), metrics["image_difference"]["f1"]):
        assert f"{number:.4f}" in card, number
    assert "demonstration" in card


def test_the_recipe_is_that_of_the_model(pipeline):
    recipe = yaml.safe_load((REPOSITORY / "examples/change3d_buildings/recipes/change3d.yaml").read_text())
    assert pipeline.task == recipe["task"]
    for name, value in recipe["model"].items():
        assert pipeline.model.config[name] == value, name
    assert pipeline.model.dtype == torch.float32
