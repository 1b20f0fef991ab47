"""Networks for a few steps: the numbers of FACM, a second time, and what is said of more steps."""

import json
import logging
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from diffusers.schedulers import scheduling_flow_match_euler_discrete
from safetensors.torch import load_file

from diffusers_lightningdit import FlowMatchUCGMScheduler, LightningDiTPipeline
from diffusers_lightningdit.original import OriginalConfig, build_pipeline, load_transformer, transformer_to_original
from diffusers_lightningdit.pipelines import LightningDiTImg2ImgPipeline
from diffusers_lightningdit.pipelines.modular_lightningdit import LightningDiTBlocks

CONFIGS = Path(__file__).parents[2] / "conversion/configs"


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(actual, expected.to(actual), atol=tolerance, rtol=0)


def few_steps(**settings) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(stochastic_sampling=True, **settings)


def times_of(pipe) -> list[tuple[float, int, float | None]]:
    """Record (t, batch size, second time) of each evaluation from now on."""
    seen = []

    def record(module, args, kwargs):
        second = kwargs.get("second_timestep")
        second = None if second is None else second[0].item()
        seen.append((round(kwargs["timestep"][0].item(), 6), len(kwargs["class_labels"]), second))

    pipe.transformer.register_forward_pre_hook(record, with_kwargs=True)
    return seen


# ---------------------------------------------------------------------------------------------------------------------
# FACM's numbers
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["facm", "facm/r_embedder"])
def facm(request, golden_frontier, make_pipeline, make_vae, monkeypatch):
    """(pipeline, tensors, facts, a function that lets the scheduler draw recorded noise)"""
    folder = golden_frontier(f"{request.param}/sampler.json").parent
    transformer = load_transformer(golden_frontier(f"{request.param}/ckpt_ema_only.pt"))
    vae = make_vae(latent_channels=8, latents_mean=None, latents_std=None)
    pipe = make_pipeline(transformer=transformer, vae=vae, scheduler=few_steps(), id2label=None)

    def let_draw(noise: torch.Tensor) -> None:
        drawn = iter([*noise, torch.full_like(noise[:1].sum(0), 7.0)])  # the last is multiplied by 0
        monkeypatch.setattr(scheduling_flow_match_euler_discrete, "randn_tensor", lambda *_, **__: next(drawn))

    return pipe, load_file(folder / "sampler.safetensors"), json.loads((folder / "sampler.json").read_text()), let_draw


@pytest.mark.parametrize("name", ["n1", "n2", "n4", "n2_cfg", "n4_cfg"])
def test_few_steps_are_facms(facm, name):
    pipe, tensors, facts, let_draw = facm
    facts = facts[name]
    let_draw(tensors.get(f"{name}.eps", torch.zeros(0, *tensors["z"].shape)))
    seen = times_of(pipe)
    interval = (facts["guidance_low"], facts["guidance_high"]) if "cfg_scale" in facts else None
    drawn = pipe(
        tensors["y"].tolist(),
        num_inference_steps=facts["steps"],
        guidance_scale=facts.get("cfg_scale", 1.0),
        guidance_interval=interval,
        latents=tensors["z"],
        output_type="latent",
    ).images
    close(drawn, tensors[f"{name}.out"])
    has_second = pipe.transformer.config.second_time_embedding
    expected = [(t, batch, 1.0 if has_second else None) for t, _, batch in facts["calls_t_r_batch"]]
    assert seen == [(pytest.approx(t), *others) for t, *others in expected]


@pytest.mark.parametrize("name", ["euler4", "euler5_cfg_shift", "heun4_cfg_shift"])
def test_the_flow_of_the_same_network(facm, name):
    """With another scheduler it is evaluated as a flow: the second time is the first."""
    pipe, tensors, facts, _ = facm
    facts = facts[name]
    scheduler = FlowMatchHeunDiscreteScheduler if facts.get("heun") else FlowMatchEulerDiscreteScheduler
    pipe.scheduler = scheduler(shift=1 / facts.get("timestep_shift", 1.0))
    if facts.get("heun"):  # whose grid has N equal steps from 1 to 0 with this end; its own has a tiny last step
        pipe.scheduler.sigma_min = 1 / facts["num_steps"]
    seen = times_of(pipe)
    drawn = pipe(
        tensors["y"].tolist(),
        num_inference_steps=facts["num_steps"],
        guidance_scale=facts.get("cfg_scale", 1.0),
        guidance_interval=(facts.get("guidance_low", 0.0), 1.0),
        latents=tensors["z"],
        output_type="latent",
    ).images
    close(drawn, tensors[f"{name}.out"])
    assert len(seen) == pipe.scheduler.order * (facts["num_steps"] - 1) + 1 and {second for *_, second in seen} == {
        None
    }


