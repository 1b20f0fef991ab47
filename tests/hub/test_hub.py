"""Push and load through a Hub, in processes with and without the package. The blocks of docs/hub.md are what is run.

Three processes: one with the package, one without it, one without it and without network.
"""

import json
import re
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from diffusers_lightningdit.models.model_mixin import self_contained

SOURCES = {
    "pipeline.py": "pipelines/pipeline_lightningdit.py",
    "lightningdit_sampling.py": "pipelines/lightningdit_sampling.py",
    "transformer/diffusers_lightningdit.py": "src/diffusers_lightningdit/models/transformer_lightningdit.py",
    "vae/diffusers_lightningdit.py": "src/diffusers_lightningdit/models/autoencoder_vavae.py",
}
NAMES = {
    "_class_name": "LightningDiTPipeline",
    "transformer": ["diffusers_lightningdit", "LightningDiTTransformer2DModel"],
    "vae": ["diffusers_lightningdit", "AutoencoderVAVAE"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
}
WEIGHTS = "transformer/diffusion_pytorch_model"

# Code that is added to a block of the page, to see its outcome.
SEEN = {
    "Push / 2": "result = None",
    "Load with the package / 1": "result = [digest(pipe), origin(pipe), origin(pipe.vae), list(image.size)]",
    "Load with the package / 2": "result = [str(pipe.transformer.dtype), str(pipe.vae.dtype)]",
    "Load without the package / 1": "result = [digest(pipe), origin(pipe), origin(pipe.vae), list(image.size)]",
    "Load without the package, without network / 1": "result = digest(pipe)",
    "Load without the package / 2": "result = [digest(pipe), origin(pipe), origin(pipe.vae)]",
    "Single models with the package / 1": "result = [origin(transformer), origin(vae), transformer.num_parameters()]",
    "Single models with the package / 2": "result = [origin(vae), vae.config.latents_std]",
    "Single models without the package / 1": "result = [origin(vae), vae.config.latents_std, type(vae).__name__]",
    "Other people's autoencoders with the package / 1": "result = [origin(vae), origin(pipe.vae), list(image.size)]",
}

# Beyond the page, with the package.
MORE_WITH = {
    "shards": """
import diffusers_lightningdit
from diffusers import DiffusionPipeline
result = digest(DiffusionPipeline.from_pretrained("user/lightningdit-in-shards"))
""",
    "plain autoencoder in a pipeline": """
import diffusers_lightningdit
from diffusers import AutoencoderKL, DiffusionPipeline
vae = AutoencoderKL.from_pretrained("someone/vavae-as-autoencoder-kl")
pipe = DiffusionPipeline.from_pretrained("user/lightningdit-digits", vae=vae)
ours = diffusers_lightningdit.AutoencoderVAVAE.from_pretrained("someone/vavae-as-autoencoder-kl")
result = digest(pipe) == digest(DiffusionPipeline.from_pretrained("user/lightningdit-digits", vae=ours))
pipe.push_to_hub("user/digits-with-autoencoder-kl")
result = [result, origin(DiffusionPipeline.from_pretrained("user/digits-with-autoencoder-kl").vae)]
""",
    "card of the user's own": """
import diffusers_lightningdit
from diffusers import DiffusionPipeline
DiffusionPipeline.from_pretrained("user/lightningdit-digits").push_to_hub("user/own-card")
""",
    "scheduler of ours": """
import diffusers_lightningdit
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained("user/lightningdit-digits")
pipe.scheduler = diffusers_lightningdit.FlowMatchSDEScheduler()
pipe.push_to_hub("user/digits-by-sde")
pipe = DiffusionPipeline.from_pretrained("user/digits-by-sde")
result = [digest(pipe), origin(pipe.scheduler)]
""",
    "another pipeline": """
import diffusers_lightningdit
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained("user/lightningdit-digits")
edit = diffusers_lightningdit.pipelines.LightningDiTImg2ImgPipeline.from_pipe(pipe)
edit.push_to_hub("user/digits-img2img")
""",
    "old repository": """
import diffusers_lightningdit
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained("user/before-shared-file")
pipe.save_pretrained("old-saved-with-the-package")
result = [digest(pipe), origin(pipe)]
""",
    "auto_map without trust": """
import diffusers_lightningdit
from diffusers import AutoModel
AutoModel.from_pretrained("user/vavae-digits")
""",
    "change detection": """
import torch
import diffusers_lightningdit
from diffusers import DiffusionPipeline
torch.manual_seed(0)
model = diffusers_lightningdit.Change3DModel(sample_size=32, width_factor=0.7, depth_factor=0.1)
diffusers_lightningdit.Change3DPipeline(model).push_to_hub("user/change3d")
pipe = DiffusionPipeline.from_pretrained("user/change3d")
images = torch.rand(2, 3, 40, 32, generator=torch.Generator().manual_seed(1))
mean = pipe(*images, output_type="pt").change_probability[0].mean().item()
result = [origin(pipe), origin(pipe.model), mean]
""",
}
MORE_WITHOUT = {
    "variant": """
import torch
from diffusers import DiffusionPipeline
repository = "user/lightningdit-digits"
pipe = DiffusionPipeline.from_pretrained(
    repository, custom_pipeline=repository, trust_remote_code=True, variant="fp16", dtype=torch.float16
)
result = [str(pipe.transformer.dtype), origin(pipe)]
""",
    "scheduler of ours, remote": """
from diffusers import DiffusionPipeline
repository = "user/digits-by-sde"
pipe = DiffusionPipeline.from_pretrained(repository, custom_pipeline=repository, trust_remote_code=True)
result = [digest(pipe), origin(pipe.scheduler)]
""",
    "another pipeline, remote": """
import torch
from diffusers import DiffusionPipeline
repository = "user/digits-img2img"
pipe = DiffusionPipeline.from_pretrained(repository, custom_pipeline=repository, trust_remote_code=True)
images = pipe("seven", image=torch.zeros(3, 8, 8), output_type="pt").images
result = [type(pipe).__name__, origin(pipe), list(images.shape)]
""",
    "old repository, remote": """
from diffusers import DiffusionPipeline
repository = "user/before-shared-file"
pipe = DiffusionPipeline.from_pretrained(repository, custom_pipeline=repository, trust_remote_code=True)
pipe.save_pretrained("old-saved-again")
result = [digest(pipe)]
for folder in ("old-saved-again", "old-saved-with-the-package"):
    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    result += [digest(pipe), origin(pipe)]
""",
    "the pipeline's file named": """
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(
    "user/lightningdit-digits", custom_pipeline="pipeline", trust_remote_code=True
)
result = [digest(pipe), origin(pipe)]
""",
    "model saved again": """
from diffusers import AutoModel
vae = AutoModel.from_pretrained("user/vavae-digits", trust_remote_code=True)
vae.save_pretrained("vae-saved-again")
again = AutoModel.from_pretrained("vae-saved-again", trust_remote_code=True)
result = [origin(again), all((a == b).all().item() for a, b in zip(vae.parameters(), again.parameters()))]
""",
    "model out of a pipeline": """
from diffusers import AutoModel, DiffusionPipeline
repository = "user/lightningdit-digits"
pipe = DiffusionPipeline.from_pretrained(repository, custom_pipeline=repository, trust_remote_code=True)
type(pipe.transformer).register_for_auto_class()
pipe.transformer.save_pretrained("transformer-out-of-a-pipeline")
again = AutoModel.from_pretrained("transformer-out-of-a-pipeline", trust_remote_code=True)
result = [origin(again), again.num_parameters()]
""",
    "change detection, remote": """
import torch
from diffusers import DiffusionPipeline
repository = "user/change3d"
pipe = DiffusionPipeline.from_pretrained(repository, custom_pipeline=repository, trust_remote_code=True)
pipe.save_pretrained("change3d-saved-again")
images = torch.rand(2, 3, 40, 32, generator=torch.Generator().manual_seed(1))
mean = pipe(*images, output_type="pt").change_probability[0].mean().item()
result = [origin(pipe), origin(pipe.model), mean]
""",
    "without trust": """
from diffusers import DiffusionPipeline
DiffusionPipeline.from_pretrained("user/lightningdit-digits", custom_pipeline="user/lightningdit-digits")
""",
    "without custom_pipeline": """
from diffusers import DiffusionPipeline
DiffusionPipeline.from_pretrained("user/lightningdit-digits")
""",
}
MORE_WITHOUT_NETWORK = {
    "never fetched": """
from diffusers import DiffusionPipeline
DiffusionPipeline.from_pretrained("user/own-card", custom_pipeline="user/own-card", trust_remote_code=True)
""",
}


@pytest.fixture(scope="module")
def with_package(hub, run_blocks, documented, autoencoder_kl, tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("someone")
    autoencoder_kl.save_pretrained(folder)
    hub.put("someone/vavae-as-autoencoder-kl", {path.name: path.read_bytes() for path in folder.iterdir()})
    hub.put("user/own-card", {"README.md": b"---\nlicense: mit\n---\n# Mine\n"})
    # a pipeline like `tiny_pipeline`, saved when all code of a pipeline was in one file
    with zipfile.ZipFile(Path(__file__).parent / "repository_before_shared_file.zip") as archive:
        hub.put("user/before-shared-file", {name: archive.read(name) for name in archive.namelist()})
    blocks = {name: code for name, code in documented.items() if "without" not in name}
    return run_blocks(hub.url, _with_result(blocks) | MORE_WITH, with_package=True)


@pytest.fixture(scope="module")
def without_package(hub, run_blocks, documented, with_package) -> dict[str, dict]:
    blocks = {
        name: code for name, code in documented.items() if "without the package" in name and "network" not in name
    }
    return run_blocks(hub.url, _with_result(blocks) | MORE_WITHOUT, with_package=False)


@pytest.fixture(scope="module")
def without_network(run_blocks, documented, without_package) -> dict[str, dict]:
    blocks = {name: code for name, code in documented.items() if "without network" in name}
    nobody = "http://127.0.0.1:9"
    return run_blocks(nobody, _with_result(blocks) | MORE_WITHOUT_NETWORK, with_package=False)


def _with_result(blocks: dict[str, str]) -> dict[str, str]:
    return {name: f"{code}\n{SEEN.get(name, '')}" for name, code in blocks.items()}


# -- the page ---------------------------------------------------------------------------------------------------------


def test_every_block_of_the_page_runs(documented, with_package, without_package, without_network):
    outcomes = with_package | without_package | without_network
    assert {name: outcomes[name].get("error") for name in documented} == dict.fromkeys(documented)
    assert set(SEEN) <= set(documented)


def test_the_page_lists_the_files_of_a_repository(repository, hub, with_package):
    page = (repository / "docs" / "hub.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^      (\S+)", page, flags=re.MULTILINE))
    pushed = {name for name in hub.repositories["user/lightningdit-digits"].files if ".fp16." not in name}
    assert listed == {name for name in pushed if ".bf16." not in name}


# -- what is pushed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["user/lightningdit-digits", "user/lightningdit-in-shards", "user/my-copy"])
def test_a_repository_holds_the_code_byte_for_byte(name, hub, repository, without_package):
    files = hub.repositories[name].files
    for path, source in SOURCES.items():
        assert files[path].decode() == self_contained((repository / source).read_text(encoding="utf-8")), path
    index = json.loads(files["model_index.json"])
    assert {key: index[key] for key in NAMES} == NAMES
    assert index["id2label"]["7"] == "seven"
    assert not [path for path in files if Path(path).suffix not in {".json", ".md", ".py", ".safetensors"}]


def test_variants_lie_beside_the_weights(hub, with_package):
    files = hub.repositories["user/lightningdit-digits"].files
    for infix, dtype in (("", torch.float32), (".fp16", torch.float16), (".bf16", torch.bfloat16)):
        assert load(files[f"{WEIGHTS}{infix}.safetensors"])["proj_out.weight"].dtype == dtype


def test_large_weights_are_sharded(hub, with_package):
    files = hub.repositories["user/lightningdit-in-shards"].files
    index = json.loads(files[f"{WEIGHTS}.safetensors.index.json"])
    assert len(set(index["weight_map"].values())) > 1
    assert f"{WEIGHTS}.safetensors" not in files
    assert with_package["shards"]["result"] == with_package["Load with the package / 1"]["result"][0]


def test_the_card_begins_with_the_class_conditional_call(hub, with_package):
    card = hub.repositories["user/lightningdit-digits"].files["README.md"].decode()
    metadata, text = re.fullmatch(r"---\n(.*?)---\n(.*)", card, flags=re.DOTALL).groups()
    assert "library_name: diffusers" in metadata
    first_block = re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert text[: first_block.start()].strip() == "# lightningdit-digits"
    assert "pipe('zero')" in first_block[1]
    assert 'repository = "user/lightningdit-digits"' in first_block[1]
    assert "trust_remote_code=True" in first_block[1]
    assert "prompt" not in text
    assert "`num_inference_steps=3`, `guidance_scale=2.0`" in text
    assert "8x8 pixels of 10 classes" in text


@pytest.mark.parametrize("name", ["transformer-digits", "vavae-digits"])
def test_the_card_of_a_model_says_how_to_load_it(name, hub, with_package):
    card = hub.repositories[f"user/{name}"].files["README.md"].decode()
    assert f'.from_pretrained("user/{name}")' in card
    assert "More Information Needed" not in card


def test_a_card_of_the_users_own_is_kept(hub, with_package):
    assert with_package["card of the user's own"] == {"result": None}
    files = hub.repositories["user/own-card"].files
    assert "license: mit" in files["README.md"].decode()
    assert "# Mine" in files["README.md"].decode()
    assert "pipeline.py" in files


def test_the_card_of_another_pipeline_begins_with_its_own_call(hub, with_package):
    card = hub.repositories["user/digits-img2img"].files["README.md"].decode()
    assert card.count("image = pipe('zero', image=image).images[0]") == 2
    assert "More Information Needed" not in card


def test_code_of_a_single_model_is_pushed_when_asked_for(hub, repository, with_package):
    plain = hub.repositories["user/transformer-digits"].files
    assert set(plain) == {"README.md", "config.json", "diffusion_pytorch_model.safetensors"}
    with_code = hub.repositories["user/vavae-digits"].files
    assert json.loads(with_code["config.json"])["auto_map"] == {"AutoModel": "autoencoder_vavae.AutoencoderVAVAE"}
    source = repository / SOURCES["vae/diffusers_lightningdit.py"]
    assert with_code["autoencoder_vavae.py"].decode() == self_contained(source.read_text(encoding="utf-8"))


# -- loading ----------------------------------------------------------------------------------------------------------


def test_with_the_package_its_classes_are_used(with_package):
    _, *rest = with_package["Load with the package / 1"]["result"]
    assert rest == ["diffusers_lightningdit", "diffusers_lightningdit", [8, 8]]
    assert with_package["Load with the package / 2"]["result"] == ["torch.bfloat16", "torch.bfloat16"]


def test_without_the_package_the_repositorys_code_draws_the_same_images(with_package, without_package):
    digest, *rest = without_package["Load without the package / 1"]["result"]
    assert rest == ["diffusers_modules", "diffusers_modules", [8, 8]]
    assert digest == with_package["Load with the package / 1"]["result"][0]
    assert without_package["variant"]["result"] == ["torch.float16", "diffusers_modules"]


def test_the_shared_file_is_fetched_along_with_the_pipeline(hub, repository, with_package, without_package):
    assert "lightningdit_sampling.py" in hub.fetched("user/lightningdit-digits")
    digest = with_package["Load with the package / 1"]["result"][0]
    assert without_package["the pipeline's file named"]["result"] == [digest, "diffusers_modules"]
    outcome = without_package["another pipeline, remote"]["result"]
    assert outcome == ["LightningDiTImg2ImgPipeline", "diffusers_modules", [1, 3, 8, 8]]
    source = repository / "pipelines" / "pipeline_lightningdit_img2img.py"
    assert hub.repositories["user/digits-img2img"].files["pipeline.py"] == source.read_bytes()


def test_repositories_from_before_the_shared_file(workplace, with_package, without_package):
    """They load and are saved again, with the package in the new form and without it as they were."""
    digest, *rest = with_package["old repository"]["result"]
    assert rest == ["diffusers_lightningdit"]
    remote = [digest, "diffusers_modules"]
    assert without_package["old repository, remote"]["result"] == [digest, *remote, *remote]
    names = {
        folder: {path.name for path in (workplace / folder).glob("*.py")}
        for folder in ("old-saved-again", "old-saved-with-the-package")
    }
    assert names["old-saved-again"] == {"pipeline.py"}
    assert names["old-saved-with-the-package"] == {"pipeline.py", "lightningdit_sampling.py"}


def test_a_remote_code_pipeline_saved_again_loads_without_the_package(without_package, without_network):
    original = without_package["Load without the package / 1"]["result"]
    assert without_package["Load without the package / 2"]["result"] == original[:3]
    # a new process, and no Hub to fetch code from
    assert without_network["Load without the package, without network / 1"] == {"result": original[0]}


def test_a_remote_code_pipeline_saved_again_loads_with_the_package(without_package, workplace, tiny_pipeline):
    from diffusers import DiffusionPipeline

    import diffusers_lightningdit

    pipe = DiffusionPipeline.from_pretrained(workplace / "my-copy")
    assert type(pipe) is diffusers_lightningdit.LightningDiTPipeline
    assert type(pipe.vae) is diffusers_lightningdit.AutoencoderVAVAE
    assert pipe.id2label == tiny_pipeline.id2label
    for name, weight in tiny_pipeline.transformer.state_dict().items():
        assert torch.equal(pipe.transformer.state_dict()[name], weight), name


def test_a_scheduler_of_ours_travels_like_the_models(with_package, without_package):
    drawn, origin = with_package["scheduler of ours"]["result"]
    assert origin == "diffusers_lightningdit"
    assert without_package["scheduler of ours, remote"]["result"] == [drawn, "diffusers_modules"]


def test_single_models(with_package, without_package, tiny_pipeline):
    number = tiny_pipeline.transformer.num_parameters()
    ours = "diffusers_lightningdit"
    assert with_package["Single models with the package / 1"]["result"] == [ours, ours, number]
    assert with_package["Single models with the package / 2"]["result"] == [ours, [1.0, 2.0, 0.5, 1.5]]
    outcome = without_package["Single models without the package / 1"]["result"]
    assert outcome == ["diffusers_modules", [1.0, 2.0, 0.5, 1.5], "AutoencoderVAVAE"]
    assert without_package["model saved again"]["result"] == ["diffusers_modules", True]
    # as parts of a pipeline, both models' files were run in one module: the right one has to be saved
    assert without_package["model out of a pipeline"]["result"] == ["diffusers_modules", number]


def test_other_peoples_autoencoders(with_package):
    outcome = with_package["Other people's autoencoders with the package / 1"]["result"]
    assert outcome == ["diffusers_lightningdit", "diffusers_lightningdit", [8, 8]]
    # as AutoencoderKL and as AutoencoderVAVAE the same images; a pipeline with it is saved as what it is
    assert with_package["plain autoencoder in a pipeline"]["result"] == [True, "diffusers"]


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_code_is_not_run_without_trust(with_package, without_package):
    for outcome in (without_package["without trust"], with_package["auto_map without trust"]):
        assert "ValueError" in outcome["error"]
        assert "Pass `trust_remote_code=True`" in outcome["error"]


def test_without_package_and_custom_pipeline_the_class_is_missed_by_name(without_package):
    assert "LightningDiTPipeline" in without_package["without custom_pipeline"]["error"]


def test_without_network_the_cache_serves_with_the_package(workplace, with_package):
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(
        "user/lightningdit-digits", cache_dir=workplace / "home_with" / "hub"
    )  # offline
    assert pipe.config.sampling_recipe == {"num_inference_steps": 3, "guidance_scale": 2.0}


def test_without_network_or_cache_the_repository_is_named(without_network):
    error = without_network["never fetched"]["error"]
    assert error.startswith("OSError: Cannot load model user/own-card: the model is not fully cached locally")


@pytest.mark.parametrize("name", ["AutoencoderVAVAE", "LightningDiTTransformer2DModel"])
def test_without_network_or_cache_a_model_says_so(name):
    import diffusers_lightningdit

    with pytest.raises(OSError, match="Cannot load nobody/nothing: not in the cache, and the Hub is offline"):
        getattr(diffusers_lightningdit, name).from_pretrained("nobody/nothing")


# -- the second family ------------------------------------------------------------------------------------------------


def test_change_detection_loads_with_and_without_the_package(hub, workplace, with_package, without_package):
    pipeline, model, mean = with_package["change detection"]["result"]
    assert [pipeline, model] == ["diffusers_lightningdit"] * 2
    expected = ["diffusers_modules", "diffusers_modules", pytest.approx(mean, abs=1e-6)]
    assert without_package["change detection, remote"]["result"] == expected
    for name in ("pipeline.py", "model/diffusers_lightningdit.py", "model_index.json"):  # saved again, without it
        found, pushed = (workplace / "change3d-saved-again" / name).read_bytes(), hub.repositories["user/change3d"]
        if name.endswith(".json"):
            found, pushed = ({**json.loads(text), "_name_or_path": ""} for text in (found, pushed.files[name]))
            assert found == {**pushed, "_name_or_path": ""}
        else:
            assert found == pushed.files[name]


def test_change_detection_is_pushed_with_its_code_and_card(hub, repository, with_package):
    files = hub.repositories["user/change3d"].files
    assert files["pipeline.py"] == (repository / "pipelines" / "pipeline_change3d.py").read_bytes()
    code = (repository / "src" / "diffusers_lightningdit" / "models" / "change3d.py").read_text(encoding="utf-8")
    assert files["model/diffusers_lightningdit.py"].decode() == self_contained(code)
    card = files["README.md"].decode()
    assert 'repository = "user/change3d"' in card and "`output.change[0]`" in card
    assert "More Information Needed" not in card
