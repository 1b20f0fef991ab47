import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import train_lightningdit
from accelerate import accelerator, tracking
from accelerate.tracking import GeneralTracker
from accelerate.utils import is_torch_version
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from diffusers_lightningdit import AutoencoderVAVAE, LightningDiTTransformer2DModel
from diffusers_lightningdit.original import read_latents_statistics, read_training_checkpoint
from diffusers_lightningdit.training.transformer import loop


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory, data, trained_vae, transformer_recipe) -> str:
    """The folder that a run leaves, with latents in memory."""
    folder = str(tmp_path_factory.mktemp("trained") / "pipeline")
    run(transformer_recipe, data, trained_vae, folder, "latents_in_memory=true")
    return folder


def run(recipe: str, data: str, vae: str, output_dir: str, *settings: str) -> None:
    train_lightningdit.main(["--config", recipe, f"data={data}", f"vae={vae}", f"output_dir={output_dir}", *settings])


def test_the_pipeline_folder_loads_and_draws(pipeline_folder):
    pipeline = DiffusionPipeline.from_pretrained(pipeline_folder)
    assert type(pipeline).__name__ == "LightningDiTPipeline"
    assert pipeline.transformer.config.in_channels == 4
    assert pipeline.transformer.config.sample_size == 4
    assert pipeline.transformer.config.num_classes == 2
    assert pipeline.scheduler.config.shift == 2.0  # of the original's shift 0.5
    index = json.loads((Path(pipeline_folder) / "model_index.json").read_text())
    assert index["id2label"] == {"0": "cat", "1": "dog"}
    assert index["sampling_recipe"] == {
        "num_inference_steps": 3,
        "guidance_scale": 1.5,
        "guidance_interval": [0.25, 1.0],
        "guidance_channels": None,
    }
    images = pipeline(["cat", "dog"], output_type="pt").images
    assert images.shape == (2, 3, 8, 8)
    assert images.isfinite().all()


def test_every_weight_of_the_transformer_is_trained_and_none_of_the_vae(
    pipeline_folder, trained_vae, tiny_transformer_arguments
):
    pipeline = DiffusionPipeline.from_pretrained(pipeline_folder)
    torch.manual_seed(0)  # as the script
    initial = LightningDiTTransformer2DModel(sample_size=4, in_channels=4, num_classes=2, **tiny_transformer_arguments)
    trained = dict(pipeline.transformer.named_parameters())
    for name, weight in initial.named_parameters():
        # Adam moves a weight by at most about the learning rate, 1e-2, a step
        assert 0 < (trained[name] - weight).abs().max() < 4e-2, name
    for name, weight in AutoencoderVAVAE.from_pretrained(trained_vae).state_dict().items():
        assert torch.equal(weight, pipeline.vae.state_dict()[name]), name
    assert pipeline.vae.config.latents_std == AutoencoderVAVAE.load_config(trained_vae)["latents_std"]


def test_the_saved_weights_are_the_moving_average(pipeline_folder, data, trained_vae, transformer_recipe, tmp_path):
    run(transformer_recipe, data, trained_vae, tmp_path / "last", "latents_in_memory=true", "ema_decay=0")
    average = DiffusionPipeline.from_pretrained(pipeline_folder).transformer.proj_out.weight
    last = DiffusionPipeline.from_pretrained(tmp_path / "last").transformer.proj_out.weight
    assert average.norm() < 0.95 * last.norm()  # they start at zero, and the average lags behind


