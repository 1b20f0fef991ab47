import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusers_lightningdit.data.latent_shards import (
    LatentShards,
    shard_name,
    write_shard,
    write_statistics,
)
from diffusers_lightningdit.files import write_json
from diffusers_lightningdit.original import read_latents_statistics


def random_shard(num_images=3, shape=(4, 2, 2), dtype=torch.float32):
    latents, latents_flip = torch.randn(2, num_images, *shape).to(dtype)
    return {"latents": latents, "latents_flip": latents_flip, "labels": torch.arange(num_images) % 2}


@pytest.fixture
def folder(tmp_path):
    for number, num_images in enumerate([3, 2]):
        write_shard(tmp_path / shard_name(number), **random_shard(num_images))
    return tmp_path


def test_names_are_the_originals_and_sort():
    assert shard_name(1) == "latents_rank00_shard001.safetensors"
    names = [shard_name(number) for number in (0, 9, 10, 999, 1000, 12_345)]
    assert names == sorted(names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_shard_has_the_originals_layout(golden, tmp_path, dtype):
    from safetensors import safe_open

    shard = random_shard(dtype=dtype)
    write_shard(tmp_path / shard_name(0), **shard)
    written = load_file(tmp_path / shard_name(0))
    assert written.keys() == shard.keys()
    assert all(torch.equal(written[name], shard[name]) for name in shard)
    with safe_open(tmp_path / shard_name(0), "pt") as file:
        metadata = file.metadata()
    assert metadata == {"total_size": "3", "dtype": str(dtype), "device": "cpu"}
    with safe_open(golden("latent_dataset/imagenet_train_64/latents_rank00_shard000.safetensors"), "pt") as file:
        assert file.metadata().keys() == metadata.keys()
        assert set(file.keys()) == set(shard)


def test_equal_content_is_written_with_equal_bytes(tmp_path):
    shard, contents = random_shard(), set()
    for number in range(8):  # safetensors alone orders the metadata by chance
        write_shard(tmp_path / shard_name(number), **shard)
        contents.add((tmp_path / shard_name(number)).read_bytes())
    assert len(contents) == 1
    assert not list(tmp_path.glob("*.partial"))


def test_files_can_be_read_by_those_who_may_read_others(tmp_path):
    write_shard(tmp_path / shard_name(0), **random_shard())
    (tmp_path / "other").touch()
    assert (tmp_path / shard_name(0)).stat().st_mode == (tmp_path / "other").stat().st_mode


def test_reading_across_shards(folder):
    shards = LatentShards(folder, with_flips=True)
    first, second = (load_file(folder / shard_name(number)) for number in (0, 1))
    assert len(shards) == 5
    assert shards.shape == (4, 2, 2)
    assert shards.labels.tolist() == [0, 1, 0, 0, 1]
    for index, (shard, row) in enumerate([(first, 0), (first, 1), (first, 2), (second, 0), (second, 1)]):
        assert torch.equal(shards.read(index, flip=False), shard["latents"][row])
        assert torch.equal(shards.read(index, flip=True), shard["latents_flip"][row])
    assert shards.place(3) == f"{folder / shard_name(1)}, row 0"


def test_no_file_is_opened_per_item(folder, monkeypatch):
    from diffusers_lightningdit.data import latent_shards

    opened = []
    original = latent_shards.safe_open
    monkeypatch.setattr(latent_shards, "safe_open", lambda *args: opened.append(args) or original(*args))
    shards = LatentShards(folder, with_flips=True)
    opened.clear()
    for _ in range(3):
        for index in range(5):
            shards.read(index, flip=False)
    assert len(opened) == 2


def test_shards_go_to_worker_processes(folder):
    shards = LatentShards(folder, with_flips=True)
    expected = shards.read(4, flip=True)
    assert torch.equal(pickle.loads(pickle.dumps(shards)).read(4, flip=True), expected)


# -- damaged --


def rewrite(folder, **tensors):
    """Replace tensors of the second shard, None: leave out; returns its path."""
    path = folder / shard_name(1)
    shard = {**load_file(path), **tensors}
    save_file({name: tensor for name, tensor in shard.items() if tensor is not None}, path)
    return path


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_a_truncated_shard_is_named(folder, size):
    path = folder / shard_name(1)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=f"{path} is truncated or no safetensors file") as error:
        LatentShards(folder, with_flips=True)
    assert "\n" not in str(error.value)


def test_a_missing_flip_is_named_and_allowed_without_flips(folder):
    path = rewrite(folder, latents_flip=None)
    with pytest.raises(ValueError, match=f"{path} has no tensor `latents_flip`; .* with flips switched off"):
        LatentShards(folder, with_flips=True)
    assert len(LatentShards(folder, with_flips=False)) == 5


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"labels": None}, "has no tensor `labels`; required: latents, latents_flip and labels"),
        ({"labels": torch.zeros(2)}, r"has labels F32 \[2\]; required: I64 \[N\]"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"has `latents` F32 \[2, 4, 2, 2\] and 3 labels; required"),
        ({"latents_flip": torch.zeros(2, 4, 2, 3)}, r"has `latents_flip` F32 \[2, 4, 2, 3\] and 2 labels; required"),
        ({"latents": torch.zeros(2, 4)}, r"has `latents` F32 \[2, 4\]"),
        (
            {"latents": torch.zeros(2, 8, 2, 2), "latents_flip": torch.zeros(2, 8, 2, 2)},
            r"holds latents of shape \[8, 2, 2\]; required: \[4, 2, 2\], as in latents_rank00_shard000",
        ),
    ],
)
def test_a_damaged_shard_is_named(folder, tensors, message):
    path = rewrite(folder, **tensors)
    with pytest.raises(ValueError, match=f"{path} {message}"):
        LatentShards(folder, with_flips=True)


def test_a_folder_without_shards(tmp_path):
    with pytest.raises(ValueError, match=r"has no \*.safetensors file; required: at least one shard"):
        LatentShards(tmp_path, with_flips=True)


def test_a_missing_shard_is_noticed(folder):
    write_json(folder / "latents_info.json", {"num_images": 5, "id2label": {"0": "cat", "1": "dog"}})
    assert LatentShards(folder, with_flips=True).id2label == {0: "cat", 1: "dog"}
    (folder / shard_name(0)).unlink()
    with pytest.raises(ValueError, match=r"latents_info.json tells of 5 images, the files beside it hold 2; required"):
        LatentShards(folder, with_flips=True)


# -- statistics --


def test_statistics_are_read_as_the_original_wrote_them(golden, tmp_path):
    mean, std = read_latents_statistics(golden("latent_dataset/imagenet_train_64/latents_stats.pt"))
    assert len(mean) == len(std) == 32
    write_statistics(tmp_path, mean, std)
    assert read_latents_statistics(tmp_path / "latents_stats.pt") == (mean, std)
    written = torch.load(tmp_path / "latents_stats.pt", weights_only=True)
    assert written["mean"].shape == written["std"].shape == (1, 32, 1, 1)
