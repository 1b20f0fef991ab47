"""The features that diffusers offers for its own pipelines work on LightningDiTPipeline, tested by their effect."""

import json
import re
from collections import Counter

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    AutoGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
    TangentialClassifierFreeGuidance,
)
from diffusers.hooks import LayerSkipConfig
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffusers_lightningdit import LightningDiTPipeline

NUM_LAYERS, NUM_STEPS = 4, 10


@pytest.fixture
def pipe(make_pipeline, make_transformer):
    return make_pipeline(transformer=make_transformer(num_layers=NUM_LAYERS, attention_head_dim=16))


def draw(pipe, class_labels=(0, 3), **settings) -> torch.Tensor:
    noise = torch.randn(len(class_labels), 4, 4, 4, generator=torch.Generator().manual_seed(0))
    settings = {"num_inference_steps": NUM_STEPS, "latents": noise, "output_type": "latent"} | settings
    return pipe(list(class_labels), **settings).images


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


def different(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return not torch.allclose(actual, expected, atol=1e-3)


class Evaluations:
    """Records the batch size of each evaluation of the network's parts, of which hooks may skip some."""

    def __init__(self, pipe):
        self.batches: dict[str, list[int]] = {}
        for name, module in pipe.transformer.named_modules():
            if re.fullmatch(r"patch_embed|proj_out|transformer_blocks\.\d\.(attn\.to_q|ff\.net\.2)", name):
                self.batches[name] = []
                module.register_forward_hook(lambda _, args, output, name=name: self.batches[name].append(len(output)))

    def of(self, pattern: str) -> list[int]:
        """Return the number of evaluations of each part whose name matches."""
        return [len(batches) for name, batches in self.batches.items() if re.search(pattern, name)]


# ---------------------------------------------------------------------------------------------------------------------
# Caches
# ---------------------------------------------------------------------------------------------------------------------


def check_cache(pipe, config, **settings) -> Evaluations:
    """The images are near those without the cache, not equal to them; nothing stays behind after a run or the cache."""
    expected = draw(pipe, **settings)
    evaluations = Evaluations(pipe)
    pipe.transformer.enable_cache(config)
    images = draw(pipe, **settings)
    assert (images - expected).abs().max() > 1e-4
    assert (images - expected).pow(2).mean().sqrt() < 0.3 * expected.std()
    counts = {name: list(batches) for name, batches in evaluations.batches.items()}
    close(draw(pipe, **settings), images, 0)
    assert {name: 2 * batches for name, batches in counts.items()} == evaluations.batches
    pipe.transformer.disable_cache()
    close(draw(pipe, **settings), expected, 0)
    evaluations.batches = counts
    return evaluations


def test_first_block_cache(pipe):
    evaluations = check_cache(pipe, FirstBlockCacheConfig(threshold=0.3))
    assert evaluations.of(r"blocks\.0\.ff") == [NUM_STEPS]
    later = evaluations.of(r"blocks\.[123]\.ff")
    assert max(later) == min(later) < NUM_STEPS
    assert check_cache(pipe, FirstBlockCacheConfig(threshold=100.0)).of(r"blocks\.[123]\.ff") == [1] * 3


def test_first_block_cache_keeps_guided_and_unguided_steps_apart(pipe):
    """With a guidance interval the batch changes on the way: each kind of call fills a cache of its own."""
    settings = {"guidance_scale": 2.0, "guidance_interval": (0.5, 1.0)}
    evaluations = check_cache(pipe, FirstBlockCacheConfig(threshold=100.0), **settings)
    assert evaluations.batches["transformer_blocks.2.ff.net.2"] == [2, 4]
    assert evaluations.batches["patch_embed"] == [2] * 5 + [4] * 5


def test_mag_cache(pipe, capsys):
    """First the ratios are measured, then the steps that they allow are left out."""
    pipe.transformer.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=NUM_STEPS))
    draw(pipe)
    pipe.transformer.disable_cache()
    ratios = json.loads(re.search(r"\[.*\]", capsys.readouterr().out.split("config", 1)[-1].split("):")[-1])[0])
    assert len(ratios) == NUM_STEPS and ratios[0] == 1.0 and ratios[1] != 1.0

    config = {"num_inference_steps": NUM_STEPS, "mag_ratios": ratios, "max_skip_steps": 1, "retention_ratio": 0.2}
    evaluations = check_cache(pipe, MagCacheConfig(threshold=10.0, **config))
    # two steps in full, then every other one
    assert evaluations.of(r"blocks\.\d\.ff") == [2 + 4] * NUM_LAYERS


