"""Model and pipeline files are uploaded to the Hub one by one: they may import only what everybody has."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [
    file
    for folder in ("src/diffusers_lightningdit/models", "pipelines")
    for file in sorted((ROOT / folder).glob("*.py"))
    if file.name != "__init__.py"
]
# torchdiffeq is optional: inside a function only
ALWAYS = {"torch", "diffusers", "numpy", "PIL"} | set(sys.stdlib_module_names)
WITHIN_FUNCTIONS = ALWAYS | {"torchdiffeq"}


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return ["." * node.level] if node.level else [node.module.partition(".")[0]]
    return []


def test_there_are_files():
    assert {file.name for file in FILES} >= {
        "transformer_lightningdit.py",
        "autoencoder_vavae.py",
        "pipeline_lightningdit.py",
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_self_contained(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    in_functions = {
        node
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        for name in imported(node):
            assert name in (WITHIN_FUNCTIONS if node in in_functions else ALWAYS), f"{file.name} imports {name}"
