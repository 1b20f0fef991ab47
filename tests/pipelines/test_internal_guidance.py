"""Internal guidance in pipelines: the authors' numbers, and together with what else there is."""

import json

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from safetensors.torch import load_file

from diffusers_lightningdit.original import OriginalConfig, load_transformer
from diffusers_lightningdit.pipelines import (
    LightningDiTImg2ImgPipeline,
    LightningDiTInterpolationPipeline,
    pipeline_lightningdit,
)
from diffusers_lightningdit.pipelines.lightningdit_sampling import guide, in_interval, predict_velocity


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


# ---------------------------------------------------------------------------------------------------------------------
# The authors' numbers
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(golden_frontier):
    return golden_frontier("internal_guidance/guided.json").parent


@pytest.fixture
def transformer(folder):
    return load_transformer(folder / "ckpt_ema_only.pt", config=folder / "config.yaml")


@torch.no_grad()
def test_guided_velocities(folder, transformer):
    tensors = load_file(folder / "guided.safetensors")
    facts = json.loads((folder / "guided.json").read_text())
    assert len(facts) == 18
    for name, fact in facts.items():
        t, end = fact["t"], fact["ig_interval_end"]
        scale = fact["w_ig"] if end > 0 and in_interval(t, (0, end)) else None
        x, y = tensors["x"][:3], tensors["y"]
        ids = y if name.startswith("cfg") else y[:3]
        velocity = predict_velocity(transformer, x, t, ids, internal_guidance_scale=scale)
        if name.startswith("cfg"):
            conditional, unconditional = velocity.chunk(2)
            is_off = fact["cfg_interval"] is True and t < fact["cfg_interval_start"]
            velocity = conditional if is_off else guide(conditional, unconditional, fact["cfg_scale"], None)
        close(velocity, tensors[f"{name}.out"][:3])


@pytest.mark.parametrize("name", ["heun_cfg_ig", "heun_ig", "euler_cfg_ig", "euler_ig_noshift"])
def test_sampling(folder, transformer, make_pipeline, make_vae, monkeypatch, name):
    """Whole runs, by the recipe that the authors' YAML is converted to."""
    tensors = load_file(folder / "sampling.safetensors")
    fact = json.loads((folder / "sampling.json").read_text())[name]
    sample = {key: value for key, value in fact.items() if key != "evaluation_times" and value is not None}
    yaml = OriginalConfig({"sample": sample})
    vae = make_vae(latent_channels=8, latents_mean=None, latents_std=None)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=yaml.scheduler_shift)
    recipe = yaml.sampling_recipe(8)
    pipe = make_pipeline(transformer=transformer, vae=vae, scheduler=scheduler, id2label=None, sampling_recipe=recipe)
    times, states = [], []
    transformer.register_forward_pre_hook(
        lambda module, args, kwargs: times.append(kwargs["timestep"][0].item()), with_kwargs=True
    )
    settings = {}
    if "euler" in name:

        def keep(pipe, step, timestep, tensors):
            states.append(tensors["latents"])

        settings["callback_on_step_end"] = keep
    solve_ode = pipeline_lightningdit.solve_ode

    def keep_all(derivative, state, grid, *arguments):
        close(grid, tensors[f"{name}.time_grid"], 1e-6)
        solved = solve_ode(derivative, state, grid, *arguments)
        states.extend(solved[1:, : len(tensors["z"])])
        return solved

    monkeypatch.setattr(pipeline_lightningdit, "solve_ode", keep_all)
    drawn = pipe(tensors["y"].tolist(), latents=tensors["z"], output_type="latent", **settings).images
    close(drawn, tensors[f"{name}.final"])
    close(torch.tensor(times), torch.tensor(fact["evaluation_times"]), 1e-5)
    close(torch.stack(states), tensors[f"{name}.trajectory"][1:])


# ---------------------------------------------------------------------------------------------------------------------
# Pipelines
# ---------------------------------------------------------------------------------------------------------------------

SETTINGS = {"num_inference_steps": 6, "output_type": "latent"}
INTERNAL = {"internal_guidance_scale": 1.8, "internal_guidance_interval": (0.3, 0.7)}


@pytest.fixture
def pipe(make_pipeline, make_transformer):
    return make_pipeline(transformer=make_transformer(num_layers=4, attention_head_dim=16, internal_guidance_layer=2))


def noise() -> torch.Tensor:
    return torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))


def asked(pipe) -> list[bool]:
    """Record for each evaluation from now on whether the velocity of the earlier block is computed."""
    seen = []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("return_internal", False)), with_kwargs=True
    )
    return seen