def test_mag_cache_counts_all_steps_with_a_guidance_interval(pipe):
    """It counts calls of one kind, so the unconditional half is computed at all steps; it does not guide outside."""
    settings = {"guidance_scale": 2.0, "guidance_interval": (0.5, 1.0)}
    config = {"num_inference_steps": NUM_STEPS, "mag_ratios": [1.0] * NUM_STEPS, "max_skip_steps": 1}
    evaluations = check_cache(pipe, MagCacheConfig(threshold=10.0, retention_ratio=0.2, **config), **settings)
    assert evaluations.batches["patch_embed"] == [4] * NUM_STEPS
    assert evaluations.of(r"blocks\.\d\.ff") == [2 + 4] * NUM_LAYERS
    expected = draw(pipe, **settings)
    pipe.transformer.enable_cache(MagCacheConfig(**config | {"max_skip_steps": 0}))
    close(draw(pipe, **settings), expected, 1e-5)


def test_taylor_seer_cache(pipe):
    """Attention is extrapolated between the steps that compute it, the rest of the network is not."""
    config = {"cache_interval": 3, "disable_cache_before_step": 3, "taylor_factors_dtype": torch.float32}
    evaluations = check_cache(pipe, TaylorSeerCacheConfig(**config))
    assert max(evaluations.of(r"attn\.to_q")) < NUM_STEPS
    assert evaluations.of(r"ff") == [NUM_STEPS] * NUM_LAYERS


def test_taylor_seer_cache_in_lite_mode(pipe):
    """Whole blocks are left out (as zeros) and the network's output, which would be useless, is extrapolated."""
    config = {"cache_interval": 3, "disable_cache_before_step": 3, "taylor_factors_dtype": torch.float32}
    evaluations = check_cache(pipe, TaylorSeerCacheConfig(use_lite_mode=True, **config))
    assert max(evaluations.of(r"ff")) < NUM_STEPS
    assert evaluations.of(r"patch_embed") == [NUM_STEPS]


@pytest.mark.parametrize("interval", [None, (0.5, 1.0)])
def test_pyramid_attention_broadcast(pipe, interval):
    """Attention is repeated at every other step within the range; the timesteps are 1000, 900, ..., 100."""
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(100, 800),
        current_timestep_callback=lambda: pipe.current_timestep,
    )
    evaluations = check_cache(pipe, config, guidance_interval=interval)
    # within: 700 to 200; of these the odd steps 3, 5, 7
    assert evaluations.of(r"attn\.to_q") == [NUM_STEPS - 3] * NUM_LAYERS
    assert evaluations.of(r"ff") == [NUM_STEPS] * NUM_LAYERS
    assert evaluations.batches["patch_embed"] == [4] * NUM_STEPS


@pytest.mark.parametrize("interval", [None, (0.5, 1.0)])
def test_faster_cache(pipe, interval):
    """Some steps compute the conditional half only, and guess the other; their attention is extrapolated."""
    config = FasterCacheConfig(
        unconditional_batch_skip_range=2,
        unconditional_batch_timestep_skip_range=(-1, 750),
        spatial_attention_timestep_skip_range=(-1, 750),
        attention_weight_callback=lambda _: 0.5,
        current_timestep_callback=lambda: pipe.current_timestep,
    )
    evaluations = check_cache(pipe, config, guidance_scale=1.5, guidance_interval=interval)
    batches = evaluations.batches["patch_embed"]
    assert batches == [4, 4, 4, 2, 4, 2, 4, 2, 4, 2]
    assert max(evaluations.of(r"attn\.to_q")) < NUM_STEPS
    assert evaluations.of(r"ff") == [NUM_STEPS] * NUM_LAYERS


