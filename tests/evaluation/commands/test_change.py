"""Change maps and captions over tiny data of all four tasks: the same numbers however they are computed."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import debug_launcher
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from tiny_change3d import tiny_model, write_columns, write_folders, write_raw_captions

from diffusers_lightningdit import Change3DPipeline
from diffusers_lightningdit.change3d.captions import build_vocabulary
from diffusers_lightningdit.change3d.pairs import PairDataset, PairFormat
from diffusers_lightningdit.change3d.sources import open_pairs
from diffusers_lightningdit.evaluate import main

pytestmark = pytest.mark.usefixtures("fresh_accelerate_state")
TASKS = ["binary", "semantic", "damage", "captioning"]
VOCABULARY = build_vocabulary([["a", "road", "appears", "the", "scene", "is", "same", "as", "before"]] * 6)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """The folder of a pipeline of each task."""
    folders = {}
    for task in TASKS:
        model = tiny_model(task)
        if task == "captioning":
            with torch.no_grad():  # other captions of random weights would not end
                model.decoder_caption.proj_out.weight.mul_(6)
        folders[task] = str(tmp_path_factory.mktemp("models") / task)
        words = sorted(VOCABULARY, key=VOCABULARY.get) if task == "captioning" else None
        Change3DPipeline(model, vocabulary=words).save_pretrained(folders[task])
    return folders


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pairs")
    folders = {task: write_folders(folder / task, task, 5, ("train", "test")) for task in TASKS[:3]}
    return {**folders, "captioning": write_raw_captions(folder / "captioning", 5, ("train", "test"))}


def evaluate(models, data, task: str, folder: Path, *words: str) -> dict:
    main(["change", "--model", models[task], "--data", data[task], "--output_dir", str(folder), *words])
    AcceleratorState._reset_state(reset_partial_state=True)
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("task", TASKS)
def test_the_same_numbers_whatever_the_batch(models, data, task, tmp_path):
    first = evaluate(models, data, task, tmp_path / "first", "--micro_batch_size", "2")
    second = evaluate(models, data, task, tmp_path / "second", "--micro_batch_size", "5")
    assert first["results"] == second["results"]
    assert first["results"]["num_pairs"] == 5
    assert first["task"] == task
    with open(tmp_path / "first" / "pairs.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5
    assert rows[2]["name"].endswith(
        {"damage": "area_2_post_disaster.png", "captioning": "test_2.png"}.get(task, "pair_2.png")
    )
    if task == "captioning":
        assert rows[0]["caption"]
        assert first["results"]["original"]["bleu_1"] > 0
    else:
        name, column = ("building", "right_building") if task == "damage" else ("matrix", "right")
        matrix = first["results"]["confusion_matrices"][name]
        assert sum(int(row[column]) for row in rows) == sum(matrix[i][i] for i in range(len(matrix)))


def test_two_processes(models, data, tmp_path):
    alone = evaluate(models, data, "semantic", tmp_path / "alone", "--micro_batch_size", "2")
    words = ["change", "--model", models["semantic"], "--data", data["semantic"], "--micro_batch_size", "2"]
    debug_launcher(main, ([*words, "--output_dir", str(tmp_path / "both")],), num_processes=2)
    both = json.loads((tmp_path / "both" / "metrics.json").read_text())
    assert both["num_processes"] == 2
    assert both["results"] == alone["results"]
    assert (tmp_path / "both" / "pairs.csv").read_text() == (tmp_path / "alone" / "pairs.csv").read_text()


@torch.no_grad()
def test_binary_by_hand(models, data, tmp_path):
    record = evaluate(models, data, "binary", tmp_path / "out", "--threshold", "0.4", "--num_pairs", "4")
    dataset = PairDataset(open_pairs("binary", data["binary"], "test"), PairFormat("binary", (32, 32)), "here")
    model, tp, fp, fn = Change3DPipeline.from_pretrained(models["binary"]).model.eval(), 0, 0, 0
    for index in range(4):
        sample = dataset[index]
        prediction = model(sample["image_before"][None], sample["image_after"][None]).change[0] > 0.4
        label = sample["labels"] > 0
        tp += (prediction & label).sum().item()
        fp += (prediction & ~label).sum().item()
        fn += (~prediction & label).sum().item()
    assert tp > 0
    assert record["results"]["usual"]["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert record["results"]["usual"]["iou"] == pytest.approx(tp / (tp + fp + fn))


def test_a_model_without_a_pipeline_and_columns(models, tmp_path):
    columns = {"binary": write_columns(tmp_path / "columns", "binary")}
    model = {"binary": f"{models['binary']}/model"}
    record = evaluate(model, columns, "binary", tmp_path / "out", "--split", "validation")
    assert record["results"]["num_pairs"] == 6


@pytest.mark.parametrize("task", ["binary", "captioning"])
def test_no_score_is_computed_from_nan(models, data, tmp_path, error_line, task):
    """Of weights that are finite, but too large to compute with."""
    model = tmp_path / "model"
    shutil.copytree(models[task], model)
    file = model / "model" / "diffusion_pytorch_model.safetensors"
    weights = {name: w * 1e30 if w.is_floating_point() and w.ndim > 1 else w for name, w in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    words = ["change", "--model", str(model), "--data", data[task], "--output_dir", str(tmp_path / "out")]
    assert "`model` computed NaN" in error_line(*words)
    assert not list((tmp_path / "out").glob("[!.]*"))  # nothing but locks


def test_what_cannot_be_evaluated(models, data, tmp_path, error_line):
    out = ("--output_dir", str(tmp_path / "out"))

    def message(task: str, source: str, *words: str) -> str:
        return error_line("change", "--model", models.get(task, task), "--data", source, *out, *words)

    assert "required: a folder or Hub id of a Change3DPipeline" in message(str(tmp_path), data["binary"])
    assert "has no folder label; required" in message("binary", data["semantic"])
    assert "has the splits test, train" in message("binary", data["binary"], "--split", "validation")
    assert "`num_pairs` is 9; required: at most 5" in message("binary", data["binary"], "--num_pairs", "9")
    assert "`threshold` is 1.5" in message("binary", data["binary"], "--threshold", "1.5")
    assert "`label_palette` has 1 colours; required: 3" in message(
        "semantic", data["semantic"], "label_palette=[[0,0,0]]"
    )
    assert "`meteor_jar` is 'none.jar'" in message("captioning", data["captioning"], "--meteor_jar", "none.jar")
    assert "`meteor_jar` is 'a.jar'; required: null for a model of the task 'binary'" in message(
        "binary", data["binary"], "--meteor_jar", "a.jar"
    )
    other = tmp_path / "words.json"
    other.write_text(json.dumps(build_vocabulary([["a", "b"]] * 6)))
    assert "have different vocabularies" in message("captioning", data["captioning"], "--vocabulary", str(other))
    plain = f"{models['captioning']}/model"
    assert "`vocabulary` is null, and neither" in message(plain, data["captioning"])
    assert "has a vocabulary of 6 words; required: 13" in message(plain, data["captioning"], "--vocabulary", str(other))
    assert not (tmp_path / "out").exists()
