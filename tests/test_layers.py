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
        *("models", "schedulers", "guiders", "pipelines"),
    ),
    ("settings", "locks", "flow_anchored_consistency"),
    ("networks", "losses", "grids"),
    ("original",),
    ("data",),
    ("change3d",),
    ("evaluation", "hub", "training"),
    ("registration", "evaluate"),
    ("__init__",),
    ("scripts",),
    ("commands",),
    ("__main__",),
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
        target = "scripts" if target in SCRIPT_FOLDERS else target  # those that the package has, too
        assert target == part or LEVEL[target] < LEVEL[part], f"{part} imports {'.'.join(module)}"


@pytest.mark.parametrize("folder", ["metrics", "models", "schedulers", "guiders", "pipelines"])
def test_the_ground_imports_nothing_of_the_package(folder):
    """Metrics are functions of tensors; the others are code that diffusers runs, most of it uploaded to the Hub."""
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
        above = {"evaluation": ("commands",), "training": ("transformer", "vavae", "change3d")}.get(module[0], ())
        if above and module[1] not in above:
            for imported, _ in imported_modules(file):
                assert not (imported[:2] == (PACKAGE, module[0]) and imported[2:3] and imported[2] in above), (
                    f"{'/'.join(module)} imports {'.'.join(imported)}"
                )


def test_the_trainings_do_not_import_each_other():
    trainings = ("transformer", "vavae", "change3d")
    for file in FILES:
        module = module_of(file)
        if module[0] == "training" and module[1] in trainings:
            for imported, _ in imported_modules(file):
                assert imported[:2] != (PACKAGE, "training") or imported[2] not in set(trainings) - {module[1]}, (
                    f"{'/'.join(module)} imports {'.'.join(imported)}"
                )


# ---------------------------------------------------------------------------------------------------------------------
# Two families
# ---------------------------------------------------------------------------------------------------------------------

# The modules of Change3D, by the beginnings of their names, and the services that know no model. Everything else is
# LightningDiT's, but for the lists of what there is: packages' __init__.py, `registration`, `evaluate`.
CHANGE3D = (
    ("change3d",),
    ("training", "change3d"),
    ("evaluation", "commands", "change"),
    ("models", "change3d"),
    ("original", "change3d"),
    ("original", "change3d_single_file"),
    ("pipelines", "pipeline_change3d"),
    ("scripts", "training_scripts", "train_change3d"),
    ("scripts", "conversion", "convert_change3d_to_diffusers"),
    ("scripts", "conversion", "convert_change3d_checkpoint"),
    ("scripts", "benchmarks", "change3d"),
    ("scripts", "examples", "change3d_buildings"),
)
SERVICES = (
    *((name,) for name in ("files", "processes", "interruption", "keyed_random", "pixels", "settings", "locks")),
    *(("data", name) for name in ("folders", "images", "rows", "streamed_rows", "row_stream", "global_batches")),
    *(("training", name) for name in ("accelerator", "batches", "checkpoints", "config", "moving_averages")),
    *(("training", name) for name in ("optimizer_step", "optimizers", "progress", "run_state", "spike_guard")),
    ("training", "state_io"),
    *(("hub", name) for name in ("cards", "repository", "trained_pipeline")),
    ("grids",),
    ("evaluation", "ordered_batches"),
    ("evaluation", "records"),
    ("original", "model_folder"),
    ("original", "translation"),
    ("models", "model_mixin"),
)
LISTS = (("registration",), ("evaluate",), ("__init__",), ("models",), ("pipelines",), ("original",))
PREFIX = "Change3D"  # of the family's classes


def is_in(module: tuple[str, ...], parts: tuple[tuple[str, ...], ...]) -> bool:
    return any(module[: len(part)] == part for part in parts)


def own_imports(file: Path) -> list[tuple[str, ...]]:
    """The modules of the package that a file imports; `from ..models import X` is the list `models` itself."""
    return [module[1:] for module, _ in imported_modules(file) if module[0] == PACKAGE]


def classes_of_lists(file: Path) -> set[str]:
    """The public classes that a file imports from the lists of them, as `from ..models import Change3DModel`."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = tuple(node.module.split(".")) if node.module else ()
            base = (PACKAGE, *module_of(file)[: -node.level], *base) if node.level else base
            if base[:1] == (PACKAGE,) and base[1:] in {(), *LISTS}:
                names |= {alias.name for alias in node.names if alias.name[0].isupper()}
    return names


def test_every_name_in_the_package_is_that_of_a_file():
    modules = [module_of(file) for file in FILES]
    for part in (*(part for part in CHANGE3D if part[0] != "scripts"), *SERVICES):
        assert any(module[: len(part)] == part for module in modules), ".".join(part)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_the_families_are_sealed(file):
    """Change3D uses services and itself, services use services, LightningDiT uses nothing of Change3D."""
    module = module_of(file)
    for imported in own_imports(file):
        if is_in(module, CHANGE3D):
            allowed = (*CHANGE3D, *SERVICES)
            assert is_in(imported, allowed) or imported in LISTS, f"{'.'.join(module)} imports {'.'.join(imported)}"
        elif is_in(module, SERVICES):
            assert is_in(imported, SERVICES), f"{'.'.join(module)} imports {'.'.join(imported)}"
        elif module[-1] != "__init__" and module not in LISTS:
            assert not is_in(imported, CHANGE3D), f"{'.'.join(module)} imports {'.'.join(imported)}"
    is_own = is_in(module, CHANGE3D)
    if module[-1] != "__init__" and module not in LISTS:
        for name in classes_of_lists(file):
            assert name.startswith(PREFIX) == is_own, f"{'.'.join(module)} imports {name}"
