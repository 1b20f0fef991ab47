"""The documentation names tests as its proof: they exist."""

import re


def test_every_test_named_in_the_features_exists(repository):
    named = set(re.findall(r"`(test_[\w*]+)`", (repository / "docs" / "features.md").read_text(encoding="utf-8")))
    assert len(named) > 40
    defined = {
        name
        for file in (repository / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    }
    for name in sorted(named):
        assert any(re.fullmatch(name.replace("*", r"\w*"), known) for known in defined), name
