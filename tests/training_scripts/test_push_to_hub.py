"""Results that the training scripts upload, to a Hub on the loopback interface."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from tiny_change3d import write_folders

HUB_TESTS = Path(__file__).parents[1] / "hub"
RUN_ALL = """
import sys
sys.path[:0] = [sys.argv[1]]
import train_change3d, train_lightningdit, train_lightningdit_lora
train_lightningdit.main(["--config", *sys.argv[2].split(), "push_to_hub=true", "hub_model_id=user/transformer"])
train_lightningdit_lora.main([*sys.argv[3].split(), "push_to_hub=true", "hub_model_id=user/lora"])
train_change3d.main([*sys.argv[4].split(), "push_to_hub=true", "hub_model_id=user/change3d"])
"""


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.syspath_prepend(str(HUB_TESTS))
    from loopback_hub import Hub

    with Hub() as hub:
        yield hub


def test_results_are_uploaded(hub, data, trained_vae, transformer_recipe, tmp_path):
    """By three scripts in one new process, because huggingface_hub reads the Hub's address when it is imported."""
    pipeline, lora = tmp_path / "pipeline", tmp_path / "lora"
    full = f"{transformer_recipe} data={data} vae={trained_vae} output_dir={pipeline} checkpointing_steps=null"
    tuned = (
        f"pipeline={pipeline} data={data} output_dir={lora} resolution=8 global_batch_size=4 max_train_steps=1 rank=2"
    )
    changes = (
        f"data={write_folders(tmp_path / 'pairs', 'binary', 2)} output_dir={tmp_path / 'change'} task=binary "
        "model.sample_size=32 model.width_factor=0.5 model.depth_factor=0.5 global_batch_size=2 max_train_steps=1 "
        "checkpointing_steps=null save_dtype=float16"
    )
    settings = {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",  # only the loopback server is reached, by HF_ENDPOINT
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_TOKEN": "hf_of_nobody",
        "HF_HOME": str(tmp_path / "home"),
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }
    scripts = str(Path(__file__).parents[2] / "training_scripts")
    finished = subprocess.run(
        [sys.executable, "-c", RUN_ALL, scripts, full, tuned, changes],
        capture_output=True,
        text=True,
        env={**os.environ, **settings},
    )
    assert finished.returncode == 0, finished.stderr
    weights = "transformer/diffusion_pytorch_model.safetensors"
    uploaded = hub.repositories["user/transformer"].files
    assert uploaded[weights] == (pipeline / weights).read_bytes()
    assert {"model_index.json", "vae/config.json", "scheduler/scheduler_config.json", "pipeline.py"} <= uploaded.keys()
    card = uploaded["README.md"].decode()
    assert card == (pipeline / "README.md").read_text(encoding="utf-8")
    assert 'repository = "user/transformer"' in card and "| `global_batch_size` | `" in card
    assert str(tmp_path) not in card and str(data) not in card, "paths of the machine"
    assert "metrics.jsonl" not in uploaded
    uploaded = hub.repositories["user/lora"].files
    assert uploaded["pytorch_lora_weights.safetensors"] == (lora / "pytorch_lora_weights.safetensors").read_bytes()
    assert uploaded.keys() == {"pytorch_lora_weights.safetensors", "README.md"}
    uploaded = hub.repositories["user/change3d"].files
    assert {
        "model_index.json",
        "model/config.json",
        "model/diffusers_lightningdit.py",
        "pipeline.py",
    } <= uploaded.keys()
    assert 'repository = "user/change3d"' in uploaded["README.md"].decode()
    weights = load(uploaded["model/diffusion_pytorch_model.safetensors"])
    assert {value.dtype for name, value in weights.items() if "num_batches" not in name} == {torch.float16}
