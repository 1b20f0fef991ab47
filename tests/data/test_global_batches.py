import itertools
import pickle

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from diffusers_lightningdit.data.global_batches import EpochIndex, GlobalBatchSampler


def global_batches(num_batches, world_size=1, gradient_accumulation_steps=1, start=0, **arguments):
    """The global batches, put together from what every process yields, as [(epoch, index), ...]."""
    arguments = {"num_samples": 23, "global_batch_size": 8, "seed": 3, **arguments}
    parts = []
    for rank in range(world_size):
        sampler = GlobalBatchSampler(
            **arguments, rank=rank, world_size=world_size, gradient_accumulation_steps=gradient_accumulation_steps
        )
        sampler.set_position(start)
        parts.append(list(itertools.islice(sampler, num_batches * gradient_accumulation_steps)))
    batches = []
    for first in range(0, num_batches * gradient_accumulation_steps, gradient_accumulation_steps):
        steps = [part[step] for step in range(first, first + gradient_accumulation_steps) for part in parts]
        batches.append([(index.epoch, int(index)) for step in steps for index in step])
    return batches


@pytest.mark.parametrize(("world_size", "steps"), [(2, 1), (4, 1), (1, 4), (2, 2), (8, 1)])
def test_the_order_is_the_same_whatever_the_processes(world_size, steps):
    assert global_batches(7, world_size, steps) == global_batches(7)


def test_an_epoch_has_every_sample_at_most_once_and_drops_others_each_time():
    batches = global_batches(8)
    assert [{epoch for epoch, _ in batch} for batch in batches] == [{0}, {0}, {1}, {1}, {2}, {2}, {3}, {3}]
    seen = [{index for _, index in batches[2 * e] + batches[2 * e + 1]} for e in range(4)]
    assert all(len(indices) == 16 for indices in seen)
    assert set.union(*seen) == set(range(23))


def test_seeds_and_epochs_give_other_orders():
    assert [index for _, index in global_batches(1)[0]] != [index for _, index in global_batches(1, seed=4)[0]]
    assert [index for _, index in global_batches(3)[0]] != [index for _, index in global_batches(3)[2]]


@pytest.mark.parametrize("start", [1, 2, 5, 100])
def test_a_position_is_enough_to_resume(start):
    assert global_batches(3, start=start) == global_batches(start + 3)[start:]
    assert global_batches(3, world_size=4, start=start) == global_batches(start + 3)[start:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"global_batch_size": 0}, "`global_batch_size` is 0; required: at least 1"),
        ({"global_batch_size": 24}, "`global_batch_size` is 24; required: at most the 23 samples"),
        ({"world_size": 3}, "`global_batch_size` is 8; required: a multiple of 3, the 3 processes times the 1"),
        ({"rank": 2, "world_size": 2}, "`rank` is 2; required: at least 0 and below `world_size`, 2"),
        ({"seed": -1}, "`seed` is -1; required: at least 0"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        GlobalBatchSampler(**{"num_samples": 23, "global_batch_size": 8, **arguments})


def test_an_index_keeps_its_epoch_on_the_way_to_a_worker():
    index = pickle.loads(pickle.dumps(EpochIndex(5, epoch=7)))
    assert index == 5
    assert index.epoch == 7


class EpochsAndIndices(Dataset):
    def __getitem__(self, index):
        return torch.tensor([index.epoch, index])


def test_batches_reach_workers_in_order():
    sampler = GlobalBatchSampler(23, 8, seed=3)
    loader = DataLoader(EpochsAndIndices(), batch_sampler=sampler, num_workers=1)
    batches = [[tuple(row) for row in batch.tolist()] for batch in itertools.islice(loader, 3)]
    assert batches == global_batches(3)
