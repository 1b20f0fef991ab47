"""The command `push`, to a Hub on the loopback interface: repositories that load with the package and without it.

Also those of modular pipelines, which are loaded with nothing but diffusers.
"""

import json
import re

import pytest
import torch

from diffusers_lightningdit import demo
from diffusers_lightningdit.demo import app  # noqa: F401

PUSH = """
import diffusers_lightningdit
from diffusers_lightningdit import commands
from diffusers_lightningdit.commands import push
"""
LOAD = """
import torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained("user/tiny", {arguments})
pipe.set_progress_bar_config(disable=True)
generator = torch.Generator().manual_seed(0)
images = pipe(["golden retriever", 3], generator=generator, output_type="np").images
result = [origin(pipe), origin(pipe.vae), str(pipe.transformer.dtype), round(float(images.sum()), 2)]
result.append(pipe.id2label[207])
"""


PUSH_MODULAR = """
import diffusers_lightningdit
from diffusers_lightningdit.commands import push
result = push.main(["pipeline=model_cards/lightningdit-digits", "repository=user/modular", "license=mit",
                    "modular=true", "variants=[]"])
"""
LOAD_MODULAR = """
import torch
from diffusers import ModularPipeline
pipe = ModularPipeline.from_pretrained("user/modular", trust_remote_code=True)
pipe.load_components(trust_remote_code=True)
def draw(**inputs):
    generator = torch.Generator().manual_seed(0)
    return pipe(class_labels=["seven", 3], generator=generator, output_type="pt", output="images", **inputs)
drawn = draw()
edited = draw(image=drawn[:1], strength=0.7)
mask = torch.zeros(8, 8)
mask[:, :4] = 1
inpainted = draw(image=drawn[:1], mask_image=mask, strength=1.0)
result = [origin(pipe.blocks), origin(pipe.transformer), origin(pipe.vae), type(pipe.guider).__name__]
result += [values.tolist() for values in (drawn, edited, inpainted)]
"""
BY_CARD = """
from diffusers import ModularPipeline
pipe = ModularPipeline.from_pretrained("user/modular", trust_remote_code=True)
pipe.load_components(trust_remote_code=True)
before = pipe(class_labels="zero", num_inference_steps=1, output="images")
pipe.update_components(guider=pipe.guider.new(guidance_scale=3.0))
result = [pipe.guider.config.guidance_scale, pipe(class_labels="zero", output="images")[0].size]
"""
NO_TRUST = """
from diffusers import ModularPipeline
ModularPipeline.from_pretrained("user/modular")
"""


@pytest.fixture(scope="module")
def outcomes(hub, run_blocks, golden) -> dict[str, dict]:
    vae = [f"vae={golden('vae/vavae/vavae.ckpt')}", f"latents_stats={golden('sampling/latents_stats.pt')}"]
    checkpoint, recipe = golden("sampling/ckpt_published_ema_only.pt"), golden("sampling/euler10_shift0.3_cfg6.7.yaml")
    transformer = [f"checkpoint={checkpoint}", f"config={recipe}", "classes=[207]", "num_samples_per_class=1"]
    calls = {
        "pipeline": [*vae, *transformer, "repository=user/tiny", "license=mit", "space=user/page"],
        "autoencoder": [*vae, "repository=user/tiny-vae", "license=mit", "variants=[]"],
        "again": [*vae, "repository=user/tiny-vae", "license=apache-2.0", "variants=[fp16]"],
        "own card": [*vae, "repository=user/own-push", "license=mit", "variants=[]"],
    }
    hub.put("user/own-push", {"README.md": b"---\nlicense: mit\n---\n# Mine\n"})
    blocks = {name: f"{PUSH}\nresult = push.main({words!r})" for name, words in calls.items()}
    blocks["nobody"] = f"{PUSH}\npush.main({[*vae, 'repository=user/..', 'license=mit']!r})"
    blocks["with"] = "import diffusers_lightningdit\n" + LOAD.format(arguments="")
    blocks["modular"] = PUSH_MODULAR
    with_package = run_blocks(hub.url, blocks, with_package=True)
    remote = 'custom_pipeline="user/tiny", trust_remote_code=True'
    blocks = {
        "modular without": LOAD_MODULAR,
        "by card": BY_CARD,
        "no trust": NO_TRUST,
        "without": LOAD.format(arguments=remote),
        "half": LOAD.format(arguments=f'{remote}, variant="fp16", dtype=torch.float16'),
        "vae without": """
from diffusers import AutoModel
vae = AutoModel.from_pretrained("user/tiny-vae", trust_remote_code=True)
result = [origin(vae), len(vae.config.latents_std)]
""",
    }
    return with_package | run_blocks(hub.url, blocks, with_package=False)


