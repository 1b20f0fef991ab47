import os
import subprocess
import sys

import pytest
from accelerate import Accelerator

from diffusers_lightningdit.processes import SeparateProcesses, on_main_process, patient_accelerator


def test_processes_that_do_not_know_of_each_other(separate_processes):
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


FAIL_ON_THE_MAIN_PROCESS = """
import os
from diffusers_lightningdit.processes import on_main_process, patient_accelerator
accelerator = patient_accelerator()

def fail():
    raise ValueError(f"process {accelerator.process_index} found an error")

assert on_main_process(accelerator, lambda: accelerator.process_index) == 0
try:
    on_main_process(accelerator, fail)
except ValueError as error:
    print(error, flush=True)
accelerator.wait_for_everyone()
os._exit(0)  # gloo's destructors abort now and then
"""


def test_results_and_errors_of_the_main_process_are_everybodys(tmp_path):
    accelerator = Accelerator(cpu=True)
    assert on_main_process(accelerator, lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        on_main_process(accelerator, lambda: 1 / 0)
    (tmp_path / "fail.py").write_text(FAIL_ON_THE_MAIN_PROCESS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [*launch, str(tmp_path / "fail.py")]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("process 0 found an error") == 2  # sometimes in one line
