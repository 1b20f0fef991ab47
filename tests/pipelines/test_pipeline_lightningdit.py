import json

import diffusers
import numpy as np
import pytest
import torch
import yaml
from diffusers import (
    AutoencoderKL,
    AutoencoderRAE,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from golden.small_set import recorded_part
from safetensors.torch import load_file

from diffusers_lightningdit import LightningDiTPipeline
from diffusers_lightningdit.original import load_autoencoder, load_transformer
from diffusers_lightningdit.pipelines.lightningdit_sampling import guide

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
NUM_GUIDED_CHANNELS = 3  # what the original always does


def record_batches(transformer) -> list[int]:
    """The batch size of every network evaluation from now on."""
    batches = []
    transformer.register_forward_pre_hook(
        lambda module, args, kwargs: batches.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    return batches


# ---------------------------------------------------------------------------------------------------------------------
# The original's numbers
# ---------------------------------------------------------------------------------------------------------------------

SAMPLING_RUNS = [
    "euler10_shift0.3_cfg6.7",
    "euler25_shift0_cfg6.7",
    "euler10_nocfg_mult_default",
    "dopri5_shift0.3_cfg6.7",
    "dopri5_nocfg",
]


@pytest.mark.parametrize("name", SAMPLING_RUNS)
def test_reproduces_the_original_sampling_procedure(name, golden):
    """Latents, network evaluations and PNGs of every recorded run, from the original checkpoint files."""
    recorded = json.loads(golden("sampling/runs.json").read_text())["runs"][name]
    config = yaml.safe_load(golden(f"sampling/{name}.yaml").read_text())
    tensors = load_file(golden(f"sampling/{name}.safetensors"))
    vae_file = golden("vae/vavae/vavae.ckpt")
    transformer = load_transformer(golden("sampling/ckpt_published_ema_only.pt"))
    multiplier = config["data"].get("latent_multiplier", 0.18215)
    vae = load_autoencoder(vae_file, golden("sampling/latents_stats.pt"), latent_multiplier=multiplier)

    sample = config["sample"]
    shift = 1 / sample["timestep_shift"] if sample.get("timestep_shift") else 1.0
    pipe = LightningDiTPipeline(transformer, vae, FlowMatchEulerDiscreteScheduler(shift=shift))
    pipe.set_progress_bar_config(disable=True)
    is_euler = sample["sampling_method"] == "euler"
    settings = {
        "guidance_scale": sample["cfg_scale"],
        "guidance_interval": (sample.get("cfg_interval_start", 0.0), 1.0),
        "guidance_channels": NUM_GUIDED_CHANNELS,
        "num_inference_steps": sample["num_sampling_steps"] - 1,
    }
    if not is_euler:
        settings |= {"ode_method": sample["sampling_method"], "ode_atol": sample["atol"], "ode_rtol": sample["rtol"]}

    for batch in range(recorded["batches"]):
        settings |= {"class_labels": tensors[f"batch{batch}_y"], "latents": tensors[f"batch{batch}_noise"]}
        num_evaluations = record_batches(transformer)
        latents = pipe(**settings, output_type="latent").images
        tolerance = 1e-4 if is_euler else 1e-3
        torch.testing.assert_close(latents, tensors[f"batch{batch}_latents_final"], rtol=0, atol=tolerance)
        if batch == 0:
            assert len(num_evaluations) == recorded["nfe_first_batch"]

        denormalised = vae.denormalize_latents(latents)
        torch.testing.assert_close(
            denormalised, tensors[f"batch{batch}_latents_denorm"], rtol=0, atol=tolerance / min(1, multiplier)
        )
        images = np.stack([np.asarray(image) for image in pipe(**settings).images]).astype(int)
        expected = tensors["png_u8_nhwc"][batch * len(images) : (batch + 1) * len(images)].numpy().astype(int)
        images = recorded_part(images, expected)
        assert np.abs(images - expected).max() <= 1
        assert (images != expected).mean() < (1e-3 if is_euler else 1e-2)


def test_steps_visit_the_original_grid(pipe, golden):
    """249 steps are the 250 grid points of the published recipe, shift 0.3: t' = 0.3 t / (1 - 0.7 t)."""
    t = torch.linspace(0, 1, 250)
    expected = 0.3 * t / (1 - 0.7 * t)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=1 / 0.3)
    times = []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: times.append(kwargs["timestep"][0]), with_kwargs=True
    )
    pipe(0, guidance_scale=1.0, num_inference_steps=249, output_type="latent")
    torch.testing.assert_close(torch.stack(times), expected[:-1], rtol=0, atol=2e-7)

    recorded = load_file(golden("sampling/euler10_shift0.3_cfg6.7.safetensors"))["time_grid"]
    times.clear()
    pipe(0, guidance_scale=1.0, num_inference_steps=9, output_type="latent")
    torch.testing.assert_close(torch.stack(times), recorded[:-1], rtol=0, atol=2e-7)


