"""Training of all four tasks on tiny data: to its end, killed and resumed, on two processes."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
import train_change3d
from accelerate import debug_launcher
from accelerate.state import AcceleratorState
from reliability.forked import run_forked
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_change3d import NUM_CLASSES, TINY_MODEL, write_columns, write_folders, write_raw_captions
from tiny_training import write_recipe

from diffusers_lightningdit import Change3DPipeline
from diffusers_lightningdit.hub.cards import check_card
from diffusers_lightningdit.training import run_state
from diffusers_lightningdit.training.change3d.validation import BEST_FILE

TASKS = ["binary", "semantic", "damage", "captioning"]
STEPS = ["max_train_steps=5", "checkpointing_steps=2", "validation_steps=1", "logging_steps=1"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pairs")
    data = {task: write_folders(folder / task, task, 6, ("train", "val", "test")) for task in TASKS[:3]}
    return {**data, "captioning": write_raw_captions(folder / "captioning", 6)}


@pytest.fixture(scope="module")
def recipes(tmp_path_factory) -> dict[str, str]:
    folder, recipes = tmp_path_factory.mktemp("recipes"), {}
    for task in TASKS:
        recipe = {"task": task, "global_batch_size": 4, "learning_rate": 1e-2, "ema_decay": 0.5}
        recipe["model"] = {**TINY_MODEL, **({"num_classes": NUM_CLASSES[task]} if task in NUM_CLASSES else {})}
        if task == "captioning":
            recipe["model"] |= {"num_caption_layers": 1, "num_attention_heads": 2}
            recipe |= {"lr_scheduler": "step", "lr_step_epochs": 1, "lr_step_factor": 0.5, "lr_warmup_steps": 0}
            recipe |= {"max_grad_value": 0.5, "adam_betas": [0.9, 0.999]}
        recipes[task] = write_recipe(folder / f"{task}.yaml", recipe)
    return recipes


def arguments(recipes, pairs, task: str, folder: Path, *settings: str) -> list[str]:
    return ["--config", recipes[task], f"data={pairs[task]}", f"output_dir={folder}", *STEPS, *settings]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, recipes, pairs) -> dict[str, Path]:
    """The folder that a whole run of each task leaves, when it is asked for."""

    class Runs(dict):
        def __missing__(self, task: str) -> Path:
            folder = self[task] = tmp_path_factory.mktemp("whole") / task
            train_change3d.main(arguments(recipes, pairs, task, folder))
            return folder

    return Runs()


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a finished run: the pipeline's model, the best weights, the last checkpoint."""
    files = [folder / "model" / "diffusion_pytorch_model.safetensors", folder / BEST_FILE]
    files += sorted((folder / "checkpoint-5").glob("*.safetensors"))
    assert len(files) == 5
    return {f"{file.name}: {name}": tensor for file in files for name, tensor in load_file(file).items()}


def assert_identical(folder: Path, expected: Path) -> None:
    found = tensors(folder)
    for name, tensor in tensors(expected).items():
        assert torch.equal(found[name], tensor), name


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("task", TASKS)
def test_a_whole_run(uninterrupted, task):
    folder = uninterrupted[task]
    pipeline = Change3DPipeline.from_pretrained(folder)
    assert pipeline.task == task
    images = [torch.zeros(3, 32, 32, dtype=torch.uint8)] * 2
    output = pipeline(*images)
    name = {"captioning": "captions", "damage": "building"}.get(task, "change")
    assert len(output[name] if task != "captioning" else output.captions) == 1
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert check_card(card).pipeline_tag == ("image-to-text" if task == "captioning" else "image-segmentation")
    assert "By `train_change3d.py`" in card and "| `learning_rate` | `0.01` |" in card and str(folder) not in card
    losses = [record["loss"] for record in records(folder) if "loss" in record]
    assert len(losses) == 5
    assert min(losses[1:]) < losses[0]
    validated = [record for record in records(folder) if any(key.startswith("validation_") for key in record)]
    assert [record["step"] for record in validated] == [1, 2, 3, 4, 5]
    score = {"binary": "f1", "semantic": "miou", "damage": "overall_f1", "captioning": "bleu_4"}[task]
    scores = [record[f"validation_{score}"] for record in validated if f"validation_{score}" in record]
    with safe_open(folder / BEST_FILE, "pt") as content:
        assert float(content.metadata()["score"]) == pytest.approx(max(scores, default=0.0))
    best = load_file(folder / BEST_FILE)
    saved = load_file(folder / "model" / "diffusion_pytorch_model.safetensors")
    assert best.keys() == saved.keys()
    assert all(torch.equal(best[key], saved[key]) for key in best)


