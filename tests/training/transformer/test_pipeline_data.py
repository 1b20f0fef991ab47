"""Classes by name, and the pipeline that is trained further."""

import pytest

from diffusers_lightningdit.training.transformer.data import Relabelled
from diffusers_lightningdit.training.transformer.pipeline_data import Classes, find_classes, load_pipeline


def test_classes_are_matched_by_name(pipe):
    classes = find_classes(pipe, {0: "ox", 1: "Kitty", 2: "bee"}, {"bee": None, "ox": "cat"})
    assert classes == Classes({0: 4, 1: 0, 2: 3}, ["bee", "ox"], [None, 0])
    assert classes.ids == [0, 3, 4]


def test_labels_without_names_are_the_pipelines_ids(pipe):
    assert find_classes(pipe, None, {}, num_labels=2) == Classes({0: 0, 1: 1}, [], [])
    with pytest.raises(ValueError, match=r"label 3, and no names of labels; required: .*, 0 to 2\."):
        find_classes(pipe, None, {}, num_labels=4)
    with pytest.raises(ValueError, match="a class of the data, which has no names"):
        find_classes(pipe, None, {"ox": None}, num_labels=2)


@pytest.mark.parametrize(
    ("name", "new_classes", "message"),
    [
        ("cats", {}, r"the data has the class 'cats', which is none of the pipeline's; .* \('cat'\), or `new_classes`"),
        ("crane", {}, "the data has the class 'crane', which is several of the pipeline's; required"),
        ("ox", {"ox": "crane"}, "`new_classes.ox`: .* of several classes; use one of the ids"),
        ("ox", {"ox": 3}, "`new_classes.ox`: .* has the id 3; required: 0 to 2"),
    ],
)
def test_classes_that_cannot_be_matched(pipe, name, new_classes, message):
    with pytest.raises(ValueError, match=message):
        find_classes(pipe, {0: name}, new_classes)


def test_relabelled():
    items = [{"class_labels": 1, "pixel_values": 7}, {"class_labels": 0, "pixel_values": 8}]
    assert [Relabelled(items, {0: 5, 1: 2})[i]["class_labels"] for i in range(2)] == [2, 5]
    unlabelled = Relabelled([{"pixel_values": 7}], {None: 3})
    assert (unlabelled[0], len(unlabelled)) == ({"class_labels": 3, "pixel_values": 7}, 1)


def test_a_vae_without_statistics(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="whose VAE has no `latents_mean` in its config; required: folder or Hub id"):
        load_pipeline(str(tmp_path))
