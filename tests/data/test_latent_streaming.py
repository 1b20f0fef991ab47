import itertools
import json

import numpy as np
import pytest
import torch
from datasets import Array3D, ClassLabel, Features
from datasets import Dataset as Rows
from torch.utils.data import DataLoader

from diffusers_lightningdit.data.latent_streaming import StreamingLatentsDataset

SHAPE = (2, 1, 1)
NUM_IMAGES = 23
ORDER = {"seed": 1, "shuffle_block_size": 8, "num_open_files": 2}
FEATURES = Features(
    {
        "latents": Array3D(SHAPE, "float32"),
        "latents_flip": Array3D(SHAPE, "float32"),
        "label": ClassLabel(names=["a", "b"]),
    }
)


def write_rows(path, numbers, value=None):
    """Latents of image n are n, mirrored n + 0.5."""
    columns = {
        "latents": [np.full(SHAPE, n if value is None else value, np.float32) for n in numbers],
        "latents_flip": [np.full(SHAPE, n + 0.5 if value is None else value, np.float32) for n in numbers],
        "label": [n % 2 for n in numbers],
    }
    Rows.from_dict(columns, features=FEATURES).to_parquet(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    for number, numbers in enumerate([range(0, 4), range(4, 14), range(14, NUM_IMAGES)]):
        write_rows(folder / f"train-{number:05d}.parquet", numbers)
    return str(folder)


def read(data, num_samples, **arguments):
    dataset = StreamingLatentsDataset(data, **{**ORDER, **arguments})
    return [item["latents"].flatten()[0].item() for item in itertools.islice(dataset, num_samples)]


def test_every_epoch_has_each_image_once_in_another_order(data):
    values = read(data, 3 * NUM_IMAGES)
    epochs = [[int(value) for value in values[e * NUM_IMAGES : (e + 1) * NUM_IMAGES]] for e in range(3)]
    assert all(sorted(epoch) == list(range(NUM_IMAGES)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    flips = sum(value % 1 == 0.5 for value in values)
    assert NUM_IMAGES * 3 * 0.3 < flips < NUM_IMAGES * 3 * 0.7
    assert read(data, 20) == values[:20]
    assert read(data, 20, seed=2) != values[:20]


def test_without_flips(data):
    assert all(value % 1 == 0 for value in read(data, NUM_IMAGES, random_flip=False))


def test_items(data):
    item = next(iter(StreamingLatentsDataset(data)))
    assert item["latents"].shape == SHAPE
    assert item["latents"].dtype == torch.float32
    assert item["class_labels"] == int(item["latents"].flatten()[0].item()) % 2


@pytest.mark.parametrize("world_size", [2, 4])
def test_global_batches_are_the_same_on_any_number_of_processes(data, world_size):
    batch_size, num_batches = 8 // world_size, 9
    parts = [read(data, num_batches * batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    whole = read(data, num_batches * 8)
    for b in range(num_batches):
        together = [value for part in parts for value in part[b * batch_size : (b + 1) * batch_size]]
        assert sorted(together) == sorted(whole[b * 8 : (b + 1) * 8])


@pytest.mark.parametrize("num_samples", [0, 8, 20, 48])  # around blocks of 8 and epochs of 23
@pytest.mark.parametrize(("before", "after"), [(1, 2), (4, 1)])
def test_a_saved_place_is_enough_to_go_on(data, num_samples, before, after):
    states = []
    for rank in range(before):
        dataset = StreamingLatentsDataset(data, **ORDER, rank=rank, world_size=before)
        for _ in zip(range(num_samples // before), dataset, strict=False):
            pass
        states.append(json.loads(json.dumps(dataset.state_dict())))
    assert all(state["num_yielded"] == num_samples for state in states)
    expected = read(data, num_samples + 40)[num_samples:]
    for state in states:  # any process's
        resumed = []
        for rank in range(after):
            dataset = StreamingLatentsDataset(data, **ORDER, rank=rank, world_size=after)
            dataset.load_state_dict(state)
            resumed.append([item["latents"].flatten()[0].item() for item in itertools.islice(dataset, 40 // after)])
        assert [value for group in zip(*resumed, strict=True) for value in group] == expected


def test_a_state_of_another_order_is_refused(data):
    state = StreamingLatentsDataset(data, seed=1).state_dict()
    with pytest.raises(ValueError, match="`seed` is 2; required: 1, as in the state to resume from"):
        StreamingLatentsDataset(data, seed=2).load_state_dict(state)
    with pytest.raises(ValueError, match="after 3 samples; required: a multiple of `world_size`, 2"):
        StreamingLatentsDataset(data, seed=1, world_size=2).load_state_dict({**state, "num_yielded": 3})


def test_batches(data):
    batch = next(iter(DataLoader(StreamingLatentsDataset(data), batch_size=5)))
    assert batch["latents"].shape == (5, *SHAPE)
    assert batch["class_labels"].dtype == torch.int64
    with pytest.raises(ValueError, match="`num_workers` is above 0; required: 0"):
        next(iter(DataLoader(StreamingLatentsDataset(data), batch_size=5, num_workers=1)))


def test_bad_input(data, tmp_path):
    with pytest.raises(ValueError, match="`data` is '/no/such/folder', split 'train'; required"):
        StreamingLatentsDataset("/no/such/folder")
    with pytest.raises(ValueError, match="`shuffle_block_size` is 0; required: at least 1"):
        StreamingLatentsDataset(data, shuffle_block_size=0)
    with pytest.raises(ValueError, match="`rank` is 2; required: at least 0 and below `world_size`, 2"):
        StreamingLatentsDataset(data, rank=2, world_size=2)
    write_rows(tmp_path / "train.parquet", range(3), value=np.nan)
    with pytest.raises(ValueError, match=f"{tmp_path}, sample . of epoch 0 has NaN in its latents"):
        next(iter(StreamingLatentsDataset(str(tmp_path))))
