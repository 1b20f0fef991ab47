"""LoRA training of a tiny pipeline of the classes cat and dog, on images of cats and oxen."""

import json
from pathlib import Path

import pytest
import torch
import train_lightningdit_lora
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from diffusers_lightningdit import AutoencoderVAVAE, LightningDiTPipeline, LightningDiTTransformer2DModel
from diffusers_lightningdit.training.transformer.lora import lora_file_content

FILE = "pytorch_lora_weights.safetensors"
ROWS = "transformer.class_embedder.lora_new_classes.weight"
SETTINGS = ["resolution=8", "random_flip=false", "global_batch_size=4", "max_train_steps=5", "rank=2"]
SETTINGS += ["learning_rate=1e-2", "ema_decay=0.5", "checkpointing_steps=2"]


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_vae_arguments, tiny_transformer_arguments) -> str:
    torch.manual_seed(0)
    transformer = LightningDiTTransformer2DModel(
        sample_size=4, in_channels=4, num_classes=2, **tiny_transformer_arguments
    )
    for parameter in transformer.parameters():  # a new one is zero everywhere
        torch.nn.init.normal_(parameter, std=0.2)
    vae = AutoencoderVAVAE(**tiny_vae_arguments)
    vae.set_latents_statistics([0.1] * 4, [0.5] * 4)
    folder = str(tmp_path_factory.mktemp("base"))
    LightningDiTPipeline(
        transformer, vae, FlowMatchEulerDiscreteScheduler(), {0: "cat, kitty", 1: "dog"}, {"num_inference_steps": 2}
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def own_images(tmp_path_factory) -> str:
    """Eight images, every other one of an ox."""
    folder = tmp_path_factory.mktemp("own")
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["ox", "kitty"])})
    images = [Image.effect_noise((8, 8), 40 + number).convert("RGB") for number in range(8)]
    Dataset.from_dict({"image": images, "label": [0, 1] * 4}, features=features).to_parquet(folder / "train.parquet")
    return str(folder)


def arguments(base: str, data: str, output_dir: Path, *settings: str, new: str = "new_classes.ox=cat") -> list[str]:
    return [f"pipeline={base}", f"data={data}", f"output_dir={output_dir}", *SETTINGS, new, *settings]


def run(*args, **kwargs) -> None:
    train_lightningdit_lora.main(arguments(*args, **kwargs))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, base, own_images) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "lora"
    run(base, own_images, folder)
    return folder


def load(base: str, folder: Path | None = None) -> LightningDiTPipeline:
    pipe = DiffusionPipeline.from_pretrained(base)
    pipe.set_progress_bar_config(disable=True)
    if folder is not None:
        pipe.load_lora_weights(str(folder), weight_name=FILE)
    return pipe


def draw(pipe: LightningDiTPipeline, label: str) -> torch.Tensor:
    return pipe(label, generator=torch.Generator().manual_seed(0), output_type="latent").images


def same_tensors(folder: Path, expected: Path) -> bool:
    tensors, wanted = load_file(folder / FILE), load_file(expected / FILE)
    return tensors.keys() == wanted.keys() and all(torch.equal(tensors[name], wanted[name]) for name in wanted)


# ---------------------------------------------------------------------------------------------------------------------
# Result
# ---------------------------------------------------------------------------------------------------------------------


def test_the_original_pipeline_draws_the_new_class(base, trained):
    pipe, plain = load(base, trained), load(base)
    assert pipe.id2label == {0: "cat, kitty", 1: "dog", 2: "ox"}
    assert draw(pipe, "ox").isfinite().all()
    assert not torch.equal(draw(pipe, "ox"), draw(pipe, "cat"))
    assert not torch.allclose(draw(pipe, "cat"), draw(plain, "cat"))  # which was trained as well
    pipe.unload_lora_weights()
    torch.testing.assert_close(draw(pipe, "cat"), draw(plain, "cat"))
    with pytest.raises(ValueError, match="unknown name 'ox'"):
        pipe("ox")


def test_the_file_is_a_lora_in_diffusers_layout(trained):
    assert sorted(path.name for path in trained.iterdir()) == [
        "README.md",
        "checkpoint-2",
        "checkpoint-4",
        "checkpoint-5",
        "metrics.jsonl",
        FILE,
    ]
    with safe_open(trained / FILE, "pt") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
        names = set(file.keys())
    assert (metadata["transformer.r"], metadata["transformer.lora_alpha"]) == (2, 2)
    assert metadata["transformer.lora_new_classes"] == ["ox"]
    attention = "transformer.transformer_blocks.0.attn"
    layers = [f"{attention}.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")]
    assert names == {ROWS} | {f"{layer}.lora_{matrix}.weight" for layer in layers for matrix in "AB"}
    assert "pipe.load_lora_weights(" in (trained / "README.md").read_text()


