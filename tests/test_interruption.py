import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

from diffusers_lightningdit import interruption
from diffusers_lightningdit.interruption import Interruption, exit_status

TWICE = """
import os, signal, sys
from diffusers_lightningdit import interruption
interruption.SAME_REQUEST = float(sys.argv[1])
with interruption.Interruption() as request:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    print("goes on")
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_noted_and_the_handlers_come_back(number, status):
    before = signal.getsignal(number)
    with Interruption() as request:
        assert request.requested is None
        os.kill(os.getpid(), number)
        assert request.requested == number
        assert request.of_any_process is None
        request.agree(request.requests(torch.device("cpu")).tolist())
        assert request.of_any_process == number
    assert signal.getsignal(number) is before
    assert exit_status(request.requested) == status


@pytest.mark.parametrize(
    ("sent", "agreed"),
    [
        ([None, None, None], None),
        ([None, None, signal.SIGTERM], signal.SIGTERM),
        ([signal.SIGTERM, signal.SIGINT, signal.SIGTERM], signal.SIGINT),
    ],
)
def test_processes_agree_on_a_signal_that_any_of_them_was_sent(sent, agreed):
    processes = [Interruption() for _ in sent]
    for process, number in zip(processes, sent, strict=True):
        process.requested = number
    means = torch.stack([process.requests(torch.device("cpu")) for process in processes]).mean(0).tolist()
    for process in processes:
        process.agree(means)
        assert process.of_any_process == agreed


@pytest.mark.parametrize(("same_request", "status", "output"), [("5", 0, "goes on\n"), ("-1", -signal.SIGTERM, "")])
def test_a_second_signal_ends_the_process_unless_a_launcher_passed_it_on(same_request, status, output):
    finished = subprocess.run([sys.executable, "-c", TWICE, same_request], stdout=subprocess.PIPE, text=True)
    assert (finished.returncode, finished.stdout) == (status, output)


def test_workers_leave_it_to_the_main_process():
    with Interruption() as request:
        if (pid := os.fork()) == 0:
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(7 if request.requested is None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_a_thread_changes_nothing():
    before = signal.getsignal(signal.SIGINT)

    def in_a_thread():
        with Interruption():
            assert signal.getsignal(signal.SIGINT) is before

    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before
    assert interruption.SIGNALS == (signal.SIGINT, signal.SIGTERM)
