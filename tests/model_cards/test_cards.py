"""Every card: metadata that huggingface_hub accepts, snippets that run (on a tiny stand-in), figures told once."""

import json
import re
from pathlib import Path

import pytest
import yaml
from diffusers import DiffusionPipeline
from huggingface_hub import metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from PIL import Image

from diffusers_lightningdit.commands import push
from diffusers_lightningdit.hub.cards import check_card, find_card, pipeline_card, with_section

FOLDER = Path(__file__).parents[2] / "model_cards"
CARDS = sorted(file.parent.name for file in FOLDER.glob("*/README.md"))
PIPELINES = ["lightningdit-xl-imagenet256-64ep", "lightningdit-xl-imagenet256-800ep"]
AUTOENCODER, VARIANTS = "vavae-imagenet256-f16d32-dinov2", "vavae-imagenet256-experimental-variants"
PUBLISHED = [*PIPELINES, AUTOENCODER, VARIANTS]
EMBEDDED = [
    "change3d-buildings",
    "change3d-buildings-captions",
    "dinov2-digits",
    "lightningdit-digits",
    "lightningdit-digits-few-step",
]


def card(name: str) -> str:
    return (FOLDER / name / "README.md").read_text(encoding="utf-8")


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def test_there_is_a_card_for_each_repository():
    assert sorted([*PUBLISHED, *EMBEDDED]) == CARDS


@pytest.mark.parametrize("name", CARDS)
def test_metadata_and_first_lines_are_those_of_a_card(name):
    data = check_card(card(name), name)
    assert data.to_dict() == check_card(card(name)).to_dict()
    assert data.license == ("mit" if name in PUBLISHED else "apache-2.0")
    if name in PUBLISHED:
        assert data.base_model.startswith("hustvl/") and data.datasets == ["ILSVRC/imagenet-1k"]


@pytest.mark.parametrize("name", [name for name in CARDS if name != VARIANTS])
def test_results_are_a_model_index_of_the_cards_name(name):
    index = metadata_load(FOLDER / name / "README.md")["model-index"]
    model_name, results = model_index_to_eval_results(index)
    assert model_name == name and results
    for result in results:
        assert (
            re.search(rf"\b{re.escape(str(result.metric_value))}\b", card(name).partition("\n# ")[2])
            or name in EMBEDDED
        )


EMBEDDED_PIPELINES = [name for name in EMBEDDED if name != "dinov2-digits"]


