# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The Inception Score (Salimans et al. 2016, arXiv 1606.03498, section 4), from probabilities that arrive in batches.

Letters in the shape comments: B images of a batch, C classes.
"""

import torch

# The score of a single image is 1, whatever it shows.
MIN_IMAGES_PER_SPLIT = 2


class InceptionScore:
    """The score exp(mean over x of KL(p(y|x) || p(y))) of each split, in float64. Only sums are kept in memory.

    The images are split in their order; split s begins at image s * num_images // num_splits, as in torch-fidelity, so
    that sizes differ by at most one. 50,000 images in 10 splits are split as in ADM's evaluation, 5,000 each.

    Args:
        num_images: The number of images that will arrive.
        num_splits: The number of splits, between 1 and `num_images`.

    Raises:
        ValueError: For more splits than images.
    """

    def __init__(self, num_images: int, num_splits: int = 10):
        if not 1 <= num_splits <= num_images:
            raise ValueError(f"`num_splits` is {num_splits}; required: 1 to {num_images}, the number of images.")
        self.num_images, self.num_splits = num_images, num_splits
        self.count = 0
        self._sizes = torch.zeros(num_splits, dtype=torch.float64)
        self._negative_entropies = torch.zeros(num_splits, dtype=torch.float64)  # sums of p log p
        self._probabilities: torch.Tensor | None = None  # sums, [splits, C]

    def update(self, probabilities: torch.Tensor) -> None:
        """Add the probabilities p(y|x) of the next images, [B, C].

        Raises:
            ValueError: If rows are no probabilities, or there are more than `num_images` images.
        """
        p = probabilities.detach().double().cpu()
        if not ((p >= 0).all() and torch.allclose(p.sum(1), p.new_ones(len(p)), atol=1e-4)):
            raise ValueError("`probabilities` has rows that do not sum to 1; required: probabilities of classes.")
        if self.count + len(p) > self.num_images:
            raise ValueError(f"{self.count + len(p)} images came; required: {self.num_images}, as announced.")
        next_indices = torch.arange(self.count + 1, self.count + 1 + len(p))
        splits = (next_indices * self.num_splits - 1) // self.num_images
        if self._probabilities is None:
            self._probabilities = torch.zeros(self.num_splits, p.shape[1], dtype=torch.float64)
        self._sizes.index_add_(0, splits, torch.ones(len(p), dtype=torch.float64))
        self._negative_entropies.index_add_(0, splits, torch.xlogy(p, p).sum(1))
        self._probabilities.index_add_(0, splits, p)
        self.count += len(p)

    def compute(self) -> tuple[float, float]:
        """Return the mean and the population standard deviation over the splits.

        Raises:
            ValueError: If fewer than `num_images` images have arrived.
        """
        if self.count < self.num_images:
            raise ValueError(f"{self.count} images came; required: {self.num_images}, as announced.")
        marginals = self._probabilities / self._sizes[:, None]
        divergences = self._negative_entropies / self._sizes - torch.xlogy(marginals, marginals).sum(1)
        scores = divergences.exp()
        return scores.mean().item(), scores.std(correction=0).item()
