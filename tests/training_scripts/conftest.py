"""The scripts are no package: they are imported from their folder, and run on tiny data."""

import pytest
import torch
from tiny_training import *  # noqa: F403


@pytest.fixture
def compiled(monkeypatch) -> list[str]:
    """Classes of the modules that are compiled: forward and backward graphs, but without minutes of generated code."""
    compile_module, names = torch.nn.Module.compile, []

    def compile_without_generating_code(self, *args, **kwargs):
        names.append(type(self).__name__)
        compile_module(self, *args, backend="aot_eager", **kwargs)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_without_generating_code)
    yield names
    torch._dynamo.reset()
