"""Model and pipeline files are uploaded to the Hub: they import only packages that everybody has, and the shared file.

A model file is saved with `model_mixin.py` put into it, because diffusers fetches one file for a component. A pipeline
file may import the shared file beside it, because diffusers fetches the relative imports of a pipeline, too.
"""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHARED = "lightningdit_sampling"
OTHER_FAMILY = "pipeline_change3d"  # which is complete by itself
MODELS, PIPELINES = (
    [file for file in sorted((ROOT / folder).glob("*.py")) if file.name != "__init__.py"]
    for folder in ("src/diffusers_lightningdit/models", "pipelines")
)
# torchdiffeq is optional: inside a function only
ALWAYS = {"torch", "diffusers", "numpy", "PIL"} | set(sys.stdlib_module_names)
WITHIN_FUNCTIONS = ALWAYS | {"torchdiffeq"}


def imported(node: ast.AST) -> list[str]:
    """Top-level packages, or `.module` for relative imports."""
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{'.' * node.level}{node.module}"] if node.level else [node.module.partition(".")[0]]
    return []


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def test_there_are_files():
    names = {file.stem for file in MODELS + PIPELINES}
    assert names >= {"transformer_lightningdit", "autoencoder_vavae", "pipeline_lightningdit", SHARED}


@pytest.mark.parametrize("file", MODELS + PIPELINES, ids=lambda file: file.name)
def test_self_contained(file):
    tree = parse(file)
    in_functions = {
        node
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    along = (
        {f".{SHARED}"}
        if file.stem.startswith(("pipeline_", "modular_"))
        else {".model_mixin"}
        if file in MODELS
        else set()
    )
    for node in ast.walk(tree):
        for name in imported(node):
            allowed = WITHIN_FUNCTIONS if node in in_functions else ALWAYS | along
            assert name in allowed, f"{file.name} imports {name}"


@pytest.mark.parametrize("file", PIPELINES, ids=lambda file: file.name)
def test_number_of_pipelines(file):
    """diffusers requires exactly one subclass of `DiffusionPipeline` in the module of a custom pipeline.

    The file that pipelines share has none, and neither has one of blocks, which are no pipeline by themselves.
    """
    bases = [[ast.unparse(base) for base in node.bases] for node in parse(file).body if isinstance(node, ast.ClassDef)]
    assert sum("DiffusionPipeline" in names for names in bases) == (1 if file.stem.startswith("pipeline_") else 0)


@pytest.mark.parametrize("file", PIPELINES, ids=lambda file: file.name)
def test_what_is_imported_from_the_shared_file_is_used(file):
    tree = parse(file)
    names = {
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == SHARED
        for alias in node.names
    }
    assert bool(names) == (file.stem not in (SHARED, OTHER_FAMILY))
    assert names <= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def test_no_function_is_defined_in_two_pipeline_files():
    """Code that two pipelines need belongs in the shared file, but for those of another family."""
    # each pipeline's own, with the names that diffusers gives
    own = {"__init__", "__call__", "check_inputs"}
    seen: dict[str, str] = {}
    for file in [file for file in PIPELINES if file.stem != OTHER_FAMILY]:
        nodes = [*parse(file).body]
        nodes += [node for parent in nodes if isinstance(parent, ast.ClassDef) for node in parent.body]
        for name in {node.name for node in nodes if isinstance(node, ast.FunctionDef)} - own:
            assert name not in seen, f"{name} is in {seen[name]} and {file.name}"
            seen[name] = file.name


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("AutoencoderVAVAE", ["__init__", "normalize_latents"]),
        ("LightningDiTTransformer2DModel", ["__init__", "forward"]),
    ],
)
def test_a_model_begins_with_its_computation(name, methods):
    """Saving, loading, caches and LoRAs come behind one banner at the end of the class."""
    ((file, model),) = [
        (file, node) for file in MODELS for node in parse(file).body if getattr(node, "name", "") == name
    ]
    functions = [node for node in model.body if isinstance(node, ast.FunctionDef)]
    assert [function.name for function in functions[:2]] == methods
    assert functions[1].lineno < 330
    assert file.read_text(encoding="utf-8").count("    # Services: ") == 1
