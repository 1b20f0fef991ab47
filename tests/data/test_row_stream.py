import io
import itertools
import json
import tarfile

import numpy as np
import pytest
import torch
from datasets import Array3D, ClassLabel, Features
from datasets import Dataset as Rows
from PIL import Image

from diffusers_lightningdit.data import row_stream
from diffusers_lightningdit.data.row_stream import RowStream
from diffusers_lightningdit.data.streamed_latents import StreamedLatents
from diffusers_lightningdit.data.streamed_rows import StreamedImages, StreamError

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
    Rows.from_dict(columns, features=FEATURES).to_parquet(path, batch_size=3)  # rows that are read at a time


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    for number, numbers in enumerate([range(0, 4), range(4, 14), range(14, NUM_IMAGES)]):
        write_rows(folder / f"train-{number:05d}.parquet", numbers)
    return str(folder)


def make_stream(data, global_batch_size=1, random_flip=True, **arguments) -> RowStream:
    return RowStream(StreamedLatents(data, random_flip=random_flip), global_batch_size, **{**ORDER, **arguments})


def numbers(parts) -> list[float]:
    """What the images of a global batch's parts are known by."""
    return [value for batch in parts for value in batch["latents"].flatten(1)[:, 0].tolist()]


def read(data, num_samples, **arguments) -> list[float]:
    stream = make_stream(data, **arguments)
    return [value for parts in itertools.islice(stream, num_samples) for value in numbers(parts)]


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


def test_files_may_be_gathered_to_fewer_parts(data, monkeypatch):
    monkeypatch.setattr(row_stream, "MAX_PARTS", 2)
    assert sorted(int(value) for value in read(data, NUM_IMAGES)) == list(range(NUM_IMAGES))


def test_the_first_epoch_once(data):
    values = [value for batch in make_stream(data).first_epoch(4) for value in numbers([batch])]
    assert values == [int(value) for value in read(data, NUM_IMAGES)]  # none is mirrored
    batches = make_stream(data).first_epoch(4, num_samples=6)
    assert [numbers([batch]) for batch in batches] == [values[:4], values[4:6]]
    shares = [list(make_stream(data).first_epoch(2, 9, rank, 2)) for rank in range(2)]
    assert [numbers(share) for share in shares] == [
        [*values[0:2], *values[4:6], *values[8:9]],
        [*values[2:4], *values[6:8]],
    ]


def test_batches(data):
    (batch,) = next(iter(make_stream(data, 5)))
    assert batch["latents"].shape == (5, *SHAPE)
    assert (batch["latents"].dtype, batch["class_labels"].dtype) == (torch.float32, torch.int64)
    assert batch["class_labels"].tolist() == [int(value) % 2 for value in numbers([batch])]


