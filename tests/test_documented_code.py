"""Every block of code of README and docs is run, or read as what it is, or marked with the reason why not.

A block of Python is run in the order of its page. `<!-- not run: REASON -->` on the line before it leaves it out. Some
pages are run by tests of their own (`ELSEWHERE`); the settings of command lines are compared with the commands by
tests/test_command_lines.py.
"""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import FlowMatchEulerDiscreteScheduler

from diffusers_lightningdit import (
    AutoencoderVAVAE,
    LightningDiTPipeline,
    LightningDiTTransformer2DModel,
    commands,
)
from diffusers_lightningdit.settings import make_config
from diffusers_lightningdit.training.vavae.config import VAVAETrainingConfig

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
ELSEWHERE = {
    "hub.md": "tests/hub/test_hub.py",
    "pipelines.md": "tests/pipelines/test_examples.py",
    "tutorial.md": "tests/hub/test_tutorial.py",
}
BLOCK = re.compile(r"^(?:<!-- not run: ([^\n]+) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LANGUAGES = {"bibtex", "python", "bash", "json", "yaml", "text"}
# Beginnings of lines of a shell that tests/test_command_lines.py reads, and the others with what is known of them.
COMMAND_LINE = re.compile(r"accelerate launch|diffusers-lightningdit|python")
SHELL = re.compile(r"pip install|git clone |source <\(diffusers-lightningdit completion")
CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ox")


def blocks(page: Path) -> list[tuple[str | None, str, str]]:
    """(reason not to run it, language, code) of each block of a page."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def named(page: Path) -> str:
    return page.name


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_block_says_its_language(page):
    found = blocks(page)
    assert 2 * len(found) == len(re.findall(r"^ *```", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert {language for _, language, _ in found} <= LANGUAGES


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A folder with tiny models under the names of the pages, as a reader would have after the command lines."""
    folder = tmp_path_factory.mktemp("pages")
    torch.manual_seed(0)
    sizes = {"sample_size": 4, "in_channels": 4, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8}
    vae = {"block_out_channels": (8, 8), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4}
    pipeline = LightningDiTPipeline(
        LightningDiTTransformer2DModel(**sizes, num_classes=len(CLASSES)),
        AutoencoderVAVAE(**vae, latents_mean=[0.0] * 4, latents_std=[1.0] * 4),
        FlowMatchEulerDiscreteScheduler(shift=2.0),
        id2label=dict(enumerate(CLASSES)),
        sampling_recipe={"num_inference_steps": 2, "guidance_scale": 1.0},
    )
    cards = ("model_cards/lightningdit-digits", "model_cards/lightningdit-digits-few-step")
    for name in (*cards, "model", "FOLDER_OR_HUB_ID"):
        pipeline.save_pretrained(folder / name)
    for name in ("change3d-buildings", "change3d-buildings-captions"):
        (folder / "model_cards" / name).symlink_to(REPOSITORY / "model_cards" / name)
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipeline.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"]))
    layers = get_peft_model_state_dict(pipeline.transformer)
    LightningDiTPipeline.save_lora_weights(folder / "lora", transformer_lora_layers=layers)
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in ELSEWHERE], ids=named)
def test_python_of_a_page_runs(page, checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    namespace = {}
    for number, (reason, language, code) in enumerate(blocks(page), start=1):
        if language == "python" and not reason:
            exec(compile(code, f"{page.name}, block {number}", "exec"), namespace)


def test_enough_blocks_are_run_here():
    run = [code for page in PAGES for reason, language, code in blocks(page) if language == "python" and not reason]
    marked = [reason for page in PAGES for reason, _, _ in blocks(page) if reason]
    assert len(run) > 25 and len(marked) <= 4


@pytest.mark.parametrize("name", ELSEWHERE)
def test_pages_that_are_run_elsewhere_are_read_there(name):
    test = REPOSITORY / ELSEWHERE[name]
    readers = [test, test.parent / "conftest.py"]
    assert any(f'"{name}"' in reader.read_text(encoding="utf-8") for reader in readers)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_other_blocks_are_what_they_say(page):
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for _, language, code in blocks(page):
        if language == "json":
            result = json.loads(code)
            assert result["command"] in commands.COMMANDS
        elif language == "yaml":
            given = {"data": "x", "output_dir": "y", "foundation_model": "m", "lpips": "l"}
            make_config(VAVAETrainingConfig, {**given, **yaml.safe_load(code)})
        elif language == "bash":
            for line in re.sub(r"\\\n\s*", "", code).splitlines():
                target = re.match(r"make ([\w-]+)", line)
                if target is not None:
                    assert re.search(rf"^{target[1]}:", makefile, re.MULTILINE), line
                elif line.strip() and not line.startswith("#"):
                    assert COMMAND_LINE.match(line) or SHELL.match(line), line