def test_latents_encoded_on_the_fly(data, trained_vae, transformer_recipe, tmp_path):
    folder = tmp_path / "pipeline"
    settings = ["time_sampling=uniform", "use_cosine_loss=false", "lr_scheduler=cosine", "mixed_precision=bf16"]
    run(transformer_recipe, data, trained_vae, folder, "save_dtype=float16", *settings)
    pipeline = DiffusionPipeline.from_pretrained(folder)
    assert pipeline.transformer.dtype == torch.float32  # float16 is the storage's type only
    assert pipeline("dog", output_type="pt").images.isfinite().all()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("guidance=2", "`guidance` is no key of LightningDiTTrainingConfig. Did you mean"),
        ("transformer.depth=2", "`transformer.depth` is no key of LightningDiTTransformer2DModel"),
        ("transformer.activation_fn=relu", "`activation_fn` is 'relu'; required"),
        ("resolution=9", "`resolution` is 9; required: a multiple of the VAE's factor, 2"),
        ("vae=/no/such/folder", "`vae` is '/no/such/folder'; required"),
        ("label_column=image", "`label_column` is 'image'; required: a column of class labels or whole numbers"),
        ("time_sampling=cosine", "`time_sampling` is 'cosine'; required: one of logit_normal, arctan, uniform"),
        ("save_dtype=fp16", "`save_dtype` is 'fp16'; required: one of float32, bfloat16, float16"),
        ("guidance_interval=[0.5, 0.2]", "`guidance_interval` is [0.5, 0.2]; required"),
        ("guidance_channels=5", "`guidance_channels` is 5; required"),
        ("timestep_shift=0", "`timestep_shift` is 0.0; required"),
        (
            "transformer.in_channels=8",
            "`transformer.in_channels` is given; required: left out, it follows from data and VAE",
        ),
        ("max_grad_norm=0", "`max_grad_norm` is 0.0; required"),
        ("max_grad_norm=.nan", "`max_grad_norm` is nan; required: a finite number"),
        ("uniform_times_from_step=-1", "`uniform_times_from_step` is -1; required: at least 0"),
        ("ema_decay=2", "`ema_decay` is 2.0; required"),
        ("extra_ema_decays=[0.5]", "`extra_ema_decays` is [0.5]; required: each decay once"),
        ("ema_relative_width=0.3", "`ema_relative_width` is 0.3; required: at most 0.28"),
        ("ema_warmup=true --ema_relative_width=0.1", "`ema_warmup` is true, and `ema_relative_width` 0.1; required"),
        ("time_range=[0.5, 0.5]", "`time_range` is [0.5, 0.5]; required: [start, end]"),
        ("data_kind=pixels", "`data_kind` is 'pixels'; required: one of images, latents"),
        ("push_to_hub=true", "`push_to_hub` is true, but `hub_model_id` is not given"),
        ("--random_flip=true --latents_in_memory=true", "`latents_in_memory` encodes each image once"),
        ("--validation_steps=1 --num_validation_samples=9", "validation data: `data` is"),
        ("weight_init=/no/such", "`weight_init` is '/no/such'; required: folder or Hub id"),
        ("resume_from_checkpoint=/no/such", "`resume_from_checkpoint` is '/no/such'; required: latest"),
        ("gradient_accumulation_steps=3", "`global_batch_size` is 4; required: a multiple of 3"),
        ("global_batch_size=9", "`global_batch_size` is 9; required: at most the 8 samples"),
    ],
)
def test_bad_input_is_one_line_and_touches_nothing(
    data, trained_vae, transformer_recipe, tmp_path, capsys, setting, message
):
    output_dir = tmp_path / "pipeline"
    with pytest.raises(SystemExit) as stop:
        run(transformer_recipe, data, trained_vae, output_dir, *setting.split(" --"))
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2
    assert error.startswith("error: ")
    assert message in error
    assert not output_dir.exists()


def test_as_a_command(data, tmp_path):
    """Once as users call it: no traceback, exit status 2."""
    command = [sys.executable, train_lightningdit.__file__, f"data={data}", "vae=x"]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 2
    error = "error: `output_dir` is not given; required: output_dir=... or a line of the recipe (see --help)."
    assert result.stderr.splitlines()[-1] == error  # other packages may warn before it


# ---------------------------------------------------------------------------------------------------------------------
# From latents, and from the original's checkpoints
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def latents(golden) -> str:
    return str(golden("train/dataset"))