def test_only_the_lora_and_the_new_rows_change(base, trained):
    """The checkpoint holds nothing else, and the pipeline with the LoRA has the original's weights."""
    trained_names = {
        name.split("|")[0] for name in load_file(trained / "checkpoint-5" / "transformer.optimizer.safetensors")
    }
    assert all("lora_" in name or name.endswith("embedding_table.new_classes") for name in trained_names)
    checkpoint = load_file(trained / "checkpoint-5" / "transformer.safetensors")
    assert checkpoint.keys() - trained_names == {"pos_embed"}  # a buffer
    pipe, plain = load(base, trained).transformer, load(base).transformer
    weights = {name.replace(".base_layer", ""): value for name, value in pipe.state_dict().items()}
    table = "class_embedder.embedding_table.weight"
    for name, value in plain.state_dict().items():
        expected = weights[name][[0, 1, 3]] if name == table else weights[name]  # 3: the null class
        assert torch.equal(value, expected), name
    row, first = weights[table][2], plain.state_dict()[table][0]
    assert 0 < (row - first).abs().max() < 0.1  # begins with the cat's, and moves by 1e-2 a step
    lora = {name: value for name, value in load_file(trained / FILE).items() if "lora_B" in name}
    assert all(0 < value.abs().max() < 0.1 for value in lora.values())  # it begins at zero


def test_the_loaded_lora_is_the_trained_model(base, own_images, tmp_path, monkeypatch):
    """With the last weights (no average), the transformer in training and the pipeline with the file agree."""
    seen = {}

    def content(transformer, weights, new_names):
        seen["transformer"] = transformer
        return lora_file_content(transformer, weights, new_names)

    monkeypatch.setattr("diffusers_lightningdit.training.transformer.lora.lora_file_content", content)
    run(base, own_images, tmp_path / "run", "ema_decay=0", "target_modules=[to_q, ff.net.2]", "alpha=5")
    loaded = load(base, tmp_path / "run").transformer
    inputs = torch.randn(4, 4, 4, 4), torch.rand(4), torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        torch.testing.assert_close(loaded(*inputs).sample, seen["transformer"].eval()(*inputs).sample)


def test_the_loss_falls(base, own_images, tmp_path):
    """Of the same noise at the same times, on the images it is trained on."""
    settings = ["max_train_steps=40", "validation_steps=10", "validation_split=train", "num_validation_samples=8"]
    settings += ["use_cosine_loss=false", "target_modules=[to_v, ff.net.2, proj_out]", "latents_in_memory=true"]
    settings += ["learning_rate=3e-2"]
    run(base, own_images, tmp_path / "run", *settings)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert len(losses) == 4
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]


# ---------------------------------------------------------------------------------------------------------------------
# Data
# ---------------------------------------------------------------------------------------------------------------------


def test_existing_classes_alone(base, data, tmp_path):
    """Images of cats and dogs: no new rows, the same classes."""
    run(base, data, tmp_path / "run", new="new_classes={}")
    assert ROWS not in load_file(tmp_path / "run" / FILE)
    pipe = load(base, tmp_path / "run")
    assert pipe.id2label == {0: "cat, kitty", 1: "dog"}
    assert not torch.allclose(draw(pipe, "dog"), draw(load(base), "dog"))