@pytest.mark.parametrize("jumps", [False, True])
@pytest.mark.parametrize(
    "make_config",
    [
        lambda pipe: FirstBlockCacheConfig(threshold=100.0),
        lambda pipe: MagCacheConfig(threshold=10.0, num_inference_steps=4, mag_ratios=[1.0] * 4, retention_ratio=0.2),
        lambda pipe: TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=2),
        lambda pipe: PyramidAttentionBroadcastConfig(
            spatial_attention_timestep_skip_range=(-1, 1001), current_timestep_callback=lambda: pipe.current_timestep
        ),
        lambda pipe: FasterCacheConfig(
            unconditional_batch_skip_range=2,
            unconditional_batch_timestep_skip_range=(-1, 1001),
            spatial_attention_timestep_skip_range=(-1, 1001),
            current_timestep_callback=lambda: pipe.current_timestep,
        ),
    ],
    ids=["FirstBlockCache", "MagCache", "TaylorSeer", "PyramidAttentionBroadcast", "FasterCache"],
)
def test_caches_of_a_network_with_a_second_time(make_pipeline, make_transformer, make_config, jumps):
    """A part of it is left out, and what the cache is told of the times belongs to the half that is computed."""
    pipe = make_pipeline(
        transformer=make_transformer(num_layers=NUM_LAYERS, second_time_embedding=True),
        scheduler=FlowMatchEulerDiscreteScheduler(stochastic_sampling=jumps),
    )

    def run() -> torch.Tensor:
        return draw(pipe, num_inference_steps=4, guidance_scale=1.5, generator=torch.Generator().manual_seed(0))

    expected = run()
    pipe.transformer.enable_cache(make_config(pipe))
    evaluations = Evaluations(pipe)
    images = run()
    assert min(evaluations.of(r"attn\.to_q")) < 4 or evaluations.batches["patch_embed"] != [4] * 4
    assert images.isfinite().all() and not torch.equal(images, expected)
    pipe.transformer.disable_cache()
    close(run(), expected, 0)


def test_caches_refuse_what_would_be_wrong(pipe):
    def current_timestep():
        return pipe.current_timestep

    pipe.transformer.enable_cache(FasterCacheConfig(current_timestep_callback=current_timestep))
    with pytest.raises(ValueError, match=r"`guidance_scale` is 1.0; required: more than 1 with FasterCache"):
        draw(pipe, guidance_scale=1.0)
    with pytest.raises(ValueError, match=r"`guidance_scale` is 'replaced by `guider`'"):
        draw(pipe, guider=ClassifierFreeGuidance())
    with pytest.raises(ValueError, match="`ode_method` is 'dopri5'; required: None with FasterCacheConfig"):
        draw(pipe, ode_method="dopri5")
    pipe.transformer.disable_cache()
    pipe.transformer.enable_cache(PyramidAttentionBroadcastConfig(current_timestep_callback=current_timestep))
    with pytest.raises(ValueError, match="`guider` is 'ClassifierFreeGuidance'; required: None with Pyramid"):
        draw(pipe, guider=ClassifierFreeGuidance())


def test_cache_with_a_second_order_scheduler(pipe):
    """Heun evaluates the network twice a step; the cache sees every evaluation."""
    pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    evaluations = check_cache(pipe, FirstBlockCacheConfig(threshold=100.0), num_inference_steps=4)
    assert evaluations.of(r"blocks\.0\.ff") == [7]
    assert evaluations.of(r"blocks\.3\.ff") == [1]


# ---------------------------------------------------------------------------------------------------------------------
# Guiders
# ---------------------------------------------------------------------------------------------------------------------


def test_guider_equals_the_pipeline_own_guidance(pipe):
    expected = draw(pipe, guidance_scale=3.0, guidance_channels=None)
    close(draw(pipe, guider=ClassifierFreeGuidance(guidance_scale=3.0)), expected, 1e-5)
    close(draw(pipe, guider=ClassifierFreeGuidance(guidance_scale=1.0)), draw(pipe, guidance_scale=1.0), 0)


def test_guider_with_start_and_stop(pipe):
    """Steps outside make one call; without a shift the steps are even in t, as our interval."""
    expected = draw(pipe, guidance_scale=3.0, guidance_interval=(0.2, 0.4))
    evaluations = Evaluations(pipe)
    images = draw(pipe, guider=ClassifierFreeGuidance(guidance_scale=3.0, start=0.2, stop=0.5))
    close(images, expected, 1e-5)
    assert evaluations.of("patch_embed") == [NUM_STEPS + 3]


def test_zero_star_skips_the_first_step(pipe):
    times = []

    def callback(pipe, step, timestep, tensors):
        times.append(tensors["latents"])
        return {}

    noise = torch.randn(2, 4, 4, 4)
    guider = ClassifierFreeZeroStarGuidance(guidance_scale=3.0, zero_init_steps=1)
    images = draw(pipe, guider=guider, latents=noise, callback_on_step_end=callback)
    close(times[0], noise, 0)
    assert different(times[1], noise)
    assert different(images, draw(pipe, latents=noise, guidance_scale=3.0))