@pytest.mark.parametrize("name", ["n1", "n2", "n4"])
def test_the_scheduler_is_called_as_it_was_recorded(facm, name):
    """The grid is that of exact sigmas, with which the scheduler gives FACM's numbers."""
    pipe, tensors, facts, let_draw = facm
    facts = facts[name]
    let_draw(tensors.get(f"{name}.eps", torch.zeros(0, *tensors["z"].shape)))
    settings = {"num_inference_steps": facts["steps"], "guidance_scale": 1.0, "output_type": "latent"}
    grids = []

    def keep(pipe, step, timestep, tensors):
        grids.append((pipe.scheduler.sigmas.tolist(), pipe.scheduler.timesteps.tolist()))

    drawn = pipe(tensors["y"].tolist(), latents=tensors["z"], callback_on_step_end=keep, **settings).images
    close(drawn, tensors[f"{name}.out_diffusers"], 1e-5)
    assert grids[0] == (facts["diffusers_sigmas"], facts["diffusers_timesteps"])


# ---------------------------------------------------------------------------------------------------------------------
# Pipelines
# ---------------------------------------------------------------------------------------------------------------------


def test_a_converted_checkpoint_draws_in_two_evaluations(make_transformer, make_vae, tmp_path):
    """From the authors' layout of files to an image of a class by its name, also saved and loaded."""
    model = make_transformer(num_classes=1000, use_qk_norm=True, in_channels=32, second_time_embedding=True)
    weights = transformer_to_original(dict(model.config), model.state_dict())
    emas = {f"ema_models.1.ema_model.{key}": value for key, value in weights.items()}
    torch.save({"model": {key: value * 0 for key, value in weights.items()}, "emas": emas}, tmp_path / "facm.pt")
    yaml = OriginalConfig.read(CONFIGS / "facm_xl_2_steps.yaml").values
    yaml = OriginalConfig({name: yaml[name] for name in ("transport", "sample")})
    vae = make_vae(latent_channels=32, latents_mean=None, latents_std=None)
    pipe = build_pipeline(load_transformer(tmp_path / "facm.pt"), vae, yaml)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path / "pipe")
    loaded = LightningDiTPipeline.from_pretrained(tmp_path / "pipe")
    loaded.set_progress_bar_config(disable=True)
    images = []
    for each in (pipe, loaded):
        seen = times_of(each)
        images.append(each("golden retriever", generator=torch.Generator().manual_seed(0), output_type="pt").images)
        assert seen == [(0.0, 1, 1.0), (0.5, 1, 1.0)]
    assert torch.equal(*images)