def run_and_be_killed(words: list[str], checkpoint: str, folder: Path) -> int:
    """Train in a copy of this process, which is killed for good while it writes the optimiser's state."""
    write_tensors = run_state.write_tensors

    def write_or_die(tensors, file):
        if checkpoint in str(file) and "optimizer" in file.name:
            os.kill(os.getpid(), signal.SIGKILL)
        write_tensors(tensors, file)

    def program():
        run_state.write_tensors = write_or_die
        train_change3d.main(words)

    return run_forked(program, folder).status


@pytest.mark.parametrize("task", TASKS)
def test_kill_and_resume(uninterrupted, recipes, pairs, tmp_path, task, capsys):
    expected, folder = uninterrupted[task], tmp_path / "run"
    words = arguments(recipes, pairs, task, folder)
    assert run_and_be_killed(words, "checkpoint-4", tmp_path) == -signal.SIGKILL
    assert sorted(path.name for path in folder.glob("*checkpoint*")) == [".checkpoint-4.partial", "checkpoint-2"]
    capsys.readouterr()
    torch.manual_seed(99)
    train_change3d.main([*words, "--resume_from_checkpoint", "latest"])
    assert f"resumed from {folder}/checkpoint-2, step 2" in capsys.readouterr().out
    assert_identical(folder, expected)


def test_two_processes(recipes, pairs, tmp_path):
    """They have batches of their own, which batch norms and Dice look at; the order of the data is the same."""
    AcceleratorState._reset_state(reset_partial_state=True)  # a copy of this process must not inherit it
    words = arguments(recipes, pairs, "semantic", tmp_path / "run")
    debug_launcher(train_change3d.main, (words,), num_processes=2)
    assert Change3DPipeline.from_pretrained(tmp_path / "run").task == "semantic"
    assert len([record for record in records(tmp_path / "run") if "validation_miou" in record]) == 5


def test_streams_are_resumed(recipes, tmp_path):
    data = {"binary": write_columns(tmp_path / "data", "binary")}
    words = [*arguments(recipes, data, "binary", tmp_path / "whole"), "streaming=true"]
    train_change3d.main(words)
    checkpoint = f"resume_from_checkpoint={tmp_path / 'whole' / 'checkpoint-2'}"
    train_change3d.main([*arguments(recipes, data, "binary", tmp_path / "resumed"), "streaming=true", checkpoint])
    model = "model/diffusion_pytorch_model.safetensors"
    whole, resumed = (
        load_file(tmp_path / name / "checkpoint-5" / "model.safetensors") for name in ("whole", "resumed")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert (tmp_path / "resumed" / model).is_file()


def test_other_ways_to_train(recipes, pairs, uninterrupted, tmp_path):
    words = ["gradient_checkpointing=true", "gradient_accumulation_steps=2", "ema_decay=null", "keep_best=false"]
    words += [f"weight_init={uninterrupted['binary']}", "model={}", "random_variation=false", "channels_last=true"]
    folder = tmp_path / "run"
    train_change3d.main([*arguments(recipes, pairs, "binary", folder), *words, "select_on_test_split=true"])
    last = load_file(folder / "checkpoint-5" / "model.safetensors")
    saved = load_file(folder / "model" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(last[name], saved[name]) for name in saved)


@pytest.mark.parametrize("task", TASKS)
def test_bfloat16(recipes, pairs, tmp_path, task):
    """Losses are computed in float32, and differ from those of whole float32 in the rounding of the network only."""
    words = ["mixed_precision=bf16", "validation_steps=null", "max_train_steps=1", "checkpointing_steps=null"]
    train_change3d.main([*arguments(recipes, pairs, task, tmp_path / "half"), *words])
    AcceleratorState._reset_state(reset_partial_state=True)
    train_change3d.main([*arguments(recipes, pairs, task, tmp_path / "whole"), *words[1:]])
    half, whole = (records(tmp_path / name)[0]["loss"] for name in ("half", "whole"))
    assert half == pytest.approx(whole, rel=0.03)
    assert half != whole


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("binary", ["validation_split=test"], "`validation_split` is 'test'; required: a split that no result"),
        ("binary", ["validation_split=train"], "`validation_split` is 'train', that of the training"),
        ("binary", ["split=nothing"], "`split` is 'nothing', and .* has the splits test, train, val"),
        ("binary", ["push_to_hub=true"], "`push_to_hub` is true, but `hub_model_id` is not given"),
        ("binary", ["task=other"], "`task` is 'other'; required: one of binary, semantic, damage, captioning"),
        ("binary", ["model.sample_size=20"], "`sample_size` is 20"),
        ("binary", ["model.sample_size=64"], "t1/pair_.*png has 32x32 pixels .*required: 64x64, or `resize`"),
        ("binary", ["weight_init=x"], "`weight_init` is 'x' with `model`"),
        ("binary", ["pretrained_encoder=none.pyth"], "`pretrained_encoder`: none.pyth: no such file"),
        ("binary", ["pretrained_channel_order=rgb"], "`pretrained_channel_order` is rgb; required: as_read"),
        ("binary", ["model.vocab_size=9"], "`model.vocab_size` is given; required: nothing"),
        ("semantic", ["model.num_classes=2"], "it has the label 2; required: 0 to 1"),
        ("semantic", ["label_palette=[[0,0,0]]"], "`label_palette` has 1 colours; required: 3"),
        ("semantic", ["class_names=[a, b]"], "`class_names` has 2 names; required: 3"),
        ("binary", ["class_names=[a, b]"], "`class_names` has 2 names; required: none"),
        ("binary", ["model.sample_size=[32]"], r"`sample_size` is \(32,\); required: a multiple of 8"),
        ("binary", ["vocabulary=words.json"], "`vocabulary` is 'words.json'; required: null"),
        ("binary", ["adam_betas=[0.9, 1]"], "`adam_betas` is 1.0; required: below 1"),
        ("captioning", ["min_word_count=99"], "no word of the captions occurs more than 99 times"),
        ("captioning", ["streaming=true", "lr_scheduler=poly"], "has raw captions; required: false, or columns"),
    ],
)
def test_what_cannot_be_trained(recipes, pairs, tmp_path, capsys, task, settings, message):
    with pytest.raises(SystemExit) as exit:
        train_change3d.main(arguments(recipes, pairs, task, tmp_path / "run", *settings))
    assert exit.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, line), line
    assert not (tmp_path / "run").exists()