@pytest.fixture(scope="module")
def latents_vae(tmp_path_factory, latents, tiny_vae_arguments) -> str:
    """An autoencoder with the channels and statistics of the recorded latents."""
    vae = AutoencoderVAVAE(**{**tiny_vae_arguments, "latent_channels": 8}, sample_size=12)
    vae.set_latents_statistics(*read_latents_statistics(Path(latents) / "latents_stats.pt"))
    folder = str(tmp_path_factory.mktemp("vae") / "vae")
    vae.save_pretrained(folder)
    return folder


LATENTS = ["data_kind=latents", "global_batch_size=4", "num_classes=10"]
ORIGINAL_SHAPE = ["transformer={num_layers: 2, num_attention_heads: 4, attention_head_dim: 12}"]


def test_from_cached_latents(latents, latents_vae, transformer_recipe, tmp_path):
    folder = tmp_path / "pipeline"
    settings = [*LATENTS, "random_flip=true", "checkpointing_steps=2"]
    run(transformer_recipe, latents, latents_vae, folder, *settings)
    pipeline = DiffusionPipeline.from_pretrained(folder)
    assert (pipeline.transformer.config.sample_size, pipeline.transformer.config.num_classes) == (6, 10)
    assert pipeline(3, output_type="pt").images.isfinite().all()
    # other memory, same numbers; and from the middle
    run(transformer_recipe, latents, latents_vae, tmp_path / "memory", *settings, "latents_in_memory=true")
    checkpoint = f"resume_from_checkpoint={folder / 'checkpoint-2'}"
    run(transformer_recipe, latents, latents_vae, tmp_path / "resumed", *settings, checkpoint)
    for other in ("memory", "resumed"):
        weights = DiffusionPipeline.from_pretrained(tmp_path / other).transformer.state_dict()
        assert all(torch.equal(weights[name], w) for name, w in pipeline.transformer.state_dict().items())


