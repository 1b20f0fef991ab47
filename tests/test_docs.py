"""The documentation says what is there, and the docstrings say it in plain sentences."""

import ast
import re
import runpy
from importlib import import_module
from pathlib import Path

import pytest

from diffusers_lightningdit.original.transformer import MODEL_TYPES
from diffusers_lightningdit.settings import settings_of

REPOSITORY = Path(__file__).parents[1]
FOLDERS = ("src", "pipelines", "training_scripts", "conversion", "examples", "benchmarks", "demo", "docs")
SOURCES = sorted(file for folder in FOLDERS for file in (REPOSITORY / folder).rglob("*.py"))
# "seed: of the run." says what an argument belongs to, not what it is.
ELLIPTIC_ARGUMENT = re.compile(r"^\s+[\w, ]+: (of|for|from|to) ", re.MULTILINE)


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_docstrings_are_sentences(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree) or file.name == "__init__.py", "a module has a docstring"
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            docstring = ast.get_docstring(node) or ""
            name = getattr(node, "name", "the module")
            assert not docstring.startswith("What"), f"the docstring of {name} begins with What: {docstring[:80]}"
            arguments = docstring.partition("Args:")[2].partition("\nRaises:")[0].partition("\nReturns:")[0]
            elliptic = ELLIPTIC_ARGUMENT.search(arguments)
            assert elliptic is None, (
                f"{name}: {elliptic[0].strip()}... says what the argument belongs to, not what it is"
            )


def test_the_list_of_files_is_up_to_date():
    generated = runpy.run_path(str(REPOSITORY / "docs" / "file_tree.py"))["page"]()
    assert (REPOSITORY / "docs" / "files.md").read_text(encoding="utf-8") == generated, "run python docs/file_tree.py"


@pytest.mark.parametrize("page", sorted((REPOSITORY / "docs").glob("*.md")), ids=lambda page: page.name)
def test_the_tables_of_settings_are_up_to_date(page):
    tables = runpy.run_path(str(REPOSITORY / "docs" / "option_tables.py"))
    text = page.read_text(encoding="utf-8")
    assert text.count("<!-- settings: ") == len(tables["TABLE"].findall(text)), "a table has no end"
    assert text.count("<!-- original keys: ") == len(tables["KEYS"].findall(text)), "a table has no end"
    assert text == tables["updated"](text), "run python docs/option_tables.py"


def test_docs_name_every_setting_of_training_and_evaluation():
    text = "".join(page.read_text(encoding="utf-8") for page in (REPOSITORY / "docs").glob("*.md"))
    for name in ("training.transformer.lora.LoraTrainingConfig", "training.vavae.config.VAVAETrainingConfig"):
        module, _, config_class = name.rpartition(".")
        settings = settings_of(getattr(import_module(f"diffusers_lightningdit.{module}"), config_class))
        assert [name for name in settings if f"| `{name}` |" not in text] == []


def test_the_sizes_of_the_page_are_those_of_the_published_models(repository):
    page = (repository / "docs" / "training.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+)(?: \(default\))? \| (\d+) \| (\d+) \| (\d+) \|$", page, re.MULTILINE)
    listed = {name: (int(layers), int(heads), int(size)) for name, layers, heads, size in rows}
    published = {}
    for name, (depth, width, heads, _) in MODEL_TYPES.items():
        published[name.removeprefix("LightningDiT-").partition("/")[0]] = (depth, heads, width // heads)
    assert listed == published


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


# ---------------------------------------------------------------------------------------------------------------------
# The site and its API reference
# ---------------------------------------------------------------------------------------------------------------------

PACKAGE_SOURCES = [file for file in SOURCES if file.parts[len(REPOSITORY.parts)] in ("src", "pipelines")]
# Properties of modular blocks, which diffusers' base class documents; each has its words in the values.
OF_BLOCKS = {"description", "inputs", "intermediate_outputs", "expected_components", "expected_configs"} | {
    f"loop_{name}" for name in ("inputs", "intermediate_outputs", "expected_components", "expected_configs")
}
REFERENCE = re.compile(r"^::: (\S+)$", re.MULTILINE)


def module_name(file: Path) -> str:
    parts = file.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[1:] if parts[0] == "src" else parts)


@pytest.mark.parametrize("file", PACKAGE_SOURCES, ids=module_name)
def test_no_public_name_is_undocumented(file):
    """`main` of a command is told by its module's docstring, a setter by its property's."""

    exempt = {"main", *(OF_BLOCKS if file.stem.startswith("modular_") else ())}

    def undocumented(body: list, outer: str = "") -> list[str]:
        found = []
        for node in body:
            if not isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                continue
            if node.name.startswith("_") or node.name in exempt:
                continue
            is_setter = any(isinstance(decorator, ast.Attribute) for decorator in node.decorator_list)
            if not ast.get_docstring(node) and not is_setter:
                found.append(outer + node.name)
            if isinstance(node, ast.ClassDef):
                found += undocumented(node.body, f"{outer}{node.name}.")
        return found

    assert undocumented(ast.parse(file.read_text(encoding="utf-8")).body) == []


def test_the_reference_has_every_module_once():
    pages = sorted((REPOSITORY / "docs" / "reference").glob("*.md"))
    listed = [name for page in pages for name in REFERENCE.findall(page.read_text(encoding="utf-8"))]
    assert len(listed) == len(set(listed))
    modules = {module_name(file) for file in PACKAGE_SOURCES if file.stem not in ("__init__", "__main__")}
    assert set(listed) - {"diffusers_lightningdit.commands"} == modules


def test_the_site_has_every_page():
    text = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"^ *- (?:\w+: )?([\w/]+\.md)$", text, re.MULTILINE))
    assert listed == {str(page.relative_to(REPOSITORY / "docs")) for page in (REPOSITORY / "docs").rglob("*.md")}


@pytest.mark.parametrize("page", sorted((REPOSITORY / "docs").rglob("*.md")), ids=lambda page: page.name)
def test_links_lead_to_files_of_the_repository(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text):
        assert (page.parent / link).exists(), link
