"""Every script and command explains all of its settings by --help, also without the optional packages."""

import itertools
import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from diffusers_lightningdit import commands, settings
from diffusers_lightningdit.commands.completion import settings_class
from diffusers_lightningdit.evaluation.commands.change import ChangeConfig
from diffusers_lightningdit.evaluation.commands.latents import LatentsConfig
from diffusers_lightningdit.evaluation.commands.reconstruction import ReconstructionConfig
from diffusers_lightningdit.evaluation.commands.sweep import SweepConfig
from diffusers_lightningdit.evaluation.commands.tools import (
    CurvesConfig,
    GridConfig,
    PackConfig,
    StatisticsConfig,
    UnpackConfig,
)
from diffusers_lightningdit.evaluation.generation_config import GenerationConfig
from diffusers_lightningdit.settings import help_text, make_config, read_settings
from diffusers_lightningdit.training.transformer.config import LightningDiTTrainingConfig

REPOSITORY = Path(__file__).parents[1]

SCRIPTS = [
    "training_scripts/cache_latents.py",
    "training_scripts/train_change3d.py",
    "training_scripts/train_lightningdit.py",
    "training_scripts/train_lightningdit_few_step.py",
    "training_scripts/train_lightningdit_lora.py",
    "training_scripts/train_vavae.py",
    "conversion/convert_change3d_checkpoint.py",
    "conversion/convert_change3d_to_diffusers.py",
    "conversion/convert_checkpoint_to_diffusers.py",
    "conversion/convert_diffusers_to_lightningdit.py",
    "conversion/convert_lightningdit_to_diffusers.py",
    "conversion/convert_lpips_to_safetensors.py",
    "conversion/convert_vavae_to_diffusers.py",
    "conversion/convert_yaml_to_recipe.py",
    "examples/change3d_buildings/caption_figures.py",
    "examples/change3d_buildings/difference.py",
    "examples/change3d_buildings/draw_pairs.py",
    "examples/change3d_buildings/draw_scene.py",
    "examples/change3d_buildings/figures.py",
    "examples/digits/judge.py",
    "examples/digits/prepare.py",
    "examples/digits/train_encoder.py",
    "benchmarks/alignment.py",
    "benchmarks/change3d.py",
    "benchmarks/evaluation_throughput.py",
    "benchmarks/samplers.py",
    "benchmarks/speed.py",
    "demo/app.py",
    "demo/generate_grid.py",
    "docs/gallery.py",
]
COMMANDS = {
    "generation": GenerationConfig,
    "reconstruction": ReconstructionConfig,
    "latents": LatentsConfig,
    "change": ChangeConfig,
    "sweep": SweepConfig,
    "tools pack": PackConfig,
    "tools unpack": UnpackConfig,
    "tools grid": GridConfig,
    "tools curves": CurvesConfig,
    "tools statistics": StatisticsConfig,
}

# A script or a command of the package in a command line, but not a sentence that begins with the package's name.
LAUNCHED = re.compile(rf"\.py\b|lightningdit\.evaluate|diffusers.lightningdit ({'|'.join(commands.COMMANDS)})\b")

