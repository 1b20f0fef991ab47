# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""A t-SNE of latents (van der Maaten, Hinton 2008), by scikit-learn, and its picture coloured by density.

The VA-VAE paper (arXiv 2501.01423) looks at the uniformity of latents in such a plane.

Letters in the shape comments: N latents.
"""

import importlib.util
from pathlib import Path

import torch

from ..data.latent_shards import partial_name, publish


def check_packages() -> None:
    """Raise ImportError, in one line, if a package that this module needs is not installed."""
    for module, name in (("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")):
        if importlib.util.find_spec(module) is None:
            raise ImportError(f'a t-SNE plot needs {name}: pip install "diffusers-lightningdit[evaluation]".')


def tsne_plane(latents: torch.Tensor, perplexity: float = 30.0, seed: int = 0, num_threads: int = 1) -> torch.Tensor:
    """Coordinates of latents in the plane, [N, ...] -> float64 [N, 2]; the same each time for the same arguments.

    Args:
        latents: [N, ...], flattened for each.
        perplexity: about the number of neighbours that count, below N.
        seed: of the start, which is the plane of the principal components.
        num_threads: of the computation; another number may change the plane.

    Raises:
        ValueError: for a perplexity that is not below N, or values that are not finite.
    """
    if not 0 < perplexity < len(latents):
        raise ValueError(f"`perplexity` is {perplexity:g}; required: above 0 and below the {len(latents)} latents.")
    if not latents.isfinite().all():
        raise ValueError("`latents` holds NaN or infinity; required: finite values.")
    check_packages()
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # scikit-learn needs it, too

    values = latents.detach().float().cpu().flatten(1).numpy()
    with threadpool_limits(num_threads):
        plane = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(values)
    return torch.from_numpy(plane).double()


def plot_density(path: str | Path, points: torch.Tensor, density: torch.Tensor, title: str) -> None:
    """Write a picture of points [N, 2], each in the colour of its density [N], to a PNG file."""
    check_packages()
    from matplotlib.figure import Figure  # draws without a window, and keeps no state

    figure = Figure(figsize=(6, 5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    # the densest on top
    order = density.argsort()
    x, y = points[order].unbind(1)
    size = min(20.0, max(1.0, 20_000 / len(points)))
    dots = axes.scatter(x.numpy(), y.numpy(), c=density[order].numpy(), s=size, cmap="viridis", linewidths=0)
    axes.set(xticks=[], yticks=[], title=title)
    figure.colorbar(dots, label="density")
    partial = partial_name(Path(path))
    figure.savefig(partial, format="png")
    publish(partial, Path(path))
