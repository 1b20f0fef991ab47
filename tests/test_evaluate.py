import importlib

import pytest

from diffusers_lightningdit import evaluate


@pytest.mark.parametrize("command", evaluate.COMMANDS)
def test_every_command_says_what_it_takes(command, capsys):
    module = importlib.import_module(f"diffusers_lightningdit.evaluation.commands.{command}")
    with pytest.raises(SystemExit) as exit_:
        evaluate.main([command, "--help"])
    assert exit_.value.code == 0
    assert module.__doc__.splitlines()[0] in " ".join(capsys.readouterr().out.split())


def test_help_lists_the_commands(capsys):
    evaluate.main([])
    output = capsys.readouterr().out
    assert all(f"  {command}" in output for command in evaluate.COMMANDS)


def test_an_unknown_command(capsys):
    with pytest.raises(SystemExit) as exit_:
        evaluate.main(["generations"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith("error: the command is 'generations'; required: one of generation")


@pytest.mark.parametrize(
    ("command", "reader", "then"),
    [
        ("generation", "records", "resumes"),
        ("latents", "records", "starts from the beginning"),
        ("sweep", "commands.sweep", "resumes"),
        ("tools", "commands.tools", "starts from the beginning"),
    ],
)
def test_an_interruption_is_one_line(command, reader, then, monkeypatch, capsys):
    """Within the command, which has one line for each of its errors, too."""

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"diffusers_lightningdit.evaluation.{reader}.parse_config", interrupt)
    with pytest.raises(SystemExit) as exit_:
        evaluate.main([command, "pack"])
    assert exit_.value.code == 130
    assert capsys.readouterr().err == f"interrupted; run again, the command {then}.\n"
