# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Write docs/files.md: one line for each file of the project, taken from the file itself.

    python docs/file_tree.py

tests/test_docs.py checks that the page is up to date.
"""

import ast
import json
import re
import subprocess
from itertools import groupby
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "files.md"
TITLE = """# Every file

One line for each file, from the head of the file itself (`python docs/file_tree.py` writes this page). `tests/` mirrors
the source and is left out; `tests/golden/` is the part of the recorded data that travels with the project.

"""
# Files that cannot describe themselves.
DESCRIPTIONS = {
    ".ci/run": "what continuous integration runs",
    ".gitignore": "what git leaves out",
    "LICENSE": "Apache-2.0",
    "Makefile": "demo, page, test, digits, docs, style, quality",
    "NOTICE": "papers and data that this project rests on",
    "constraints-lowest.txt": "the lowest versions of all dependencies, tried together",
    "pyproject.toml": "build system, ruff, pytest",
    "examples/digits/run.sh": "the embedded checkpoint from nothing",
    "examples/digits/few_step.sh": "the embedded few-step checkpoint from the embedded one",
    "training_scripts/accelerate_configs/1_gpu.yaml": "one GPU",
    "training_scripts/accelerate_configs/2_nodes_fsdp2.yaml": "two nodes of 8 GPUs, sharded by FSDP2",
    "training_scripts/accelerate_configs/8_gpus_ddp.yaml": "8 GPUs, DDP",
    "src/diffusers_lightningdit/original/imagenet_labels.json": "names of the 1,000 classes of ImageNet",
}
KINDS = {".png": "picture", ".safetensors": "weights", ".json": "configuration or metrics", ".csv": "table"}


def description(file: Path) -> str:
    """The first sentence that a file says about itself, without its full stop."""
    name = str(file.relative_to(REPOSITORY))
    if name in DESCRIPTIONS:
        return DESCRIPTIONS[name]
    if file.suffix in KINDS:
        return KINDS[file.suffix]
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".ipynb":  # its first heading
        return json.loads(text)["cells"][0]["source"][0].strip().removeprefix("# ")
    if file.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    elif file.suffix == ".md":
        text = text.partition("---\n")[2].partition("---\n")[2] if text.startswith("---\n") else text
        text = text.lstrip().removeprefix("# ")
    elif file.suffix in (".yaml", ".yml", ".cff"):
        comments = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
        text = " ".join(comments) or f"settings: {', '.join(yaml.safe_load(text))}"
    line = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<!et al)\. ", line)[0].removesuffix(".")


def page() -> str:
    """The whole page, for the files that git knows."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    names = sorted(
        (name for name in listed if not name.startswith("tests/") and not name.endswith("/__init__.py")),
        key=lambda name: (Path(name).parent.parts, name),
    )
    lines = [TITLE + "```text"]
    for folder, files in groupby(names, key=lambda name: str(Path(name).parent)):
        files = list(files)
        width = max(len(Path(name).name) for name in files) + 2
        lines.append("./" if folder == "." else f"{folder}/")
        lines += [f"  {Path(name).name:<{width}}{description(REPOSITORY / name)}" for name in files]
    return "\n".join([*lines, "```", ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
