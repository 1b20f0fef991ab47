"""Guiders against the guidance of our pipelines, on models of another kind, and saved and loaded."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, TaylorSeerCacheConfig
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.pipelines import pipeline_loading_utils

import diffusers_lightningdit
from diffusers_lightningdit import (
    AutoencoderVAVAE,
    InternalGuidance,
    IntervalGuidance,
    LightningDiTPipeline,
    LightningDiTTransformer2DModel,
)

CFG = {"guidance_scale": 2.0, "guidance_interval": (0.2, 0.7), "guidance_channels": 3}
INTERNAL = {"internal_guidance_scale": 1.8, "internal_guidance_interval": (0.3, 0.9)}


@pytest.fixture
def pipe():
    transformer = LightningDiTTransformer2DModel(
        sample_size=4, in_channels=4, num_layers=2, num_attention_heads=2, attention_head_dim=8, num_classes=5,
        internal_guidance_layer=1,
    ).eval()  # fmt: skip
    vae = AutoencoderVAVAE(block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.1)
    pipe = LightningDiTPipeline(transformer, vae.eval(), FlowMatchEulerDiscreteScheduler(shift=10 / 3))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, **settings) -> torch.Tensor:
    noise = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    return pipe([0, 3], latents=noise, num_inference_steps=8, output_type="latent", **settings).images


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


# ---------------------------------------------------------------------------------------------------------------------
# The guidance of our pipelines
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", [FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler])
@pytest.mark.parametrize(
    ("guider", "arguments"),
    [
        (IntervalGuidance(**CFG), CFG),
        (IntervalGuidance(3.0), {"guidance_scale": 3.0}),
        (IntervalGuidance(3.0, enabled=False), {"guidance_scale": 1.0}),
        (InternalGuidance(**INTERNAL), INTERNAL | {"guidance_scale": 1.0}),
        (InternalGuidance(**INTERNAL, **CFG), INTERNAL | CFG),
        (InternalGuidance(1.8, guidance_scale=2.0), {"internal_guidance_scale": 1.8, "guidance_scale": 2.0}),
    ],
)
def test_they_are_the_arguments_of_the_pipeline(pipe, scheduler, guider, arguments):
    pipe.scheduler = scheduler(shift=10 / 3)
    close(draw(pipe, guider=guider), draw(pipe, **arguments))
    assert not torch.allclose(draw(pipe, guider=guider), draw(pipe, guidance_scale=1.5), atol=1e-3)


def test_at_all_times_and_on_all_channels_it_is_diffusers_own(pipe):
    close(draw(pipe, guider=IntervalGuidance(3.0)), draw(pipe, guider=ClassifierFreeGuidance(3.0)))


def test_nothing_is_computed_outside_the_interval(pipe):
    batches, times = [], []

    def record(module, args, kwargs):
        batches.append(kwargs["class_labels"].tolist())
        times.append(kwargs["timestep"][0].item())

    pipe.transformer.register_forward_pre_hook(record, with_kwargs=True)
    draw(pipe, guider=IntervalGuidance(**CFG))
    unconditional = [t for t, labels in zip(times, batches, strict=True) if labels == [5, 5]]
    assert unconditional == [t for t in sorted(set(times)) if 0.2 <= t <= 0.7]
    assert 0 < len(unconditional) < 8


def test_the_model_is_left_as_it_was(pipe):
    """Also when the model fails."""
    num_hooks = len(pipe.transformer._forward_hooks), len(pipe.transformer._forward_pre_hooks)
    guider = InternalGuidance(1.8, guidance_scale=2.0)
    draw(pipe, guider=guider)
    handle = pipe.transformer.patch_embed.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        draw(pipe, guider=guider)
    handle.remove()
    assert (len(pipe.transformer._forward_hooks), len(pipe.transformer._forward_pre_hooks)) == num_hooks
    assert guider._hooks == []


def test_with_a_cache_it_is_the_argument_of_the_pipeline(pipe):
    """The cache predicts both velocities at every step, also where one of them is not used."""
    config = TaylorSeerCacheConfig(
        cache_interval=2, disable_cache_before_step=2, taylor_factors_dtype=torch.float32, use_lite_mode=True
    )
    drawn = []
    for settings in ({"guider": InternalGuidance(**INTERNAL)}, INTERNAL | {"guidance_scale": 1.0}):
        pipe.transformer.enable_cache(config)
        drawn.append(draw(pipe, **settings))
        pipe.transformer.disable_cache()
    close(*drawn)
    assert not torch.allclose(drawn[0], draw(pipe, **INTERNAL, guidance_scale=1.0), atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Other models, and the way in which modular pipelines call a guider
# ---------------------------------------------------------------------------------------------------------------------


class OfNoise(torch.nn.Module):
    """A model of another kind: it predicts noise, and with `both` a second time from fewer layers."""

    def forward(self, sample, encoder_hidden_states, both=False, return_dict=True):
        outputs = (3 * sample + encoder_hidden_states, sample) if both else (3 * sample + encoder_hidden_states,)
        return Transformer2DModelOutput(sample=outputs[0]) if return_dict and not both else outputs


@pytest.mark.parametrize("return_dict", [True, False])
def test_a_modular_pipeline_with_another_model(return_dict):
    """The loop of diffusers' modular denoising blocks, equations by hand."""
    model, guider = OfNoise(), InternalGuidance(1.5, (0.0, 0.6), "both", 2.0, (0.4, 1.0))
    sample, positive, negative = torch.full((1, 4, 2, 2), 2.0), torch.ones(1), torch.zeros(1)
    state = SimpleNamespace(prompt=positive, negative_prompt=negative)
    fields = {"encoder_hidden_states": ("prompt", "negative_prompt")}
    for timestep, with_internal, with_cfg in ((900, True, False), (500, True, True), (200, False, True)):
        guider.set_state(step=0, num_inference_steps=3, timestep=torch.tensor(timestep))
        batches = guider.prepare_inputs_from_block_state(state, fields)
        assert len(batches) == (2 if with_cfg else 1)
        for number, batch in enumerate(batches):
            guider.prepare_models(model)
            assert guider.is_conditional == (number == 0)
            batch.noise_pred = model(
                sample=sample, encoder_hidden_states=batch.encoder_hidden_states, return_dict=return_dict
            )[0]
            guider.cleanup_models(model)

        def one(condition, with_internal=with_internal):
            prediction = 3 * sample + condition
            return prediction + 0.5 * (prediction - sample) if with_internal else prediction

        expected = one(negative) + 2.0 * (one(positive) - one(negative)) if with_cfg else one(positive)
        close(guider(batches)[0], expected)