@pytest.mark.parametrize(("world_size", "num_parts"), [(2, 1), (1, 4), (2, 2)])
def test_global_batches_are_the_same_on_any_number_of_processes(data, world_size, num_parts):
    """Part by part: the batches of all processes in the first accumulation step, then those of the second, ..."""
    arguments = {"world_size": world_size, "gradient_accumulation_steps": num_parts}
    streams = [iter(make_stream(data, 8, rank=rank, **arguments)) for rank in range(world_size)]
    whole = iter(make_stream(data, 8))
    for _ in range(9):
        parts = [next(stream) for stream in streams]
        together = [parts[rank][step] for step in range(num_parts) for rank in range(world_size)]
        assert all(len(batch["class_labels"]) == 8 // world_size // num_parts for batch in together)
        assert numbers(together) == numbers(next(whole))


@pytest.mark.parametrize("num_batches", [0, 1, 2, 6])  # of 4 samples: around blocks of 8 and epochs of 23
@pytest.mark.parametrize(("before", "after"), [(1, 2), (4, 1)])
def test_a_saved_place_is_enough_to_go_on(data, num_batches, before, after):
    states = []
    for rank in range(before):
        stream = make_stream(data, 4, rank=rank, world_size=before)
        for _ in zip(range(num_batches), stream, strict=False):
            pass
        states.append(json.loads(json.dumps(stream.state_dict())))
    assert all(state == states[0] for state in states)
    assert states[0]["num_yielded"] == 4 * num_batches
    expected = [numbers(parts) for parts in itertools.islice(make_stream(data, 4), num_batches + 10)][num_batches:]
    resumed = [make_stream(data, 4, rank=rank, world_size=after) for rank in range(after)]
    for stream in resumed:
        stream.load_state_dict(states[0])
    for batch, *parts in zip(expected, *resumed, strict=False):
        assert [value for part in parts for value in numbers(part)] == batch


def pictures(count: int) -> list[bytes]:
    files = [io.BytesIO() for _ in range(count)]
    for number, file in enumerate(files):
        Image.new("RGB", (4, 4), (20 * number, 0, 0)).save(file, "PNG")
    return [file.getvalue() for file in files]


@pytest.fixture
def image_folder(tmp_path) -> str:
    for number, content in enumerate(pictures(7)):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(tmp_path / "images")


@pytest.fixture
def tar_archives(tmp_path) -> str:
    (tmp_path / "archives").mkdir()
    for number, content in enumerate(pictures(7)):
        with tarfile.open(tmp_path / "archives" / f"{number % 2}.tar", "a") as archive:
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(tmp_path / "archives")


@pytest.mark.parametrize(
    ("kind", "columns"), [("image_folder", {}), ("tar_archives", {"image_column": "png", "label_column": None})]
)
def test_other_ways_of_keeping_images(kind, columns, request):
    def make() -> RowStream:
        return RowStream(StreamedImages(request.getfixturevalue(kind), 4, **columns), 3, shuffle_block_size=2)

    def read_images(stream, num_batches):
        return [batch["pixel_values"][:, 0, 0, 0].tolist() for (batch,) in itertools.islice(stream, num_batches)]

    batches = read_images(make(), 7)
    samples = [value for batch in batches for value in batch]
    epochs = [samples[:7], samples[7:14], samples[14:]]
    assert all(len(set(epoch)) == 7 and set(epoch) == set(samples) for epoch in epochs)
    before, after = make(), make()
    read_images(before, 2)
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert read_images(after, 5) == batches[2:]


def test_a_state_of_another_order_is_refused(data):
    state = make_stream(data, seed=1).state_dict()
    with pytest.raises(ValueError, match="`seed` is 2; required: 1, as in the state to resume from"):
        make_stream(data, seed=2).load_state_dict(state)
    with pytest.raises(ValueError, match="`num_open_files` is 3; required: 2, as in the state to resume from"):
        make_stream(data, num_open_files=3).load_state_dict(state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shuffle_block_size": 0}, "`shuffle_block_size` is 0; required: at least 1"),
        ({"num_open_files": 0}, "`num_open_files` is 0; required: at least 1"),
        ({"rank": 2, "world_size": 2}, "`rank` is 2; required: at least 0 and below `world_size`, 2"),
        ({"global_batch_size": 3, "gradient_accumulation_steps": 2}, "`global_batch_size` is 3; required: a multiple"),
    ],
)
def test_arguments(data, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_stream(data, **arguments)


def test_a_bad_row_is_named_when_its_batch_is_due(tmp_path):
    write_rows(tmp_path / "train.parquet", range(3), value=np.nan)
    stream = make_stream(str(tmp_path))
    with pytest.raises(StreamError, match=rf"{tmp_path}, sample \d of epoch 0 of the stream: the row has NaN in its"):
        next(iter(stream))


def test_a_stream_that_breaks_off(data, tmp_path):
    for number in range(3):
        write_rows(tmp_path / f"train-{number}.parquet", range(5))
    stream = iter(make_stream(str(tmp_path), 2, num_open_files=1, shuffle_block_size=5))
    next(stream)
    for number in range(3):
        (tmp_path / f"train-{number}.parquet").unlink()
    with pytest.raises(StreamError, match=rf"{tmp_path} cannot be read on \(.*\); required: sound files") as caught:
        for _ in zip(range(10), stream, strict=False):
            pass
    assert "\n" not in str(caught.value)
