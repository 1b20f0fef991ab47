"""The writer of captions that lies in the repository: its captions and figures come out again."""

import csv
import json
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from diffusers import DiffusionPipeline

pytest.importorskip("skimage", exc_type=ImportError)
REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "model_cards" / "change3d-buildings-captions"
sys.path.insert(0, str(REPOSITORY / "examples" / "change3d_buildings"))

import caption_figures  # noqa: E402
import draw_pairs  # noqa: E402

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
def pairs() -> list[dict]:
    return list(draw_pairs.draw_pairs("test", NUM_PAIRS, 64, 0, change_probability=0.2))


@pytest.fixture(scope="module")
def data(pairs, tmp_path_factory) -> Path:
    """The first pairs of the split test, which stand for the split train as well."""
    folder = tmp_path_factory.mktemp("captions") / "data"
    features = Features(
        dict.fromkeys(("image_before", "image_after"), ImageFeature()) | {"captions": List(Value("string"))}
    )
    folder.mkdir()
    columns = {name: [pair[name] for pair in pairs] for name in features}
    for split in ("train", "test"):
        Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.fixture
def measure(data, evaluate_change):
    return partial(evaluate_change, FOLDER, data)


def captions(folder: Path) -> list[str]:
    with open(folder / "pairs.csv", newline="", encoding="utf-8") as file:
        return [row["caption"] for row in csv.DictReader(file)]


def test_the_recorded_figures_come_out_again(measure, tmp_path):
    """Alone, in other batches and on two processes."""
    recorded = read("evaluation/first_pairs.json")
    alone = measure("alone", "--micro_batch_size", "1")
    assert alone["results"] == measure("together", "--micro_batch_size", "16")["results"]
    assert alone["results"] == measure("both", "--micro_batch_size", "3", num_processes=2)["results"]
    assert captions(tmp_path / "alone") == captions(tmp_path / "both")
    assert alone["weights_sha256"] == recorded["weights_sha256"]
    # the libraries that draw and compute may turn a caption or two
    assert alone["results"]["usual"]["bleu_4"] == pytest.approx(recorded["results"]["usual"]["bleu_4"], abs=0.1)


def test_the_pipeline_writes_what_was_measured(pipeline, pairs, measure, tmp_path):
    """One caption in batches of any size; more beams find captions of the same kind."""
    measure("evaluation")
    before, after = ([pair[f"image_{date}"] for pair in pairs] for date in ("before", "after"))
    found = pipeline(before, after, batch_size=16).captions
    assert found == captions(tmp_path / "evaluation")
    assert found == pipeline(before, after, batch_size=3).captions
    references = [pair["captions"] for pair in pairs]
    assert caption_figures.exact_share(found, references) >= 0.5
    with_beams = pipeline(before, after, num_beams=3).captions
    assert caption_figures.exact_share(with_beams, references) >= 0.5


def test_figures_and_pictures_of_a_run(data, measure, tmp_path):
    """caption_figures.py with the evaluation of a few pairs."""
    measure("evaluation")
    (tmp_path / "out").mkdir()
    places = [f"--evaluation={tmp_path / 'evaluation'}", f"--output_dir={tmp_path / 'out'}"]
    caption_figures.main([f"--pipeline={FOLDER}", f"--data={data}", *places])
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert record.keys() == read("metrics.json").keys()
    assert record["one_caption_for_all"].keys() == read("metrics.json")["one_caption_for_all"].keys()
    assert record["one_caption_for_all"]["caption"] in draw_pairs.NO_CHANGE_CAPTIONS
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("after.png", "before.png", "captions.png", "metrics.json")
    }
    with pytest.raises(SystemExit):
        caption_figures.main([f"--pipeline={FOLDER}", f"--data={data}", *places[:1], "--output_dir=nowhere"])


def test_recorded_numbers_pass_the_bars():
    metrics, record = read("metrics.json"), read("evaluation/change.json")
    assert metrics["num_pairs"] == record["results"]["num_pairs"] == 400
    for name in (*caption_figures.SCORES, "change_accuracy", "no_change_accuracy"):
        assert metrics[name] == pytest.approx(record["results"]["usual"][name], abs=1e-4), name
    assert metrics["exact"] >= metrics["one_caption_for_all"]["exact"] + 0.3
    assert metrics["bleu_4"] >= metrics["one_caption_for_all"]["bleu_4"] + 0.3
    assert record["settings"]["split"] == "test" and record["settings"]["num_beams"] == 1


def test_the_figures_are_of_these_weights(pipeline):
    for name in ("change", "first_pairs"):
        assert read(f"evaluation/{name}.json")["weights_sha256"]["model"] == weights_sha256(pipeline.model)


def test_the_card_quotes_the_recorded_numbers():
    card, metrics = (FOLDER / "README.md").read_text(encoding="utf-8"), read("metrics.json")
    of_all = metrics.pop("one_caption_for_all")
    for number in (*metrics.values(), *of_all.values()):
        assert (f"{number:.4f}" if isinstance(number, float) else str(number)) in card, number
    assert "demonstration" in card


def test_the_recipe_is_that_of_the_model(pipeline):
    recipe = yaml.safe_load((REPOSITORY / "examples/change3d_buildings/recipes/change3d_captions.yaml").read_text())
    assert pipeline.task == recipe["task"]
    for name, value in recipe["model"].items():
        assert pipeline.model.config[name] == value, name


def test_both_embedded_models_together_are_small():
    files = [
        path
        for name in ("change3d-buildings", "change3d-buildings-captions")
        for path in (FOLDER.parent / name).rglob("*")
    ]
    assert sum(path.stat().st_size for path in files if path.is_file()) <= 12e6
