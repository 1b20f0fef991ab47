"""The command that serves the page, as far as it comes without Gradio."""

import sys

import pytest

from diffusers_lightningdit import commands
from diffusers_lightningdit.demo import app


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pipeline", "nowhere"], "error: `pipeline` is 'nowhere'; required: folder or Hub id of a LightningDiTPipe"),
        (["--max_steps", "0"], "error: `max_steps` is 0; required: at least 1."),
        (["--port", "x"], "error: `port` is 'x'; required: a whole number"),
        (["--max_pixel", "9"], "error: `max_pixel` is no key of PageConfig. Did you mean `max_pixels`?"),
    ],
)
def test_errors_are_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        commands.main(["page", *words])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(message) and error.count("\n") == 1


def test_without_gradio_the_error_says_what_installs_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit) as stop:
        app.main([])
    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith(
        "error: the page needs gradio; required: pip install diffusers-lightningdit[page]\n"
    )
