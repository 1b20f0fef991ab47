"""`diffusers-lightningdit push --dry_run` writes a folder; tests/hub/test_pushed_repositories.py uploads some."""

import re

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard, SpaceCard
from PIL import Image
from safetensors.torch import load_file

from diffusers_lightningdit import AutoencoderVAVAE
from diffusers_lightningdit.commands import push as push_command
from diffusers_lightningdit.hub.cards import check_card
from diffusers_lightningdit.original import OriginalConfig

TRANSFORMER = "transformer/diffusion_pytorch_model"


@pytest.fixture(scope="module")
def original(golden) -> dict[str, str]:
    """Settings of a pipeline of a thousand classes, from files of the original."""
    names = {
        "checkpoint": "sampling/ckpt_published_ema_only.pt",
        "config": "sampling/euler10_shift0.3_cfg6.7.yaml",
        "vae": "vae/vavae/vavae.ckpt",
        "latents_stats": "sampling/latents_stats.pt",
    }
    return {name: str(golden(file)) for name, file in names.items()}


def push(folder, *words: str, **settings) -> dict:
    given = {"repository": "user/tiny", "output_dir": str(folder), "dry_run": "true", **settings}
    return push_command.main([*words, *(f"{name}={value}" for name, value in given.items())])


@pytest.fixture(scope="module")
def repository_folder(original, tmp_path_factory):
    folder = tmp_path_factory.mktemp("push") / "repository"
    push(
        folder,
        "--classes=[207, 3]",
        "--num_samples_per_class=2",
        "--sampling.num_inference_steps=1",
        **original,
        license="mit",
    )
    return folder


def test_the_folder_is_complete(repository_folder):
    names = {path.relative_to(repository_folder).as_posix() for path in repository_folder.rglob("*") if path.is_file()}
    parts = {f"{part}/config.json" for part in ("transformer", "vae")} | {"scheduler/scheduler_config.json"}
    code = {
        "pipeline.py",
        "lightningdit_sampling.py",
        *(f"{part}/diffusers_lightningdit.py" for part in ("transformer", "vae")),
    }
    weights = {
        f"{part}/diffusion_pytorch_model{variant}.safetensors"
        for part in ("transformer", "vae")
        for variant in ("", ".fp16", ".bf16")
    }
    assert names == {"README.md", "model_index.json", "samples.png", *parts, *code, *weights}


@pytest.mark.parametrize(
    ("variant", "dtype"), [("", torch.float32), (".fp16", torch.float16), (".bf16", torch.bfloat16)]
)
def test_variants_are_casts_of_the_weights(variant, dtype, repository_folder):
    weights = load_file(repository_folder / f"{TRANSFORMER}.safetensors")
    stored = load_file(repository_folder / f"{TRANSFORMER}{variant}.safetensors")
    assert weights.keys() == stored.keys()
    assert all(stored[key].dtype == dtype and torch.equal(stored[key], weights[key].to(dtype)) for key in weights)


def test_the_pipeline_loads_and_knows_recipe_and_names(repository_folder):
    pipeline = DiffusionPipeline.from_pretrained(repository_folder)
    assert pipeline.config.sampling_recipe["guidance_scale"] == 6.7
    assert pipeline.get_label_ids("golden retriever") == [207]
    assert pipeline.vae.config.latents_mean is not None


def test_the_card_says_where_the_weights_come_from(repository_folder, original):
    text = (repository_folder / "README.md").read_text(encoding="utf-8")
    data = check_card(text)
    assert data.license == "mit" and data.library_name == "diffusers"
    assert "ckpt_published_ema_only.pt`, SHA-256 `" in text and "vavae.ckpt" in text
    assert re.search(r"largest output: vae \d+e-\d+, transformer \d+e-\d+\.", text, re.IGNORECASE)
    assert text.index("```python") < text.index("## Conversion") < text.index("## Samples")
    assert "user/tiny" in text


def test_the_samples_are_rows_of_the_classes(repository_folder):
    width, height = Image.open(repository_folder / "samples.png").size
    assert height == 2 * (128 + 2) and width > 2 * 128


