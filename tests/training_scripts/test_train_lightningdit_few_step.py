"""Distillation of a tiny pipeline: what it writes, exact resume, processes, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import train_lightningdit
import train_lightningdit_few_step
from accelerate.utils import is_torch_version
from diffusers import DDIMScheduler, DiffusionPipeline
from safetensors.torch import load_file, save_file

from diffusers_lightningdit import LightningDiTPipeline, LightningDiTTransformer2DModel
from diffusers_lightningdit.flow_anchored_consistency import FlowAnchoredConsistency
from diffusers_lightningdit.training.transformer import few_step
from diffusers_lightningdit.training.transformer.few_step import (
    FewStepTrainingConfig,
    check_processes,
    load_teacher,
    make_student,
)

STEPS = ["max_train_steps=4", "checkpointing_steps=2", "global_batch_size=4", "learning_rate=1e-2", "ema_decay=0.5"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, data, trained_vae, transformer_recipe) -> str:
    """A pipeline of two blocks whose weights are all moved away from zero."""
    folder = str(tmp_path_factory.mktemp("teacher") / "pipeline")
    words = ["--config", transformer_recipe, f"data={data}", f"vae={trained_vae}", f"output_dir={folder}"]
    train_lightningdit.main([*words, "max_train_steps=1", "checkpointing_steps=null", "transformer.num_layers=2"])
    file = Path(folder) / "transformer" / "diffusion_pytorch_model.safetensors"
    generator = torch.Generator().manual_seed(1)
    weights = {key: w + 0.2 * torch.randn(w.shape, generator=generator) for key, w in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def arguments(teacher, data) -> list[str]:
    return [f"pipeline={teacher}", f"data={data}", "data_kind=images", "resolution=8", "random_flip=false", *STEPS]


def run(arguments: list[str], folder: Path, *settings: str) -> Path:
    train_lightningdit_few_step.main([*arguments, f"output_dir={folder}", *settings])
    return folder


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, arguments) -> Path:
    return run(arguments, tmp_path_factory.mktemp("uninterrupted") / "run", "logging_steps=1")


def tensors_of(folder: Path, step: int = 4) -> dict[str, torch.Tensor]:
    files = sorted((folder / f"checkpoint-{step}").glob("*.safetensors"))
    assert len(files) == 3
    return {f"{file.name}: {name}": tensor for file in files for name, tensor in load_file(file).items()}


def assert_close(folder: Path, expected: Path, atol: float = 1e-4) -> None:
    tensors = tensors_of(folder)
    for name, tensor in tensors_of(expected).items():
        if "to_k.bias" not in name:  # no gradient but rounding noise, which the first Adam steps blow up
            torch.testing.assert_close(tensors[name], tensor, atol=atol, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


# ---------------------------------------------------------------------------------------------------------------------
# The student
# ---------------------------------------------------------------------------------------------------------------------


def config_of(arguments: list[str], folder: Path, **changes) -> FewStepTrainingConfig:
    given = dict(word.split("=", 1) for word in arguments[:2])
    return FewStepTrainingConfig(**{**given, "output_dir": str(folder), **changes})


@pytest.mark.parametrize("student_times", ["second", "expanded"])
def test_the_student_begins_as_the_teacher(arguments, teacher, tmp_path, student_times):
    """With the second time embedding whatever the end of the jump is."""
    flow = load_teacher(teacher).transformer
    student = make_student(config_of(arguments, tmp_path, student_times=student_times), flow, begins_anew=True)
    assert student.config.second_time_embedding == (student_times == "second")
    student.eval()
    noisy, times, labels = torch.randn(4, 4, 4, 4), torch.rand(4), torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        expected = flow(noisy, times, labels).sample
        assert expected.abs().max() > 0.1
        for second in ({}, {"second_timestep": 1.0}) if student_times == "second" else ({},):
            velocity = student(noisy, times, labels, **second).sample
            torch.testing.assert_close(velocity, expected, atol=1e-6, rtol=0)  # weights lie elsewhere in memory


def test_the_student_leaves_out_the_layer_of_internal_guidance(arguments, teacher, tmp_path):
    flow = load_teacher(teacher).transformer
    config = {key: value for key, value in flow.config.items() if not key.startswith("_")}
    guided = LightningDiTTransformer2DModel.from_config({**config, "internal_guidance_layer": 1})
    student = make_student(config_of(arguments, tmp_path), guided, begins_anew=True)
    assert student.config.internal_guidance_layer is None
    assert torch.equal(student.patch_embed.weight, guided.patch_embed.weight)


def test_an_earlier_student_goes_on(arguments, uninterrupted, tmp_path):
    config = config_of(arguments, tmp_path, student=str(uninterrupted))
    flow = load_teacher(config.pipeline).transformer
    saved = load_file(uninterrupted / "transformer" / "diffusion_pytorch_model.safetensors")
    student = make_student(config, flow, begins_anew=True).state_dict()
    assert all(torch.equal(student[name], weight) for name, weight in saved.items())
    anew = make_student(config, flow, begins_anew=False).state_dict()  # a checkpoint follows
    assert not torch.equal(anew["proj_out.weight"], saved["proj_out.weight"])


# ---------------------------------------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------------------------------------


def test_the_pipeline_draws_in_two_steps(uninterrupted, teacher):
    assert "By `train_lightningdit_few_step.py` of" in (uninterrupted / "README.md").read_text()
    pipeline = DiffusionPipeline.from_pretrained(uninterrupted)
    assert pipeline.transformer.config.second_time_embedding
    assert pipeline.scheduler.config.stochastic_sampling and pipeline.scheduler.config.shift == 1
    recipe = pipeline.config.sampling_recipe
    assert (recipe["num_inference_steps"], recipe["guidance_scale"]) == (2, 1.0)
    assert pipeline.config.id2label == DiffusionPipeline.from_pretrained(teacher).config.id2label
    for file in uninterrupted.rglob("config.json"):
        assert "_name_or_path" not in file.read_text(), file
    images = pipeline(["cat", "dog"], output_type="pt").images
    assert images.shape == (2, 3, 8, 8) and images.isfinite().all()


def test_every_weight_of_the_student_trains_and_the_losses_are_recorded(uninterrupted, teacher):
    student = load_file(uninterrupted / "transformer" / "diffusion_pytorch_model.safetensors")
    flow = load_file(Path(teacher) / "transformer" / "diffusion_pytorch_model.safetensors")
    for name, weight in student.items():
        if name == "class_embedder.embedding_table.weight":  # the row of the null class is not asked for
            weight = weight[:-1]
        before = flow.get(name, torch.zeros_like(weight))[: len(weight)]
        assert torch.equal(weight, before) == (name == "pos_embed"), name
    for line in (uninterrupted / "metrics.jsonl").read_text().splitlines():
        metrics = json.loads(line)
        assert metrics["loss"] == pytest.approx(metrics["consistency_loss"] + metrics["anchor_loss"], rel=1e-4)


def test_a_resumed_run_is_the_uninterrupted_one(uninterrupted, arguments, tmp_path):
    resumed = run(arguments, tmp_path / "run", f"resume_from_checkpoint={uninterrupted / 'checkpoint-2'}")
    expected = tensors_of(uninterrupted)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors_of(resumed).items())
    for name, tensor in load_file(uninterrupted / "transformer" / "diffusion_pytorch_model.safetensors").items():
        assert torch.equal(load_file(resumed / "transformer" / "diffusion_pytorch_model.safetensors")[name], tensor)


@pytest.mark.parametrize("settings", [["gradient_accumulation_steps=2"], ["gradient_checkpointing=true"]])
def test_other_ways_of_computing(uninterrupted, arguments, tmp_path, settings):
    assert_close(run(arguments, tmp_path / "run", *settings), uninterrupted)


def test_compiled_blocks(uninterrupted, arguments, tmp_path, compiled):
    assert_close(run(arguments, tmp_path / "run", "compile_blocks=true"), uninterrupted)
    assert compiled == ["LightningDiTTransformerBlock"] * 4  # of the teacher and of the student


def on_two_processes(script: list[str], arguments: list[str], folder: Path) -> subprocess.CompletedProcess:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *script]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [*launch, *arguments, f"output_dir={folder}"]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_two_processes_are_one(arguments, tmp_path):
    """A derivative that led the gradient past its exchange would leave that of half a batch on each process."""
    settings = ["derivative=forward_mode"]
    finished = on_two_processes([train_lightningdit_few_step.__file__], [*arguments, *settings], tmp_path / "two")
    assert finished.returncode == 0, finished.stderr
    assert_close(tmp_path / "two", run(arguments, tmp_path / "one", *settings))


@pytest.mark.skipif(is_torch_version("<", "2.8"), reason="FSDP2 needs accelerators with torch 2.6")
def test_sharded_processes_are_one(uninterrupted, arguments, tmp_path):
    """By finite differences of the sharded network; forward-mode differentiation is refused."""
    script = [str(Path(__file__).with_name("run_with_fsdp2.py")), "train_lightningdit_few_step"]
    finished = on_two_processes(script, arguments, tmp_path / "two")
    assert finished.returncode == 0, finished.stderr
    assert "sharded as FSDPLightningDiTTransformer2DModel" in finished.stdout
    assert_close(tmp_path / "two", uninterrupted)


def test_what_sharded_weights_do_not_have(arguments, tmp_path):
    class Sharded:
        is_fsdp2 = True

    for changes, message in (
        ({"derivative": "forward_mode"}, "`derivative` is 'forward_mode'; required: finite_difference"),
        ({"mixed_precision": "bf16"}, "`derivative_dtype` is 'float32'; required: mixed"),
    ):
        with pytest.raises(ValueError, match=message):
            check_processes(config_of(arguments, tmp_path, **changes), Sharded())
    check_processes(config_of(arguments, tmp_path), Sharded())


def test_mixed_precision_computes_the_derivative_in_float32(arguments, tmp_path, monkeypatch):
    """Under bfloat16 the derivative of the plain network is that in float32; with derivative_dtype=mixed it is not."""
    seen = {}
    along_flow = FlowAnchoredConsistency.along_flow

    def noticed(self, network, noisy, times, velocity, class_labels):
        derivative = along_flow(self, network, noisy, times, velocity, class_labels)
        seen.setdefault("type", network(noisy, times, class_labels).sample.dtype)
        return derivative

    monkeypatch.setattr(FlowAnchoredConsistency, "along_flow", noticed)
    for dtype, expected in (("float32", torch.float32), ("mixed", torch.bfloat16)):
        seen.clear()
        settings = ["mixed_precision=bf16", f"derivative_dtype={dtype}", "max_train_steps=1"]
        run(arguments, tmp_path / dtype, *settings)
        assert seen["type"] == expected


@pytest.mark.parametrize(
    "settings",
    [["student_times=expanded"], ["use_teacher=false"], ["target_guidance_scale=1", "time_sampling=uniform"]],
)
def test_other_losses(uninterrupted, arguments, tmp_path, settings):
    other = run(arguments, tmp_path / "run", *settings)
    name = "transformer.safetensors: proj_out.weight"
    assert not torch.allclose(tensors_of(other)[name], tensors_of(uninterrupted)[name])


def test_validation_is_of_the_velocity(arguments, tmp_path):
    """Before it has learnt anything, the student has the teacher's velocity at t; at 2 - t that is another one."""
    settings = ["validation_steps=1", "validation_split=train", "num_validation_samples=4", "max_train_steps=1"]
    losses = []
    for times in ("second", "expanded"):
        chosen = [f"student_times={times}", "learning_rate=1e-12"]
        folder = run(arguments, tmp_path / times, *settings, *chosen)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses += [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert len(losses) == 2 and losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_bad_steps_are_skipped(arguments, tmp_path, capsys, monkeypatch):
    losses = few_step.Distillation.__call__

    def sometimes_nan(self, config, model, latents, class_labels, draws, *others):
        factor = float("nan") if draws.batch_index == 1 else 1
        return {k: v * factor for k, v in losses(self, config, model, latents, class_labels, draws, *others).items()}

    monkeypatch.setattr(few_step.Distillation, "__call__", sometimes_nan)
    folder = run(arguments, tmp_path / "run")
    assert "step 2 skipped: loss is nan (1 skipped in all)" in capsys.readouterr().out
    assert all(tensor.isfinite().all() for tensor in tensors_of(folder).values())


# ---------------------------------------------------------------------------------------------------------------------
# What is refused
# ---------------------------------------------------------------------------------------------------------------------


def error_of(arguments: list[str], folder: Path, capsys, *settings: str) -> str:
    with pytest.raises(SystemExit) as stop:
        run(arguments, folder, *settings)
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert not (folder / "model_index.json").exists()
    return line


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["pipeline=/no/such"], "`pipeline` is '/no/such'; required"),
        (["student=/no/such"], "`student` is '/no/such'; required"),
        (["derivative=backward"], "`derivative` is 'backward'; required: one of finite_difference, forward_mode"),
        (["derivative=forward_mode", "compile_blocks=true"], "required: finite_difference, or blocks that are not"),
        (["mixed_precision=fp8"], "`derivative_dtype` is 'float32'; required: mixed with `mixed_precision` fp8"),
        (["target_guidance_interval=[1, 0]"], "`target_guidance_interval` is [1.0, 0.0]; required"),
        (["target_exponent=0"], "`target_exponent` is 0.0; required"),
        (["expanded_times=true"], "`expanded_times` is true; required: false"),
        (["resolution=16"], "the data has latents of 8x8; required: the pipeline's 4x4"),
    ],
)
def test_settings_that_cannot_be_trained_with(arguments, tmp_path, capsys, settings, message):
    assert message in error_of(arguments, tmp_path / "out", capsys, *settings)


