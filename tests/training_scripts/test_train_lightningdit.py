import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import train_lightningdit
from diffusers import DiffusionPipeline

from diffusers_lightningdit import AutoencoderVAVAE, LightningDiTTransformer2DModel


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory, data, trained_vae, transformer_recipe) -> str:
    """The folder that a run leaves, with latents in memory."""
    folder = str(tmp_path_factory.mktemp("trained") / "pipeline")
    run(transformer_recipe, data, trained_vae, folder, "latents_in_memory=true")
    return folder


def run(recipe: str, data: str, vae: str, output_dir: str, *settings: str) -> None:
    train_lightningdit.main(["--config", recipe, f"data={data}", f"vae={vae}", f"output_dir={output_dir}", *settings])


def test_the_pipeline_folder_loads_and_draws(pipeline_folder):
    pipeline = DiffusionPipeline.from_pretrained(pipeline_folder)
    assert type(pipeline).__name__ == "LightningDiTPipeline"
    assert pipeline.transformer.config.in_channels == 4
    assert pipeline.transformer.config.sample_size == 4
    assert pipeline.transformer.config.num_classes == 2
    assert pipeline.scheduler.config.shift == 2.0  # of the original's shift 0.5
    index = json.loads((Path(pipeline_folder) / "model_index.json").read_text())
    assert index["id2label"] == {"0": "cat", "1": "dog"}
    assert index["sampling_recipe"] == {
        "num_inference_steps": 3,
        "guidance_scale": 1.5,
        "guidance_interval": [0.25, 1.0],
        "guidance_channels": None,
    }
    images = pipeline(["cat", "dog"], output_type="pt").images
    assert images.shape == (2, 3, 8, 8)
    assert images.isfinite().all()


def test_every_weight_of_the_transformer_is_trained_and_none_of_the_vae(
    pipeline_folder, trained_vae, tiny_transformer_arguments
):
    pipeline = DiffusionPipeline.from_pretrained(pipeline_folder)
    torch.manual_seed(0)  # as the script
    initial = LightningDiTTransformer2DModel(sample_size=4, in_channels=4, num_classes=2, **tiny_transformer_arguments)
    trained = dict(pipeline.transformer.named_parameters())
    for name, weight in initial.named_parameters():
        # Adam moves a weight by at most about the learning rate, 1e-2, a step
        assert 0 < (trained[name] - weight).abs().max() < 4e-2, name
    for name, weight in AutoencoderVAVAE.from_pretrained(trained_vae).state_dict().items():
        assert torch.equal(weight, pipeline.vae.state_dict()[name]), name
    assert pipeline.vae.config.latents_std == AutoencoderVAVAE.load_config(trained_vae)["latents_std"]


def test_the_saved_weights_are_the_moving_average(pipeline_folder, data, trained_vae, transformer_recipe, tmp_path):
    run(transformer_recipe, data, trained_vae, tmp_path / "last", "latents_in_memory=true", "ema_decay=0")
    average = DiffusionPipeline.from_pretrained(pipeline_folder).transformer.proj_out.weight
    last = DiffusionPipeline.from_pretrained(tmp_path / "last").transformer.proj_out.weight
    assert average.norm() < 0.95 * last.norm()  # they start at zero, and the average lags behind


def test_latents_encoded_on_the_fly(data, trained_vae, transformer_recipe, tmp_path):
    folder = tmp_path / "pipeline"
    settings = ["time_sampling=uniform", "use_cosine_loss=false", "lr_scheduler=cosine", "mixed_precision=bf16"]
    run(transformer_recipe, data, trained_vae, folder, "save_dtype=float16", *settings)
    pipeline = DiffusionPipeline.from_pretrained(folder)
    assert pipeline.transformer.dtype == torch.float32  # float16 is the storage's type only
    assert pipeline("dog", output_type="pt").images.isfinite().all()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("guidance=2", "`guidance` is no key of LightningDiTTrainingConfig. Did you mean"),
        ("transformer.depth=2", "`transformer.depth` is no key of LightningDiTTransformer2DModel"),
        ("transformer.activation_fn=relu", "`activation_fn` is 'relu'; required"),
        ("resolution=9", "`resolution` is 9; required: a multiple of the VAE's factor, 2"),
        ("vae=/no/such/folder", "`vae` is '/no/such/folder'; required"),
        ("label_column=image", "`label_column` is 'image'; required: a ClassLabel column"),
        ("time_sampling=cosine", "`time_sampling` is 'cosine'; required: one of logit_normal, uniform"),
        ("save_dtype=fp16", "`save_dtype` is 'fp16'; required: one of float32, bfloat16, float16"),
        ("guidance_interval=[0.5, 0.2]", "`guidance_interval` is [0.5, 0.2]; required"),
        ("guidance_channels=5", "`guidance_channels` is 5; required"),
        ("timestep_shift=0", "`timestep_shift` is 0.0; required"),
        (
            "transformer.in_channels=8",
            "`transformer.in_channels` is given; required: left out, it follows from data and VAE",
        ),
        ("max_grad_norm=0", "`max_grad_norm` is 0.0; required"),
        ("ema_decay=2", "`ema_decay` is 2.0; required"),
        ("global_batch_size=9", "`global_batch_size` is 9; required: at most the 8 samples"),
    ],
)
def test_bad_input_is_one_line_and_touches_nothing(
    data, trained_vae, transformer_recipe, tmp_path, capsys, setting, message
):
    output_dir = tmp_path / "pipeline"
    with pytest.raises(SystemExit) as stop:
        run(transformer_recipe, data, trained_vae, output_dir, setting)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2
    assert error.startswith("error: ")
    assert message in error
    assert not output_dir.exists()


def test_as_a_command(data, tmp_path):
    """Once as users call it: no traceback, exit status 2."""
    command = [sys.executable, train_lightningdit.__file__, f"data={data}", "vae=x"]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 2
    error = "error: `output_dir` is not given; required: output_dir=... or a line of the recipe."
    assert result.stderr.splitlines()[-1] == error  # other packages may warn before it
