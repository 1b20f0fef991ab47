import os
import subprocess
import sys

import pytest
from accelerate import Accelerator

from diffusers_lightningdit.processes import SeparateProcesses, patient_accelerator


def test_processes_that_do_not_know_of_each_other(monkeypatch):
    accelerator = Accelerator(cpu=True)  # its state is shared by those that are made after it
    monkeypatch.setenv("WORLD_SIZE", str(accelerator.num_processes + 1))
    with pytest.raises(SeparateProcesses, match="2 processes were started which do not know of each other; required"):
        patient_accelerator()


WAIT = """
import datetime, sys, time
from diffusers_lightningdit.processes import patient_accelerator
accelerator = patient_accelerator(datetime.timedelta(seconds=float(sys.argv[1])))
if accelerator.is_main_process:
    time.sleep(4)
accelerator.wait_for_everyone()
"""


@pytest.mark.parametrize(("patience", "is_enough"), [(60, True), (1, False)])
def test_how_long_a_process_waits(tmp_path, patience, is_enough):
    (tmp_path / "wait.py").write_text(WAIT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [*launch, str(tmp_path / "wait.py"), str(patience)]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (finished.returncode == 0) == is_enough, finished.stderr
