"""A training script that is killed for good (SIGKILL) when part of a checkpoint is written.

python run_and_be_killed.py SCRIPT CHECKPOINT FILE ARGUMENTS...: when train_SCRIPT.py is about to write the first file
into CHECKPOINT whose name holds FILE.
"""

import importlib
import os
import signal
import sys
from pathlib import Path

from diffusers_lightningdit.training import run_state

sys.path.insert(0, str(Path(__file__).parents[2] / "training_scripts"))
script, checkpoint, name, *arguments = sys.argv[1:]
write_tensors = run_state.write_tensors


def write_or_die(tensors, file):
    if checkpoint in str(file) and name in file.name:
        os.kill(os.getpid(), signal.SIGKILL)
    write_tensors(tensors, file)


run_state.write_tensors = write_or_die
importlib.import_module(f"train_{script}").main(arguments)
