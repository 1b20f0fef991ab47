"""The examples in docstrings and on two pages of docs/ run as they stand, from the root of a checkout."""

import doctest
import re
from pathlib import Path

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from diffusers_lightningdit import (
    FlowMatchAdamsBashforthScheduler,
    FlowMatchSDEScheduler,
    FlowMatchUCGMScheduler,
    InternalGuidance,
    IntervalGuidance,
    pipelines,
)

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
    [
        # that of Change3D needs a checkpoint and images of its own: test_pipeline_change3d.py
        *(getattr(pipelines, name) for name in pipelines.__all__ if name != "Change3DPipeline"),
        FlowMatchAdamsBashforthScheduler,
        *(FlowMatchSDEScheduler, FlowMatchUCGMScheduler, InternalGuidance, IntervalGuidance),
    ],
    ids=lambda cls: cls.__name__,
)
def test_examples(cls, checkout):
    tests = [test for test in doctest.DocTestFinder(recurse=False).find(cls, cls.__name__) if test.examples]
    assert len(tests) == 1, f"{cls.__name__} has no example"
    result = doctest.DocTestRunner().run(tests[0])
    assert result.attempted and not result.failed


def run_blocks(page: Path) -> dict:
    """Run the blocks of Python of a page, one after the other, and return the names that they leave."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == text.count("```python")
    namespace = {}
    for block in blocks:
        exec(block, namespace)
    return namespace


def test_blocks_of_the_page_on_pipelines(checkout, repository):
    namespace = run_blocks(repository / "docs" / "pipelines.md")
    assert len(namespace["frames"]) == 8
    assert namespace["log_likelihood"].shape == (2,)


def test_blocks_of_the_page_on_few_steps(checkout, repository):
    namespace = run_blocks(repository / "docs" / "few_steps.md")
    assert len(namespace["images"]) == 2
    assert namespace["pipe"].num_timesteps == 2