def test_a_complete_repository_is_uploaded(outcomes, hub):
    result = outcomes["pipeline"]["result"]
    assert result["url"] == f"{hub.url}/user/tiny"
    assert set(result["files"]) == set(hub.repositories["user/tiny"].files)
    assert max(result["differences"].values()) < 1e-4 and result["differences"].keys() == {"vae", "transformer"}
    assert {"samples.png", "pipeline.py", "README.md", "transformer/diffusion_pytorch_model.bf16.safetensors"} <= set(
        result["files"]
    )


def test_its_space_calls_the_page(outcomes, hub):
    assert outcomes["pipeline"]["result"]["space_url"] == f"{hub.url}/spaces/user/page"
    files = hub.repositories["space.user/page"].files
    assert files.keys() == {"README.md", "app.py", "requirements.txt"}
    assert b"models:\n- user/tiny\n" in files["README.md"] and b"sdk: gradio\n" in files["README.md"]
    called, main = [], demo.app.main
    demo.app.main = called.append
    try:
        exec(files["app.py"].decode(), {})
    finally:
        demo.app.main = main
    assert called == [["--pipeline", "user/tiny"]]
    assert files["requirements.txt"] == b"diffusers-lightningdit[page]\n"


def test_it_loads_with_the_package_and_without_it(outcomes):
    *_, images, name = outcomes["with"]["result"]
    assert outcomes["with"]["result"][:3] == ["diffusers_lightningdit", "diffusers_lightningdit", "torch.float32"]
    assert outcomes["without"]["result"] == ["diffusers_modules", "diffusers_modules", "torch.float32", images, name]
    assert outcomes["half"]["result"][2] == "torch.float16" and "golden retriever" in name


def test_an_autoencoder_loads_without_the_package(outcomes):
    assert outcomes["vae without"]["result"] == ["diffusers_modules", 32]


def test_a_second_push_adds_variants_and_keeps_the_card(outcomes, hub):
    files = hub.repositories["user/tiny-vae"].files
    assert "diffusion_pytorch_model.fp16.safetensors" in files and b"license: mit" in files["README.md"]
    assert "error" not in outcomes["again"]


def test_a_card_of_the_users_own_is_kept(outcomes, hub):
    assert "error" not in outcomes["own card"]
    files = hub.repositories["user/own-push"].files
    assert files["README.md"] == b"---\nlicense: mit\n---\n# Mine\n" and "autoencoder_vavae.py" in files


def test_what_the_hub_refuses_ends_the_command(outcomes):
    assert re.match("SystemExit: 2", outcomes["nobody"]["error"])


# ---------------------------------------------------------------------------------------------------------------------
# Modular pipelines
# ---------------------------------------------------------------------------------------------------------------------


def test_the_repository_has_blocks_models_and_index(outcomes, hub):
    assert "error" not in outcomes["modular"]
    files = hub.repositories["user/modular"].files
    code = {"modular_lightningdit.py", "lightningdit_sampling.py", "transformer/transformer_lightningdit.py"}
    assert {"modular_config.json", "modular_model_index.json", "README.md", *code} <= files.keys()
    assert "model_index.json" not in files and "pipeline.py" not in files
    index = json.loads(files["modular_model_index.json"])
    assert index["transformer"][2]["pretrained_model_name_or_path"] == "user/modular"
    assert index["id2label"]["7"] == "seven" and index["sampling_recipe"]["num_inference_steps"] == 3


def test_without_the_package_it_draws_the_pipelines_images(outcomes, tiny_pipeline):
    from diffusers_lightningdit.pipelines import LightningDiTImg2ImgPipeline

    *classes, guider, drawn, edited, inpainted = outcomes["modular without"]["result"]
    assert set(classes) == {"diffusers_modules"} and guider == "LightningDiTGuidance"
    pipe, edit = tiny_pipeline, LightningDiTImg2ImgPipeline.from_pipe(tiny_pipeline)
    arguments = {"class_labels": ["seven", 3], "output_type": "pt"}

    def same(images: list, expected: torch.Tensor) -> None:
        torch.testing.assert_close(torch.tensor(images), expected.float(), rtol=0, atol=1e-5)

    expected = pipe(**arguments, generator=torch.Generator().manual_seed(0)).images
    same(drawn, expected)
    mask = torch.zeros(8, 8)
    mask[:, :4] = 1
    given = {**arguments, "image": expected[:1]}
    same(edited, edit(**given, strength=0.7, generator=torch.Generator().manual_seed(0)).images)
    drawn_anew = edit(**given, mask_image=mask, strength=1.0, generator=torch.Generator().manual_seed(0)).images
    same(inpainted, drawn_anew)


def test_the_call_of_the_card_runs(outcomes):
    assert outcomes["by card"]["result"] == [3.0, [8, 8]]


def test_nothing_is_run_without_trust(outcomes):
    assert "trust_remote_code" in outcomes["no trust"]["error"]
