import os
import signal
import subprocess
import sys
import threading

import pytest
from accelerate import Accelerator

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
        assert request.of_any_process(Accelerator(cpu=True)) == number
    assert signal.getsignal(number) is before
    assert exit_status(request.requested) == status


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
