"""Against the recorded scores of captions, and against sacrebleu where its convention is the same."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from diffusers_lightningdit.change3d.caption_metrics import (
    Meteor,
    caption_scores,
    cider_d,
    corpus_bleu,
    rouge_l,
    says_no_change,
)

CORPORA = ["corpus", "single_image", "first_two", "with_empty_hypothesis"]
NAMES = {f"Bleu_{order}": f"bleu_{order}" for order in range(1, 5)} | {"ROUGE_L": "rouge_l", "CIDEr": "cider"}


@pytest.fixture(scope="module")
def recorded(golden_change3d):
    return json.loads(golden_change3d("caption_metrics.json").read_text())


def as_words(case):
    return [text.split() for text in case["hypotheses"]], [[text.split() for text in r] for r in case["references"]]


@pytest.mark.parametrize("name", CORPORA)
@pytest.mark.parametrize("of_ids", [True, False])
def test_scores_of_sets(recorded, name, of_ids):
    case = recorded[name]
    arguments = (case["hypothesis_ids"], case["reference_ids"]) if of_ids else as_words(case)
    expected = case["scores_on_id_strings" if of_ids else "scores_on_word_strings"]
    scores = caption_scores(*arguments)
    for recorded_name, own in NAMES.items():
        assert scores[own] == pytest.approx(expected[recorded_name]["corpus"], abs=1e-9), own
        if of_ids:  # what the original reports
            assert scores[own] == pytest.approx(case["eval_caption_score"][recorded_name], abs=1e-9), own


@pytest.mark.parametrize("name", CORPORA)
def test_scores_of_single_captions(recorded, name):
    hypotheses, references = recorded[name]["hypothesis_ids"], recorded[name]["reference_ids"]
    expected = {key: value["per_sentence"] for key, value in recorded[name]["scores_on_id_strings"].items()}
    single = [corpus_bleu([words], [of_image]) for words, of_image in zip(hypotheses, references, strict=True)]
    for order in range(1, 5):
        assert [scores[order - 1] for scores in single] == pytest.approx(expected[f"Bleu_{order}"], abs=1e-9)
    rouge = [rouge_l(*pair) for pair in zip(hypotheses, references, strict=True)]
    assert rouge == pytest.approx(expected["ROUGE_L"], abs=1e-9)
    assert cider_d(hypotheses, references) == pytest.approx(expected["CIDEr"], abs=1e-9)


@pytest.mark.parametrize("name", CORPORA)
def test_sacrebleu_agrees(recorded, name):
    sacrebleu = pytest.importorskip("sacrebleu.metrics")
    hypotheses, references = recorded[name]["hypotheses"], recorded[name]["references"]
    streams = [list(texts) for texts in zip(*references, strict=True)]
    for order, score in enumerate(corpus_bleu(*as_words(recorded[name])), start=1):
        other = sacrebleu.BLEU(tokenize="none", smooth_method="none", max_ngram_order=order)
        assert score == pytest.approx(other.corpus_score(hypotheses, streams).score / 100, abs=1e-9)


@pytest.mark.parametrize("beams", [1, 3, 5])
def test_scores_of_decoded_captions(golden_change3d, beams):
    """Ids of random weights: hardly an n-gram matches, one caption is empty, and the constants decide."""
    from safetensors.torch import load_file

    case = json.loads(golden_change3d("cc_decode.json").read_text())[f"beam_{beams}"]
    captions = load_file(golden_change3d("cc_decode.safetensors"))["captions"].view(4, 5, -1).tolist()
    kept = [captions[image] for image in case["image_indices_kept"]]
    references = [[[word for word in words if word not in (0, 41, 42)] for words in of_image] for of_image in kept]
    scores = caption_scores(case["hypotheses"], references)
    for recorded_name, own in NAMES.items():
        assert scores[own] == pytest.approx(case["metrics"][recorded_name], rel=1e-9, abs=1e-20), own


def test_nothing_to_score():
    with pytest.raises(ValueError, match="there are 0 captions and references of 0 images; required"):
        caption_scores([], [])
    with pytest.raises(ValueError, match="there are 1 captions and references of 0 images; required"):
        caption_scores([["a"]], [[]])


def test_no_change():
    assert says_no_change(["there", "is", "no", "difference"])
    assert not says_no_change(["there", "is", "a", "difference"])


# -- METEOR --


def meteor_jar() -> Path | None:
    found = importlib.util.find_spec("pycocoevalcap")
    folder = Path(next(iter(found.submodule_search_locations))) if found else None
    return next(folder.rglob("meteor-1.5.jar"), None) if folder else None


@pytest.mark.skipif(shutil.which("java") is None or meteor_jar() is None, reason="needs Java and meteor-1.5.jar")
def test_meteor_of_ids_and_of_words(recorded):
    meteor, case = Meteor(meteor_jar()), recorded["with_empty_hypothesis"]
    for arguments, key in (
        ((case["hypothesis_ids"], case["reference_ids"]), "scores_on_id_strings"),
        (as_words(case), "scores_on_word_strings"),
    ):
        score, single = meteor(*arguments)
        assert score == pytest.approx(case[key]["METEOR"]["corpus"], abs=1e-6)
        assert single == pytest.approx(case[key]["METEOR"]["per_sentence"], abs=1e-6)


def test_meteor_that_is_not_there(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"`meteor_jar` is .*; required: the file meteor-1\.5\.jar"):
        Meteor(tmp_path / "meteor-1.5.jar")
    (tmp_path / "meteor-1.5.jar").touch()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(OSError, match="METEOR needs the program `java`"):
        Meteor(tmp_path / "meteor-1.5.jar")


@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
def test_meteor_that_fails_does_not_wait(tmp_path):
    (tmp_path / "meteor-1.5.jar").write_bytes(b"no jar")
    with pytest.raises(OSError, match="METEOR failed"):
        Meteor(tmp_path / "meteor-1.5.jar")([["a"]], [[["a"]]])
