import fcntl
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from diffusers_lightningdit import locks
from diffusers_lightningdit.locks import FolderInUse, locked

HOLD = """
import sys, time
from diffusers_lightningdit.locks import locked
with locked(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()


def test_the_folder_is_made_and_left_without_traces(tmp_path):
    with locked(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run" / ".lock").exists()
    assert list((tmp_path / "new").iterdir()) == []
    with locked(tmp_path / "new"):
        (tmp_path / "new" / "result").touch()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["result"]


def test_a_second_run_is_told_who_writes(tmp_path, holder):
    with pytest.raises(FolderInUse) as error, locked(tmp_path / "run"):
        raise AssertionError("two runs in one folder")
    assert f"run is being written by process {holder.pid} on {socket.gethostname()} since 20" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_same_process_does_not_get_it_twice(tmp_path):
    with locked(tmp_path), pytest.raises(FolderInUse, match=f"process {os.getpid()} "), locked(tmp_path):
        raise AssertionError("two runs in one folder")


def test_the_lock_of_a_killed_run_is_no_obstacle(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert json.loads((tmp_path / "run" / ".lock.json").read_text())["pid"] == holder.pid
    with locked(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / ".lock.json").read_text())["pid"] == os.getpid()


def test_workers_that_outlive_a_killed_run_are_waited_for(tmp_path, monkeypatch):
    """A forked worker shares the lock of the process that it works for."""
    descriptor = os.open(tmp_path / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(2,))
    worker.start()
    os.close(descriptor)  # as the end of the process would, without unlocking
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / ".lock.json").write_text(json.dumps({"pid": ended.pid, "host": socket.gethostname(), "since": "x"}))
    with monkeypatch.context() as patch, pytest.raises(FolderInUse):
        patch.setattr(locks, "ORPHAN_PATIENCE", 0.1)
        with locked(tmp_path):
            raise AssertionError("the worker still holds it")
    with locked(tmp_path):
        worker.join()


@pytest.mark.parametrize("content", ["", "[]", '{"pid": "one"}'])
def test_a_damaged_description_is_another_process(tmp_path, holder, content):
    (tmp_path / "run" / ".lock.json").write_text(content)
    with pytest.raises(FolderInUse, match=r"is being written by (another )?process"), locked(tmp_path / "run"):
        pass
