"""The YAML configuration of the original: what shapes cannot tell, above all how a checkpoint is sampled."""

import math
from pathlib import Path

import yaml

from ..files import first_line, resolve_file

# The original always guides the first three channels (of 32).
GUIDANCE_CHANNELS = 3
# What a sampling recipe of the pipeline can express; torchdiffeq's methods beside Euler.
REQUIRED_SETTINGS = {
    "transport.path_type": "Linear",
    "transport.prediction": "velocity",
    "sample.reverse": False,
}
SAMPLING_METHODS = ("euler", "dopri5", "heun2")
# Beside the original's "ODE", few steps that add new noise after each (FACM, arXiv 2507.03738). There,
# `num_sampling_steps` counts evaluations, as the authors of such networks do.
SAMPLING_MODES = ("ODE", "consistency")


class OriginalConfig:
    """Typed access to the values of an original YAML, by dotted names such as "sample.cfg_scale".

    Args:
        values: The content of the file.
        name: The name of the file, for messages.
    """

    def __init__(self, values: dict, name: str = "config"):
        if not isinstance(values, dict):
            raise ValueError(f"{name}: holds a {type(values).__name__}; required: a mapping of sections.")
        self.values = values
        self.name = name

    @classmethod
    def read(cls, file: str | Path) -> "OriginalConfig":
        """Read a YAML file; raises ValueError if it is none."""
        path = resolve_file(file)
        try:
            return cls(yaml.safe_load(path.read_text(encoding="utf-8")), str(file))
        except (yaml.YAMLError, UnicodeDecodeError, OSError, RecursionError) as error:  # brackets by the thousand
            raise ValueError(f"{file}: is no readable YAML file: {first_line(error)}") from error

    def get(self, key: str, kind: type, default=None):
        """The value of a dotted key, or `default` if it or its section is absent or null.

        Raises:
            ValueError: if the value is not of `kind` (bool, int, float, str, list or dict).
        """
        value = self.values
        parts = key.split(".")
        for i, part in enumerate(parts):
            if value is None:
                return default
            if not isinstance(value, dict):
                raise self.error(".".join(parts[:i]), value, "a section with names of its own")
            value = value.get(part)
        if value is None:
            return default
        if kind is float:  # YAML 1.1 takes 1e-6 (no dot) for a string
            try:
                number = math.nan if isinstance(value, bool) else float(value)
            except (TypeError, ValueError):
                number = math.nan
            if not math.isfinite(number):
                raise self.error(key, value, "a number")
            return number
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.error(key, value, f"of type {kind.__name__}")
        return value

    def error(self, key: str, value, requirement: str) -> ValueError:
        """The error for a value, which names the file, the key and what is required."""
        return ValueError(f"{self.name}: `{key}` is {value!r}; required: {requirement}.")

    def check(self, key: str, kind: type, of_weights) -> None:
        """Raise ValueError if the YAML has the key, with another value than the weights."""
        value = self.get(key, kind)
        if value is not None and value != of_weights:
            raise self.error(key, value, f"{of_weights!r}, as the weights have it")

    @property
    def latent_multiplier(self) -> float:
        """The factor of normalised latents, `data.latent_multiplier`, by default 0.18215 as in the original.

        Raises:
            ValueError: if it is not positive.
        """
        value = self.get("data.latent_multiplier", float, 0.18215)  # the original's default
        if value <= 0:
            raise self.error("data.latent_multiplier", value, "a positive number")
        return value

    @property
    def scheduler_shift(self) -> float:
        """diffusers' shift of the time grid, the inverse of the original's; 0 or none there means no shift."""
        value = self.get("sample.timestep_shift", float, 0.0)
        if value < 0:
            raise self.error("sample.timestep_shift", value, "0 or a positive number")
        return 1 / value if value > 0 else 1.0

    def sampling_recipe(self, in_channels: int) -> dict | None:
        """The `sample` section as a recipe of `LightningDiTPipeline`; None if the YAML has no such section.

        Raises:
            ValueError: for a setting that the pipeline does not sample with.
        """
        for key, required in REQUIRED_SETTINGS.items():
            value = self.get(key, type(required), required)
            if value != required:
                raise self.error(key, value, f"{required!r}, since the pipeline samples nothing else")
        if not self.get("sample", dict):
            return None
        if self.is_consistency:
            return self._consistency_recipe()
        method = self.get("sample.sampling_method", str, "euler")
        if method not in SAMPLING_METHODS:
            raise self.error("sample.sampling_method", method, f"one of {', '.join(SAMPLING_METHODS)}")
        num_points = self.get("sample.num_sampling_steps", int)
        if num_points is None or num_points < 2:
            raise self.error("sample.num_sampling_steps", num_points, "at least 2, the points of the time grid")
        scale = self.get("sample.cfg_scale", float, 1.0)
        if scale < 0:
            raise self.error("sample.cfg_scale", scale, "at least 0")
        start = self.get("sample.cfg_interval_start", float, 0.0)
        if not 0 <= start <= 1:
            raise self.error("sample.cfg_interval_start", start, "a time from 0 to 1")
        # Internal guidance (arXiv 2512.24176) is in the files of a project that guides all channels.
        internal_scale = self.get("sample.ig_scale", float)
        if internal_scale is not None and internal_scale < 0:
            raise self.error("sample.ig_scale", internal_scale, "at least 0")
        recipe = {
            "num_inference_steps": num_points - 1,  # the original counts the points of the grid
            "guidance_scale": scale,
            "guidance_interval": [start, 1.0],
            "guidance_channels": min(GUIDANCE_CHANNELS, in_channels) if internal_scale is None else None,
        }
        if internal_scale is not None:
            recipe["internal_guidance_scale"] = internal_scale
        if method != "euler":
            recipe["ode_method"] = method
            for name in ("atol", "rtol"):
                tolerance = self.get(f"sample.{name}", float)
                if tolerance is not None:
                    recipe[f"ode_{name}"] = tolerance
        return recipe

    @property
    def is_consistency(self) -> bool:
        """Whether the network jumps to the data in each of a few steps, and new noise is added in between."""
        mode = self.get("sample.mode", str, SAMPLING_MODES[0])
        if mode not in SAMPLING_MODES:
            raise self.error("sample.mode", mode, f"one of {', '.join(SAMPLING_MODES)}")
        return mode == "consistency"

    def _consistency_recipe(self) -> dict:
        num_steps = self.get("sample.num_sampling_steps", int)
        if num_steps is None or num_steps < 1:
            raise self.error("sample.num_sampling_steps", num_steps, "at least 1, the evaluations of the network")
        for key, required in (("sample.cfg_scale", 1.0), ("sample.timestep_shift", 0.0)):
            value = self.get(key, float, required)
            if value != required:
                raise self.error(key, value, f"{required}, since a network for few steps has learnt guidance and grid")
        return {"num_inference_steps": num_steps, "guidance_scale": 1.0}