@pytest.mark.parametrize(
    "guider",
    [
        AdaptiveProjectedGuidance(guidance_scale=3.0, eta=0.0),
        TangentialClassifierFreeGuidance(guidance_scale=3.0),
        AutoGuidance(guidance_scale=3.0, auto_guidance_config=LayerSkipConfig(indices=[1, 2])),
    ],
    ids=lambda guider: type(guider).__name__,
)
def test_other_guiders_take_effect(pipe, guider):
    images = draw(pipe, guider=guider)
    assert torch.isfinite(images).all()
    for scale in (1.0, 3.0):
        assert different(images, draw(pipe, guidance_scale=scale))
    close(draw(pipe, guidance_scale=3.0), draw(pipe, guidance_scale=3.0), 0)


def test_skip_layer_guidance(pipe):
    """A third call a step leaves out the named blocks; the network is whole again afterwards."""
    plain = draw(pipe, guidance_scale=3.0)
    evaluations = Evaluations(pipe)
    guider = SkipLayerGuidance(
        guidance_scale=3.0,
        skip_layer_guidance_scale=2.0,
        skip_layer_guidance_start=0.0,
        skip_layer_guidance_stop=1.0,
        skip_layer_config=LayerSkipConfig(indices=[1]),
    )
    images = draw(pipe, guider=guider)
    # diffusers starts one step after `start`
    assert evaluations.of("patch_embed") == [3 * NUM_STEPS - 1]
    assert evaluations.of(r"blocks\.1\.ff") == [2 * NUM_STEPS]
    assert evaluations.of(r"blocks\.2\.ff") == [3 * NUM_STEPS - 1]
    assert different(images, plain)
    close(draw(pipe, guidance_scale=3.0), plain, 0)


@pytest.mark.xfail(strict=True, raises=TypeError, reason="diffusers hands LayerSkipConfig an integer for a list")
@pytest.mark.parametrize(
    "guider",
    [
        SkipLayerGuidance(skip_layer_guidance_layers=[1], skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0),
        AutoGuidance(auto_guidance_layers=[1], dropout=1.0),
    ],
    ids=lambda guider: type(guider).__name__,
)
def test_guiders_that_name_layers_without_a_config(pipe, guider):
    """Once this passes, docs/features.md need no longer ask for `skip_layer_config` and `auto_guidance_config`."""
    draw(pipe, guider=guider)


def test_perturbed_attention_guidance(pipe):
    """Equal to the formula with a network whose attention passes the values on, for a run of two steps."""
    plain = draw(pipe, guidance_scale=3.0, num_inference_steps=2)
    guider = PerturbedAttentionGuidance(
        guidance_scale=3.0,
        perturbed_guidance_scale=2.0,
        perturbed_guidance_start=0.0,
        perturbed_guidance_stop=1.0,
        perturbed_guidance_layers=[1],
    )
    states = []

    def callback(pipe, step, timestep, tensors):
        states.append(tensors["latents"])
        return {}

    images = draw(pipe, guider=guider, num_inference_steps=2, callback_on_step_end=callback)
    assert different(images, plain)

    class IdentityScores:
        def __call__(self, attn, hidden_states, image_rotary_emb=None):
            return attn.to_out[0](attn.to_v(hidden_states))

    with torch.no_grad():
        labels, null = torch.tensor([0, 3]), torch.tensor([5, 5])
        conditional, unconditional = (pipe.transformer(states[0], 0.5, label).sample for label in (labels, null))
        pipe.transformer.transformer_blocks[1].attn.set_processor(IdentityScores())
        perturbed = pipe.transformer(states[0], 0.5, labels).sample
    velocity = unconditional + 3.0 * (conditional - unconditional) + 2.0 * (conditional - perturbed)
    close(images, states[0] + 0.5 * velocity, 1e-5)


def test_guider_with_a_cache(pipe):
    """Each of the guider's calls has a cache of its own."""
    evaluations = Evaluations(pipe)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=100.0))
    draw(pipe, guider=ClassifierFreeGuidance(guidance_scale=3.0))
    assert evaluations.of(r"blocks\.0\.ff") == [2 * NUM_STEPS]
    assert evaluations.of(r"blocks\.2\.ff") == [2]


def test_wrong_guiders(pipe):
    with pytest.raises(ValueError, match=r"`guidance_scale` is 2.0; required: not given beside `guider`"):
        draw(pipe, guider=ClassifierFreeGuidance(), guidance_scale=2.0)
    with pytest.raises(ValueError, match="`guidance_interval` is None; required: not given beside `guider`"):
        draw(pipe, guider=ClassifierFreeGuidance(), guidance_interval=None)
    with pytest.raises(ValueError, match=r"`guider` is 3.0; required: a guider"):
        draw(pipe, guider=3.0)
    with pytest.raises(
        ValueError, match="`guider` is 'ClassifierFreeGuidance'; required: None with `ode_method='heun2'`"
    ):
        draw(pipe, guider=ClassifierFreeGuidance(), ode_method="heun2")


