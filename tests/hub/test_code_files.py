"""Rules for the files that are uploaded as code, and which code is saved with which class."""

import ast
import itertools
from pathlib import Path

import pytest
import torch
from diffusers import ModelMixin  # noqa: F401 (diffusers looks it up where a user's class is defined)

import diffusers_lightningdit
from diffusers_lightningdit import LightningDiTPipeline, LightningDiTTransformer2DModel
from diffusers_lightningdit.pipelines.lightningdit_sampling import SHARED_CODE

SOURCE = Path(diffusers_lightningdit.__file__).parent
MODELS = [SOURCE / "models" / name for name in ("autoencoder_vavae.py", "change3d.py", "transformer_lightningdit.py")]
MIXIN = SOURCE / "models" / "model_mixin.py"
# every file that can lie as <part>/diffusers_lightningdit.py in a repository
PARTS = [*MODELS, *sorted((SOURCE / "schedulers").glob("scheduling_*.py"))]


def saved_code(file: Path) -> str:
    """The code of a part: that of a model is saved with the code that both models share in place of its import."""
    code = file.read_text(encoding="utf-8")
    imported = "from .model_mixin import LightningDiTModelMixin, self_contained\n"
    assert code.count(imported) == (file in MODELS)
    return code.replace(imported, MIXIN.read_text(encoding="utf-8"))


def names(file: Path) -> dict[str, str]:
    """Global names of a module, each with the statement that binds it."""
    bound = {}
    for node in ast.parse(saved_code(file)).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            source = node.module if isinstance(node, ast.ImportFrom) else None
            bound |= {alias.asname or alias.name: f"{source}.{alias.name}" for alias in node.names}
        elif isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            bound[node.name] = ast.unparse(node)
        elif isinstance(node, ast.Assign):
            bound |= {target.id: ast.unparse(node) for target in node.targets}  # the same once more does no harm
    return bound


@pytest.mark.parametrize(
    "pair", list(itertools.combinations(PARTS, 2)), ids=lambda pair: " ".join(f.stem for f in pair)
)
def test_parts_share_no_global_name(pair):
    """As remote code diffusers runs the parts' files in one module, each over what the one before has left there."""
    first, second = map(names, pair)
    assert {name for name in first.keys() & second.keys() if first[name] != second[name]} == set()


def test_every_class_that_is_a_part_knows_its_code():
    for file in PARTS:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        classes = [getattr(diffusers_lightningdit, node.name, None) for node in tree.body if hasattr(node, "name")]
        (cls,) = [cls for cls in classes if cls is not None]
        assert cls._source_code == saved_code(file)


class Subclass(LightningDiTTransformer2DModel):
    """Of a user: its code is not in the file of its base class."""


def test_a_users_subclass_is_saved_as_diffusers_does(tiny_pipeline, tmp_path):
    components = dict(tiny_pipeline.components)
    components["transformer"] = Subclass.from_config(tiny_pipeline.transformer.config)
    pipe = LightningDiTPipeline(**components)
    pipe.save_pretrained(tmp_path)
    assert pipe.config.transformer == (__name__, "Subclass")
    assert not (tmp_path / "transformer" / "diffusers_lightningdit.py").exists()
    assert (tmp_path / "vae" / "diffusers_lightningdit.py").exists()
    assert type(LightningDiTPipeline.from_pretrained(tmp_path).transformer) is Subclass


def test_a_compiled_model_is_saved_with_its_code(tiny_pipeline, tmp_path):
    components = dict(tiny_pipeline.components)
    components["transformer"] = torch.compile(components["transformer"])
    LightningDiTPipeline(**components).save_pretrained(tmp_path)
    code = (tmp_path / "transformer" / "diffusers_lightningdit.py").read_text(encoding="utf-8")
    assert code == LightningDiTTransformer2DModel._source_code


def test_saving_twice_into_a_folder_and_over_other_files(tiny_pipeline, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    for name in ("pipeline.py", "lightningdit_sampling.py"):
        (tmp_path / name).write_text("an older version")
    tiny_pipeline.save_pretrained(tmp_path)
    tiny_pipeline.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert (tmp_path / "pipeline.py").read_text(encoding="utf-8") == LightningDiTPipeline._source_code
    assert (tmp_path / "lightningdit_sampling.py").read_text(encoding="utf-8") == SHARED_CODE


def test_config_alone(tiny_pipeline, tmp_path):
    """`save_config` without weights makes no empty folders of parts."""
    tiny_pipeline.save_config(tmp_path / "new")
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert names == ["lightningdit_sampling.py", "model_index.json", "pipeline.py"]


def test_a_model_is_saved_without_code_unless_asked(tiny_pipeline, tmp_path):
    tiny_pipeline.transformer.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]


def test_copies_of_code_are_not_committed(repository):
    ignored = (repository / ".gitignore").read_text().splitlines()
    names = ("pipeline.py", "lightningdit_sampling.py", "diffusers_lightningdit.py")
    assert {f"model_cards/**/{name}" for name in names} <= set(ignored)