def test_a_student_of_another_architecture(arguments, teacher, uninterrupted, tmp_path, capsys):
    message = error_of(arguments, tmp_path / "out", capsys, f"student={teacher}")
    assert "`second_time_embedding` False; required: True, as the teacher and `student_times` have it" in message
    small = LightningDiTTransformer2DModel(sample_size=4, in_channels=4, num_layers=1, num_attention_heads=2,
                                           attention_head_dim=8, num_classes=2)  # fmt: skip
    small.save_pretrained(tmp_path / "small")
    message = error_of(arguments, tmp_path / "out", capsys, f"student={tmp_path / 'small'}")
    assert "whose transformer has `num_layers` 1; required: 2" in message


def test_a_teacher_that_is_no_flow(arguments, teacher, uninterrupted, tmp_path, capsys):
    pipeline = LightningDiTPipeline.from_pretrained(teacher)
    pipeline.register_modules(scheduler=DDIMScheduler())
    pipeline.save_pretrained(tmp_path / "ddim")
    message = error_of(arguments, tmp_path / "out", capsys, f"pipeline={tmp_path / 'ddim'}")
    assert "required: one that was trained as a flow" in message and "DDIMScheduler" in message
    message = error_of(arguments, tmp_path / "out", capsys, f"pipeline={uninterrupted}")
    assert "which samples in a few steps; required: one that was trained as a flow" in message


def test_classes_that_the_teacher_does_not_know(arguments, data, tmp_path, capsys):
    from datasets import Dataset, load_dataset

    rows: Dataset = load_dataset(data, split="train")
    features = rows.features.copy()
    features["label"].names = ["cat", "ox"]
    Path(tmp_path / "data").mkdir()
    Dataset.from_dict(rows[:], features=features).to_parquet(tmp_path / "data" / "train.parquet")
    message = error_of(arguments, tmp_path / "out", capsys, f"data={tmp_path / 'data'}")
    assert "the data has the class 'ox'" in message and "new_classes" not in message


def test_a_checkpoint_of_another_teacher(uninterrupted, arguments, teacher, tmp_path, capsys):
    pipeline = LightningDiTPipeline.from_pretrained(teacher)
    torch.nn.init.zeros_(pipeline.transformer.proj_out.bias)
    pipeline.save_pretrained(tmp_path / "other")
    settings = [f"pipeline={tmp_path / 'other'}", f"resume_from_checkpoint={uninterrupted / 'checkpoint-2'}"]
    assert "`teacher_sha256` is" in error_of(arguments, tmp_path / "out", capsys, *settings)