def sampling_section(recipe: dict, scheduler_shift: float, is_consistency: bool = False) -> dict | None:
    """The way back: a recipe as the `sample` section of a YAML, or None if the original cannot sample so.

    Args:
        recipe: The recipe of a pipeline.
        scheduler_shift: The shift of its scheduler.
        is_consistency: Whether its scheduler adds new noise after each step.
    """
    interval = recipe.get("guidance_interval") or [0.0, 1.0]
    scale = recipe.get("guidance_scale")
    guided = scale is not None and scale > 1
    if recipe.get("num_inference_steps") is None or scale is None:
        return None
    if is_consistency:
        if guided or scheduler_shift != 1:
            return None
        return {"mode": "consistency", "num_sampling_steps": recipe["num_inference_steps"]}
    internal_scale = recipe.get("internal_guidance_scale")
    channels = GUIDANCE_CHANNELS if internal_scale is None else None
    if guided and (recipe.get("guidance_channels") != channels or interval[1] != 1):
        return None
    if internal_scale is not None and list(recipe.get("internal_guidance_interval") or [0, 1]) != [0, 1]:
        return None
    return {
        "mode": "ODE",
        "sampling_method": recipe.get("ode_method") or "euler",
        "atol": recipe.get("ode_atol", 1e-6),
        "rtol": recipe.get("ode_rtol", 1e-3),
        "reverse": False,
        "likelihood": False,
        "num_sampling_steps": recipe["num_inference_steps"] + 1,
        "cfg_scale": scale,
        **({} if internal_scale is None else {"ig_scale": internal_scale}),
        "cfg_interval_start": interval[0],
        "timestep_shift": 0.0 if scheduler_shift == 1 else round(1 / scheduler_shift, 12),
    }
