"""The original's YAML, and pipelines built with it."""

from pathlib import Path

import pytest
import torch

from diffusers_lightningdit import AutoencoderVAVAE, LightningDiTPipeline, LightningDiTTransformer2DModel
from diffusers_lightningdit.original import OriginalConfig, build_pipeline, imagenet_labels
from diffusers_lightningdit.original.config import sampling_section

PUBLISHED = Path(__file__).parents[2] / "conversion/configs"


def write(tmp_path, text: str) -> OriginalConfig:
    (tmp_path / "my.yaml").write_text(text)
    return OriginalConfig.read(tmp_path / "my.yaml")


def test_labels():
    labels = imagenet_labels()
    assert list(labels) == list(range(1000))
    for class_id, name in {
        0: "tench",
        1: "goldfish",
        88: "macaw",
        207: "golden retriever",
        279: "Arctic fox",
        387: "red panda",
        388: "giant panda",
        975: "lakeside",
        979: "valley",
        985: "daisy",
        999: "toilet tissue",
    }.items():
        assert name in labels[class_id].split(", ")


def test_recipe(tmp_path):
    config = write(
        tmp_path,
        "sample: {sampling_method: euler, num_sampling_steps: 250, cfg_scale: 6.7, cfg_interval_start: 0.125, "
        "timestep_shift: 0.3}",
    )
    assert config.sampling_recipe(32) == {
        "num_inference_steps": 249,
        "guidance_scale": 6.7,
        "guidance_interval": [0.125, 1.0],
        "guidance_channels": 3,
    }
    assert config.scheduler_shift == pytest.approx(1 / 0.3)
    assert config.sampling_recipe(2)["guidance_channels"] == 2


def test_defaults_of_the_original(tmp_path):
    config = write(tmp_path, "sample: {num_sampling_steps: 10}")
    recipe = config.sampling_recipe(32)
    assert recipe["guidance_scale"] == 1.0
    assert recipe["guidance_interval"] == [0.0, 1.0]
    assert "ode_method" not in recipe
    assert config.scheduler_shift == 1.0
    assert config.latent_multiplier == 0.18215
    assert write(tmp_path, "data:").sampling_recipe(32) is None
    assert write(tmp_path, "sample: {timestep_shift: 0}").scheduler_shift == 1.0


def test_recipe_of_few_steps(tmp_path):
    config = write(tmp_path, "sample: {mode: consistency, num_sampling_steps: 2}")
    assert config.sampling_recipe(32) == {"num_inference_steps": 2, "guidance_scale": 1.0}
    assert config.is_consistency
    assert sampling_section(config.sampling_recipe(32), 1.0, is_consistency=True) == config.values["sample"]
    assert sampling_section(config.sampling_recipe(32), 2.0, is_consistency=True) is None


def test_recipe_of_internal_guidance(golden_frontier):
    """All channels are guided there, and not the first three."""
    config = OriginalConfig.read(golden_frontier("internal_guidance/config.yaml"))
    recipe = config.sampling_recipe(8)
    assert recipe == {
        "num_inference_steps": 9,
        "guidance_scale": 1.45,
        "guidance_interval": [0.19, 1.0],
        "guidance_channels": None,
        "internal_guidance_scale": 1.4,
        "ode_method": "heun2",
    }
    section = sampling_section(recipe, config.scheduler_shift)
    assert {key: section[key] for key in config.values["sample"]} == config.values["sample"]
    assert sampling_section(recipe | {"internal_guidance_interval": [0.2, 1.0]}, 1.0) is None