# ---------------------------------------------------------------------------------------------------------------------
# Callbacks
# ---------------------------------------------------------------------------------------------------------------------


def test_callback_changes_the_guidance_on_the_way(pipe):
    """As diffusers' cut-off callbacks do: from there on it is an unguided run, at half the cost."""

    def callback(pipe, step, timestep, tensors):
        if step == 3:
            pipe._guidance_scale = 1.0
        return {}

    expected = draw(pipe, guidance_scale=3.0, guidance_interval=(0.0, 0.35))
    evaluations = Evaluations(pipe)
    close(draw(pipe, guidance_scale=3.0, callback_on_step_end=callback), expected, 1e-6)
    assert evaluations.batches["patch_embed"] == [4] * 4 + [2] * 6
    assert pipe.guidance_scale == 1.0


def test_interruption_saves_the_remaining_steps(pipe):
    def callback(pipe, step, timestep, tensors):
        pipe._interrupt = step == 3
        return tensors

    evaluations = Evaluations(pipe)
    draw(pipe, callback_on_step_end=callback)
    assert evaluations.of("patch_embed") == [4]
    draw(pipe)  # the next run is whole
    assert evaluations.of("patch_embed") == [4 + NUM_STEPS]


def test_every_callback_tensor_is_a_tensor_of_the_loop(pipe):
    seen = Counter()

    def callback(pipe, step, timestep, tensors):
        seen.update(tensors.keys())
        return {"latents": torch.zeros_like(tensors["latents"])} if step == NUM_STEPS - 1 else {}

    names = pipe._callback_tensor_inputs
    images = draw(pipe, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names)
    assert seen == dict.fromkeys(names, NUM_STEPS)
    assert not images.any()


# ---------------------------------------------------------------------------------------------------------------------
# LoRA
# ---------------------------------------------------------------------------------------------------------------------

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def lora_config(rank: int = 2, **settings) -> LoraConfig:
    settings = {"lora_alpha": 3, "target_modules": TARGETS} | settings
    return LoraConfig(r=rank, init_lora_weights=False, **settings)


@pytest.fixture
def lora_files(pipe, make_pipeline, make_transformer, tmp_path):
    """Two LoRAs, saved with the metadata that carries their alpha; returns (folders, images with each)."""
    folders, images = [], []
    for i, config in enumerate((lora_config(), lora_config(4, target_modules=["to_q", "ff.net.2", "adaln"]))):
        torch.manual_seed(i)
        other = make_pipeline(transformer=make_transformer(num_layers=NUM_LAYERS, attention_head_dim=16))
        other.transformer.add_adapter(config)
        folders.append(tmp_path / f"lora{i}")
        LightningDiTPipeline.save_lora_weights(
            folders[-1],
            transformer_lora_layers=get_peft_model_state_dict(other.transformer),
            transformer_lora_adapter_metadata=other.transformer.peft_config["default"].to_dict(),
        )
        images.append(draw(other))
        assert different(images[-1], draw(pipe))
    return folders, images


def load(pipe, folder, **settings) -> None:
    pipe.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors", **settings)


def test_lora_save_load_unload(pipe, lora_files):
    folders, images = lora_files
    plain = {key: value.clone() for key, value in pipe.transformer.state_dict().items()}
    for folder, expected in zip(folders, images, strict=True):
        load(pipe, folder)
        close(draw(pipe), expected)
        pipe.unload_lora_weights()
        again = pipe.transformer.state_dict()
        assert again.keys() == plain.keys()
        assert all(torch.equal(value, plain[key]) for key, value in again.items())


def test_lora_keeps_its_metadata(pipe, lora_files):
    """Alpha is nowhere but in the metadata; it survives saving what was loaded."""
    (folder, _), (expected, _) = lora_files
    load(pipe, folder, adapter_name="style")
    config = pipe.transformer.peft_config["style"]
    assert (config.r, config.lora_alpha, sorted(config.target_modules)) == (2, 3, sorted(TARGETS))
    pipe.transformer.save_lora_adapter(folder / "again", adapter_name="style")
    with safe_open(folder / "again" / "pytorch_lora_weights.safetensors", "pt") as file:
        assert json.loads(file.metadata()["lora_adapter_metadata"])["lora_alpha"] == 3
    pipe.unload_lora_weights()
    pipe.transformer.load_lora_adapter(folder / "again", prefix=None, adapter_name="again", use_safetensors=True)
    close(draw(pipe), expected)