# ---------------------------------------------------------------------------------------------------------------------
# Guidance
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["released", "qknorm_rms_woshift", "learn_sigma_p2"])
def test_guide_equals_the_original_guided_forward(case, golden):
    transformer = load_transformer(golden(f"dit/{case}/ckpt_train.pt"))  # RoPE tables tell the number of heads
    tensors = load_file(golden(f"dit/{case}/cfg.safetensors"))
    num_samples = len(tensors["y"]) // 2  # the labels of the samples, then as often the null class
    first = tensors["x"][:num_samples].repeat(2, 1, 1, 1)
    for run in json.loads(golden(f"dit/{case}/cfg.json").read_text())["runs"]:
        with torch.no_grad():
            conditional, unconditional = transformer(first, run["t"], tensors["y"]).sample.chunk(2)
        is_guided = run["cfg_interval"] is not True or run["t"] >= run["cfg_interval_start"]
        guided = guide(conditional, unconditional, run["cfg_scale"], NUM_GUIDED_CHANNELS) if is_guided else conditional
        torch.testing.assert_close(guided, tensors[run["out"]][:num_samples], rtol=0, atol=1e-4)


def test_guidance_outside_the_interval_costs_nothing(pipe):
    batches = record_batches(pipe.transformer)
    pipe([0, 1], guidance_scale=3.0, guidance_interval=(0.25, 0.5), num_inference_steps=8, output_type="latent")
    assert batches == [2, 2, 4, 4, 4, 2, 2, 2]  # t = 0, 1/8, ..., 7/8; both ends belong to the interval


@pytest.mark.parametrize("start", [0.1, 0.3, 0.6, 0.7])
def test_a_grid_point_at_the_start_of_the_interval_is_guided(pipe, start):
    """Rounding of 1 - sigma must not decide: t = 0.6 is 0.59999996 in float32."""
    batches = record_batches(pipe.transformer)
    pipe(0, guidance_scale=3.0, guidance_interval=(start, 1.0), num_inference_steps=10, output_type="latent")
    assert batches == [1] * round(10 * start) + [2] * (10 - round(10 * start))


