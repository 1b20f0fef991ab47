"""A Hub on the loopback interface, and processes with and without the package that talk to it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from loopback_hub import Hub

from diffusers_lightningdit import AutoencoderVAVAE, LightningDiTPipeline, LightningDiTTransformer2DModel

HERE = Path(__file__).parent
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MEAN, STD = [0.1, -0.2, 0.3, 0.0], [1.0, 2.0, 0.5, 1.5]
VAE = {"block_out_channels": (8, 8), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4}


def redraw(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Non-zero weights: a freshly initialised transformer is zero everywhere."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="session")
def tiny_pipeline() -> LightningDiTPipeline:
    config = {"sample_size": 4, "in_channels": 4, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8}
    return LightningDiTPipeline(
        redraw(LightningDiTTransformer2DModel(**config, num_classes=10), seed=1),
        redraw(AutoencoderVAVAE(**VAE, latents_mean=MEAN, latents_std=STD), seed=2),
        FlowMatchEulerDiscreteScheduler(shift=2.0),
        id2label=dict(enumerate(DIGITS)),
        sampling_recipe={"num_inference_steps": 3, "guidance_scale": 2.0},
    )


@pytest.fixture(scope="session")
def workplace(tmp_path_factory, tiny_pipeline) -> Path:
    """The working folder of the processes, with the checkpoint that the first block of the documentation loads."""
    folder = tmp_path_factory.mktemp("hub")
    tiny_pipeline.save_pretrained(folder / "model_cards" / "lightningdit-digits")
    return folder


@pytest.fixture(scope="session")
def autoencoder_kl() -> AutoencoderKL:
    """The same network as a tiny AutoencoderVAVAE, in the form in which others publish it."""
    types = {
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    }
    return redraw(AutoencoderKL(**VAE, **types, latents_mean=MEAN, latents_std=STD), seed=3)


@pytest.fixture(scope="session")
def hub():
    with Hub() as hub:
        yield hub


@pytest.fixture(scope="session")
def run_blocks(workplace):
    """run_blocks(endpoint, {name: code}, with_package) -> {name: outcome}, in a new process."""

    def run(endpoint: str, blocks: dict[str, str], with_package: bool) -> dict[str, dict]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        settings = {
            "HF_ENDPOINT": endpoint,
            "HF_HUB_OFFLINE": "0",  # only the loopback server is reached, by HF_ENDPOINT
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_TOKEN": "hf_of_nobody",
            "HF_HOME": str(workplace / ("home_with" if with_package else "home_without")),
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, str(HERE / "run_blocks.py"), *([] if with_package else ["--without-package"])]
        result = subprocess.run(
            command, cwd=workplace, env=kept | settings, input=json.dumps(blocks), capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return run


@pytest.fixture(scope="session")
def documented(repository) -> dict[str, str]:
    """{"heading / number": code} of every block of Python in docs/hub.md, in the order of the page."""
    blocks = {}
    for section in (repository / "docs" / "hub.md").read_text(encoding="utf-8").split("\n## ")[1:]:
        heading = section.partition("\n")[0]
        section = re.sub(r"<!-- not run: [^\n]* -->\n```python\n.*?```", "", section, flags=re.DOTALL)
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL), start=1):
            blocks[f"{heading} / {number}"] = code
    return blocks
