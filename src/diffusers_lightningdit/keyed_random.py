# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Random numbers that depend on what they are for, not on what was drawn before.

Each is a function of its key alone, so nothing has to be saved to draw it again after a resume, and neither the number
of processes nor the size of their batches changes it. There are three kinds of keys, and none may ever change, because
interrupted runs, cached latents and generated sets are continued by later versions:

- training: `KeyedRandom` and `seed_process`, by (seed, index of the global batch, sample or process, purpose), which
  `random_key` hashes. (On CUDA devices the streams differ from those on the CPU.)
- data: `keyed_permutation`, `is_flipped` and `posterior_noise`, by numbers that numpy's `default_rng` mixes itself;
  `python_random`, by (seed, epoch, index of the sample), which `random_key` hashes.
- generated images: `image_generator` and `random_label`, by (seed, index of the image).

Letters in the shape comments: B samples of this process's batch, C latent channels.
"""

import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from accelerate.utils import set_seed


def random_key(*parts: int | str) -> int:
    """Hash the parts of a key to 63 bits: the first 8 bytes of BLAKE2b, little-endian, without the lowest bit.

    (Of a seed, torch's CPU generator uses the lower 32 bits, its CUDA generator all.)
    """
    digest = hashlib.blake2b(" ".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


class KeyedRandom:
    """The random numbers of one batch; each sample's come from a torch generator of its own.

    The seed of a generator is random_key(seed, batch_index, index of the sample in the global batch, purpose).

    Args:
        seed: The seed of the training run.
        batch_index: The number of global batches before this one.
        samples: The B indices of the batch's samples in the global batch.
        device: The device on which `normal` draws.
    """

    def __init__(self, seed: int, batch_index: int, samples: range, device: torch.device | str = "cpu"):
        self.seed = seed
        self.batch_index = batch_index
        self.samples = samples
        self.device = torch.device(device)

    def normal(self, purpose: str, shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
        """Draw N(0, 1) for each sample: float32 [B, *shape]."""
        values = torch.empty(len(self.samples), *shape, device=self.device)
        for value, generator in zip(values, self._generators(purpose, self.device), strict=True):
            value.normal_(generator=generator)
        return values

    def uniform(self, purpose: str) -> torch.Tensor:
        """Draw U[0, 1), one number for each sample, on the CPU: float32 [B]."""
        values = torch.empty(len(self.samples))
        for value, generator in zip(values, self._generators(purpose, "cpu"), strict=True):
            value.uniform_(generator=generator)
        if self.device.type == "cuda":  # from other memory, the copy would wait until the GPU has done all before it
            return values.pin_memory().to(self.device, non_blocking=True)
        return values.to(self.device)

    def _generators(self, purpose: str, device: torch.device | str) -> Iterator[torch.Generator]:
        generator = torch.Generator(device)
        for sample in self.samples:
            yield generator.manual_seed(random_key(self.seed, self.batch_index, sample, purpose))


def seed_process(seed: int, batch_index: int, rank: int) -> None:
    """Seed the global generators of this process (python, numpy, torch) for one global batch.

    Whatever draws from them (dropout of an adapter, say) draws the same after a resume with as many processes.
    """
    set_seed(random_key(seed, batch_index, rank, "process") % 2**32)


# ---------------------------------------------------------------------------------------------------------------------
# Data
# ---------------------------------------------------------------------------------------------------------------------


def keyed_permutation(num_items: int, *key: int) -> np.ndarray:
    """A random order of `num_items` items, int64 [num_items]: by (seed, epoch), or (seed, epoch, block)."""
    return np.random.default_rng(key).permutation(num_items)


def is_flipped(seed: int, epoch: int, index: int) -> bool:
    """Whether a sample is mirrored in an epoch, with probability 0.5."""
    return bool(np.random.default_rng([seed, epoch, index]).random() < 0.5)


def python_random(seed: int, epoch: int, index: int) -> random.Random:
    """A generator of Python's, for the draws that vary a sample in an epoch."""
    return random.Random(random_key(seed, epoch, index, "variation"))


def posterior_noise(seed: int, index: int, flip: bool, shape: tuple[int, int, int]) -> torch.Tensor:
    """N(0, 1) for the cached latents of image `index`, or of the mirrored image: float32 [C, height, width]."""
    return torch.from_numpy(np.random.default_rng([seed, index, flip]).standard_normal(shape, dtype=np.float32))


# ---------------------------------------------------------------------------------------------------------------------
# Generated images
# ---------------------------------------------------------------------------------------------------------------------


def image_generator(seed: int, index: int) -> torch.Generator:
    """The generator for the noise of one image of a generated set, on the CPU: the same noise on every device.

    Neighbouring images have neighbouring seeds, since torch's CPU generator uses only 32 bits of a seed: of 50,000
    hashes of (seed, index), two would probably agree in these.
    """
    return torch.Generator().manual_seed((random_key(seed, "noise") + index) % 2**63)


def random_label(seed: int, index: int, num_classes: int) -> int:
    """The label of one image of a generated set, uniform in 0 to num_classes - 1."""
    return random_key(seed, index, "label") % num_classes
