# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Statistics of Inception features that others publish, as `.npz` files in the layout of ADM's evaluation.

`mu` [D] and `sigma` [D, D] of the pooled features, and mostly `mu_s`, `sigma_s` of the spatial ones. A file may hold
images as well (`arr_0`), of which there are fewer than the statistics were made from.
"""

import zipfile
from pathlib import Path

import numpy as np
import torch

from ..files import one_line

# Rounding, relative to the largest value, as `frechet_distance` allows for.
TOLERANCE = 1e-6
ARRAYS = {"features": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}


def archive_names(path: str | Path) -> list[str]:
    """Names of the arrays in an `.npz` file; raises ValueError if it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read ({error}); required: an .npz file.") from error


def read_statistics(path: str | Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """{"features": (mean [D], covariance [D, D]), "spatial": ...} in float64, as far as the file has them.

    Raises:
        ValueError: naming file and array, if one is pickled, damaged, or of another shape, or if `sigma` is no
            covariance.
    """
    names, statistics = archive_names(path), {}
    for kind, (mean_name, covariance_name) in ARRAYS.items():
        if mean_name in names or covariance_name in names:
            mean, covariance = _read(path, mean_name), _read(path, covariance_name)
            if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
                shapes = f"{list(mean.shape)} and {list(covariance.shape)}"
                raise ValueError(f"{path} holds {mean_name}, {covariance_name} of {shapes}; required: [D], [D, D].")
            _check_covariance(f"{covariance_name} of {path}", covariance)
            statistics[kind] = mean, covariance
    return statistics


def _check_covariance(name: str, covariance: torch.Tensor) -> None:
    largest, size = covariance.abs().max().item(), len(covariance)
    asymmetry = (covariance - covariance.T).abs().max().item()
    if asymmetry > TOLERANCE * largest:
        raise ValueError(f"{name} differs from its transpose by {asymmetry:g}; required: a symmetric matrix.")
    allowed = TOLERANCE * largest * size
    # Cholesky's decomposition, a tenth of the cost of eigenvalues, exists where all of them are positive.
    raised = (covariance + covariance.T) / 2 + allowed * torch.eye(size, dtype=covariance.dtype)
    if torch.linalg.cholesky_ex(raised).info > 0:
        smallest = torch.linalg.eigvalsh(covariance)[0].item()
        if smallest < -allowed:
            raise ValueError(f"{name} has the eigenvalue {smallest:g}; required: a covariance, with none below 0.")


def _read(path: str | Path, name: str) -> torch.Tensor:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            array = arrays[name]
    except KeyError as error:
        raise ValueError(f"{path} has no {name}; required: mean and covariance.") from error
    except Exception as error:  # a damaged file can raise nearly anything
        raise ValueError(
            f"{name} of {path} cannot be read ({one_line(error)}); required: numbers, not pickled."
        ) from error
    if array.dtype.kind != "f" or not np.isfinite(array).all():
        raise ValueError(f"{name} of {path} holds {array.dtype}; required: finite floating-point numbers.")
    return torch.from_numpy(array.astype(np.float64))
