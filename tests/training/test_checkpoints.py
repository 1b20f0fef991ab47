import os
import resource
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from diffusers_lightningdit.training.checkpoints import (
    CheckpointWriteError,
    DamagedCheckpoint,
    check_checkpoint,
    checkpoint_path,
    latest_checkpoint,
    list_checkpoints,
    new_checkpoint,
    remove_old_checkpoints,
    remove_unfinished,
)


def write(folder, step, content="content"):
    with new_checkpoint(folder, step) as partial:
        (partial / "a.txt").write_text(content)
        (partial / "b.txt").write_text("b")
    return checkpoint_path(folder, step)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_written_whole(tmp_path):
    path = write(tmp_path / "run", 7)
    assert names(tmp_path / "run") == ["checkpoint-7"]
    assert names(path) == ["a.txt", "b.txt", "manifest.json"]
    check_checkpoint(path)
    assert list_checkpoints(tmp_path / "run") == [7]
    assert list_checkpoints(tmp_path / "none") == []


def test_its_files_have_the_permissions_of_new_files(tmp_path):
    umask = os.umask(0o027)
    try:
        with new_checkpoint(tmp_path, 1) as partial:
            (partial / "model.safetensors").touch(0o600)  # as safetensors writes them
    finally:
        os.umask(umask)
    assert {file.stat().st_mode & 0o777 for file in checkpoint_path(tmp_path, 1).iterdir()} == {0o640}


def test_an_error_while_writing_leaves_nothing(tmp_path):
    write(tmp_path, 1)
    with pytest.raises(KeyError), new_checkpoint(tmp_path, 2) as partial:
        (partial / "a.txt").write_text("half")
        raise KeyError
    assert names(tmp_path) == ["checkpoint-1"]
    assert latest_checkpoint(tmp_path) == (tmp_path / "checkpoint-1", [])


def test_nothing_is_overwritten(tmp_path):
    path = write(tmp_path, 1)
    with pytest.raises(CheckpointWriteError, match="checkpoint-1 exists; required: a step without a checkpoint"):
        write(tmp_path, 1, "other")
    assert (path / "a.txt").read_text() == "content"


KILLED_WHILE_WRITING = """
import os, signal, sys
from diffusers_lightningdit.training.checkpoints import new_checkpoint
with new_checkpoint(sys.argv[1], 2) as partial:
    (partial / "a.txt").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_killed_while_it_writes(tmp_path):
    write(tmp_path, 1)
    killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path)])
    assert killed.returncode == -signal.SIGKILL
    assert names(tmp_path) == [".checkpoint-2.partial", "checkpoint-1"]
    assert latest_checkpoint(tmp_path) == (tmp_path / "checkpoint-1", [])
    write(tmp_path, 2)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"]


@pytest.fixture
def small_disk():
    """Files cannot grow beyond 64 kB: writing then fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("kind", ["safetensors", "text"])
def test_a_disk_that_fills_up(tmp_path, small_disk, kind):
    write(tmp_path, 1)
    with pytest.raises(CheckpointWriteError) as error, new_checkpoint(tmp_path, 2) as partial:
        if kind == "text":
            (partial / "a.txt").write_text("x" * (1 << 17))
        else:
            save_file({"x": torch.zeros(1 << 17)}, partial / "a.safetensors")
    message = str(error.value)
    assert "checkpoint-2 cannot be written: " in message and "File too large" in message
    assert message.endswith("the checkpoint of step 1 is kept.") and "\n" not in message
    assert names(tmp_path) == ["checkpoint-1"]
    check_checkpoint(tmp_path / "checkpoint-1")


def test_a_disk_that_is_too_full_to_begin(tmp_path):
    with (
        pytest.raises(CheckpointWriteError, match=r"needs 1e\+09 GB, the disk has .* left; there is no earlier"),
        new_checkpoint(tmp_path, 2, num_bytes=10**18),
    ):
        pass
    assert names(tmp_path) == []


def test_the_oldest_are_removed(tmp_path):
    for step in (5, 10, 100):
        write(tmp_path, step)
    remove_old_checkpoints(tmp_path, None)
    assert list_checkpoints(tmp_path) == [5, 10, 100]
    remove_old_checkpoints(tmp_path, 2)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-100"]


def test_what_was_half_removed_has_no_name_of_a_checkpoint(tmp_path):
    write(tmp_path, 5).rename(tmp_path / ".checkpoint-5.removed")
    (tmp_path / "notes").mkdir()
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ["notes"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "a.txt").write_text("contenT"), "a.txt is damaged: its SHA-256 sum"),
        (lambda path: (path / "a.txt").write_text("cont"), "a.txt has 4 bytes; required: 7"),
        (lambda path: (path / "a.txt").unlink(), "a.txt is missing; required by the manifest"),
        (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing or damaged"),
        (lambda path: (path / "manifest.json").write_text('{"a.txt"'), "manifest.json is missing or damaged"),
        (lambda path: (path / "manifest.json").write_text('["a.txt"]'), "manifest.json is missing or damaged"),
    ],
)
def test_damage_is_named_and_the_one_before_is_used(tmp_path, damage, message):
    write(tmp_path, 1)
    damage(write(tmp_path, 2))
    with pytest.raises(DamagedCheckpoint, match=message):
        check_checkpoint(tmp_path / "checkpoint-2")
    path, (remark,) = latest_checkpoint(tmp_path)
    assert path == tmp_path / "checkpoint-1"
    assert message in remark
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2.damaged-1"]
    damage(write(tmp_path, 2))
    latest_checkpoint(tmp_path)
    assert os.path.isdir(tmp_path / "checkpoint-2.damaged-2")