def test_guidance_arguments_change_what_they_say(pipe):
    def draw(**settings):
        generator = torch.Generator().manual_seed(0)
        return pipe(1, num_inference_steps=1, generator=generator, output_type="latent", **settings).images

    unguided = draw(guidance_scale=1.0)
    three = draw(guidance_scale=5.0, guidance_channels=3)
    every = draw(guidance_scale=5.0, guidance_channels=None)
    assert not torch.allclose(three[:, :3], unguided[:, :3])
    torch.testing.assert_close(three[:, 3:], unguided[:, 3:], rtol=0, atol=1e-5)
    torch.testing.assert_close(every[:, :3], three[:, :3], rtol=0, atol=1e-5)
    assert not torch.allclose(every[:, 3:], unguided[:, 3:])
    torch.testing.assert_close(draw(guidance_scale=5.0, guidance_interval=(0.5, 1.0)), unguided, rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Schedulers
# ---------------------------------------------------------------------------------------------------------------------


def solve_with_dopri5(pipe, **settings):
    return pipe([0, 1], num_inference_steps=1, ode_method="dopri5", ode_rtol=1e-6, **settings).images


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchHeunDiscreteScheduler(shift=2.0),
        DPMSolverMultistepScheduler(**FLOW, flow_shift=2.0),
        DPMSolverSinglestepScheduler(**FLOW, flow_shift=2.0, lower_order_final=True),
        UniPCMultistepScheduler(**FLOW, flow_shift=2.0),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_other_schedulers_converge_to_the_same_latents(pipe, scheduler):
    settings = {"guidance_scale": 2.0, "latents": torch.randn(2, 4, 4, 4), "output_type": "latent"}
    reference = solve_with_dopri5(pipe, **settings)
    pipe.scheduler = scheduler
    coarse, fine = (
        (pipe([0, 1], num_inference_steps=steps, **settings).images - reference).abs().max() for steps in (8, 60)
    )
    assert fine < 3e-3 * reference.abs().max()
    assert fine < coarse / 2


@pytest.mark.parametrize(("ode_method", "tolerance"), [(None, 1e-2), ("heun2", 1e-4)])
def test_euler_and_heun2_converge_to_dopri5(pipe, ode_method, tolerance):
    settings = {"guidance_scale": 2.0, "latents": torch.randn(2, 4, 4, 4), "output_type": "latent"}
    reference = solve_with_dopri5(pipe, **settings)
    solved = pipe([0, 1], num_inference_steps=100, ode_method=ode_method, **settings).images
    assert (solved - reference).abs().max() < tolerance * reference.abs().max()


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("DEISMultistepScheduler", FLOW, "repeats the last sigma"),
        ("SASolverScheduler", FLOW, "repeats the last sigma"),
        ("FlowMatchLCMScheduler", {}, "distilled"),
        ("EulerDiscreteScheduler", {}, "does not integrate a flow"),
        ("DDIMScheduler", {}, "does not integrate a flow"),
        ("UniPCMultistepScheduler", {}, "use_flow_sigmas=True"),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}, "prediction_type='flow_prediction'"),
        ("DPMSolverMultistepScheduler", {**FLOW, "final_sigmas_type": "sigma_min"}, "final_sigmas_type='zero'"),
        ("UniPCMultistepScheduler", {**FLOW, "use_dynamic_shifting": True}, "use_dynamic_shifting=False"),
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, "use_dynamic_shifting=False"),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas=False"),
    ],
)
def test_refuses_schedulers_that_cannot_solve_this_flow(pipe, name, settings, reason):
    pipe.scheduler = getattr(diffusers, name)(**settings)
    batches = record_batches(pipe.transformer)
    with pytest.raises(ValueError, match=f"`scheduler` is {name}.*{reason}"):
        pipe(0)
    assert not batches


# ---------------------------------------------------------------------------------------------------------------------
# Labels
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "ids"),
    [
        (3, [3]),
        ("golden retriever", [1]),
        (["Tinca tinca", 4, "tench"], [0, 4, 0]),
        ("tench, Tinca tinca", [0]),
        ("Golden Retriever", [1]),
        (torch.tensor([2, 0]), [2, 0]),
        (np.array([2, 0]), [2, 0]),
    ],
)
def test_label_ids(pipe, labels, ids):
    assert pipe.get_label_ids(labels) == ids


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("golden retreiver", "unknown name 'golden retreiver'; nearest: 'golden retriever'"),
        ("zzz", "unknown name 'zzz'; `pipe.labels` lists the names"),
        ("crane", r"'crane' of several classes; use one of the ids \[2, 4\]"),
        (5, "id 5; required: 0 to 4"),
        (-1, "id -1; required: 0 to 4"),
        (1.5, "has 1.5; required: class ids"),
        (True, "has True; required: class ids"),
        ([], "is empty"),
    ],
)
def test_wrong_labels(pipe, labels, message):
    with pytest.raises(ValueError, match="`class_labels` .*" + message):
        pipe(labels)


def test_labels_without_names(make_pipeline):
    with pytest.raises(ValueError, match="no `id2label`, use ids"):
        make_pipeline(id2label=None)("tench")


