"""The command `diffusers-lightningdit`: a thin tree over commands and scripts that are tested elsewhere."""

import importlib
import json
import re

import pytest
import yaml

from diffusers_lightningdit import commands, settings
from diffusers_lightningdit.commands.completion import settings_class


def leaves(tree: dict, names: tuple[str, ...] = ()) -> dict[tuple[str, ...], commands.Command]:
    found = {}
    for name, command in tree.items():
        found |= leaves(command.commands, (*names, name)) if command.commands else {(*names, name): command}
    return found


LEAVES = leaves(commands.COMMANDS)
GROUPS = [(), ("convert",), ("evaluate",), ("evaluate", "tools"), ("train",)]


class Read(Exception):
    """Settings are read into this class."""


def test_every_script_is_a_command(repository):
    modules = {command.module for command in LEAVES.values()}
    for folder in ("training_scripts", "conversion"):
        for file in (repository / folder).glob("[a-z]*.py"):
            assert f"{folder}.{file.stem}" in modules


@pytest.mark.parametrize("names", LEAVES, ids=" ".join)
def test_each_command_reads_the_settings_that_completion_knows(names, monkeypatch):
    def make_config(config_class, given):
        raise Read(config_class)

    monkeypatch.setattr(settings, "make_config", make_config)
    with pytest.raises(Read) as read:
        commands.main(list(names))
    assert read.value.args[0] is settings_class(LEAVES[names])


@pytest.mark.parametrize("names", GROUPS, ids=" ".join)
@pytest.mark.parametrize("asked", [[], ["--help"]])
def test_groups_list_their_commands(names, asked, capsys):
    commands.main([*names, *asked])
    output = capsys.readouterr().out
    tree = commands.COMMANDS
    for name in names:
        tree = tree[name].commands
    for name, command in tree.items():
        assert re.search(rf"^  {name} +{re.escape(command.about)}$", output, re.MULTILINE), name


def test_the_help_of_training_names_its_recipes(capsys, repository):
    commands.main(["train"])
    output = " ".join(capsys.readouterr().out.split())
    recipes = list((repository / "training_scripts" / "recipes").glob("*.yaml"))
    assert len(recipes) > 5 and all(recipe.stem in output for recipe in recipes)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["smaple"], "error: the command of diffusers-lightningdit is 'smaple'; required: one of sample, convert"),
        (["train", "gan"], "error: the command of diffusers-lightningdit train is 'gan'; required: one of latents"),
        (["sample", "--pipeline", "nothing"], "error: `classes` is not given; required: classes=..."),
    ],
)
def test_errors_are_one_line(words, error, capsys):
    with pytest.raises(SystemExit) as stop:
        commands.main(words)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(error) and captured.err.count("\n") == 1 and captured.out == ""


def test_a_recipe_is_found_by_its_name(repository, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # which has no recipes
    given = []
    monkeypatch.setattr(settings, "make_config", lambda config_class, values: given.append(values) or exit(0))
    for words in (["--config", "imagenet256_b1"], ["--config=imagenet256_b1"], ["config=imagenet256_b1"]):
        with pytest.raises(SystemExit):
            commands.main(["train", "transformer", *words])
    recipe = yaml.safe_load((repository / "training_scripts/recipes/imagenet256_b1.yaml").read_text())
    assert [values["transformer"] for values in given] == [recipe["transformer"]] * 3


def test_a_file_goes_before_a_recipe_of_its_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small_vae").write_text("seed: 17\n")
    (tmp_path / "small_vavae").write_text("seed: 18\n")
    given = []
    monkeypatch.setattr(settings, "make_config", lambda config_class, values: given.append(values) or exit(0))
    with pytest.raises(SystemExit):
        commands.main(["train", "vae", "--config", "small_vavae"])
    assert given == [{"seed": 18}]


# ---------------------------------------------------------------------------------------------------------------------
# --json
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 1, 3])
def test_json_of_an_error(position, capsys):
    words = ["sample", "--pipeline", "nothing"]
    with pytest.raises(SystemExit) as stop:
        commands.main([*words[:position], "--json", *words[position:]])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    outcome = json.loads(captured.out)
    assert outcome["command"] == "sample" and outcome["error"].startswith("`classes` is not given")
    assert captured.err.startswith("error: `classes` is not given")


def test_json_of_a_result_has_the_standard_output_for_itself(capsys, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    from PIL import Image

    for name in ("0.png", "1.png"):
        Image.new("RGB", (4, 4)).save(folder / name)
    output = tmp_path / "images.npz"
    commands.main(["evaluate", "tools", "pack", "--images", str(folder), "--json", "--output", str(output)])
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"command": "evaluate tools pack", "result": {"output": str(output)}}
    assert captured.err == f"wrote {output}: 2 images\n"


def test_json_of_help_is_no_error(capsys):
    with pytest.raises(SystemExit):
        commands.main(["sample", "--help"])
    text = capsys.readouterr().out
    commands.main(["sample", "--help", "--json"])
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"command": "sample"} and captured.err == text


# ---------------------------------------------------------------------------------------------------------------------
# Completion
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_commands_settings_and_choices(shell, capsys):
    pytest.importorskip("shtab")
    commands.main(["completion", "--shell", shell])
    script = capsys.readouterr().out
    for word in ("transformer", "--num_images_per_class", "--learning_rate", "logit_normal", "bfloat16"):
        assert word in script, word


def test_bash_accepts_the_completion_and_completes(tmp_path, capsys):
    import shutil
    import subprocess

    pytest.importorskip("shtab")
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    commands.main(["completion"])
    (tmp_path / "completion.bash").write_text(capsys.readouterr().out)
    program = (
        "source completion.bash; COMP_WORDS=(diffusers-lightningdit train lora --rec); COMP_CWORD=3; "
        "_shtab_diffusers_lightningdit diffusers-lightningdit --rec lora; echo ${COMPREPLY[@]}; "
        "COMP_WORDS=(diffusers-lightningdit con); COMP_CWORD=1; "
        "_shtab_diffusers_lightningdit diffusers-lightningdit con diffusers-lightningdit; echo ${COMPREPLY[@]}"
    )
    program = program.replace("--rec", "--time_s")
    done = subprocess.run(["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["--time_sampling", "convert"]


def test_completion_without_shtab_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(importlib.import_module("sys").modules, "shtab", None)
    with pytest.raises(SystemExit) as stop:
        commands.main(["completion"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "error: completion needs shtab; required: pip install diffusers-lightningdit[completion]\n"
    )
