# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Spaces of the Hub: the page to draw on (`demo/app.py`) for one repository."""

from pathlib import Path

from huggingface_hub import SpaceCard, SpaceCardData

PACKAGE = "diffusers-lightningdit[page]"
APP = '''"""A page to draw on with the pipeline {repository}."""

from diffusers_lightningdit.demo.app import main

main(["--pipeline", "{repository}"])
'''


def write_space(folder: str | Path, repository: str, license: str | None = None, requirement: str = PACKAGE) -> None:
    """Write `app.py`, `requirements.txt` and the card of a Space into a folder.

    Args:
        folder: The folder, which exists; files of the same names are replaced.
        repository: The repository of a class-conditional pipeline: user/name.
        license: The licence of its weights, by its name on the Hub.
        requirement: The line of `requirements.txt` that installs this package with its extra `page`.
    """
    folder, name = Path(folder), repository.rpartition("/")[2]
    data = SpaceCardData(title=name, sdk="gradio", app_file="app.py", license=license, models=[repository])
    text = f"# {name}\n\nA page to draw on with [{repository}](https://huggingface.co/{repository}).\n"
    SpaceCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(folder / "README.md")
    (folder / "app.py").write_text(APP.format(repository=repository), encoding="utf-8", newline="\n")
    (folder / "requirements.txt").write_text(f"{requirement}\n", encoding="utf-8", newline="\n")
