"""Data moves one way, and so do the imports: nothing imports what stands above it."""

import ast
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = "diffusers_lightningdit"

# From the ground up. A layer may import those below it; parts of one layer do not import each other.
LAYERS = (
    (
        *("files", "processes", "interruption", "keyed_random", "flow_matching", "pixels", "metrics"),
        *("models", "schedulers", "pipelines"),
    ),
    ("settings", "locks"),
    ("networks", "losses", "grids"),
    ("original",),
    ("data",),
    ("evaluation", "training"),
    ("registration", "evaluate"),
    ("__init__",),
    ("scripts",),
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
SCRIPT_FOLDERS = ("training_scripts", "conversion", "examples", "benchmarks", "demo")

# Files that are uploaded to the Hub as they are import only what everybody has who uses diffusers.
UPLOADED = {"torch", "diffusers", "numpy", "PIL"} | set(sys.stdlib_module_names)
OPTIONAL = {"torchdiffeq"}  # within functions
# diffusers' loader follows a relative import of a pipeline, and a model is saved with the other file put into its own.
SHARED_FILE = {"pipelines": "lightningdit_sampling", "models": "model_mixin"}


def source_files() -> list[Path]:
    files = [*(REPOSITORY / "src" / PACKAGE).rglob("*.py"), *(REPOSITORY / "pipelines").glob("*.py")]
    return sorted([*files, *(file for folder in SCRIPT_FOLDERS for file in (REPOSITORY / folder).rglob("*.py"))])


def module_of(file: Path) -> tuple[str, ...]:
    """Dotted name within the package, ("data", "images"); ("scripts", ...) for what is outside it."""
    parts = file.relative_to(REPOSITORY).with_suffix("").parts
    if parts[:2] == ("src", PACKAGE):
        return parts[2:]
    return parts if parts[0] == "pipelines" else ("scripts", *parts)


def imported_modules(file: Path) -> list[tuple[tuple[str, ...], bool]]:
    """Absolute names of all modules that a file imports, and whether within a function."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    inner = {node for function in functions for node in ast.walk(function)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(tuple(alias.name.split(".")), node in inner) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                base = (PACKAGE, *module_of(file)[: -node.level], *base)
            if base == (PACKAGE,):  # `from . import pipelines`, or a public class
                names = [alias.name for alias in node.names]
                found += [
                    ((PACKAGE, name) if name in LEVEL else (PACKAGE, "__init__"), node in inner) for name in names
                ]
            else:
                found.append((base, node in inner))
    return found


FILES = source_files()


def test_the_source_is_found():
    found = {module_of(file)[0] for file in FILES}
    assert found == set(LEVEL), "every part of the package has its layer in this test, and no layer is empty"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_nothing_imports_upwards(file):
    part = module_of(file)[0]
    for module, _ in imported_modules(file):
        if module[0] != PACKAGE:
            continue
        target = module[1] if len(module) > 1 else "__init__"
        assert target == part or LEVEL[target] < LEVEL[part], f"{part} imports {'.'.join(module)}"


@pytest.mark.parametrize("folder", ["metrics", "models", "schedulers", "pipelines"])
def test_the_ground_imports_nothing_of_the_package(folder):
    """Metrics are functions of tensors; models, schedulers and pipelines are uploaded to the Hub as they are."""
    for file in (file for file in FILES if module_of(file)[0] == folder and file.name != "__init__.py"):
        for module, within_function in imported_modules(file):
            if module[0] == PACKAGE:
                assert module[1] == folder, f"{file.name} imports {'.'.join(module)}"
                if folder in SHARED_FILE:
                    assert module[2] == SHARED_FILE[folder], f"{file.name} imports {'.'.join(module)}"
                assert folder != "schedulers", f"{file.name} is not self-contained"
            elif folder != "metrics":
                allowed = UPLOADED | OPTIONAL if within_function else UPLOADED
                assert module[0] in allowed, f"{file.name} imports {module[0]}"


def test_commands_stand_above_what_they_share():
    """`evaluation/` holds what its commands share, `training/` what both stages share."""
    for file in FILES:
        module = module_of(file)
        above = {"evaluation": ("commands",), "training": ("transformer", "vavae")}.get(module[0], ())
        if above and module[1] not in above:
            for imported, _ in imported_modules(file):
                assert not (imported[:2] == (PACKAGE, module[0]) and imported[2:3] and imported[2] in above), (
                    f"{'/'.join(module)} imports {'.'.join(imported)}"
                )


def test_the_two_stages_of_training_do_not_import_each_other():
    for file in FILES:
        module = module_of(file)
        if module[0] == "training" and module[1] in ("transformer", "vavae"):
            other = {"transformer": "vavae", "vavae": "transformer"}[module[1]]
            for imported, _ in imported_modules(file):
                assert imported[:3] != (PACKAGE, "training", other), f"{'/'.join(module)} imports {'.'.join(imported)}"


# The services that Change3D shares with LightningDiT; all else of its own has its name in the path.
CHANGE3D_SERVICES = {
    *("files", "processes", "interruption", "keyed_random", "settings", "locks", "models.model_mixin"),
    *("original.translation", "original.model_folder", "models", "pipelines"),  # the last two: their public classes
}


def test_change3d_is_sealed():
    """Its files use nothing of LightningDiT, and LightningDiT nothing of them."""
    family = [file for file in FILES if any("change3d" in part for part in module_of(file))]
    assert {module_of(file)[0] for file in family} >= {"models", "pipelines", "original", "scripts"}
    for file in FILES:
        for module, _ in imported_modules(file):
            if module[0] != PACKAGE:
                continue
            target = ".".join(module[1:])
            if file in family:
                allowed = "change3d" in target or target in CHANGE3D_SERVICES or module_of(file)[0] == "scripts"
                assert allowed, f"{file.name} imports {target}"
            elif "change3d" in target:  # lists of public classes only
                assert file.name == "__init__.py", f"{file.name} imports {target}"