def test_several_loras_with_weights(pipe, lora_files):
    folders, images = lora_files
    for name, folder in zip(("a", "b"), folders, strict=True):
        load(pipe, folder, adapter_name=name)
    assert pipe.get_list_adapters() == {"transformer": ["a", "b"]}
    pipe.set_adapters("a")
    close(draw(pipe), images[0])
    pipe.set_adapters(["a", "b"], adapter_weights=[0.0, 1.0])
    close(draw(pipe), images[1])
    pipe.set_adapters(["a", "b"], adapter_weights=[0.7, 0.4])
    mixed = draw(pipe)
    assert all(different(mixed, other) for other in images)
    # the weights scale each LoRA's part of a layer
    layer = pipe.transformer.transformer_blocks[0].attn.to_q
    x = torch.randn(2, 32)
    with torch.no_grad():
        parts = [layer.lora_B[name](layer.lora_A[name](x)) * alpha for name, alpha in (("a", 3 / 2), ("b", 3 / 4))]
        close(layer(x), layer.base_layer(x) + 0.7 * parts[0] + 0.4 * parts[1], 1e-5)
    pipe.disable_lora()
    disabled = draw(pipe)
    pipe.enable_lora()
    close(draw(pipe), mixed)
    pipe.delete_adapters("b")
    assert pipe.get_active_adapters() == ["a"]
    pipe.unload_lora_weights()
    close(draw(pipe), disabled)


def test_lora_fuse_and_unfuse(pipe, lora_files):
    """Fused weights give the same images without the extra products, also after the adapters are gone."""
    folders, images = lora_files
    plain = draw(pipe)
    weight = pipe.transformer.transformer_blocks[0].attn.to_q.weight.clone()
    load(pipe, folders[0], adapter_name="a")
    load(pipe, folders[1], adapter_name="b")
    pipe.set_adapters(["a", "b"])
    both = draw(pipe)
    pipe.fuse_lora(adapter_names=["a"])
    assert pipe.num_fused_loras == 1
    pipe.set_adapters("a")
    close(draw(pipe), images[0], 1e-5)
    pipe.unfuse_lora()
    pipe.set_adapters(["a", "b"])
    close(draw(pipe), both, 1e-5)

    pipe.fuse_lora(adapter_names=["a", "b"], lora_scale=1.0, safe_fusing=True)
    pipe.unload_lora_weights()
    close(draw(pipe), both, 1e-5)
    fused = pipe.transformer.transformer_blocks[0].attn.to_q.weight
    assert type(pipe.transformer.transformer_blocks[0].attn.to_q) is torch.nn.Linear
    assert different(fused, weight)
    assert different(draw(pipe), plain)


def test_lora_hotswap(pipe, lora_files):
    """The second LoRA takes the first one's place without new modules; both are of one kind here."""
    (folder, _), _ = lora_files
    state_dict = load_file(folder / "pytorch_lora_weights.safetensors")
    load(pipe, folder, adapter_name="a")
    modules = [id(module) for module in pipe.transformer.modules()]
    first = draw(pipe)
    swapped = {key: 2 * value if "lora_B" in key else value for key, value in state_dict.items()}
    with safe_open(folder / "pytorch_lora_weights.safetensors", "pt") as file:
        save_file(swapped, folder / "pytorch_lora_weights.safetensors", metadata=file.metadata())
    load(pipe, folder, adapter_name="a", hotswap=True)
    assert [id(module) for module in pipe.transformer.modules()] == modules
    assert different(draw(pipe), first)
    close(draw(pipe, attention_kwargs={"scale": 0.5}), first, 1e-5)


FOREIGN_LORAS = [
    # Flux, SD3: blocks that we have, with projections that we don't
    ({"transformer.transformer_blocks.0.attn.add_q_proj.lora_A.weight": (2, 32)}, "has no module"),
    ({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (2, 32)}, "has no module"),
    # a deeper model
    ({"transformer.transformer_blocks.9.attn.to_q.lora_A.weight": (2, 32)}, "has no module"),
    # a wider model
    ({"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": (2, 64)}, "has input width 32 there, not 64"),
    ({"transformer.transformer_blocks.0.attn.to_q.lora_B.weight": (64, 2)}, "has output width 32 there, not 64"),
    # Stable Diffusion, in diffusers' and in other names
    ({"unet.down_blocks.0.attentions.0.to_q.lora_A.weight": (2, 32)}, "has no module"),
    ({"text_encoder.layers.0.q_proj.lora_down.weight": (2, 32)}, "has no module"),
    ({"lora_unet_down_blocks_0_attentions_0_to_q.lora_up.weight": (32, 2)}, "has no module"),
]


