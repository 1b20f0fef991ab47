"""The conversion commands of docs/few_steps.md run, on tiny files of the layouts that they are for."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from test_scripts import TO_DIFFUSERS

from diffusers_lightningdit import AutoencoderVAVAE, LightningDiTTransformer2DModel
from diffusers_lightningdit.files import read_checkpoint
from diffusers_lightningdit.original import autoencoder_to_original
from diffusers_lightningdit.original.transformer import transformer_config

PAGE = Path(__file__).parents[2] / "docs" / "few_steps.md"
# the recorded file, the block before the layer of internal guidance, and the evaluations that the pipeline takes
FILES = {
    "facm.pt": ("facm/ckpt_ema_only.pt", None, 2),
    "internal-guidance.pt": ("internal_guidance/ckpt_ema_only.pt", 1, 2 * 124),
    "vfm-vae-generator.pt": ("facm/ckpt_stage1_teacher.pt", None, None),
}


def documented_commands() -> dict[str, list[str]]:
    """The arguments of each command of the page that converts, by the name of its checkpoint."""
    section = PAGE.read_text(encoding="utf-8").partition("## Converting the public checkpoints")[2]
    lines = re.search(r"```bash\n(.*?)```", section, re.DOTALL)[1].replace("\\\n", " ").splitlines()
    commands = [shlex.split(line) for line in lines if not line.startswith("#")]
    assert {tuple(words[:2]) for words in commands} == {("python", "conversion/convert_lightningdit_to_diffusers.py")}
    return {words[words.index("--checkpoint") + 1]: words[2:] for words in commands}


@pytest.fixture
def files(golden_frontier, repository, tmp_path, monkeypatch):
    """Every file that the commands name, in the working folder; the recipes have the size of the recorded networks."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conversion/configs").mkdir(parents=True)
    for name, words in documented_commands().items():
        file, layer, _ = FILES[name]
        (tmp_path / name).write_bytes(golden_frontier(file).read_bytes())
        config = transformer_config(read_checkpoint(name)["ema"], internal_guidance_layer=layer)
        width = config["num_attention_heads"] * config["attention_head_dim"]
        recipe = words[words.index("--config") + 1]
        values = yaml.safe_load((repository / recipe).read_text(encoding="utf-8"))
        values["data"] |= {"image_size": 16 * config["sample_size"], "num_classes": config["num_classes"]}
        values["model"] |= {"in_chans": config["in_channels"]}
        values["model"] |= {"encoder_depth": layer} if layer else {}
        values["model"]["x_test_size"] = {
            "depth": config["num_layers"],
            "hidden_size": width,
            "num_heads": config["num_attention_heads"],
        }
        (tmp_path / recipe).write_text(yaml.safe_dump(values))
    torch.manual_seed(0)
    vae = AutoencoderVAVAE(block_out_channels=(32,) * 5, layers_per_block=1, latent_channels=8)
    weights = autoencoder_to_original(dict(vae.config), vae.state_dict())
    torch.save({"state_dict": weights}, "vavae-imagenet256-f16d32-dinov2.pt")
    statistics = {"mean": torch.randn(1, 8, 1, 1), "std": torch.ones(1, 8, 1, 1)}
    torch.save(statistics, "latents_stats.pt")


def test_the_page_converts_these():
    assert documented_commands().keys() == FILES.keys()


@pytest.mark.parametrize("name", FILES)
def test_documented_conversions(files, name):
    words = documented_commands()[name]
    TO_DIFFUSERS.main(words)
    folder, num_evaluations = words[words.index("--output_dir") + 1], FILES[name][2]
    if num_evaluations is None:
        transformer = LightningDiTTransformer2DModel.from_pretrained(folder)
        assert transformer.config.use_qk_norm
        return
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    seen = []
    pipe.transformer.register_forward_pre_hook(lambda *_: seen.append(1))
    images = pipe(3, generator=torch.Generator().manual_seed(0), output_type="pt").images
    assert len(seen) == num_evaluations and images.shape == (1, 3, 96, 96) and images.isfinite().all()
    again = LightningDiTTransformer2DModel.from_single_file(
        name, **({"internal_guidance_layer": FILES[name][1]} if FILES[name][1] else {})
    )
    assert all(torch.equal(again.state_dict()[key], value) for key, value in pipe.transformer.state_dict().items())
