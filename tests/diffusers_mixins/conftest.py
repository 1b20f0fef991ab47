"""What diffusers' test mixins expect of the project that runs them."""

import os
import re
from pathlib import Path

import pytest
import torch

from diffusers_lightningdit import LightningDiTTransformer2DModel


def pytest_configure(config):
    """Make known the marks that the mixins carry; unknown ones are errors here."""
    marks = Path(os.environ.get("DIFFUSERS_SOURCE", ""), "tests", "testing_utils.py")
    if marks.is_file():
        for name in sorted(set(re.findall(r"pytest\.mark\.(\w+)", marks.read_text(encoding="utf-8")))):
            config.addinivalue_line("markers", f"{name}: of diffusers' own tests")


def draw_weights(self: LightningDiTTransformer2DModel) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in self.named_parameters():
            values = 0.15 * torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.ndim == 1 and name.endswith(".weight")
            parameter.copy_(1 + values if is_norm else values)


@pytest.fixture(scope="class", autouse=True)
def nonzero_weights():
    """The mixins build their models with the constructor, and ask whether a cache or a LoRA changes the output. That
    of a LightningDiT is zero at first, whatever its inputs: adaLN-Zero, as in the paper.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LightningDiTTransformer2DModel, "_init_weights", draw_weights)
        yield