def test_a_model_of_another_task(recipes, pairs, uninterrupted, tmp_path, capsys):
    with pytest.raises(SystemExit):
        words = arguments(recipes, pairs, "damage", tmp_path / "run")
        train_change3d.main([*words, "model={}", f"weight_init={uninterrupted['binary']}"])
    assert "of the task 'binary'; required: 'damage'" in capsys.readouterr().err


def test_a_model_of_other_words(recipes, uninterrupted, tmp_path, capsys):
    """A vocabulary of another size, and one of the same size in another order."""
    data = {"captioning": write_raw_captions(tmp_path / "data", 6)}
    content = Path(data["captioning"]).read_text()
    words = json.loads((uninterrupted["captioning"] / "model_index.json").read_text())["vocabulary"]
    for change, message in (
        (
            content.replace('"same"', '"same", "again"'),
            f"has a vocabulary of {len(words) + 1} words; required: {len(words)}",
        ),
        (content.replace("road", "street"), "`data` has another vocabulary than `weight_init`"),
    ):
        Path(data["captioning"]).write_text(change)
        with pytest.raises(SystemExit):
            arguments_of_run = arguments(recipes, data, "captioning", tmp_path / "run")
            train_change3d.main([*arguments_of_run, "model={}", f"weight_init={uninterrupted['captioning']}"])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_resumed_with_other_data(recipes, uninterrupted, tmp_path, capsys):
    other = {"binary": write_folders(tmp_path / "other", "binary", 6, ("val", "train"))}
    with pytest.raises(SystemExit):
        words = arguments(recipes, other, "binary", tmp_path / "run")
        train_change3d.main([*words, f"resume_from_checkpoint={uninterrupted['binary'] / 'checkpoint-2'}"])
    assert "required: the same data (`weight_init` begins a new run)" in capsys.readouterr().err


def test_a_run_that_goes_on_in_another_folder(recipes, pairs, uninterrupted, tmp_path):
    """It takes the best weights along, if they are of the steps before."""
    words = arguments(recipes, pairs, "binary", tmp_path / "run")
    train_change3d.main([*words, f"resume_from_checkpoint={uninterrupted['binary'] / 'checkpoint-4'}"])
    assert_identical(tmp_path / "run", uninterrupted["binary"])
