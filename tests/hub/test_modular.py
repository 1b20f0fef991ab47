"""A modular repository on the loopback Hub, loaded with nothing but diffusers."""

import json

import pytest
import torch

PUSH = """
import diffusers_lightningdit
from diffusers_lightningdit.commands import push
result = push.main(["pipeline=model_cards/lightningdit-digits", "repository=user/modular", "license=mit",
                    "modular=true", "variants=[]"])
"""
LOAD = """
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
def outcomes(hub, run_blocks) -> dict[str, dict]:
    with_package = run_blocks(hub.url, {"push": PUSH}, with_package=True)
    blocks = {"load": LOAD, "by card": BY_CARD, "no trust": NO_TRUST}
    return with_package | run_blocks(hub.url, blocks, with_package=False)


def test_the_repository_has_blocks_models_and_index(outcomes, hub):
    assert "error" not in outcomes["push"]
    files = hub.repositories["user/modular"].files
    code = {"modular_lightningdit.py", "lightningdit_sampling.py", "transformer/transformer_lightningdit.py"}
    assert {"modular_config.json", "modular_model_index.json", "README.md", *code} <= files.keys()
    assert "model_index.json" not in files and "pipeline.py" not in files
    index = json.loads(files["modular_model_index.json"])
    assert index["transformer"][2]["pretrained_model_name_or_path"] == "user/modular"
    assert index["id2label"]["7"] == "seven" and index["sampling_recipe"]["num_inference_steps"] == 3


def test_without_the_package_it_draws_the_pipelines_images(outcomes, tiny_pipeline):
    from diffusers_lightningdit.pipelines import LightningDiTImg2ImgPipeline

    *classes, guider, drawn, edited, inpainted = outcomes["load"]["result"]
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