@pytest.mark.parametrize("name", EMBEDDED_PIPELINES)
def test_files_of_an_embedded_pipeline_are_small_and_safe(name):
    files = [path for path in (FOLDER / name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".png", ".py"}
    for path in (FOLDER / name).rglob("*.json"):
        assert "_name_or_path" not in path.read_text(), path


@pytest.mark.parametrize("name", EMBEDDED_PIPELINES)
def test_the_card_of_an_embedded_pipeline_leads_with_its_own_snippet(name):
    header, text = card(name).split("---\n")[1:3]
    assert yaml.safe_load(header)["library_name"] == "diffusers"
    snippet = text.split("```python\n")[1].split("```")[0]
    assert "import diffusers_lightningdit" in snippet
    compile(snippet, "card", "exec")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures_say_whose_they_are_and_how_they_are_measured(name):
    text = card(name)
    for section in ("Results", "Training", "How this repository was made", "Limits", "Licence"):
        assert f"\n## {section}\n" in text, section
    results = text.partition("\n## Results\n")[2].partition("\n## ")[0]
    assert "diffusers-lightningdit evaluate" in results
    if name != VARIANTS:
        assert "the authors' |" in results and "not measured again" in results
    for result in check_card(text).eval_results or []:
        assert result.source_name == "The authors, arXiv 2501.01423"


def test_the_figures_of_the_digits_in_few_steps_are_those_that_were_recorded():
    folder = FOLDER / "lightningdit-digits-few-step"
    figures = {result.metric_type: result.metric_value for result in check_card(card(folder.name)).eval_results}
    measured = json.loads((folder / "evaluation" / "generation.json").read_text())["results"]
    assert figures["fid"] == measured["frechet_distance"]
    assert figures["accuracy"] == json.loads((folder / "metrics.json").read_text())["accuracy"]


def test_the_figures_of_the_buildings_are_those_that_were_recorded():
    folder = FOLDER / "change3d-buildings"
    figures = {result.metric_name: result.metric_value for result in check_card(card(folder.name)).eval_results}
    metrics = json.loads((folder / "metrics.json").read_text())
    assert figures["F1 of changed pixels"] == metrics["f1"]
    assert figures["IoU of changed pixels"] == metrics["iou"]


def test_the_figures_of_the_digits_are_those_that_were_recorded():
    digits = {
        result.metric_type: result.metric_value for result in check_card(card("lightningdit-digits")).eval_results
    }
    measured = {
        name: json.loads((FOLDER / "lightningdit-digits" / "evaluation" / f"{name}.json").read_text())["results"]
        for name in ("generation", "reconstruction")
    }
    assert digits["fid"] == measured["generation"]["frechet_distance"]
    assert digits["psnr"] == measured["reconstruction"]["psnr_db"]
    metrics = json.loads((FOLDER / "lightningdit-digits" / "metrics.json").read_text())
    assert digits["accuracy"] == metrics["accuracy"]
    (encoder,) = check_card(card("dinov2-digits")).eval_results
    metrics = json.loads((FOLDER / "dinov2-digits" / "metrics.json").read_text())
    assert encoder.metric_value == round(metrics["held_out_accuracy"], 3)


# ---------------------------------------------------------------------------------------------------------------------
# Snippets
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repositories(golden, tmp_path_factory) -> Path:
    """A folder with tiny repositories of the cards' names, `push` made of the original's files, and an image."""
    folder = tmp_path_factory.mktemp("cards")
    vae = [f"vae={golden('vae/vavae/vavae.ckpt')}", f"latents_stats={golden('sampling/latents_stats.pt')}"]
    checkpoint = golden("sampling/ckpt_published_ema_only.pt")
    transformer = [f"checkpoint={checkpoint}", f"config={golden('sampling/euler10_shift0.3_cfg6.7.yaml')}"]
    sources = {
        **{name: [*vae, *transformer, "num_samples_per_class=0"] for name in PIPELINES},
        AUTOENCODER: vae,
        VARIANTS: [*vae, "subfolder=ldm-imagenet256-f16d32-50ep"],
    }
    for name, source in sources.items():
        given = [f"card={name}", f"repository=user/{name}", "dry_run=true", f"output_dir={folder / 'user' / name}"]
        push.main([*source, *given])
    Image.new("RGB", (300, 200), "red").save(folder / "image.png")
    return folder


@pytest.mark.parametrize(
    ("name", "number"), [(name, i) for name in PUBLISHED for i in range(len(python_blocks(card(name))))]
)
def test_every_snippet_runs(name, number, repositories, monkeypatch):
    monkeypatch.chdir(repositories)
    text = (repositories / "user" / name / "README.md").read_text(encoding="utf-8")  # as it was pushed
    variables = {}
    exec(compile(python_blocks(text)[number], f"{name}, block {number}", "exec"), variables)
    if "image" in variables:
        assert variables["image"].size == ((128, 128) if name in PIPELINES else (256, 256))
    assert variables.keys() & {"image", "vae"}


@pytest.mark.parametrize("name", EMBEDDED)
def test_every_snippet_of_the_embedded_checkpoints_runs(name, monkeypatch, tmp_path):
    (tmp_path / "model_cards").symlink_to(FOLDER)
    for picture in (FOLDER / name).glob("*.png"):
        (tmp_path / picture.name).symlink_to(picture)
    monkeypatch.chdir(tmp_path)
    for block in python_blocks(card(name)):
        exec(compile(block, name, "exec"), {})


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_pushed_card_names_its_repository(name):
    text = find_card(name, "someone/else", FOLDER)
    assert '"someone/else"' in text and f'"user/{name}"' not in text


# ---------------------------------------------------------------------------------------------------------------------
# Composed cards, and cards that are refused
# ---------------------------------------------------------------------------------------------------------------------


def test_a_composed_card_has_metadata_and_sections(digits_pipeline):
    pipeline = DiffusionPipeline.from_pretrained(digits_pipeline)
    text = pipeline_card(pipeline, "user/digits", license="mit", base_model="user/other", datasets=None)
    data = check_card(with_section(text, "Training", "In an hour."))
    assert (data.license, data.base_model, data.datasets) == ("mit", "user/other", None)
    assert with_section(text, "Training", "In an hour.").endswith("\n\n## Training\n\nIn an hour.\n")


GOOD = (
    "---\nlicense: mit\nlibrary_name: diffusers\npipeline_tag: image-to-image\ntags:\n- x\n---\n"
    "# T\n\n```python\n1\n```\n"
)


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("pipeline_tag: image-to-image\n", "", "its metadata lacks pipeline_tag"),
        ("license: mit", "license: [", "its metadata cannot be used"),
        ("license: mit", "license: mit\nmodel-index: 3", "its metadata cannot be used"),
        ("# T\n\n```python", "# T\n\nPrompt:\n\n```python", "does not begin with a title and a block of Python"),
    ],
)
def test_bad_cards_are_one_line(old, new, error):
    check_card(GOOD)
    assert old in GOOD
    with pytest.raises(ValueError, match=error) as refused:
        check_card(GOOD.replace(old, new), "README.md")
    assert str(refused.value).startswith("README.md: ") and "\n" not in str(refused.value)