# ---------------------------------------------------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guidance_interval": (0.5, 0.2)}, r"`guidance_interval` is \(0.5, 0.2\); required: \(start, end\)"),
        ({"guidance_interval": (-0.1, 0.2)}, "`guidance_interval` is"),
        ({"guidance_interval": (0.1, 1.2)}, "`guidance_interval` is"),
        ({"guidance_interval": 0.1}, "`guidance_interval` is 0.1"),
        ({"guidance_interval": (0.1, "1")}, "`guidance_interval` is"),
        ({"guidance_scale": -1}, "`guidance_scale` is -1"),
        ({"guidance_scale": float("nan")}, "`guidance_scale` is nan"),
        ({"guidance_channels": 0}, "`guidance_channels` is 0; required: an integer from 1 to 4"),
        ({"guidance_channels": 5}, "`guidance_channels` is 5"),
        ({"num_inference_steps": 0}, "`num_inference_steps` is 0; required: an integer of at least 1"),
        ({"num_inference_steps": 2.5}, "`num_inference_steps` is 2.5"),
        ({"num_images_per_prompt": 0}, "`num_images_per_prompt` is 0"),
        ({"height": 9}, "`height` is 9; required: a positive multiple of 2 pixels"),
        ({"width": 0}, "`width` is 0"),
        ({"latents": torch.zeros(1, 4, 4, 5)}, r"`latents` has the shape \(1, 4, 4, 5\); required: \(1, 4, 4, 4\)"),
        ({"latents": [0.0]}, r"`latents` is \[0.0\]; required: \(1, 4, 4, 4\)"),
        ({"generator": [torch.Generator()] * 2}, "`generator` is a list of 2; required: 1"),
        ({"output_type": "jpg"}, "`output_type` is 'jpg'"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "`callback_on_step_end_tensor_inputs`"),
        (
            {"callback_on_step_end_tensor_inputs": None},
            "`callback_on_step_end_tensor_inputs` is None; required",
        ),
        ({"ode_method": "rk4"}, "`ode_method` is 'rk4'; required: None or one of"),
        ({"ode_method": "dopri5", "ode_rtol": 0}, "`ode_rtol` is 0"),
        ({"ode_method": "dopri5", "callback_on_step_end": lambda *_: {}}, "`callback_on_step_end` is"),
    ],
)
def test_wrong_arguments(pipe, arguments, message):
    batches = record_batches(pipe.transformer)
    with pytest.raises(ValueError, match=message):
        pipe(0, **arguments)
    assert not batches


def test_wrong_components(make_pipeline, make_vae):
    with pytest.raises(ValueError, match="`vae` has 8 latent channels; required: the transformer's `in_channels` 4"):
        make_pipeline(vae=make_vae(latent_channels=8, latents_mean=None, latents_std=None))(0)
    with pytest.raises(ValueError, match="`id2label` has the key 5"):
        make_pipeline(id2label={5: "six"})
    with pytest.raises(ValueError, match="`sampling_recipe` has the key 'cfg'"):
        make_pipeline(sampling_recipe={"cfg": 4})


def test_recipe_gives_the_defaults_and_arguments_override_it(make_pipeline):
    recipe = {"num_inference_steps": 4, "guidance_scale": 3.0, "guidance_interval": [0.5, 1.0], "guidance_channels": 3}
    pipe, plain = make_pipeline(sampling_recipe=recipe), make_pipeline()
    noise = torch.randn(1, 4, 4, 4)

    def draw(pipe, **settings):
        return pipe(1, latents=noise, output_type="latent", **settings).images

    batches = record_batches(pipe.transformer)
    by_recipe = draw(pipe)
    assert batches == [1, 1, 2, 2]
    assert torch.equal(by_recipe, draw(plain, **recipe))
    for override in (
        {"num_inference_steps": 3},
        {"guidance_scale": 1.0},
        {"guidance_interval": None},
        {"guidance_channels": None},
        {"ode_method": "heun2"},
    ):
        overridden = draw(pipe, **override)
        assert torch.equal(overridden, draw(plain, **recipe | override))
        assert not torch.equal(overridden, by_recipe)


def test_images_do_not_depend_on_their_batch(pipe):
    def generator(seed):
        return torch.Generator().manual_seed(seed)

    settings = {"num_inference_steps": 3, "output_type": "pt"}
    batch = pipe([0, 1, 2], generator=[generator(0), generator(1), generator(2)], **settings).images
    alone = pipe([2], generator=[generator(2)], **settings).images
    torch.testing.assert_close(batch[2:], alone, rtol=0, atol=1e-5)
    assert not torch.allclose(batch[0], batch[1], atol=1e-3)
    again = pipe([0, 1, 2], generator=[generator(0), generator(1), generator(2)], **settings).images
    assert torch.equal(batch, again)


