"""Single-file pipelines share code by copies; these stay equal to their originals."""

import ast
from collections import Counter

import pytest
from copied_code import PIPELINES, copies, definitions, original_of, up_to_date

FILES = sorted(path for path in PIPELINES.glob("*.py") if path.name != "__init__.py")
# What each pipeline defines for itself
OWN = {"__init__", "__call__", "check_inputs", "from_pipe", "model_cpu_offload_seq", "_callback_tensor_inputs"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_copies_equal_their_originals(file):
    source = file.read_text(encoding="utf-8")
    lines = source.splitlines()
    for mark, name, extent in copies(source):
        assert mark["name"].rpartition(".")[2] == name.rpartition(".")[2]
        copy = "\n".join(lines[extent.start : extent.stop])
        assert copy == original_of(mark), f"{file.name}: {name}; to update: python tests/pipelines/copied_code.py"


def test_whatever_is_in_two_files_is_marked_as_a_copy():
    unmarked = Counter()
    for file in FILES:
        source = file.read_text(encoding="utf-8")
        marked = {name for _, name, _ in copies(source)}
        unmarked.update({name.rpartition(".")[2] for name in definitions(source).keys() - marked})
    assert {name for name, count in unmarked.items() if count > 1} <= OWN


def test_originals_are_no_copies():
    """One hop from a copy to the code that counts."""
    marked = {f"{file.stem}.{name}" for file in FILES for _, name, _ in copies(file.read_text(encoding="utf-8"))}
    for file in FILES:
        for mark, _, _ in copies(file.read_text(encoding="utf-8")):
            assert f"{mark['file']}.{mark['name']}" not in marked


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_copies_are_used(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    for _, name, _ in copies(file.read_text(encoding="utf-8")):
        assert "." in name or name in used, f"{file.name}: {name} is copied in vain"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_one_pipeline_in_each_file(file):
    """Diffusers takes the one `DiffusionPipeline` subclass of a custom pipeline's file."""
    classes = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    assert len([node for node in classes if any(getattr(b, "id", "") == "DiffusionPipeline" for b in node.bases)]) == 1


def test_a_changed_copy_is_brought_up_to_date(tmp_path):
    original = "class A:\n    @property\n    def b(self):\n        return 1\n\n\nC = [\n    1,\n]\n"
    (tmp_path / "original.py").write_text(original)
    method, constant = "class D:\n    # Copied from original.A.b\n", "\n\n# Copied from original.C\n"
    copy = f"{method}    def b(self):\n        return 2\n{constant}C = 3\n"
    expected = f"{method}    @property\n    def b(self):\n        return 1\n{constant}C = [\n    1,\n]\n"
    assert up_to_date(copy, tmp_path) == expected
    with pytest.raises(ValueError, match=r"has no A\.c"):
        up_to_date(copy.replace("original.A.b", "original.A.c"), tmp_path)
    with pytest.raises(ValueError, match="line 1: no function"):
        copies("# Copied from original.C\n\nC = 3\n")