@pytest.mark.parametrize(("shapes", "problem"), FOREIGN_LORAS)
def test_lora_of_another_architecture(pipe, shapes, problem):
    """One line that names the weight; nothing is left in the transformer."""
    plain = draw(pipe)
    (key,) = shapes
    foreign = {key: torch.randn(shape) for key, shape in shapes.items()}
    with pytest.raises(
        ValueError, match=f"LoRA weight `{re.escape(key)}`: LightningDiT.* {problem}.*; required: a LoRA"
    ):
        pipe.load_lora_weights(foreign)
    assert not hasattr(pipe.transformer, "peft_config")
    close(draw(pipe), plain)


def test_what_is_no_lora(pipe):
    with pytest.raises(ValueError, match="Invalid LoRA checkpoint"):
        pipe.load_lora_weights({"conv_in.weight": torch.zeros(1)})
    for nothing in ({}, {"lora_foo": torch.zeros(1)}):
        with pytest.raises(ValueError, match=r"lora_foo|has no weights of LightningDiTTransformer2DModel"):
            pipe.load_lora_weights(nothing)


# ---------------------------------------------------------------------------------------------------------------------
# Requirements of diffusers' own pipeline tests
# ---------------------------------------------------------------------------------------------------------------------


def test_nested_labels_are_one_list(pipe):
    """diffusers' tests repeat `class_labels=[1]` for a batch."""
    assert pipe.get_label_ids([[1], [2]]) == [1, 2]
    assert pipe.get_label_ids(torch.tensor([[1], [2]])) == [1, 2]
    with pytest.raises(ValueError, match="`class_labels` is empty"):
        pipe.get_label_ids([[1], []])


def test_batches_as_diffusers_tests_them(pipe):
    """Labels as lists of lists, one generator for each image, several images a label: image 0 stays the same."""

    def generators(number):
        return [torch.Generator().manual_seed(i) for i in range(number)]

    settings = {"num_inference_steps": 2, "output_type": "np"}
    alone = pipe(class_labels=[1], generator=generators(1)[0], **settings)[0]
    for batch_size in (1, 2, 3):
        images = pipe(class_labels=batch_size * [[1]], generator=generators(batch_size), **settings)[0]
        assert images.shape == (batch_size, *alone.shape[1:])
        assert abs(images[0] - alone[0]).max() < 1e-4
        images = pipe(class_labels=batch_size * [[1]], num_images_per_prompt=2, **settings)[0]
        assert len(images) == 2 * batch_size
    as_tuple = pipe(class_labels=[1], generator=generators(1)[0], return_dict=False, **settings)[0]
    assert (as_tuple == alone).all()


def test_guidance_raised_by_a_callback(pipe):
    """A callback that adds 1 after each step ends at the start plus the number of steps, and changes the images."""

    def callback(pipe, step, timestep, tensors):
        pipe._guidance_scale += 1.0
        return tensors

    plain = draw(pipe, guidance_scale=2.0)
    raised = draw(pipe, guidance_scale=2.0, callback_on_step_end=callback)
    assert pipe.guidance_scale == 2.0 + pipe.num_timesteps
    assert different(raised, plain)


def test_components_are_the_models_and_the_scheduler(pipe):
    assert set(pipe.components) == {"transformer", "vae", "scheduler"}
    again = LightningDiTPipeline(**pipe.components)
    close(draw(again), draw(pipe), 0)


@pytest.mark.parametrize("storage", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_layerwise_casting(pipe, storage):
    expected = draw(pipe)
    pipe.to(dtype=torch.bfloat16)
    pipe.transformer.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.bfloat16)
    images = draw(pipe)
    assert pipe.transformer.transformer_blocks[0].ff.net[2].weight.dtype == storage
    assert 0 < (images - expected).pow(2).mean().sqrt() < 0.5 * expected.std()


def test_group_offload_of_the_pipeline(pipe, tmp_path):
    """On the CPU the groups can only go to files; see tests/models/test_features_transformer.py for their effect."""
    expected = draw(pipe, output_type="pt")
    cpu = torch.device("cpu")
    pipe.enable_group_offload(
        onload_device=cpu, offload_device=cpu, offload_type="leaf_level", offload_to_disk_path=str(tmp_path)
    )
    close(draw(pipe, output_type="pt"), expected, 0)
    assert len(list(tmp_path.glob("*.safetensors"))) > NUM_LAYERS


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offload_to_the_cpu(pipe, method):
    expected = draw(pipe, output_type="pt")
    getattr(pipe, method)()
    close(draw(pipe, output_type="pt").cpu(), expected, 1e-3)
    assert pipe.transformer.device.type in ("cpu", "meta")


