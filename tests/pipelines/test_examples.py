"""The examples in docstrings and in docs/pipelines.md run as they stand, from the root of a checkout."""

import doctest
import re

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from diffusers_lightningdit import FlowMatchSDEScheduler, pipelines

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CHECKPOINT = "model_cards/lightningdit-digits"


@pytest.fixture
def checkout(repository, tmp_path, make_pipeline, make_transformer, monkeypatch):
    """The pipelines' files beside a checkpoint of the examples' name: tiny, untrained, with the same classes."""
    pipe = make_pipeline(
        transformer=make_transformer(num_classes=len(DIGITS)),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0),
        id2label=dict(enumerate(DIGITS)),
        sampling_recipe={"num_inference_steps": 10, "guidance_scale": 2.0},
    )
    pipe.save_pretrained(tmp_path / CHECKPOINT)
    (tmp_path / "pipelines").symlink_to(repository / "pipelines")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "cls",
    [*(getattr(pipelines, name) for name in pipelines.__all__), FlowMatchSDEScheduler],
    ids=lambda cls: cls.__name__,
)
def test_examples(cls, checkout):
    tests = [test for test in doctest.DocTestFinder(recurse=False).find(cls, cls.__name__) if test.examples]
    assert len(tests) == 1, f"{cls.__name__} has no example"
    result = doctest.DocTestRunner().run(tests[0])
    assert result.attempted and not result.failed


def test_blocks_of_the_page(checkout, repository):
    page = (repository / "docs" / "pipelines.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == page.count("```python")
    namespace = {}
    for block in blocks:
        exec(block, namespace)
    assert len(namespace["frames"]) == 8
    assert namespace["log_likelihood"].shape == (2,)
