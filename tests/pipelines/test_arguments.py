"""Values of the wrong kind for each argument of each pipeline: a line that names the argument, or finite images."""

import inspect
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from diffusers_lightningdit.pipelines import (
    LightningDiTImg2ImgPipeline,
    LightningDiTInterpolationPipeline,
    LightningDiTLikelihoodPipeline,
    LightningDiTPipeline,
    VAVAEReconstructionPipeline,
)

WRONG = [None, True, -1, 0, 2.5, 10**30, 10**400, 10**5000, math.nan, math.inf, "text", "", "recipe", "a\nb", b"bytes"]
WRONG += [[], [None], [1, "a"], {}, {"a": 1}, {"scale": math.nan}, {"scale": "a"}, {1, 2}, object(), len, print]
WRONG += [torch.Generator, [torch.Generator()] * 3, (torch.Generator(),), [0.5, math.nan], (0.1, 10**400), [[[]]]]
WRONG += [torch.zeros(2), torch.zeros(1, 4, 4, 4, dtype=torch.int64), torch.full((1, 4, 4, 4), math.nan)]
WRONG += [torch.zeros(0, 4, 4, 4), torch.zeros(3, 0, 8), torch.zeros(3, 8, 8, dtype=torch.complex64), Fraction(1, 3)]
WRONG += [np.zeros((8, 8, 3), "datetime64[s]"), np.array(["a"]), np.float64("nan"), lambda: None]
WRONG += [Image.new("I;16", (8, 8)), Image.new("F", (8, 8)), Image.new("L", (20_000, 1))]

PIPELINES = [
    LightningDiTPipeline,
    LightningDiTImg2ImgPipeline,
    LightningDiTInterpolationPipeline,
    LightningDiTLikelihoodPipeline,
    VAVAEReconstructionPipeline,
]


def make(pipeline_class, transformer, vae):
    parts = {"transformer": transformer, "vae": vae, "scheduler": FlowMatchEulerDiscreteScheduler()}
    names = inspect.signature(pipeline_class.__init__).parameters
    pipe = pipeline_class(**{name: part for name, part in parts.items() if name in names})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("pipeline_class", PIPELINES, ids=lambda pipeline_class: pipeline_class.__name__)
def test_each_argument_with_each_wrong_value(pipeline_class, make_transformer, make_vae):
    if pipeline_class is LightningDiTLikelihoodPipeline:
        pytest.importorskip("torchdiffeq")
    pipe = make(pipeline_class, make_transformer(num_layers=1), make_vae())
    names = [name for name in inspect.signature(pipeline_class.__call__).parameters if name != "self"]
    good = {"class_labels": [0, 1] if "num_images" in names else 0, "image": Image.new("RGB", (8, 8), "gray")}
    good |= {"num_inference_steps": 1, "num_images": 2, "strength": 1.0, "output_type": "np"}
    good = {name: value for name, value in good.items() if name in names}
    num_refused, faults = 0, []
    for name in names:
        for number, value in enumerate(WRONG):
            about = f"{name}, value {number}, a {type(value).__name__}"
            try:
                images = pipe(**good | {name: value})[0]
                if isinstance(images, (np.ndarray, torch.Tensor)) and not np.isfinite(np.asarray(images)).all():
                    faults.append(f"{about}: not finite")
            except ValueError as error:
                num_refused += 1
                if f"`{name}`" not in str(error) or "\n" in str(error) or len(str(error)) > 600:
                    faults.append(f"{about}: {str(error)[:300]}")
            except Exception as error:
                faults.append(f"{about}: {type(error).__name__}: {str(error)[:200]}")
    assert not faults, "\n".join(faults)
    assert num_refused > 0.7 * len(names) * len(WRONG)
