# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Random numbers that depend on what they are for, not on what was drawn before.

Each is a function of (seed, position, place, purpose): the number of the global batch since the beginning of training,
the place of the sample in it, and a word. Nothing has to be saved to draw them again after a resume, and the number of
processes that share a global batch doesn't change them. (On CUDA devices the streams are others than on the CPU.)

Letters in the shape comments: B samples of this process's batch.
"""

import hashlib

import torch
from accelerate.utils import set_seed


def random_key(*parts: int | str) -> int:
    """A hash of 63 bits. (Of a seed, torch's CPU generator takes the lower 32; its CUDA generator all.)"""
    digest = hashlib.blake2b(" ".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class KeyedRandom:
    """The random numbers of one batch.

    Args:
        seed: of the training run.
        position: global batches before this one.
        places: places of the batch's samples in the global batch, B in all.
        device: where `normal` is drawn.
    """

    def __init__(self, seed: int, position: int, places: range, device: torch.device | str = "cpu"):
        self.seed = seed
        self.position = position
        self.places = places
        self.device = torch.device(device)

    def normal(self, purpose: str, shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
        """N(0, 1) for each sample: float32 [B, *shape]."""
        generator = torch.Generator(self.device)
        samples = torch.empty(len(self.places), *shape, device=self.device)
        for sample, place in zip(samples, self.places, strict=True):
            generator.manual_seed(random_key(self.seed, self.position, place, purpose))
            sample.normal_(generator=generator)
        return samples

    def uniform(self, purpose: str) -> torch.Tensor:
        """U[0, 1), one number for each sample, drawn on the CPU: float32 [B]."""
        generator = torch.Generator()
        numbers = torch.empty(len(self.places))
        for number, place in zip(numbers, self.places, strict=True):
            generator.manual_seed(random_key(self.seed, self.position, place, purpose))
            number.uniform_(generator=generator)
        return numbers.to(self.device)


def seed_process(seed: int, position: int, rank: int) -> None:
    """Seed the global generators of this process (python, numpy, torch) for one global batch.

    For whatever draws from them (dropout of an adapter, say): the same again after a resume with as many processes.
    """
    set_seed(random_key(seed, position, rank, "process") % 2**32)


def image_generator(seed: int, index: int) -> torch.Generator:
    """The generator for the noise of one image of a generated set, on the CPU: the same noise on every device.

    Neighbouring images have neighbouring seeds, since torch's CPU generator uses only 32 bits of a seed: of 50,000
    hashes of (seed, index), two would probably agree in these.

    Args:
        seed: The seed of the set.
        index: The index of the image in the set.
    """
    return torch.Generator().manual_seed((random_key(seed, "noise") + index) % 2**63)