def test_output_with_names():
    """A model that returns both in a dictionary gets one back with the guided prediction alone."""
    model = LightningDiTTransformer2DModel(
        sample_size=4, in_channels=4, num_layers=2, num_attention_heads=2, attention_head_dim=8, num_classes=5,
        internal_guidance_layer=1,
    ).eval()  # fmt: skip
    guider = InternalGuidance(1.5)
    guider.set_state(0, 1, torch.tensor(500.0))
    inputs = torch.randn(1, 4, 4, 4), 0.5, torch.tensor([1])
    both = model(*inputs, return_internal=True)
    guider.prepare_models(model)
    guided = model(*inputs)
    guider.cleanup_models(model)
    close(guided.sample, both.sample + 0.5 * (both.sample - both.internal_sample))
    assert guided.internal_sample is None


# ---------------------------------------------------------------------------------------------------------------------
# Saved and loaded; bad input
# ---------------------------------------------------------------------------------------------------------------------


def test_saved_and_loaded(tmp_path):
    InternalGuidance(**INTERNAL, **CFG).save_pretrained(tmp_path)
    loaded = InternalGuidance.from_pretrained(tmp_path)
    assert (loaded.internal_guidance_scale, tuple(loaded.internal_guidance_interval)) == (1.8, (0.3, 0.9))
    assert (loaded.guidance_scale, tuple(loaded.guidance_interval), loaded.guidance_channels) == (2.0, (0.2, 0.7), 3)
    assert loaded.new(guidance_scale=1.0).num_conditions == 1


def test_diffusers_finds_them_by_the_name_of_the_package():
    """As modular pipelines look up the classes of their components."""
    for cls in (IntervalGuidance, InternalGuidance):
        found, candidates = pipeline_loading_utils.get_class_obj_and_candidates(
            "diffusers_lightningdit",
            cls.__name__,
            pipeline_loading_utils.LOADABLE_CLASSES["diffusers_lightningdit"],
            None,
            False,
        )
        assert found is cls is getattr(diffusers_lightningdit, cls.__name__)
        assert issubclass(found, candidates["BaseGuidance"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IntervalGuidance(-1), "`guidance_scale` is -1; required: a number from 0"),
        (lambda: IntervalGuidance(2, (0.5, 0.1)), r"`guidance_interval` is \(0.5, 0.1\); required: \(start, end\)"),
        (lambda: IntervalGuidance(2, guidance_channels=0), "`guidance_channels` is 0; required: an integer from 1"),
        (lambda: IntervalGuidance(2, num_train_timesteps=0), "`num_train_timesteps` is 0; required: an integer"),
        (lambda: IntervalGuidance(2, enabled=None), "`enabled` is None; required: True or False"),
        (lambda: InternalGuidance(internal_argument=5), "`internal_argument` is 5; required: the name of an argument"),
        (lambda: InternalGuidance("1"), "`internal_guidance_scale` is '1'; required: a number"),
        (lambda: InternalGuidance(2, 0.5), "`internal_guidance_interval` is 0.5; required"),
    ],
)
def test_wrong_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_models_that_cannot_be_guided_so(pipe):
    with pytest.raises(ValueError, match="`internal_argument` is 'return_internal', which is no argument of Linear"):
        InternalGuidance(2.0).prepare_models(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="`guidance_scale` is 2; required: not given beside `guider`"):
        draw(pipe, guider=InternalGuidance(2.0), guidance_scale=2)
    with pytest.raises(ValueError, match="`internal_guidance_scale` is 2; required: not given beside `guider`"):
        draw(pipe, guider=InternalGuidance(2.0), internal_guidance_scale=2)
    pipe.transformer.compile(backend="eager")
    with pytest.raises(ValueError, match="LightningDiTTransformer2DModel is compiled as a whole, which ignores hooks"):
        draw(pipe, guider=InternalGuidance(2.0))