def test_latents_of_another_vae(latents, trained_vae, transformer_recipe, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(transformer_recipe, latents, trained_vae, tmp_path / "pipeline", *LATENTS)
    assert "holds latents of 8 channels; required: the VAE's 4" in capsys.readouterr().err


def test_the_originals_checkpoint_is_continued(golden, latents, latents_vae, transformer_recipe, tmp_path):
    checkpoint = golden("train/step_plain_ckpt_0000002.pt")
    settings = [*LATENTS, *ORIGINAL_SHAPE, f"resume_from_checkpoint={checkpoint}", "learning_rate=2e-4"]
    run(transformer_recipe, latents, latents_vae, tmp_path / "run", *settings, "max_train_steps=4")
    state = json.loads((tmp_path / "run" / "checkpoint-4" / "state.json").read_text())
    assert (state["step"], state["position"], state["averages"]["transformer"]) == (4, 4, 4)
    moments = load_file(tmp_path / "run" / "checkpoint-4" / "transformer.optimizer.safetensors")
    assert moments["proj_out.weight|step"] == 4
    weight = load_file(tmp_path / "run" / "checkpoint-4" / "transformer.safetensors")["proj_out.weight"]
    start = read_training_checkpoint(checkpoint).weights["proj_out.weight"]
    assert 0 < (weight - start).abs().max() < 1e-3


def test_another_architecture_than_the_originals_checkpoint(golden, latents, latents_vae, transformer_recipe, tmp_path):
    checkpoint = golden("train/step_plain_ckpt_0000002.pt")
    settings = [*LATENTS, f"resume_from_checkpoint={checkpoint}"]
    with pytest.raises(SystemExit):
        run(transformer_recipe, latents, latents_vae, tmp_path / "run", *settings)
    assert not (tmp_path / "run").exists()


def test_weight_init_begins_with_the_originals_weights(
    golden, latents, latents_vae, transformer_recipe, tmp_path, capsys
):
    settings = [
        *LATENTS,
        "num_classes=12",
        *ORIGINAL_SHAPE,
        f"weight_init={golden('train/step_plain_ckpt_0000002.pt')}",
    ]
    run(transformer_recipe, latents, latents_vae, tmp_path / "run", *settings, "learning_rate=1e-12")
    average = read_training_checkpoint(golden("train/step_plain_ckpt_0000002.pt")).average
    weights = DiffusionPipeline.from_pretrained(tmp_path / "run").transformer.state_dict()
    torch.testing.assert_close(weights["proj_out.weight"], average["proj_out.weight"])
    assert "`class_embedder.embedding_table.weight` has shape [11, 48] in `weight_init`" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------------------
# Options
# ---------------------------------------------------------------------------------------------------------------------


def test_what_is_shown_while_training(data, trained_vae, transformer_recipe, tmp_path):
    settings = ["validation_steps=2", "validation_split=train", "num_validation_samples=6", "sample_steps=2"]
    run(transformer_recipe, data, trained_vae, tmp_path / "run", *settings, "num_samples=4", "logging_steps=1")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    assert all({"grad_norm", "learning_rate", "skipped", "images_per_second"} <= line.keys() for line in lines[:2])
    validation = [line for line in lines if "validation_loss" in line]
    assert [line["step"] for line in validation] == [2, 3]
    assert len(validation[0]) == 11  # step, mean and nine times
    for step in (2, 3):
        assert Image.open(tmp_path / "run" / "samples" / f"step-{step}.png").size == (16, 16)
    # looking changes nothing
    run(transformer_recipe, data, trained_vae, tmp_path / "blind")
    a, b = (DiffusionPipeline.from_pretrained(tmp_path / name).transformer.state_dict() for name in ("run", "blind"))
    assert all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.parametrize(
    "settings",
    [
        ["gradient_checkpointing=true"],
        ["optimizer=adamw_fused"],
        ["num_workers=2"],
        ["uniform_times_from_step=3"],
        ["time_range=[0, 1]", "logit_normal_mean=0"],
    ],
)
def test_options_that_change_rounding_at_most(
    pipeline_folder, data, trained_vae, transformer_recipe, tmp_path, settings
):
    run(transformer_recipe, data, trained_vae, tmp_path / "run", *settings)
    expected = DiffusionPipeline.from_pretrained(pipeline_folder).transformer.state_dict()
    for name, value in DiffusionPipeline.from_pretrained(tmp_path / "run").transformer.state_dict().items():
        if "to_k.bias" not in name:  # rounding noise
            torch.testing.assert_close(value, expected[name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        ["uniform_times_from_step=2"],
        ["time_range=[0.25, 0.75]"],
        ["logit_normal_mean=-0.5"],
        ["ema_warmup=true"],
        ["transformer.class_dropout_prob=1"],
        ["seed=1"],
        ["random_flip=true"],
    ],
)
def test_options_that_change_the_result(pipeline_folder, data, trained_vae, transformer_recipe, tmp_path, settings):
    run(transformer_recipe, data, trained_vae, tmp_path / "run", *settings)
    expected = DiffusionPipeline.from_pretrained(pipeline_folder).transformer.state_dict()
    weights = DiffusionPipeline.from_pretrained(tmp_path / "run").transformer.state_dict()
    assert max((weight - expected[name]).abs().max() for name, weight in weights.items()) > 1e-3


@pytest.mark.parametrize(
    ("setting", "same"),
    [("uniform_times_from_step=0", "time_sampling=uniform"), ("max_grad_norm=null", "max_grad_norm=1e9")],
)
def test_two_ways_to_say_the_same(data, trained_vae, transformer_recipe, tmp_path, setting, same):
    for name, word in (("a", setting), ("b", same)):
        run(transformer_recipe, data, trained_vae, tmp_path / name, "latents_in_memory=true", word)
    a, b = (DiffusionPipeline.from_pretrained(tmp_path / name).transformer.state_dict() for name in "ab")
    assert all(torch.equal(value, b[name]) for name, value in a.items())
    metrics = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["grad_norm"] > 0 for line in metrics)


