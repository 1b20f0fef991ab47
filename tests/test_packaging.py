"""The package as pip sees it: setup.py, the wheel, and the promises of its metadata."""

import ast
import re
import subprocess
import sys
import zipfile

import pytest
from packaging.version import Version

import diffusers_lightningdit


@pytest.fixture(scope="module")
def setup_py(repository) -> dict:
    """Constants and keyword arguments of setup.py, read without running it."""
    tree = ast.parse((repository / "setup.py").read_text(encoding="utf-8"))
    values = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, (ast.List, ast.Dict)):
            values[node.targets[0].id] = ast.literal_eval(node.value)
        if isinstance(node, ast.keyword):
            try:
                values[node.arg] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return values


def test_version_is_stated_once(setup_py):
    assert setup_py["version"] == diffusers_lightningdit.__version__


def test_every_requirement_has_the_lower_bound_that_was_tried(setup_py, repository):
    lines = (repository / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    tried = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    requirements = [*setup_py["INSTALL_REQUIRES"], *setup_py["EXTRAS"]["test"], *setup_py["EXTRAS"]["ode"]]
    for requirement in requirements:
        name, bound = requirement.split(">=")
        assert Version(tried[name]) == Version(bound), requirement


def test_every_package_of_the_source_is_listed(setup_py, repository):
    source = repository / "src"
    found = {".".join(path.parent.relative_to(source).parts) for path in source.rglob("__init__.py")}
    assert set(setup_py["packages"]) == found | {"diffusers_lightningdit.pipelines"}


def test_the_wheel_holds_pipelines_and_data(repository, tmp_path):
    """A plain wheel, built without isolation from a copy of the files that matter."""
    import shutil

    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE", "src", "pipelines"):
        target = tmp_path / "source" / name
        if (repository / name).is_dir():
            shutil.copytree(repository / name, target, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copy(repository / name, target)
    command = [sys.executable, "setup.py", "--quiet", "bdist_wheel", "--dist-dir", str(tmp_path / "dist")]
    pytest.importorskip("setuptools", minversion="70.1")  # `bdist_wheel` of its own
    subprocess.run(command, cwd=tmp_path / "source", check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "pipelines/pipeline_lightningdit.py",
        "pipelines/lightningdit_sampling.py",
        "models/autoencoder_vavae.py",
        "original/imagenet_labels.json",
    ):
        assert f"diffusers_lightningdit/{name}" in names
    assert any(re.search(r"dist-info/.*LICENSE$", name) for name in names)
    assert any(re.search(r"dist-info/.*NOTICE$", name) for name in names)