# One process for all of them: the imports take seconds. Where a script reads its settings, this prints their class.
PROGRAM = """
import io, json, os, runpy, sys
from contextlib import redirect_stdout
for name in ("sklearn", "scipy", "matplotlib", "torchvision", "torch_fidelity", "torchdiffeq", "bitsandbytes", "h5py",
             "rasterio", "gradio"):
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
                sys.path[0] = os.path.dirname(name)  # as for a script
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
    command = [sys.executable, "-c", PROGRAM, json.dumps([*SCRIPTS, *COMMANDS])]
    finished = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


def test_no_script_is_left_out(repository):
    folders = ("training_scripts", "conversion", "examples", "benchmarks", "demo")
    found = {str(file.relative_to(repository)) for folder in folders for file in (repository / folder).rglob("*.py")}
    modules = ("__init__.py", "plain_lightningdit.py", "timing.py")  # of scripts, none themselves
    modules += ("demo/drawing.py", "demo/drawing_settings.py", "demo/page.py")
    assert {name for name in found if not name.endswith(modules)} == set(SCRIPTS) - {"docs/gallery.py"}


@pytest.mark.parametrize("name", [*SCRIPTS, *COMMANDS])
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
    lines = help_text(LightningDiTTrainingConfig, "Train a transformer.", width).splitlines()
    assert max(len(line) for line in lines) <= width
    groups = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert groups[:4] == ["Data:", "Model:", "Loss:", "Optimisation:"] and groups[-1] == "Output:"


# ---------------------------------------------------------------------------------------------------------------------
# Command lines that are written down somewhere
# ---------------------------------------------------------------------------------------------------------------------


def written_command_lines() -> list[tuple[str, str]]:
    """Pairs of a file and a command line in it: in README, docs, cards, run.sh and the docstrings of scripts."""
    files = [REPOSITORY / "README.md", *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("model_cards/*/README.md")]
    files += [*REPOSITORY.glob("examples/digits/*.sh"), *(REPOSITORY / name for name in SCRIPTS)]
    files += (REPOSITORY / "src/diffusers_lightningdit/evaluation/commands").glob("*.py")
    files += (REPOSITORY / "src/diffusers_lightningdit/commands").glob("*.py")
    found = []
    for file in files:
        text = re.sub(r"\\\n\s*", "", file.read_text(encoding="utf-8"))
        for line in re.findall(
            r"^ *(?:accelerate launch|diffusers-lightningdit|python|\"\$python\"|[A-Z_]+=\S+ python) .*$",
            text,
            re.MULTILINE,
        ):
            found.append((str(file.relative_to(REPOSITORY)), line.strip()))
    return found


def class_and_words(line: str) -> tuple[type, list[str]]:
    """The config dataclass of a command line, and its words after script or command."""
    words = shlex.split(line.partition(" > ")[0])
    program = next((word for word in words if word in ("diffusers-lightningdit", "diffusers_lightningdit")), None)
    if program is not None:
        words = [word for word in words[words.index(program) + 1 :] if word != "--json"]
        path = commands.find(words)
        return settings_class(path[-1]), commands.with_installed_config(words[len(path) :], path[-1].configs)
    if "diffusers_lightningdit.evaluate" in words:
        words = words[words.index("diffusers_lightningdit.evaluate") + 1 :]
        number = 2 if words[0] == "tools" else 1
        return COMMANDS[" ".join(words[:number])], words[number:]
    index = next(index for index, word in enumerate(words) if word.endswith(".py"))
    name = next(name for name in SCRIPTS if Path(name).name == Path(words[index]).name)
    return config_class_of(name), words[index + 1 :]


class Found(Exception):
    pass


def config_class_of(script: str) -> type:
    """The dataclass that a script reads its settings into."""

    def parse_config(config_class, *arguments):
        raise Found(config_class)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str((REPOSITORY / script).parent), *sys.path])
        patch.setattr(settings, "parse_config", parse_config)
        main = runpy.run_path(str(REPOSITORY / script))["main"]
        with pytest.raises(Found) as found:
            main([])
    return found.value.args[0]


@pytest.mark.parametrize(("file", "line"), written_command_lines(), ids=lambda text: text[:60])
def test_command_lines_that_are_written_down(file, line, monkeypatch):
    """Their settings exist and have values of the right type."""
    if "COMMAND" in line or "TOOL" in line or "--help" in line or not LAUNCHED.search(line):
        return  # no command line of this project, or a form of several
    monkeypatch.chdir(REPOSITORY)  # where recipes are
    config_class, words = class_and_words(line)
    words = [word for word in words if word not in ("key=value", "...")]
    if any(word.startswith("recipes/") for word in words):  # which the line before it writes
        words = words[: words.index("--config")] + words[words.index("--config") + 2 :]
    words = [word.replace("$example", str(Path(file).parent)).replace("$scripts", "training_scripts") for word in words]
    given = read_settings(config_class, words)
    fields = settings.settings_of(config_class)
    for name, field in fields.items():
        if field.is_required:
            given.setdefault(name, {str: "x", int: 1}.get(field.kind))
    monkeypatch.setattr(config_class, "__post_init__", lambda config: None, raising=False)  # which looks for files
    make_config(config_class, given)


def test_enough_command_lines_are_found():
    lines = [line for _, line in written_command_lines()]
    assert len(lines) > 30
    for name in [Path(script).name for script in SCRIPTS] + [f"evaluate {command}" for command in COMMANDS]:
        assert any(name in line for line in lines), name


@pytest.mark.parametrize("name", [*SCRIPTS, *COMMANDS])
def test_lines_that_go_on_in_help_end_with_a_backslash(entries, name):
    """A docstring that is not raw loses the backslash and the end of the line, and shows a gap in one long line."""
    lines = [line for line in entries[name]["output"].splitlines() if line.startswith("    ") and line.strip()]
    for line, following in itertools.pairwise([*lines, ""]):
        assert not re.search(r"\S {4,}--", line), line
        if line.endswith("\\"):
            assert following.startswith("        "), line