def test_half_precision_on_the_cpu(data, trained_vae, transformer_recipe, tmp_path):
    run(transformer_recipe, data, trained_vae, tmp_path / "run", "mixed_precision=bf16", "checkpointing_steps=2")
    tensors = load_file(tmp_path / "run" / "checkpoint-2" / "transformer.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())


def test_weight_init_with_a_run_that_may_be_resumed(
    pipeline_folder, data, trained_vae, transformer_recipe, tmp_path, capsys
):
    """The pair for machines that are taken away: the first start has no checkpoint and takes the weights."""
    settings = [f"weight_init={pipeline_folder}", "resume_from_checkpoint=latest", "learning_rate=1e-12"]
    run(transformer_recipe, data, trained_vae, tmp_path / "run", *settings)
    assert "training begins anew" in capsys.readouterr().out
    expected = DiffusionPipeline.from_pretrained(pipeline_folder).transformer.state_dict()
    for name, weight in DiffusionPipeline.from_pretrained(tmp_path / "run").transformer.state_dict().items():
        torch.testing.assert_close(weight, expected[name], msg=lambda m, n=name: f"{n}: {m}")
    # a checkpoint goes before it, and it is not even read
    checkpoint = f"resume_from_checkpoint={tmp_path / 'run' / 'checkpoint-3'}"
    settings = [checkpoint, "weight_init=/no/such", "max_train_steps=4", "learning_rate=1e-12"]
    run(transformer_recipe, data, trained_vae, tmp_path / "longer", *settings)


def test_compiled_blocks_change_rounding_only(
    pipeline_folder, data, trained_vae, transformer_recipe, tmp_path, compiled
):
    run(transformer_recipe, data, trained_vae, tmp_path / "run", "compile_blocks=true")
    assert compiled == ["LightningDiTTransformerBlock"]
    expected = DiffusionPipeline.from_pretrained(pipeline_folder).transformer.state_dict()
    for name, value in DiffusionPipeline.from_pretrained(tmp_path / "run").transformer.state_dict().items():
        if "to_k.bias" not in name:  # rounding noise
            torch.testing.assert_close(value, expected[name], atol=1e-4, rtol=1e-3)


@pytest.mark.skipif(
    is_torch_version("<", "2.8") and not torch.cuda.is_available(), reason="torch 2.6 multiplies no float8 on a CPU"
)
def test_eight_bits(pipeline_folder, data, trained_vae, transformer_recipe, tmp_path):
    """torchao's float8, which a CPU emulates: the products are rounded, the weights are not."""
    pytest.importorskip("torchao")
    run(transformer_recipe, data, trained_vae, tmp_path / "run", "mixed_precision=fp8")
    expected = DiffusionPipeline.from_pretrained(pipeline_folder).transformer.state_dict()
    found = DiffusionPipeline.from_pretrained(tmp_path / "run").transformer.state_dict()
    assert found.keys() == expected.keys() and all(value.dtype == torch.float32 for value in found.values())
    differences = {name: (value - expected[name]).abs().max().item() for name, value in found.items()}
    assert 0 < max(differences.values()) < 3e-2  # three Adam steps of 1e-2 in other directions at most


class LinesTracker(GeneralTracker):
    """One of Accelerate's trackers, which writes lines into a file and images beside it."""

    name = "tensorboard"
    requires_logging_directory = True

    def __init__(self, run_name: str, logging_dir: str):
        super().__init__()
        self.folder = Path(logging_dir) / run_name
        self.folder.mkdir(parents=True)

    @property
    def tracker(self):
        return self.folder

    def write(self, **entries) -> None:
        with open(self.folder / "lines.jsonl", "a") as file:
            file.write(json.dumps(entries) + "\n")

    def store_init_configuration(self, values: dict) -> None:
        self.write(config=values)

    def log(self, values: dict, step: int | None = None, **kwargs) -> None:
        self.write(step=step, values=values)

    def log_images(self, values: dict, step: int | None = None, dataformats: str = "NCHW") -> None:
        self.write(step=step, images={name: list(images.shape) for name, images in values.items()}, layout=dataformats)

    def finish(self) -> None:
        self.write(finished=True)


TRACKED = ["report_to=tensorboard", "logging_steps=2", "sample_steps=3", "num_samples=4"]


def test_a_tracker_gets_settings_metrics_and_images(data, trained_vae, transformer_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "_available_trackers", [tracking.LoggerType.TENSORBOARD])
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", LinesTracker)
    monkeypatch.setitem(accelerator.LOGGER_TYPE_TO_CLASS, "tensorboard", LinesTracker)
    run(transformer_recipe, data, trained_vae, tmp_path / "run", *TRACKED)
    lines = [json.loads(line) for line in (tmp_path / "run" / "logs" / "lines.jsonl").read_text().splitlines()]
    assert lines[0]["config"]["learning_rate"] == 1e-2 and lines[0]["config"]["guidance_interval"] == "(0.25, 1.0)"
    assert [line["step"] for line in lines if "values" in line] == [2, 3]
    assert {"loss", "grad_norm", "images_per_second"} <= lines[1]["values"].keys()
    assert [line for line in lines if "images" in line] == [
        {"step": 3, "images": {"samples": [1, 16, 16, 3]}, "layout": "NHWC"}
    ]
    assert lines[-1] == {"finished": True}


def test_tensorboard(data, trained_vae, transformer_recipe, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(transformer_recipe, data, trained_vae, tmp_path / "run", *TRACKED)
    events = EventAccumulator(str(tmp_path / "run" / "logs")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [2, 3]
    (image,) = events.Images("samples")
    assert (image.step, image.width, image.height) == (3, 16, 16)


# ---------------------------------------------------------------------------------------------------------------------
# Internal guidance and expanded times
# ---------------------------------------------------------------------------------------------------------------------


def test_the_output_layer_of_internal_guidance_trains(data, trained_vae, transformer_recipe, tmp_path):
    """Its loss is half of the weight of the other's, and its weights are saved with the pipeline."""
    settings = [
        "transformer.internal_guidance_layer=1",
        "logging_steps=1",
        "use_cosine_loss=false",
        "max_train_steps=2",
    ]
    run(transformer_recipe, data, trained_vae, tmp_path / "half", *settings)
    run(transformer_recipe, data, trained_vae, tmp_path / "whole", *settings, "internal_guidance_weight=1")
    half, whole = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("half", "whole")
    )
    first = whole[0]["internal_guidance_loss"]
    assert half[0]["internal_guidance_loss"] == pytest.approx(first)
    assert whole[0]["loss"] - half[0]["loss"] == pytest.approx(0.5 * first, rel=1e-3)
    transformer = DiffusionPipeline.from_pretrained(tmp_path / "half").transformer
    assert transformer.config.internal_guidance_layer == 1
    assert transformer.internal_proj_out.weight.abs().max() > 0  # it began at zero


def test_a_layer_of_internal_guidance_that_is_not_there(data, trained_vae, transformer_recipe, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(transformer_recipe, data, trained_vae, tmp_path / "out", "transformer.internal_guidance_layer=2")
    assert "`internal_guidance_layer` is 2; required: None, or from 1 to `num_layers`, 1" in capsys.readouterr().err


def test_expanded_times_are_seen_by_the_second_half_of_each_batch(
    data, trained_vae, transformer_recipe, tmp_path, monkeypatch
):
    """Whatever the parts of the batch, in which times are uniform even where the recipe has others."""
    seen = []
    losses = loop.flow_matching_losses

    def noticed(model, noise, latents, times, labels, seen_times, *others):
        seen.append((times, seen_times))
        return losses(model, noise, latents, times, labels, seen_times, *others)

    monkeypatch.setattr(loop, "flow_matching_losses", noticed)
    settings = ["expanded_times=true", "max_train_steps=1"]
    run(transformer_recipe, data, trained_vae, tmp_path / "one", *settings)
    run(transformer_recipe, data, trained_vae, tmp_path / "two", *settings, "gradient_accumulation_steps=2")
    run(transformer_recipe, data, trained_vae, tmp_path / "uniform", "time_sampling=uniform", "max_train_steps=1")
    (times, expanded), *parts, (uniform, plain) = seen
    assert torch.equal(expanded, torch.cat([times[:2], 2 - times[2:]]))
    assert torch.equal(torch.cat([part for _, part in parts]), expanded)
    assert torch.equal(uniform, times) and plain is None