@pytest.mark.gpu
def test_device_map_of_the_pipeline(pipe, tmp_path):
    expected = draw(pipe, output_type="pt")
    pipe.save_pretrained(tmp_path)
    loaded = LightningDiTPipeline.from_pretrained(tmp_path, device_map="balanced")
    assert set(loaded.hf_device_map) >= {"transformer", "vae"}
    close(draw(loaded, output_type="pt").cpu(), expected, 1e-3)


def test_dtype_of_each_component(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = LightningDiTPipeline.from_pretrained(
        tmp_path, dtype={"transformer": torch.bfloat16, "default": torch.float16}
    )
    assert (loaded.transformer.dtype, loaded.vae.dtype) == (torch.bfloat16, torch.float16)


def test_compiled_blocks_in_the_pipeline(pipe, regional_compilation):
    """The pipeline's calls need one graph of a block for each batch size, and no more."""
    import torch._dynamo

    expected = draw(pipe, guidance_interval=(0.5, 1.0))
    graphs = []
    torch._dynamo.reset()
    pipe.transformer.compile_repeated_blocks(
        fullgraph=True, dynamic=False, backend=lambda graph, _: graphs.append(graph) or graph.forward
    )
    close(draw(pipe, guidance_interval=(0.5, 1.0)), expected, 1e-5)
    assert len(graphs) == 2
    torch._dynamo.reset()


def test_the_compiled_pipeline(make_pipeline, make_transformer, regional_compilation):
    """Two graphs without a break for all batch sizes and intervals, two more for a LoRA, none when it is gone."""
    import torch._dynamo

    pipe = make_pipeline(transformer=make_transformer(num_layers=1, attention_head_dim=16))

    def images() -> list[torch.Tensor]:
        few = {"num_inference_steps": 4}
        first = [draw(pipe, labels, guidance_interval=(0.3, 1.0), **few) for labels in ([3], [0, 3], [1, 2, 3])]
        return [*first, draw(pipe, [0], guidance_interval=(0.0, 0.5), **few), draw(pipe, [1] * 5, **few)]

    def adapted() -> list[torch.Tensor]:
        torch.manual_seed(0)
        pipe.transformer.add_adapter(lora_config(), adapter_name="a")
        result = images()
        pipe.unload_lora_weights()
        return result

    expected, expected_adapted, graphs, numbers = images(), adapted(), [], []
    assert different(expected[0], expected_adapted[0])
    expected_images = draw(pipe, output_type="pt")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    pipe.compile(mode="default", backend=lambda graph, _: graphs.append(graph) or graph.forward)
    for call, wanted in ((images, expected), (adapted, expected_adapted), (images, expected)):
        close(torch.cat(call()), torch.cat(wanted), 1e-5)
        numbers.append(len(graphs))
    assert numbers == [2, 4, 4]
    close(draw(pipe, output_type="pt"), expected_images, 1e-5)
    assert len(graphs) == 5  # the decoder's
    assert pipe.vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert not torch._dynamo.utils.counters["graph_break"]
    torch._dynamo.reset()


def test_compilation_comes_before_a_cache(pipe):
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ValueError, match="`transformer` is 'FirstBlockCacheConfig'; required: one without a cache"):
        pipe.compile()


@pytest.mark.gpu
def test_cuda_graphs(pipe, lora_files):
    """Each call of the compiled transformer launches one graph; the numbers are those of the CPU."""
    from torch.profiler import ProfilerActivity, profile

    sizes = ([3], [0, 3], [1, 2, 3])
    expected = [draw(pipe, labels) for labels in sizes]
    guided = draw(pipe, guider=ClassifierFreeGuidance(guidance_scale=3.0))
    load(pipe, lora_files[0][0], adapter_name="a")
    adapted = draw(pipe)
    pipe.unload_lora_weights()
    pipe.to("cuda").compile(fullgraph=True)
    for _ in range(3):  # the second call of a size records its graph
        for labels, image in zip(sizes, expected, strict=True):
            close(draw(pipe, labels).cpu(), image, 1e-4)
    close(draw(pipe, guider=ClassifierFreeGuidance(guidance_scale=3.0)).cpu(), guided, 1e-4)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        draw(pipe)
    launches = sum(event.count for event in profiler.key_averages() if "cudaGraphLaunch" in event.key)
    assert launches == NUM_STEPS
    load(pipe, lora_files[0][0], adapter_name="a")
    close(draw(pipe).cpu(), adapted, 1e-4)
