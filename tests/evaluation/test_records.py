import math
import warnings

import pytest

from diffusers_lightningdit.evaluation.records import collected_warnings, read_record, significant


def test_warnings_are_told_once_in_one_line_and_kept(capsys):
    with collected_warnings() as messages:
        for text in ("few\nsamples", "no sfid", "few\nsamples"):
            warnings.warn(text, stacklevel=1)
        assert capsys.readouterr().err == ""
    assert messages == ["few samples", "no sfid"]
    assert capsys.readouterr().err == "warning: few samples\nwarning: no sfid\n"


def test_an_error_hides_no_warning(capsys):
    with pytest.raises(ValueError, match="broken"), collected_warnings():
        warnings.warn("few samples", stacklevel=1)
        raise ValueError("broken")
    assert capsys.readouterr().err == "warning: few samples\n"


@pytest.mark.parametrize(
    ("value", "rounded"),
    [
        (123456.789, 123457.0),
        (0.000123456789, 0.000123457),
        (-2 / 3, -0.666667),
        (12345678, 12345678),  # a count
        (math.inf, math.inf),
        ({"a": [1 / 3, 1], "b": {"c": "text"}}, {"a": [0.333333, 1], "b": {"c": "text"}}),
    ],
)
def test_rounding_to_six_digits(value, rounded):
    assert significant(value) == rounded


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"samples": 3}', '{"samples": {}, "results": {}, "settings": {}}']
)
def test_a_record_that_is_none(content, tmp_path):
    (tmp_path / "generation.json").write_text(content)
    with pytest.raises(ValueError, match=r"generation\.json .*required: "):
        read_record(tmp_path / "generation.json")