@pytest.mark.parametrize(
    ("file", "recipe", "settings", "times"),
    [
        ("facm/ckpt_train_emas.pt", "facm_xl_2_steps", {}, [0.0, 0.5]),
        ("facm/r_embedder/ckpt_ema_only.pt", "facm_xl_1_step", {}, [0.0]),
        ("internal_guidance/ckpt_ema_only.pt", "internal_guidance_xl", {"internal_guidance_layer": 1}, None),
    ],
)
def test_networks_of_other_projects(golden_frontier, repository, tmp_path, file, recipe, settings, times):
    """Tiny ones, which are sampled as the recipe of the full size says."""
    torch.manual_seed(0)
    vae = {"block_out_channels": (32, 32), "layers_per_block": 1, "latent_channels": 8}
    AutoencoderVAVAE(**vae).save_pretrained(tmp_path / "vae")
    sample = OriginalConfig.read(repository / f"conversion/configs/{recipe}.yaml").values["sample"]
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({"sample": sample | {"cfg_scale": 1.0}}))
    sources = {"checkpoint": golden_frontier(file), "config": tmp_path / "tiny.yaml", "vae": tmp_path / "vae"}
    more = {"license": "mit", "variants": "[]", "num_samples_per_class": 0}
    result = push(tmp_path / "out", **sources, **settings, **more)
    assert result["differences"]["transformer"] < 1e-5

    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    check_card(text)
    if times is None:
        assert "`internal_guidance_scale=1.4`" in text and "`ode_method='heun2'`" in text
        assert pipe.transformer.config.internal_guidance_layer == 1
        return
    assert f"`num_inference_steps={len(times)}`" in text
    assert "The scheduler is `FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)`." in text
    seen = []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["timestep"][0].item()), with_kwargs=True
    )
    pipe(3, output_type="latent")
    assert seen == times


def test_a_dry_run_writes_the_space_beside_the_repository(digits_pipeline, tmp_path):
    more = {"license": "mit", "variants": "[]", "num_samples_per_class": 0, "space_requirement": "a.whl"}
    result = push(tmp_path / "out", pipeline=digits_pipeline, space="user/page", **more)
    assert result["space_url"] is None
    assert (tmp_path / "out-space" / "requirements.txt").read_text() == "a.whl\n"
    card = SpaceCard.load(tmp_path / "out-space" / "README.md")
    assert (card.data.sdk, card.data.models, card.data.license) == ("gradio", ["user/tiny"], "mit")


def test_an_autoencoder_alone(original, tmp_path):
    result = push(tmp_path / "out", vae=original["vae"], latents_stats=original["latents_stats"], license="mit")
    assert result["url"] is None and result["differences"].keys() == {"vae"}
    assert {"config.json", "autoencoder_vavae.py", "README.md"} <= set(result["files"])
    vae = AutoencoderVAVAE.from_pretrained(tmp_path / "out", variant="fp16", dtype=torch.float16)
    assert vae.dtype == torch.float16 and vae.config.latents_std is not None
    data = check_card((tmp_path / "out" / "README.md").read_text(encoding="utf-8"))
    assert data.pipeline_tag == "image-to-image"


def test_an_autoencoder_in_a_folder_of_a_repository(original, tmp_path):
    result = push(tmp_path / "out", vae=original["vae"], subfolder="ldm-f16d32", license="mit", variants="[]")
    weights = {"config.json", "autoencoder_vavae.py", "diffusion_pytorch_model.safetensors"}
    assert set(result["files"]) == {"README.md", *(f"ldm-f16d32/{name}" for name in weights)}
    assert 'subfolder="ldm-f16d32"' in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_a_pipeline_folder_with_a_card_of_the_project(digits_pipeline, tmp_path):
    push(
        tmp_path / "out",
        pipeline=digits_pipeline,
        card="lightningdit-digits",
        variants="[]",
        num_samples_per_class=0,
        repository="someone/digits",
    )
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert 'from_pretrained("someone/digits")' in text and "## Measurements" in text
    assert ModelCard(text).data.eval_results
    assert not list((tmp_path / "out").rglob("*.fp16.*")) and not (tmp_path / "out" / "samples.png").exists()


