# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""A t-SNE of latents (van der Maaten, Hinton 2008), by scikit-learn.

The VA-VAE paper (arXiv 2501.01423) looks at the uniformity of latents in such a plane.

Letters in the shape comments: N latents.
"""

import importlib.util

import torch


def check_scikit_learn() -> None:
    """Raise ImportError, in one line, if scikit-learn is not installed."""
    if importlib.util.find_spec("sklearn") is None:
        raise ImportError('a t-SNE needs scikit-learn: pip install "diffusers-lightningdit[evaluation]".')


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
    check_scikit_learn()
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # scikit-learn needs it, too

    values = latents.detach().float().cpu().flatten(1).numpy()
    with threadpool_limits(num_threads):
        plane = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(values)
    return torch.from_numpy(plane).double()
