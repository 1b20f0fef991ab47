"""Counts of batches, scores of data sets, and the recorded figures of decoded captions."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_change3d import NUM_CLASSES, SIZE, tiny_model

from diffusers_lightningdit.change3d.scores import (
    NO_WORD,
    CaptionTotals,
    MapTotals,
    measure_batch,
    selection_score,
)


def batch_of(task: str, number: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(number, 3, SIZE, SIZE, generator=generator) * 2 - 1 for _ in range(2)]
    num_maps = {"binary": 1, "semantic": 3, "damage": 2}[task]
    labels = torch.randint(0, 2, (number, num_maps, SIZE, SIZE), generator=generator)
    if task == "semantic":
        labels[:, :2] = torch.randint(0, 3, (number, 2, SIZE, SIZE), generator=generator)
    elif task == "damage":
        labels[:, 1] = torch.randint(0, 5, (number, SIZE, SIZE), generator=generator)
    return {"image_before": images[0], "image_after": images[1], "labels": labels}


@pytest.mark.parametrize("task", ["binary", "semantic", "damage"])
def test_no_number_depends_on_the_batch(task):
    model, batch = tiny_model(task), batch_of(task)
    whole, parts = MapTotals(task), MapTotals(task)
    whole.update(measure_batch(model, batch))
    for number in range(3):
        parts.update(measure_batch(model, {name: value[number : number + 1] for name, value in batch.items()}))
    assert whole.results() == parts.results()
    assert whole.results()["num_pairs"] == 3
    score = selection_score(task, whole.results())
    assert 0 <= score <= 1


def test_semantic_counts_by_hand():
    model, batch = tiny_model("semantic"), batch_of("semantic")
    with torch.no_grad():
        output = model(batch["image_before"], batch["image_after"])
    changed, labels = output.change[:, 0] > 0.5, batch["labels"]
    matrix, right = torch.zeros(3, 3, dtype=torch.int64), 0
    for logits, label in ((output.before_logits, labels[:, 0]), (output.after_logits, labels[:, 1])):
        predictions, label = logits.argmax(1) * changed, label * labels[:, 2]
        for row in range(3):
            for column in range(3):
                matrix[row, column] += ((label == row) & (predictions == column)).sum()
        right += (predictions == label).sum()
    totals = MapTotals("semantic")
    totals.update(measure_batch(model, batch))
    results = totals.results()
    assert results["confusion_matrices"]["matrix"] == matrix.tolist()
    assert results["usual"]["accuracy"] == pytest.approx(right.item() / (6 * SIZE**2))


def test_a_kappa_without_a_value_is_none():
    totals = MapTotals("binary")
    totals.update({"matrix": torch.tensor([[[10, 0], [0, 0]]])})
    assert totals.results()["original"]["kappa"] is None
    assert totals.results()["usual"]["kappa"] == 0
    json.dumps(totals.results(), allow_nan=False)


def test_tiny_models_tell_classes_apart():
    """Otherwise the comparisons above would compare constants."""
    for task, number in NUM_CLASSES.items():
        counts = measure_batch(tiny_model(task), batch_of(task))
        predicted = counts["matrix" if task == "semantic" else "damage"].sum((0, 1))
        assert (predicted > 0).sum() > 1, (task, number)


@pytest.mark.parametrize("beams", [1, 3, 5])
def test_the_recorded_captions(golden_change3d, beams):
    case = json.loads(golden_change3d("cc_decode.json").read_text())[f"beam_{beams}"]
    vocabulary = json.loads(golden_change3d("wordmap.json").read_text())
    recorded = load_file(golden_change3d("cc_decode.safetensors"))["captions"].view(4, 5, -1).tolist()
    special = {vocabulary[word] for word in ("<pad>", "<start>", "<end>")}
    captions = torch.full((4, 52), NO_WORD)
    for row, image in zip(captions, case["per_image"], strict=True):
        if image["sequence"]:
            row[: len(image["sequence"])] = torch.tensor(image["sequence"])
    totals = CaptionTotals(vocabulary)
    totals.update(captions, [[[word for word in ids if word not in special] for ids in each] for each in recorded])
    results = totals.results()
    assert results["unfinished"] == [i for i, image in enumerate(case["per_image"]) if image["sequence"] is None]
    assert results["num_pairs"] == 4
    original = results["original"]
    for name, own in (("Bleu_1", "bleu_1"), ("Bleu_4", "bleu_4"), ("ROUGE_L", "rouge_l"), ("CIDEr", "cider")):
        assert original[own] == pytest.approx(case["metrics"][name], rel=1e-9, abs=1e-20)
        for subset in ("change", "nochange"):
            if f"{subset}_metrics" in case:
                part = original[f"of_{subset.replace('noc', 'no_c')}"]
                assert part[own] == pytest.approx(case[f"{subset}_metrics"][name], rel=1e-9, abs=1e-20)
    recorded_accuracies = {"change_accuracy": "change_acc", "no_change_accuracy": "nochange_acc"}
    assert {own: original.get(own) for own in recorded_accuracies} == {
        own: case["accs"].get(name) for own, name in recorded_accuracies.items()
    }
    if results["num_unfinished"]:
        assert results["usual"]["bleu_1"] < original["bleu_1"]


def test_no_caption_came_to_its_end():
    totals = CaptionTotals({"<pad>": 0, "a": 1, "<unk>": 2, "<start>": 3, "<end>": 4})
    totals.update(torch.full((2, 6), NO_WORD), [[[1]], [[1, 1]]])
    results = totals.results()
    assert results["original"] is None
    assert results["num_unfinished"] == 2
    assert results["usual"]["rouge_l"] == 0
    assert selection_score("captioning", results) == 0
