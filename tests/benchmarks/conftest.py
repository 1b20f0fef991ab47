"""The scripts of benchmarks/ as modules."""

import importlib
import sys

import pytest


@pytest.fixture(scope="session")
def load_benchmark(repository):
    """load_benchmark("samplers") -> the script as a module, with its folder on the path, and what it adds there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(repository / "benchmarks"), *sys.path])
        yield importlib.import_module