def test_several_images_per_label_follow_the_order_of_labels(pipe):
    noise = torch.randn(4, 4, 4, 4)
    settings = {"num_inference_steps": 2, "output_type": "latent", "latents": noise}
    images = pipe([1, 3], num_images_per_prompt=2, **settings).images
    assert torch.equal(images, pipe([1, 1, 3, 3], **settings).images)


def test_output_types(pipe):
    def draw(**settings):
        return pipe([0, 1], generator=torch.Generator().manual_seed(0), num_inference_steps=2, **settings)

    latents = draw(output_type="latent").images
    assert latents.shape == (2, 4, 4, 4) and latents.dtype == torch.float32
    tensor = draw(output_type="pt").images
    assert tensor.shape == (2, 3, 8, 8) and tensor.min() >= 0 and tensor.max() <= 1
    assert np.array_equal(draw(output_type="np").images, tensor.permute(0, 2, 3, 1).numpy())
    decoded = pipe.vae.decode(pipe.vae.denormalize_latents(latents)).sample
    expected = (127.5 * decoded + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    assert np.array_equal(np.stack(draw().images), expected.numpy())
    (images,) = draw(return_dict=False)
    assert images[0].size == (8, 8)


def test_sizes_other_than_the_trained_one(pipe):
    image = pipe(0, height=12, width=20, num_inference_steps=2).images[0]
    assert image.size == (20, 12)


def test_callback_sees_and_replaces_the_latents_and_can_interrupt(pipe):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, float(timestep), float(pipe.current_timestep)))
        if step == 1:
            pipe._interrupt = True
        return {"latents": torch.zeros_like(tensors["latents"])}

    latents = pipe(0, num_inference_steps=4, output_type="latent", callback_on_step_end=callback).images
    assert seen == [(0, 1000.0, 1000.0), (1, 750.0, 750.0)]
    assert pipe.num_timesteps == 4
    assert not latents.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_weights_draw_nearly_the_same_images(make_pipeline, dtype):
    settings = {"num_inference_steps": 4, "latents": torch.randn(2, 4, 4, 4), "output_type": "pt"}
    expected = make_pipeline()([0, 1], **settings).images
    images = make_pipeline().to("cpu", dtype)([0, 1], **settings).images
    assert (images - expected).abs().max() < 0.05


# ---------------------------------------------------------------------------------------------------------------------
# Other autoencoders
# ---------------------------------------------------------------------------------------------------------------------


def test_stable_diffusion_autoencoder(make_pipeline):
    """AutoencoderKL's own convention: latents / scaling_factor + shift_factor."""
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        scaling_factor=0.5,
        shift_factor=0.25,
    ).eval()
    settings = {"num_inference_steps": 2, "latents": torch.randn(1, 4, 4, 4)}
    pipe = make_pipeline(vae=vae)
    latents = pipe(0, output_type="latent", **settings).images
    with torch.no_grad():
        expected = vae.decode(latents / 0.5 + 0.25).sample
    torch.testing.assert_close(pipe(0, output_type="pt", **settings).images, (expected / 2 + 0.5).clamp(0, 1))


def test_plain_autoencoder_kl_with_latents_statistics(make_pipeline, make_vae, tmp_path):
    """Others publish VA-VAE as AutoencoderKL: the statistics of its config count as they do in ours."""
    vae = make_vae(scaling_factor=0.5)
    vae.save_pretrained(tmp_path)
    settings = {"num_inference_steps": 2, "latents": torch.randn(1, 4, 4, 4), "output_type": "pt"}
    expected = make_pipeline(vae=vae)(0, **settings).images
    plain = AutoencoderKL.from_pretrained(tmp_path)
    assert type(plain) is AutoencoderKL
    torch.testing.assert_close(make_pipeline(vae=plain)(0, **settings).images, expected)


