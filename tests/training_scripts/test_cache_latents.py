"""The script as it is run: several processes, kill -9, errors on the command line."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import cache_latents
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from diffusers_lightningdit import AutoencoderVAVAE

SCRIPTS = Path(cache_latents.__file__).parent


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    """The command line but for the output: 23 images in 6 shards."""
    folder = tmp_path_factory.mktemp("data")
    pixels = np.random.default_rng(0).integers(0, 256, (23, 10, 12, 3), dtype=np.uint8)
    columns = {"image": [Image.fromarray(image) for image in pixels], "label": [n % 2 for n in range(23)]}
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["cat", "dog"])})
    Dataset.from_dict(columns, features=features).to_parquet(folder / "data" / "train.parquet")
    torch.manual_seed(0)
    vae = AutoencoderVAVAE(
        block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=4, sample_size=8
    )
    vae.save_pretrained(folder / "vae")
    given = {"data": folder / "data", "vae": folder / "vae", "resolution": 8, "shard_size": 4, "batch_size": 3}
    return [part for name, value in given.items() for part in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def one_process(arguments, tmp_path_factory) -> dict[str, bytes]:
    """What one process writes without an interruption."""
    folder = tmp_path_factory.mktemp("one_process") / "latents"
    cache_latents.main([*arguments, "--output_dir", str(folder)])
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(command: list[str]) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=SCRIPTS, capture_output=True, text=True, timeout=300
    )


def test_two_processes_write_the_same_files_as_one(arguments, one_process, tmp_path):
    # not by `accelerate launch --cpu`, which starts a single process where there is no MPI
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    finished = run([*launch, "cache_latents.py", *arguments, "--output_dir", str(tmp_path / "latents")])
    assert finished.returncode == 0, finished.stderr
    assert "23 images in 6 files, 0 skipped" in finished.stdout
    assert finished.stdout.count("wrote") == 1
    assert contents(tmp_path / "latents") == one_process


# the script, killed by its own hand when the third shard is about to get its name
KILLED = """
import os, signal, sys
replace = os.replace
def kill_or_replace(*paths):
    if str(paths[1]).endswith("shard002.safetensors"):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*paths)
os.replace = kill_or_replace
import cache_latents
cache_latents.main(sys.argv[1:])
"""


def test_a_killed_run_goes_on_to_the_same_files(arguments, one_process, tmp_path):
    folder = tmp_path / "latents"
    killed = run(["-c", KILLED, *arguments, "--output_dir", str(folder)])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = contents(folder)
    assert [name for name in sorted(before) if name.endswith(".safetensors")] == [
        "latents_rank00_shard000.safetensors",
        "latents_rank00_shard001.safetensors",
    ]
    assert "latents_rank00_shard002.safetensors.partial" in before
    cache_latents.main([*arguments, "--output_dir", str(folder)])
    assert contents(folder) == one_process


def test_processes_that_do_not_know_of_each_other_are_refused(arguments, tmp_path, capsys, separate_processes):
    """Each would take itself for the only one, and write every shard."""
    with pytest.raises(SystemExit) as exit:
        cache_latents.main([*arguments, "--output_dir", str(tmp_path / "latents")])
    assert exit.value.code == 2
    assert "error: 2 processes were started which do not know of each other" in capsys.readouterr().err
    assert not (tmp_path / "latents").exists()


def test_errors_are_one_line(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        cache_latents.main([*arguments, "--output_dir", str(tmp_path / "latents"), "--dtype", "int8"])
    assert exit.value.code == 2
    assert capsys.readouterr().err == "error: `dtype` is 'int8'; required: one of float32, bfloat16, float16.\n"
    assert not (tmp_path / "latents").exists()
