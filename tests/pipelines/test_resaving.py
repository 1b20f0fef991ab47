"""Each pipeline that is loaded as remote code, without the package, is saved to a folder that loads again."""

import os
import shutil
import subprocess
import sys

import pytest

import diffusers_lightningdit.pipelines as pipelines

SHARED = "lightningdit_sampling.py"

# The package is made impossible to import; one process for each folder, since diffusers keeps one local `pipeline.py`.
LOAD_AND_SAVE = """
import sys
sys.modules["diffusers_lightningdit"] = None
from diffusers import DiffusionPipeline
_, folder, target = sys.argv
pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
print(type(pipe).__name__, sum(parameter.double().sum().item() for parameter in pipe.vae.parameters()))
pipe.save_pretrained(target)
"""


# LightningDiTPipeline itself: tests/hub; Change3DPipeline, which has other components: test_pipeline_change3d.py
ELSEWHERE = ("LightningDiTPipeline", "Change3DPipeline")


@pytest.mark.parametrize("name", [name for name in pipelines.__all__ if name not in ELSEWHERE])
def test_remote_code_saved_again_loads_again(name, pipe, tmp_path, repository):
    cls = getattr(pipelines, name)
    folder = tmp_path / "first"
    cls.from_pipe(pipe).save_pretrained(folder)
    file = cls.__module__.rpartition(".")[2] + ".py"
    for saved, source in (("pipeline.py", file), (SHARED, SHARED)):
        assert (folder / saved).read_bytes() == (repository / "pipelines" / source).read_bytes()

    outputs = []
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    for generation in ("second", "third"):
        target = tmp_path / generation
        run = [sys.executable, "-c", LOAD_AND_SAVE, str(folder), str(target)]
        result = subprocess.run(run, capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stderr[-2000:]
        outputs.append(result.stdout)
        for old in (folder, tmp_path / "modules"):  # what was saved stands alone
            shutil.rmtree(old)
        folder = target
    assert outputs[0] == outputs[1]
    assert outputs[0].split()[0] == name


CHANGED = """
import sys
sys.modules["diffusers_lightningdit"] = None
from diffusers import DiffusionPipeline
_, first, second, target = sys.argv

def load(folder):
    return DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)

pipes = [load(folder) for folder in (first, second, first)]
print([pipe.num_timesteps for pipe in pipes])
pipes[0].save_pretrained(target)
"""


def test_folders_with_different_versions_of_the_shared_file(pipe, tmp_path):
    """In one process each folder runs, and saves, its own shared file: diffusers keeps one module for all folders."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, number in ((first, 1), (second, 22)):
        pipe.save_pretrained(folder)
        code = (folder / SHARED).read_text(encoding="utf-8")
        assert "return self._num_timesteps" in code
        (folder / SHARED).write_text(code.replace("return self._num_timesteps", f"return {number}"), encoding="utf-8")
    target = tmp_path / "target"
    result = subprocess.run(
        [sys.executable, "-c", CHANGED, str(first), str(second), str(target)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")},
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split("\n")[-2] == "[1, 22, 1]"
    assert (target / SHARED).read_bytes() == (first / SHARED).read_bytes()