def test_representation_autoencoder(make_pipeline, make_transformer):
    """AutoencoderRAE normalises inside `decode`."""
    vae = AutoencoderRAE(
        encoder_hidden_size=64,
        encoder_patch_size=4,
        encoder_num_hidden_layers=1,
        encoder_input_size=16,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
        patch_size=2,
        image_size=8,
        encoder_norm_mean=[0.5, 0.5, 0.5],
        encoder_norm_std=[0.5, 0.5, 0.5],
        latents_mean=torch.full((64, 4, 4), 0.5).tolist(),
        latents_std=torch.full((64, 4, 4), 2.0).tolist(),
    ).eval()
    pipe = make_pipeline(vae=vae, transformer=make_transformer(in_channels=64))
    settings = {"num_inference_steps": 2, "latents": torch.randn(1, 64, 4, 4)}
    latents = pipe(0, output_type="latent", **settings).images
    with torch.no_grad():
        expected = vae.decode(latents).sample
    images = pipe(0, output_type="pt", **settings).images
    assert images.shape == (1, 3, 8, 8)
    torch.testing.assert_close(images, (expected / 2 + 0.5).clamp(0, 1))


# ---------------------------------------------------------------------------------------------------------------------
# Saving and loading
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pipeline_class", [DiffusionPipeline, LightningDiTPipeline])
def test_save_and_load(make_pipeline, tmp_path, pipeline_class):
    recipe = {"num_inference_steps": 3, "guidance_scale": 2.0, "guidance_interval": [0.1, 1.0], "guidance_channels": 3}
    pipe = make_pipeline(sampling_recipe=recipe, scheduler=FlowMatchEulerDiscreteScheduler(shift=10 / 3))
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "LightningDiTPipeline"
    assert index["transformer"] == ["diffusers_lightningdit", "LightningDiTTransformer2DModel"]
    assert index["vae"] == ["diffusers_lightningdit", "AutoencoderVAVAE"]

    loaded = pipeline_class.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is LightningDiTPipeline
    assert loaded.id2label == pipe.id2label
    assert loaded.config.sampling_recipe == recipe
    noise = torch.randn(1, 4, 4, 4)
    expected = pipe("golden retriever", latents=noise, output_type="pt").images
    images = loaded("golden retriever", latents=noise, output_type="pt").images
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-6)


def test_from_pipe_keeps_names_and_recipe(make_pipeline):
    pipe = make_pipeline(sampling_recipe={"num_inference_steps": 3})
    other = LightningDiTPipeline.from_pipe(pipe)
    assert other.transformer is pipe.transformer
    assert other.id2label == pipe.id2label
    assert other.config.sampling_recipe == {"num_inference_steps": 3}


def test_auto_model_loads_the_components(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    for name in ("transformer", "vae"):
        component = diffusers.AutoModel.from_pretrained(str(tmp_path), subfolder=name)
        assert type(component) is type(getattr(pipe, name))
        for key, value in getattr(pipe, name).state_dict().items():
            assert torch.equal(component.state_dict()[key], value)


def test_as_custom_pipeline(pipe, tmp_path, repository):
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(
        tmp_path, custom_pipeline=str(repository / "pipelines" / "pipeline_lightningdit.py"), trust_remote_code=True
    )
    loaded.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 4, 4)
    settings = {"num_inference_steps": 2, "latents": noise, "output_type": "pt"}
    images = loaded("tench", **settings).images
    torch.testing.assert_close(images, pipe("tench", **settings).images, rtol=0, atol=1e-6)


def test_lora_adapters_load_and_scale(pipe, tmp_path):
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    settings = {"num_inference_steps": 2, "latents": torch.randn(1, 4, 4, 4), "output_type": "latent"}
    plain = pipe(0, **settings).images
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False)
    pipe.transformer.add_adapter(config)
    adapted = pipe(0, **settings).images
    assert not torch.allclose(adapted, plain, atol=1e-3)
    torch.testing.assert_close(pipe(0, attention_kwargs={"scale": 0.0}, **settings).images, plain)

    pipe.save_lora_weights(tmp_path, transformer_lora_layers=get_peft_model_state_dict(pipe.transformer))
    pipe.unload_lora_weights()
    torch.testing.assert_close(pipe(0, **settings).images, plain)
    pipe.load_lora_weights(tmp_path)
    torch.testing.assert_close(pipe(0, **settings).images, adapted)


@pytest.mark.gpu
def test_on_a_gpu_equals_cpu(make_pipeline):
    settings = {"num_inference_steps": 4, "latents": torch.randn(2, 4, 4, 4), "output_type": "pt"}
    expected = make_pipeline()([0, 1], **settings).images
    images = make_pipeline().to("cuda")([0, 1], **settings).images
    torch.testing.assert_close(images.cpu(), expected, rtol=0, atol=1e-3)