def test_its_interval(pipe):
    """t = 0, 1/6, ... 5/6: the earlier block's velocity is computed within (0.3, 0.7) alone."""
    seen = asked(pipe)
    guided = pipe([0, 3], latents=noise(), **INTERNAL, **SETTINGS).images
    assert seen == [False, False, True, True, True, False]
    everywhere = pipe([0, 3], latents=noise(), internal_guidance_scale=1.8, **SETTINGS).images
    without = pipe([0, 3], latents=noise(), **SETTINGS).images
    assert seen[6:] == [True] * 6 + [False] * 6
    assert not torch.allclose(guided, without, atol=1e-2)
    assert not torch.allclose(guided, everywhere, atol=1e-2)
    close(pipe([0, 3], latents=noise(), internal_guidance_scale=1, **SETTINGS).images, without, 0)


def test_the_recipe_may_have_it(make_pipeline, pipe):
    recipe = {"internal_guidance_scale": 1.8, "internal_guidance_interval": [0.3, 0.7], "guidance_scale": 2.0}
    of_recipe = make_pipeline(transformer=pipe.transformer, sampling_recipe=recipe)
    expected = pipe([0, 3], latents=noise(), guidance_scale=2.0, **INTERNAL, **SETTINGS).images
    close(of_recipe([0, 3], latents=noise(), **SETTINGS).images, expected, 0)
    assert "`internal_guidance_scale=1.8`" in of_recipe._model_card("me/it")
    assert "internal" not in pipe._model_card("me/it")


def test_other_pipelines_have_it(pipe):
    edit, interpolate = LightningDiTImg2ImgPipeline.from_pipe(pipe), LightningDiTInterpolationPipeline.from_pipe(pipe)
    for each in (edit, interpolate):
        each.set_progress_bar_config(disable=True)
    image = torch.full((3, 8, 8), 0.5)
    for call in (
        lambda **settings: edit(1, image=image, latents=noise()[:1], **settings, **SETTINGS).images,
        lambda **settings: interpolate([0, 3], num_images=3, latents=noise(), **settings, **SETTINGS).images,
    ):
        assert not torch.allclose(call(**INTERNAL), call(), atol=1e-3)


@pytest.mark.parametrize(
    "make_config",
    [
        lambda pipe: TaylorSeerCacheConfig(
            cache_interval=2, disable_cache_before_step=2, taylor_factors_dtype=torch.float32
        ),
        lambda pipe: TaylorSeerCacheConfig(
            cache_interval=2, disable_cache_before_step=2, taylor_factors_dtype=torch.float32, use_lite_mode=True
        ),
        lambda pipe: PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(0, 900),
            current_timestep_callback=lambda: pipe.current_timestep,
        ),
    ],
)
def test_caches(pipe, make_config):
    """Images near those without the cache, and nearer to them than those without internal guidance."""
    settings = {"num_inference_steps": 12, "output_type": "latent", "guidance_scale": 1.5}
    expected = pipe([0, 3], latents=noise(), internal_guidance_scale=1.8, **settings).images
    without = pipe([0, 3], latents=noise(), **settings).images
    pipe.transformer.enable_cache(make_config(pipe))
    num_evaluations = []
    pipe.transformer.transformer_blocks[2].attn.to_q.register_forward_hook(lambda *_: num_evaluations.append(1))
    cached = pipe([0, 3], latents=noise(), internal_guidance_scale=1.8, **settings).images
    assert len(num_evaluations) < 12
    error = (cached - expected).abs().mean()
    assert 0 < error < 0.5 * (without - expected).abs().mean()


@pytest.mark.parametrize(
    "config", [FirstBlockCacheConfig(threshold=0.1), FasterCacheConfig(current_timestep_callback=lambda: 500)]
)
def test_caches_that_have_no_earlier_velocity_are_refused(pipe, config):
    pipe.transformer.enable_cache(config)
    message = f"`internal_guidance_scale` is 1.8; required: 1 with {type(config).__name__}, which has no velocity"
    with pytest.raises(ValueError, match=message):
        pipe([0, 3], guidance_scale=2.0, **INTERNAL)


def test_wrong_arguments(pipe, make_pipeline):
    plain = make_pipeline()
    with pytest.raises(ValueError, match=r"`internal_guidance_scale` is 1\.8; required: 1 for a transformer without"):
        plain(0, internal_guidance_scale=1.8)
    for name, value, message in (
        ("internal_guidance_scale", -1, "`internal_guidance_scale` is -1; required: a finite number of at least 0"),
        ("internal_guidance_scale", "much", "`internal_guidance_scale` is 'much'; required"),
        ("internal_guidance_interval", (0.5, 0.2), r"`internal_guidance_interval` is \(0.5, 0.2\); required: \(start"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe(0, **{name: value})
