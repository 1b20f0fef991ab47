"""docs/hub.md: without the package, torch, diffusers and accelerate are enough to load a pipeline and draw."""

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from diffusers_lightningdit import LightningDiTPipeline

ENOUGH = ("torch", "diffusers", "accelerate")
PROGRAM = """
import importlib.util, sys
for name in ("transformers", "datasets", "peft", "diffusers_lightningdit"):
    assert importlib.util.find_spec(name) is None, name
import torch
from diffusers import DiffusionPipeline
folder = sys.argv[1]
pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
image = pipe("seven", generator=torch.Generator().manual_seed(0), num_inference_steps=2, output_type="np").images[0]
print(type(pipe).__module__.split(".")[0], float(image.sum()))
pipe.save_pretrained(sys.argv[2])
"""


def with_dependencies(names: tuple[str, ...]) -> set[str]:
    """The distributions of these names, and those that they need without extras, as far as they are installed."""
    found, waiting = set(), list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        try:
            needed = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        if name not in found:
            found.add(name)
            requirements = map(Requirement, needed)
            waiting += [each.name for each in requirements if not each.marker or each.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """An environment of processes that see these distributions alone, by links to where they are installed."""
    folder = tmp_path_factory.mktemp("site")
    for name in with_dependencies(ENOUGH):
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(distribution.locate_file(top)).resolve())
    return {**os.environ, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules")}


def test_torch_diffusers_and_accelerate_are_enough(environment, digits_pipeline, tmp_path):
    LightningDiTPipeline.from_pretrained(digits_pipeline).save_pretrained(tmp_path / "saved")  # with its code
    words = [sys.executable, "-S", "-c", PROGRAM, str(tmp_path / "saved"), str(tmp_path / "again")]
    run = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    origin, total = run.stdout.split()
    assert origin == "diffusers_modules" and float(total) > 0
    written = {path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*.py")}
    assert written == {path.relative_to(tmp_path / "saved") for path in (tmp_path / "saved").rglob("*.py")}
