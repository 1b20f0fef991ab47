"""All six programs are killed (SIGKILL), or meet a full disk, at moments all over a run, and are started again.

Pictures and validation are included. The same command is given each time, as a cluster's scheduler gives it. In the end
the folder holds what a run that nobody interrupted leaves there, byte for byte but for times, and nothing else.
"""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import cache_latents
import pytest
import train_lightningdit
import train_lightningdit_lora
import train_vavae
from reliability.forked import run_forked

from diffusers_lightningdit.evaluation.commands import generation
from diffusers_lightningdit.training.validation_samples import spread

NUM_KILLS, NUM_FULL_DISKS = 6, 3  # of each program
TIMES = ("images_per_second", "mfu")  # differ in every run
STEPS = ["max_train_steps=4", "checkpointing_steps=2", "sample_steps=2", "num_samples=2", "validation_steps=2"]
STEPS += ["num_validation_samples=4", "validation_split=train", "resume_from_checkpoint=latest", "output_dir=out"]

pytestmark = pytest.mark.usefixtures("fresh_accelerate_state")


@pytest.fixture(scope="module")
def latents(tmp_path_factory, data, trained_vae) -> str:
    folder = tmp_path_factory.mktemp("cached") / "latents"
    cache_latents.main(["--data", data, "--vae", trained_vae, "--resolution", "8", "--output_dir", str(folder)])
    return str(folder)


@pytest.fixture(scope="module")
def trained_pipeline(tmp_path_factory, data, trained_vae, transformer_recipe) -> str:
    folder = tmp_path_factory.mktemp("trained_pipeline") / "pipeline"
    words = ["--config", transformer_recipe, f"data={data}", f"vae={trained_vae}"]
    train_lightningdit.main([*words, f"output_dir={folder}"])
    return str(folder)


@pytest.fixture
def program(request, data, latents, trained_vae, trained_pipeline, vae_recipe, transformer_recipe, vision_transformer):
    """The program of that name on tiny data, as a function of no argument that writes into `out`."""
    own_model = ["--config", transformer_recipe, f"vae={trained_vae}", *STEPS]
    lora = [f"pipeline={trained_pipeline}", "resolution=8", "global_batch_size=4", "rank=2", "ema_decay=0.5"]
    drawn = [f"pipeline={trained_pipeline}", f"reference={data}", "reference_crop=center", "num_images=13"]
    drawn += [f"features={vision_transformer}", "sampling.num_inference_steps=1", "output_dir=out"]
    from_latents = [f"data={latents}", "data_kind=latents", "check_statistics=false"]
    main, words = {
        "from_latents": (
            train_lightningdit.main,
            [*own_model, *from_latents],
        ),
        "from_images": (train_lightningdit.main, [*own_model, f"data={data}"]),
        "vavae": (train_vavae.main, ["--config", vae_recipe, *STEPS, f"data={data}"]),
        "lora": (train_lightningdit_lora.main, [*lora, *STEPS, f"data={data}"]),
        "caching": (
            cache_latents.main,
            [f"data={data}", f"vae={trained_vae}", "resolution=8", "shard_size=2", "output_dir=out"],
        ),
        "evaluation": (
            generation.main,
            drawn,
        ),
    }[request.param]
    return lambda: main(words)


def content(folder: Path) -> dict[str, object]:
    """Every file by its path: bytes, or the values of a record without times, of which a repeated step is the same."""
    files: dict[str, object] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if path.name == "metrics.jsonl":
            files[name] = measured(path)
        elif path.name == "generation.json":
            record = json.loads(path.read_text())
            files[name] = {key: record[key] for key in ("results", "samples", "reference", "weights_sha256")}
        elif path.suffix == ".safetensors":  # which leaves the order of the metadata to chance
            size = int.from_bytes(path.read_bytes()[:8], "little")
            files[name] = json.loads(path.read_bytes()[8 : 8 + size]), path.read_bytes()[8 + size :]
        else:
            files[name] = path.read_bytes()
    return files


def measured(path: Path) -> dict[str, dict]:
    records: dict[str, dict] = {}
    for line in path.read_text().splitlines():
        values = {key: value for key, value in json.loads(line).items() if key not in TIMES}
        key = f"{values['step']} {min(values)}"
        assert records.setdefault(key, values) == values, "a repeated step has other numbers"
    return records


def run_whole(program: Callable[[], object], folder: Path) -> int:
    """Run the program to its end, and return the number of its file operations."""
    ended = run_forked(program, folder)
    assert ended.status == 0, ended.output
    return ended.num_operations


every_program = pytest.mark.parametrize(
    "program", ["from_latents", "from_images", "vavae", "lora", "caching", "evaluation"], indirect=True
)


@pytest.fixture
def whole(program, tmp_path) -> tuple[int, dict[str, object]]:
    """The number of file operations of a run that nobody interrupts, and the files that it leaves."""
    (tmp_path / "whole").mkdir()
    return run_whole(program, tmp_path / "whole"), content(tmp_path / "whole" / "out")


def assert_ends_alike(program: Callable[[], object], folder: Path, expected: dict[str, object]) -> None:
    """Run the program once more, to its end."""
    run_whole(program, folder)
    found = content(folder / "out")
    assert sorted(found) == sorted(expected), f"after {folder.name}"
    for name, value in expected.items():
        assert found[name] == value, f"{name} after {folder.name}"


@every_program
def test_a_killed_run_ends_as_one_that_was_not(program, whole, tmp_path):
    num_operations, expected = whole
    for kill_at in spread(num_operations, NUM_KILLS):
        folder = tmp_path / f"a kill before file operation {kill_at + 1} of {num_operations}"
        folder.mkdir()
        killed = run_forked(program, folder, kill_at=kill_at + 1)
        assert killed.status == -signal.SIGKILL, killed.output
        assert_ends_alike(program, folder, expected)
        shutil.rmtree(folder)


@every_program
def test_a_full_disk_is_one_line_and_loses_nothing(program, whole, tmp_path):
    num_operations, expected = whole
    for full_at in spread(num_operations, NUM_FULL_DISKS):
        folder = tmp_path / f"a disk that was full from file operation {full_at + 1} of {num_operations} on"
        folder.mkdir()
        ended = run_forked(program, folder, full_at=full_at + 1)
        if ended.status == 0:  # what was left to do needed no space
            continue
        assert ended.status in (1, 2), ended.output
        assert "Traceback" not in ended.output, ended.output
        assert len(ended.errors) == 1 and "No space left on device" in ended.errors[0], ended.output
        assert "out" in ended.errors[0], ended.errors
        assert_ends_alike(program, folder, expected)
        shutil.rmtree(folder)
