"""Every script and command explains all of its settings by --help, also without the optional packages."""

import dataclasses
import json
import subprocess
import sys

import pytest

from diffusers_lightningdit.settings import help_text, settings_of

SCRIPTS = [
    "training_scripts/cache_latents.py",
    "training_scripts/train_lightningdit.py",
    "training_scripts/train_lightningdit_lora.py",
    "training_scripts/train_vavae.py",
    "conversion/convert_diffusers_to_lightningdit.py",
    "conversion/convert_lightningdit_to_diffusers.py",
    "conversion/convert_lpips_to_safetensors.py",
    "conversion/convert_vavae_to_diffusers.py",
    "examples/digits/judge.py",
    "examples/digits/prepare.py",
    "examples/digits/train_encoder.py",
    "benchmarks/alignment.py",
    "benchmarks/evaluation_throughput.py",
    "demo/generate_grid.py",
]
COMMANDS = ["generation", "reconstruction", "latents", "sweep", "tools pack", "tools unpack", "tools grid"]

# One process for all of them: the imports take seconds. Where a script reads its settings, this prints their class.
PROGRAM = """
import io, json, runpy, sys
from contextlib import redirect_stdout
for name in ("sklearn", "scipy", "matplotlib", "torchvision", "torch_fidelity", "torchdiffeq", "bitsandbytes"):
    sys.modules[name] = None  # its import fails
from diffusers_lightningdit import evaluate, settings

def record(config_class, argv=None, description=""):
    argv = sys.argv[1:] if argv is None else argv
    assert argv == ["--help"]
    fields = list(settings.settings_of(config_class).values())
    entry["fields"] = {field.name: field.help for field in fields}
    return parse(config_class, argv, description)

parse, settings.parse_config = settings.parse_config, record
entries = {}
for name in json.loads(sys.argv[1]):
    entry, output = {}, io.StringIO()
    with redirect_stdout(output):
        try:
            if name.endswith(".py"):
                sys.argv[:] = [name, "--help"]
                runpy.run_path(name, run_name="__main__")
            else:
                evaluate.main([*name.split(), "--help"])
        except SystemExit as stop:
            entry["status"] = stop.code
    entries[name] = {**entry, "output": output.getvalue()}
print(json.dumps(entries))
"""


@pytest.fixture(scope="module")
def entries(repository) -> dict[str, dict]:
    """For every script and command: exit status and output of --help, and the help of each field."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(SCRIPTS + COMMANDS)]
    finished = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


def test_no_script_is_left_out(repository):
    folders = ("training_scripts", "conversion", "examples", "benchmarks", "demo")
    found = {str(file.relative_to(repository)) for folder in folders for file in (repository / folder).rglob("*.py")}
    assert found == set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS + COMMANDS)
def test_help_explains_every_setting(entries, name):
    entry = entries[name]
    assert entry["status"] == 0
    lines = entry["output"].splitlines()
    words = " ".join(entry["output"].split())
    for field, help in entry["fields"].items():
        assert any(line.split()[:1] == [field] for line in lines if line.startswith("  ")), field
        assert help[:1].isupper() and help.endswith("."), f"{field}: {help!r} is no phrase"
        assert not help.startswith("What "), field
        assert help in words, field


@pytest.mark.parametrize("width", [60, 80, 120])
def test_help_is_wrapped_to_the_terminal(width):
    from diffusers_lightningdit.training.transformer.config import LightningDiTTrainingConfig

    lines = help_text(LightningDiTTrainingConfig, "Train a transformer.", width).splitlines()
    assert max(len(line) for line in lines) <= width
    groups = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert groups[:4] == ["Data:", "Model:", "Loss:", "Optimisation:"] and groups[-1] == "Output:"


def test_every_field_has_help():
    from diffusers_lightningdit.training.transformer.lora_config import LoraTrainingConfig
    from diffusers_lightningdit.training.vavae.config import VAVAETrainingConfig

    for config_class in (LoraTrainingConfig, VAVAETrainingConfig):
        settings = settings_of(config_class)
        assert settings.keys() == {field.name for field in dataclasses.fields(config_class)}
        assert all(setting.help for setting in settings.values())
