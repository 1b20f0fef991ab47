"""The pipeline with FlowMatchSDEScheduler; the scheduler by itself is tested in tests/schedulers."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline

from diffusers_lightningdit import FlowMatchSDEScheduler


@pytest.mark.parametrize("solver_type", ["euler", "heun"])
def test_in_the_pipeline(pipe, solver_type):
    """Guided images; each reproduced by its own generator, independent of its batch; different ones by others."""
    pipe.scheduler = FlowMatchSDEScheduler(solver_type=solver_type)

    def draw(labels, seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        settings = {"latents": torch.zeros(len(labels), 4, 4, 4), "num_inference_steps": 3, "output_type": "latent"}
        return pipe(labels, generator=generators, guidance_scale=2.0, **settings).images

    latents = draw([0, 1], [3, 4])
    assert latents.isfinite().all()
    torch.testing.assert_close(draw([1], [4]), latents[1:], rtol=0, atol=1e-5)
    assert not torch.allclose(draw([1], [5]), latents[1:], atol=1e-2)


def test_converges_to_the_flow_where_diffusion_vanishes(pipe):
    noise = torch.randn(2, 4, 4, 4)
    settings = {"latents": noise, "num_inference_steps": 100, "guidance_scale": 2.0, "output_type": "latent"}
    expected = pipe([0, 1], ode_method="dopri5", **settings).images
    pipe.scheduler = FlowMatchSDEScheduler(solver_type="heun", diffusion_norm=0.0, last_step=None)
    torch.testing.assert_close(pipe([0, 1], **settings).images, expected, rtol=0, atol=2e-3)


def test_saves_and_loads_with_its_pipeline(pipe, tmp_path):
    pipe.scheduler = FlowMatchSDEScheduler(solver_type="heun", last_step=None, diffusion_norm=0.5)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers_lightningdit", "FlowMatchSDEScheduler"]
    loaded = DiffusionPipeline.from_pretrained(tmp_path).scheduler
    assert type(loaded) is FlowMatchSDEScheduler
    assert loaded.config.items() >= {"solver_type": "heun", "last_step": None, "diffusion_norm": 0.5}.items()


@pytest.mark.gpu
@pytest.mark.parametrize("solver_type", ["euler", "heun"])
def test_on_a_gpu_equals_cpu(make_pipeline, solver_type):
    settings = {"latents": torch.randn(2, 4, 4, 4), "num_inference_steps": 4, "output_type": "pt"}

    def draw(device):
        pipe = make_pipeline(scheduler=FlowMatchSDEScheduler(solver_type=solver_type)).to(device)
        return pipe([0, 1], generator=torch.Generator().manual_seed(0), **settings).images.cpu()

    torch.testing.assert_close(draw("cuda"), draw("cpu"), rtol=0, atol=1e-3)