def test_a_wrong_conversion_is_not_written(original, tmp_path, monkeypatch, capsys):
    from diffusers_lightningdit.original import translation

    monkeypatch.setitem(translation.CHANGES, "halves swapped", translation.CHANGES["same"])
    with pytest.raises(SystemExit):
        push(tmp_path / "out", **original, license="mit")
    assert "error: the converted transformer differs from the original's equations by" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_variant_out_of_range_is_refused(digits_pipeline, tmp_path, capsys):
    pipeline = DiffusionPipeline.from_pretrained(digits_pipeline)
    with torch.no_grad():
        pipeline.transformer.proj_out.bias[0] = 1e30
    pipeline.save_pretrained(tmp_path / "pipeline")
    with pytest.raises(SystemExit):
        push(tmp_path / "out", pipeline=tmp_path / "pipeline", license="mit", num_samples_per_class=0)
    error = "`variants` has fp16, but weight `transformer.proj_out.bias` is out of its range; required: without fp16."
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {error}"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({}, "neither `checkpoint`, `vae` nor `pipeline` is given"),
        ({"pipeline": "p", "vae": "v"}, "`pipeline` is given beside `checkpoint` or `vae`"),
        ({"checkpoint": "c"}, "`checkpoint` is given without `vae`"),
        ({"pipeline": "p", "repository": "tiny"}, "`repository` is 'tiny'; required: user/name."),
        ({"pipeline": "p", "repository": "../b"}, "`repository` is '../b'; required: user/name."),
        ({"pipeline": "p", "repository": "a b/c"}, "`repository` is 'a b/c'; required: user/name."),
        ({"pipeline": "p", "license": "mit\nevil: x"}, r"`license` is 'mit\nevil: x'; required: its name on the Hub"),
        ({"pipeline": "p", "max_shard_size": "-5GB"}, "`max_shard_size` is '-5GB'; required: a size, as 10GB."),
        ({"pipeline": "p", "num_samples_per_class": "9999999"}, "`num_samples_per_class` is 9999999; required: below"),
        ({"pipeline": "p", "space": "page"}, "`space` is 'page'; required: user/name."),
        ({"vae": "v", "space": "user/page"}, "`space` is 'user/page'; required: null, but for a pipeline"),
        ({"pipeline": "p", "license": "null"}, "neither `card` nor `license` is given"),
        ({"pipeline": "p", "variants": "[fp8]"}, "`variants` is 'fp8'; required: one of fp16, bf16."),
        ({"pipeline": "nothing"}, "`pipeline` is 'nothing'; required: a folder or Hub id"),
        ({"vae": "nothing"}, "nothing: no such file"),
        ({"pipeline": "p", "modular": "true"}, "`modular` is true; required: a pipeline, and `variants=[]`."),
        ({"pipeline": "p", "subfolder": "vae"}, "`subfolder` is 'vae'; required: null"),
        ({"pipeline": "p", "output_dir": "null"}, "`dry_run` is true without `output_dir`"),
    ],
)
def test_bad_settings_are_one_line(settings, error, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        push(tmp_path / "out", **{"license": "mit", **settings})
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {error}")
    assert not (tmp_path / "out").exists()


def test_an_unknown_setting_of_the_samples_is_one_line(digits_pipeline, tmp_path, capsys):
    with pytest.raises(SystemExit):
        push(tmp_path / "out", "sampling.steps=3", pipeline=digits_pipeline, license="mit")
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: `sampling.steps` is no setting of Lightning")


def test_an_unknown_card_is_one_line(digits_pipeline, tmp_path, capsys):
    with pytest.raises(SystemExit):
        push(tmp_path / "out", pipeline=digits_pipeline, card="lightningdit-giant")
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: `card` is 'lightningdit-giant'; required: a README.md, or one of ")
    assert "lightningdit-digits" in error
