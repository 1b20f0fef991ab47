import json
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate import debug_launcher
from accelerate.state import AcceleratorState

from diffusers_lightningdit import evaluate


@pytest.fixture
def evaluate_change(tmp_path, fresh_accelerate_state) -> Callable[..., dict]:
    """Measures a pipeline over data by `evaluate change`, and returns the record, which lies in tmp_path / name."""

    def measure(folder: Path, data: Path, name: str, *words: str, num_processes: int = 1) -> dict:
        words = ["change", "--model", str(folder), "--data", str(data), "--output_dir", str(tmp_path / name), *words]
        if num_processes == 1:
            evaluate.main(words)
        else:
            debug_launcher(evaluate.main, (words,), num_processes=num_processes)
        AcceleratorState._reset_state(reset_partial_state=True)
        return json.loads((tmp_path / name / "metrics.json").read_text())

    return measure
