"""docs/tutorial.md from top to bottom, in a process that reaches a Hub on the loopback interface."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_training import TINY_VAE

from diffusers_lightningdit import AutoencoderVAVAE

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Settings that go over those of a command, to make it as small as the images.
SMALL = {
    "train latents": ["num_workers=1"],
    "train transformer": [
        *("max_train_steps=2", "global_batch_size=4", "gradient_accumulation_steps=1", "num_workers=0"),
        *("transformer.num_layers=1", "transformer.num_attention_heads=2", "transformer.attention_head_dim=8"),
        *("compile_blocks=false", "mixed_precision=no", "sample_steps=1", "num_samples=2", "num_inference_steps=2"),
        *("logging_steps=1", "checkpointing_steps=1"),
    ],
    "push": ["num_samples_per_class=1"],
}
RUN = """
from accelerate.state import AcceleratorState
from diffusers_lightningdit import commands
commands.main({words!r})
AcceleratorState._reset_state(reset_partial_state=True)  # as a process of its own begins
result = None
"""


def command_lines(text: str) -> list[list[str]]:
    """The words of each line after the name of the command."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [shlex.split(re.sub(r"^.*?diffusers[-_]lightningdit ", "", line)) for line in lines]


def test_the_tutorial(hub, run_blocks, workplace):
    for number in range(4):
        for name in ("cat", "ox"):
            file = workplace / "images" / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((17 + number, 16), 60).convert("RGB").save(file)
    torch.manual_seed(0)
    AutoencoderVAVAE(**TINY_VAE, sample_size=16).save_pretrained(workplace / "VAE")
    blocks = {}
    for language, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if language == "python":
            blocks[f"block {len(blocks)}"] = text + "\nresult = [list(pipe.id2label.values()), origin(pipe)]"
            continue
        for words in command_lines(text):
            small = next((more for name, more in SMALL.items() if words[: len(name.split())] == name.split()), [])
            blocks[f"{len(blocks)} {' '.join(words[:3])}"] = RUN.format(words=[*words, *small])
    assert len(blocks) == 9
    outcomes = run_blocks(hub.url, blocks, with_package=True)
    failed = {name: outcome for name, outcome in outcomes.items() if "error" in outcome}
    assert not failed
    assert list(outcomes.values())[-1]["result"] == [["cat", "ox"], "diffusers_lightningdit"]
    left = ("latents/vae", "reconstruction/metrics.json", "model/samples/step-1.png", "curves.png")
    left = (*left, "so_far/model_index.json", "drawn/grid.png", "repository/README.md", "ox.png")
    assert [name for name in left if not (workplace / name).exists()] == []


@pytest.mark.parametrize("name", SMALL)
def test_small_settings_belong_to_commands_of_the_page(name):
    assert f" {name} " in PAGE.read_text(encoding="utf-8")