def test_one_generator_for_each_image(make_pipeline):
    """The noise between the steps, too, is that of the image's own generator."""
    pipe = make_pipeline(scheduler=few_steps())

    def draw(labels, seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipe(
            labels, num_inference_steps=3, guidance_scale=1.0, generator=generators, output_type="latent"
        ).images

    together = draw([0, 3], [5, 6])
    for i, label in enumerate((0, 3)):
        close(together[i : i + 1], draw([label], [5 + i]), 1e-6)
    assert not torch.allclose(draw([0], [5]), draw([0], [6]), atol=1e-2)


def test_noise_is_new_after_each_step(make_pipeline):
    """With the same initial noise, two generators give two images."""
    pipe = make_pipeline(scheduler=few_steps())
    noise = torch.ones(1, 4, 4, 4)
    settings = {"num_inference_steps": 2, "guidance_scale": 1.0, "latents": noise, "output_type": "latent"}
    first, second = (pipe(0, generator=torch.Generator().manual_seed(seed), **settings).images for seed in (0, 1))
    assert not torch.allclose(first, second, atol=1e-2)


@pytest.fixture
def warnings_of_diffusers(caplog):
    logger = logging.getLogger("diffusers_lightningdit")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def test_more_steps_than_distilled_for_are_said(make_pipeline, warnings_of_diffusers):
    recipe = {"num_inference_steps": 2, "guidance_scale": 1.0}
    pipe = make_pipeline(scheduler=few_steps(), sampling_recipe=recipe)
    pipe(0, output_type="latent")
    pipe(0, num_inference_steps=1, output_type="latent")
    assert not warnings_of_diffusers.records
    seen = times_of(pipe)
    pipe(0, num_inference_steps=4, output_type="latent")
    assert "`num_inference_steps` is 4, and the transformer was distilled for 2" in warnings_of_diffusers.text
    assert len(seen) == 4
    warnings_of_diffusers.clear()
    blocks = LightningDiTBlocks().init_pipeline()
    blocks.update_components(transformer=pipe.transformer, vae=pipe.vae, scheduler=pipe.scheduler)
    blocks.register_to_config(id2label=pipe.id2label, sampling_recipe=recipe)
    blocks(class_labels=0, num_inference_steps=3, output_type="latent")
    assert "`num_inference_steps` is 3, and the transformer was distilled for 2" in warnings_of_diffusers.text
    warnings_of_diffusers.clear()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()  # as a flow there is no such number
    pipe(0, num_inference_steps=4, output_type="latent")
    assert not warnings_of_diffusers.records


def test_image_to_image_in_few_steps(make_pipeline, make_transformer):
    transformer = make_transformer(second_time_embedding=True)
    pipe = make_pipeline(transformer=transformer, scheduler=few_steps())
    edit = LightningDiTImg2ImgPipeline.from_pipe(pipe)
    edit.set_progress_bar_config(disable=True)
    seen = times_of(edit)
    image = torch.full((3, 8, 8), 0.5)
    edit(1, image=image, strength=0.5, num_inference_steps=2, guidance_scale=1.0, output_type="latent")
    assert seen == [(0.5, 1, 1.0)]


def test_a_solver_needs_velocities(make_pipeline, make_transformer):
    """A network with a second time has them; of one without, jumps would be taken for them."""
    settings = {"ode_method": "heun2", "num_inference_steps": 4, "guidance_scale": 1.0, "output_type": "latent"}
    settings["latents"] = torch.randn(1, 4, 4, 4)
    with pytest.raises(ValueError, match="`ode_method` is 'heun2'; required: None for a network for a few steps"):
        make_pipeline(scheduler=few_steps())(0, **settings)
    transformer = make_transformer(second_time_embedding=True)
    student = make_pipeline(transformer=transformer, scheduler=few_steps())
    flow = make_pipeline(transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler())
    close(student(0, **settings).images, flow(0, **settings).images, 0)


@pytest.mark.parametrize("solver_order", [1, 2])
def test_image_to_image_with_ucgm(make_pipeline, solver_order):
    """From noise alone it is generation; from an image it begins at a point of the grid."""
    pipe = make_pipeline(scheduler=FlowMatchUCGMScheduler(solver_order=solver_order))
    edit = LightningDiTImg2ImgPipeline.from_pipe(pipe)
    edit.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 9, "latents": torch.randn(1, 4, 4, 4), "output_type": "latent"}
    image = torch.full((3, 8, 8), 0.5)
    close(edit(1, image=image, strength=1.0, **settings).images, pipe(1, **settings).images, 1e-5)
    seen = times_of(edit)
    edit(1, image=image, strength=0.5, guidance_scale=1.0, **settings)
    grid = FlowMatchUCGMScheduler().time_grid(9 if solver_order == 1 else 5)
    assert seen[0][0] == pytest.approx(grid[grid >= 0.5].min().item(), abs=1e-5)


def test_the_second_time_follows_the_scheduler(make_pipeline, make_transformer):
    pipe = make_pipeline(transformer=make_transformer(second_time_embedding=True))
    seen = times_of(pipe)
    for scheduler in (FlowMatchUCGMScheduler(stochastic_ratio=1.0), FlowMatchUCGMScheduler(), few_steps()):
        pipe.scheduler = scheduler
        pipe(0, num_inference_steps=1, guidance_scale=1.0, output_type="latent")
    assert [second for _, _, second in seen] == [1.0, None, 1.0]
