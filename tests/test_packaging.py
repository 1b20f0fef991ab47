"""The package as pip sees it: setup.py, the wheel, and the promises of its metadata."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.version import Version

import diffusers_lightningdit

TOP_LEVEL = ("conversion", "demo", "model_cards", "pipelines", "training_scripts")  # folders that setup.py maps


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
    assert set(setup_py["packages"]) == found | {f"diffusers_lightningdit.{folder}" for folder in TOP_LEVEL}
    for folder in TOP_LEVEL:
        assert setup_py["package_dir"][f"diffusers_lightningdit.{folder}"] == folder


def test_pictures_and_links_of_the_description_are_whole_addresses_in_a_release(repository):
    command = [sys.executable, "setup.py", "--long-description"]
    environment = {**os.environ, "PROJECT_URL": "https://example.org/project/"}
    text = subprocess.run(command, cwd=repository, env=environment, check=True, capture_output=True, text=True).stdout
    assert "(https://example.org/project/raw/main/docs/images/digits.png)" in text
    assert "(https://example.org/project/blob/main/docs/training.md)" in text
    assert not re.findall(r"\]\((?!https?:|#)[^)]*\)", text)


@pytest.fixture(scope="module")
def wheel(repository, tmp_path_factory) -> Path:
    """A plain wheel, built without isolation from a copy of the files that matter."""
    pytest.importorskip("setuptools", minversion="70.1")  # `bdist_wheel` of its own
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE", "src", *TOP_LEVEL):
        target = folder / "source" / name
        if (repository / name).is_dir():
            shutil.copytree(repository / name, target, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copy(repository / name, target)
    command = [sys.executable, "setup.py", "--quiet", "bdist_wheel", "--dist-dir", str(folder / "dist")]
    subprocess.run(command, cwd=folder / "source", check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def test_the_wheel_holds_pipelines_scripts_and_data(wheel, repository):
    names = zipfile.ZipFile(wheel).namelist()
    files = [
        "pipelines/pipeline_lightningdit.py",
        "pipelines/lightningdit_sampling.py",
        "models/autoencoder_vavae.py",
        "original/imagenet_labels.json",
        "demo/generate_grid.py",
        "demo/page.py",
        "model_cards/lightningdit-digits/transformer/diffusion_pytorch_model.safetensors",
    ]
    for folder, pattern in (("training_scripts", "*.py"), ("training_scripts", "*/*.yaml"), ("conversion", "*.py")):
        found = list((repository / folder).glob(pattern))
        assert found
        files += [str(path.relative_to(repository)) for path in found]
    for name in files:
        assert f"diffusers_lightningdit/{name}" in names, name
    assert any(re.search(r"dist-info/.*LICENSE$", name) for name in names)
    assert any(re.search(r"dist-info/.*NOTICE$", name) for name in names)
    assert wheel.stat().st_size < 15e6


def test_the_installed_wheel_draws_by_its_command(wheel, tmp_path):
    """In a new environment that borrows the other packages of this one; nothing is fetched, and no checkout is near."""
    pytest.importorskip("pip")
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    paths = sysconfig.get_paths(vars={"base": str(environment), "platbase": str(environment)})
    python, command = Path(paths["scripts"], "python"), Path(paths["scripts"], "diffusers-lightningdit")
    install = ["install", "--quiet", "--no-deps", "--no-index", "--no-compile", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, *install], check=True, capture_output=True)
    borrowed = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    Path(paths["purelib"], "borrowed.pth").write_text("\n".join(borrowed), encoding="utf-8")

    draw = [command, "demo", "--classes", "seven", "--num_images_per_class", "1", "--output", "seven.png", "--json"]
    drawn = subprocess.run(draw, cwd=tmp_path, capture_output=True, text=True)
    assert drawn.returncode == 0, drawn.stderr
    assert json.loads(drawn.stdout)["command"] == "demo" and (tmp_path / "seven.png").is_file()