@pytest.mark.parametrize("method", ["dopri5", "heun2"])
def test_recipe_of_other_methods(tmp_path, method):
    # YAML 1.1 reads 1e-6 as a string
    config = write(tmp_path, f"sample: {{sampling_method: {method}, num_sampling_steps: 25, atol: 1e-6, rtol: 0.001}}")
    recipe = config.sampling_recipe(32)
    assert (recipe["ode_method"], recipe["ode_atol"], recipe["ode_rtol"]) == (method, 1e-6, 1e-3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sample: {num_sampling_steps: 1}", "`sample.num_sampling_steps` is 1; required: at least 2"),
        ("sample: {cfg_scale: 2}", "`sample.num_sampling_steps` is None"),
        ("sample: {num_sampling_steps: ten}", "`sample.num_sampling_steps` is 'ten'; required: of type int"),
        ("sample: {num_sampling_steps: 9, cfg_scale: x}", "`sample.cfg_scale` is 'x'; required: a number"),
        ("sample: {num_sampling_steps: 9, cfg_scale: .nan}", "`sample.cfg_scale` is nan; required: a number"),
        ("sample: {num_sampling_steps: 9, cfg_scale: -1}", "`sample.cfg_scale` is -1.0"),
        ("sample: {num_sampling_steps: 9, cfg_interval_start: 2}", "`sample.cfg_interval_start` is 2.0"),
        ("sample: {num_sampling_steps: 9, sampling_method: rk4}", "`sample.sampling_method` is 'rk4'; required: one"),
        ("sample: {num_sampling_steps: 9, mode: SDE}", "`sample.mode` is 'SDE'; required: one of ODE, consistency"),
        ("sample: {mode: consistency}", "`sample.num_sampling_steps` is None; required: at least 1, the evaluations"),
        ("sample: {mode: consistency, num_sampling_steps: 2, cfg_scale: 2}", "`sample.cfg_scale` is 2.0; required: 1"),
        ("sample: {mode: consistency, num_sampling_steps: 2, timestep_shift: 0.3}", "`sample.timestep_shift` is 0.3"),
        ("sample: {num_sampling_steps: 9, ig_scale: -0.5}", "`sample.ig_scale` is -0.5; required: at least 0"),
        ("sample: {num_sampling_steps: 9, reverse: true}", "`sample.reverse` is True"),
        ("transport: {path_type: VP}", "`transport.path_type` is 'VP'; required: 'Linear'"),
        ("transport: {prediction: noise}", "`transport.prediction` is 'noise'"),
        ("sample: 3", "`sample` is 3; required: a section"),
    ],
)
def test_wrong_recipe(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        write(tmp_path, text).sampling_recipe(32)
    assert "my.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {latent_multiplier: 0}", "`data.latent_multiplier` is 0.0"),
        ("data: 3", "`data` is 3; required: a section"),
    ],
)
def test_wrong_multiplier(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        _ = write(tmp_path, text).latent_multiplier


def test_wrong_shift(tmp_path):
    with pytest.raises(ValueError, match=r"`sample\.timestep_shift` is -0\.3"):
        _ = write(tmp_path, "sample: {timestep_shift: -0.3}").scheduler_shift


@pytest.mark.parametrize("content", [b"a: [", b"- 1", b"", b"\xff\xfe\x00", b"[" * 5000])
def test_no_yaml(tmp_path, content):
    (tmp_path / "my.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"my\.yaml: ") as error:
        OriginalConfig.read(tmp_path / "my.yaml")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no such file"):
        OriginalConfig.read(tmp_path / "other.yaml")
    with pytest.raises(ValueError, match="is no readable YAML file"):
        OriginalConfig.read(tmp_path)


@pytest.mark.parametrize(("epochs", "scale", "start"), [(64, 10.0, 0.10), (800, 6.7, 0.125)])
def test_published_recipes(epochs, scale, start):
    config = OriginalConfig.read(PUBLISHED / f"lightningdit_xl_{epochs}ep.yaml")
    recipe = config.sampling_recipe(32)
    assert recipe == {
        "num_inference_steps": 249,
        "guidance_scale": scale,
        "guidance_interval": [start, 1.0],
        "guidance_channels": 3,
    }
    assert config.latent_multiplier == 1.0
    # and back
    section = sampling_section(recipe, config.scheduler_shift)
    assert section == config.values["sample"]


@pytest.mark.parametrize(
    ("file", "expected", "shift"),
    [
        ("facm_xl_2_steps", {"num_inference_steps": 2, "guidance_scale": 1.0}, 1),
        ("facm_xl_1_step", {"num_inference_steps": 1, "guidance_scale": 1.0}, 1),
        (
            "internal_guidance_xl",
            {"num_inference_steps": 124, "guidance_scale": 1.45, "guidance_interval": [0.19, 1.0],
             "guidance_channels": None, "internal_guidance_scale": 1.4},
            1 / 0.3,
        ),
        (
            "internal_guidance_xl_alone",
            {"num_inference_steps": 124, "guidance_scale": 1.0, "internal_guidance_scale": 1.7},
            1 / 0.3,
        ),
        ("vfm_vae_xl", {"guidance_scale": 4.0, "guidance_interval": [0.125, 1.0], "guidance_channels": 3}, 1 / 0.3),
        ("vtp_f16d64", {"guidance_scale": 1.0}, 1 / 0.075),
    ],
)  # fmt: skip
def test_recipes_of_other_projects(file, expected, shift):
    config = OriginalConfig.read(PUBLISHED / f"{file}.yaml")
    recipe = config.sampling_recipe(config.get("model.in_chans", int))
    assert expected.items() <= recipe.items()
    assert config.scheduler_shift == pytest.approx(shift)
    assert sampling_section(recipe, config.scheduler_shift, config.is_consistency) == config.values["sample"]


def test_recipes_that_the_original_does_not_have():
    recipe = {"num_inference_steps": 9, "guidance_scale": 4.0, "guidance_channels": 3}
    assert sampling_section(recipe, 1.0)["timestep_shift"] == 0.0
    assert sampling_section(recipe | {"guidance_channels": None}, 1.0) is None
    assert sampling_section(recipe | {"guidance_interval": [0.1, 0.9]}, 1.0) is None
    assert sampling_section(recipe | {"guidance_channels": None, "guidance_scale": 1.0}, 1.0) is not None
    assert sampling_section({}, 1.0) is None


# ---------------------------------------------------------------------------------------------------------------------
# Pipelines
# ---------------------------------------------------------------------------------------------------------------------


def parts(latent_channels: int = 4, num_classes: int = 5, **vae):
    transformer = LightningDiTTransformer2DModel(
        sample_size=4,
        in_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_classes=num_classes,
    )
    vae = AutoencoderVAVAE(
        block_out_channels=(32, 32), layers_per_block=1, latent_channels=latent_channels, sample_size=8, **vae
    )
    return transformer.eval(), vae.eval()


STATISTICS = {"latents_mean": [0.5] * 4, "latents_std": [2.0] * 4}


@torch.no_grad()
def test_build_pipeline():
    config = OriginalConfig(
        {"data": {"latent_norm": True}, "sample": {"num_sampling_steps": 4, "timestep_shift": 0.5, "cfg_scale": 2.0}}
    )
    pipeline = build_pipeline(*parts(**STATISTICS), config)
    assert isinstance(pipeline, LightningDiTPipeline)
    assert pipeline.vae.config.scaling_factor == 0.18215
    assert pipeline.scheduler.config.shift == 2.0
    assert pipeline.config.sampling_recipe["num_inference_steps"] == 3
    assert not pipeline.config.id2label
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(1, output_type="pt").images.shape == (1, 3, 8, 8)


def test_build_pipeline_without_yaml():
    pipeline = build_pipeline(*parts(num_classes=1000))
    assert pipeline.config.sampling_recipe is None
    assert pipeline.vae.config.scaling_factor == 1.0
    assert pipeline.scheduler.config.shift == 1.0
    assert pipeline.get_label_ids("golden retriever") == [207]


@pytest.mark.parametrize(
    ("vae", "values", "message"),
    [
        ({"latent_channels": 8}, None, "the VAE has 8 latent channels; required: 4"),
        ({}, {"data": {"latent_norm": True}}, "`data.latent_norm` is True, but neither latents_stats"),
        (STATISTICS, {"data": {"latent_norm": False}}, "`data.latent_norm` is False; required: True"),
        ({}, {"vae": {"downsample_ratio": 16}}, "`vae.downsample_ratio` is 16; required: 2"),
    ],
)
def test_parts_that_do_not_belong_together(vae, values, message):
    with pytest.raises(ValueError, match=message):
        build_pipeline(*parts(**vae), None if values is None else OriginalConfig(values))