def test_a_folder_of_images_of_one_class(base, tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(4):
        Image.effect_noise((9, 8), 40 + number).convert("RGB").save(tmp_path / "images" / f"{number}.png")
    settings = ["class_name=my ox", "sample_steps=5", "num_samples=2", "random_flip=true", "mixed_precision=bf16"]
    run(base, str(tmp_path / "images"), tmp_path / "run", *settings, new="new_classes.my ox=null")
    assert draw(load(base, tmp_path / "run"), "my ox").isfinite().all()
    assert Image.open(tmp_path / "run" / "samples" / "step-5.png").size == (8, 16)


def test_latents_with_other_statistics(base, own_images, tmp_path):
    """As cache_latents.py writes them; the VAE's statistics normalise them, unless the data's own are required."""
    import cache_latents

    cache = ["--vae", f"{base}/vae", "--output_dir", str(tmp_path / "latents"), "--resolution", "8"]
    cache_latents.main(["--data", own_images, *cache, "--dtype", "float32"])
    latents = str(tmp_path / "latents")
    run(base, latents, tmp_path / "run", "data_kind=latents")
    assert load(base, tmp_path / "run").id2label[2] == "ox"
    with pytest.raises(SystemExit):
        run(base, latents, tmp_path / "strict", "data_kind=latents", "check_statistics=true")


# ---------------------------------------------------------------------------------------------------------------------
# Services
# ---------------------------------------------------------------------------------------------------------------------


def test_kill_and_resume(run_and_be_killed, base, own_images, trained, tmp_path, capsys):
    words = arguments(base, own_images, tmp_path / "run")
    said = run_and_be_killed("lightningdit_lora", "checkpoint-4", "optimizer", *words)
    assert (tmp_path / "run" / ".checkpoint-4.partial").exists(), said
    torch.manual_seed(99)
    train_lightningdit_lora.main([*words, "resume_from_checkpoint=latest"])
    assert f"resumed from {tmp_path}/run/checkpoint-2, step 2" in capsys.readouterr().out
    assert same_tensors(tmp_path / "run", trained)


def test_options_that_change_rounding_at_most(base, own_images, trained, tmp_path):
    run(base, own_images, tmp_path / "run", "gradient_checkpointing=true", "gradient_accumulation_steps=2")
    expected = load_file(trained / FILE)
    for name, value in load_file(tmp_path / "run" / FILE).items():
        if ".to_k." not in name:  # its LoRA may get rounding noise for gradients, which the first Adam steps blow up
            torch.testing.assert_close(value, expected[name], atol=1e-4, rtol=1e-3)


# ---------------------------------------------------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("rank=0", "`rank` is 0; required: at least 1"),
        ("alpha=0", "`alpha` is 0.0; required: a positive number"),
        (
            "target_modules=[to_q, to_x]",
            "`target_modules` has 'to_x'; required: names of linear layers, or their ends: ",
        ),
        ("target_modules=[]", "`target_modules` is []; required"),
        ("pipeline=/no/such", "`pipeline` is '/no/such'; required: folder or Hub id of a LightningDiTPipeline"),
        ("new_classes={}", "the data has the class 'ox', which is none of the pipeline's; required: a name of one of"),
        (
            "new_classes={ox: null, kitty: dog}",
            "`new_classes` has 'kitty', which the pipeline knows; required: another",
        ),
        ("new_classes={ox: null, emu: dog}", "`new_classes` has 'emu'; required: a class of the data, 'ox', 'kitty'"),
        ("new_classes={ox: cow}", "`new_classes.ox`: `class_labels` has the unknown name 'cow'"),
        ("new_classes={ox: 1.5}", "`new_classes.ox` is 1.5; required: name or id of a class, or null"),
        ("class_name=emu", "`new_classes` has 'ox'; required: a class of the data, 'emu'"),
        ("label_column=name", "Images of one class without labels: `class_name`"),
        ("resolution=16", "the data has latents of 8x8; required: the pipeline's 4x4 (`resolution` 8)"),
        ("lora_rank=3", "`lora_rank` is no key of LoraTrainingConfig"),
    ],
)
def test_bad_input_is_one_line_and_touches_nothing(base, own_images, tmp_path, capsys, setting, message):
    with pytest.raises(SystemExit) as stop:
        run(base, own_images, tmp_path / "run", setting)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "run").exists()


def test_resuming_on_another_pipeline(base, own_images, trained, tmp_path, capsys):
    pipe = load(base)
    with torch.no_grad():
        pipe.transformer.proj_out.weight += 1
    pipe.save_pretrained(tmp_path / "other")
    with pytest.raises(SystemExit):
        checkpoint = f"resume_from_checkpoint={trained / 'checkpoint-2'}"
        run(str(tmp_path / "other"), own_images, tmp_path / "run", checkpoint)
    assert "`pipeline_sha256` is " in capsys.readouterr().err


def test_a_finished_folder_is_not_written_again(base, own_images, trained, capsys):
    with pytest.raises(SystemExit):
        run(base, own_images, trained, "resume_from_checkpoint=latest")
    assert "which holds a finished result" in capsys.readouterr().err


def test_a_lora_for_another_architecture(base, trained, tmp_path, tiny_transformer_arguments):
    pipe = load(base)
    wider = {**tiny_transformer_arguments, "attention_head_dim": 16}
    pipe.register_modules(
        transformer=LightningDiTTransformer2DModel(sample_size=4, in_channels=4, num_classes=2, **wider)
    )
    with pytest.raises(ValueError, match="; required: a LoRA trained for this architecture"):
        pipe.load_lora_weights(str(trained), weight_name=FILE)
    assert pipe.transformer.config.num_classes == 2
