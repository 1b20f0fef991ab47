import pytest

from diffusers_lightningdit.evaluation.generation_config import GenerationConfig
from diffusers_lightningdit.settings import parse_config


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e30", 1e30),
        ("1e1", 10.0),
        ("2.5E-3", 0.0025),
        ("-.5e+0", -0.5),
        ("[1e-1, 1]", [0.1, 1]),
        ("dopri5", "dopri5"),
        ("1e", "1e"),
        ("'inf'", "inf"),
    ],
)
def test_numbers_of_sampling(text, value):
    config = parse_config(GenerationConfig, ["pipeline=p", "output_dir=o", "--sampling.name", text])
    assert config.sampling == {"name": value}
    assert type(config.sampling["name"]) is type(value)
