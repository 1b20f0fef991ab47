"""Code that the single-file pipelines share, since each has to stand alone: diffusers' `# Copied from` habit.

A line `# Copied from FILE.NAME` or `# Copied from FILE.CLASS.NAME` above a function, method or constant says that its
code is that of the other file in pipelines/. test_copied_code.py checks it; after a change of the source, this script
brings the copies up to date:

    python tests/pipelines/copied_code.py
"""

import ast
import re
from pathlib import Path

PIPELINES = Path(__file__).parents[2] / "pipelines"
MARK = re.compile(r"^ *# Copied from (?P<file>\w+)\.(?P<name>[\w.]+)$")


def definitions(source: str) -> dict[str, range]:
    """Lines (from 0) of every function, method and constant of a module: {"guide": ..., "Pipeline.labels": ...}."""
    found = {}

    def add(nodes: list[ast.stmt], prefix: str) -> None:
        for node in nodes:
            if isinstance(node, ast.FunctionDef):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                name = node.name
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                first, name = node.lineno, node.targets[0].id
            else:
                if isinstance(node, ast.ClassDef):
                    add(node.body, f"{node.name}.")
                continue
            found[prefix + name] = range(first - 1, node.end_lineno)

    add(ast.parse(source).body, "")
    return found


def copies(source: str) -> list[tuple[re.Match, str, range]]:
    """(mark, name, lines) of everything in a module that is marked as a copy."""
    lines = source.splitlines()
    names = {extent.start: (name, extent) for name, extent in definitions(source).items()}
    found = []
    for i, line in enumerate(lines):
        if mark := MARK.match(line):
            if i + 1 not in names:
                raise ValueError(f"line {i + 1}: no function, method or constant below {line.strip()!r}")
            found.append((mark, *names[i + 1]))
    return found


def original_of(mark: re.Match, folder: Path = PIPELINES) -> str:
    """The code that a copy has to be."""
    source = (folder / f"{mark['file']}.py").read_text(encoding="utf-8")
    extents = definitions(source)
    if mark["name"] not in extents:
        raise ValueError(f"{mark['file']}.py has no {mark['name']}")
    extent = extents[mark["name"]]
    return "\n".join(source.splitlines()[extent.start : extent.stop])


def up_to_date(source: str, folder: Path = PIPELINES) -> str:
    """A module's source with every copy as its original is."""
    lines = source.splitlines()
    for mark, _, extent in reversed(copies(source)):
        lines[extent.start : extent.stop] = original_of(mark, folder).splitlines()
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for path in sorted(PIPELINES.glob("*.py")):
        before = path.read_text(encoding="utf-8")
        after = up_to_date(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"updated {path}")
