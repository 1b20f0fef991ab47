import json

import numpy as np
import pytest
import torch
from datasets import Array3D, ClassLabel, Features, Value
from datasets import Dataset as Rows
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from diffusers_lightningdit import AutoencoderVAVAE
from diffusers_lightningdit.data.global_batches import EpochIndex, GlobalBatchSampler
from diffusers_lightningdit.data.latent_dataset import LatentsDataset
from diffusers_lightningdit.data.latent_shards import shard_name, write_shard
from diffusers_lightningdit.files import weights_sha256, write_json
from diffusers_lightningdit.keyed_random import is_flipped
from diffusers_lightningdit.original import read_latents_statistics

SHARD_SIZES = (7, 4, 1)
NUM_IMAGES = sum(SHARD_SIZES)
SHAPE = (4, 2, 3)


@pytest.fixture(scope="module")
def tensors():
    generator = torch.Generator().manual_seed(1)
    latents, latents_flip = torch.randn(2, NUM_IMAGES, *SHAPE, generator=generator)
    return {"latents": latents, "latents_flip": latents_flip, "labels": torch.arange(NUM_IMAGES) % 3}


@pytest.fixture
def shards(tensors, tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    parts = zip(*(tensor.split(SHARD_SIZES) for tensor in tensors.values()), strict=True)
    for number, part in enumerate(parts):
        write_shard(folder / shard_name(number), *part)
    return str(folder)


@pytest.fixture(scope="module")
def rows(tensors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    array = Array3D(SHAPE, "float32")
    features = Features({"latents": array, "latents_flip": array, "label": ClassLabel(names=["a", "b", "c"])})
    for number, (first, last) in enumerate([(0, 5), (5, NUM_IMAGES)]):
        columns = {
            "latents": list(tensors["latents"][first:last].numpy()),
            "latents_flip": list(tensors["latents_flip"][first:last].numpy()),
            "label": tensors["labels"][first:last].tolist(),
        }
        Rows.from_dict(columns, features=features).to_parquet(folder / f"train-{number:05d}.parquet")
    return str(folder)


@pytest.fixture(params=["shards", "rows"])
def data(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("in_memory", [False, True])
def test_items_are_raw_latents_flipped_by_seed_epoch_and_index(data, tensors, in_memory):
    dataset = LatentsDataset(data, seed=5, in_memory=in_memory, num_classes=3)
    assert len(dataset) == NUM_IMAGES
    assert dataset.shape == SHAPE
    assert dataset.num_classes == 3
    flips = 0
    for epoch in range(3):
        for index in range(NUM_IMAGES):
            item = dataset[EpochIndex(index, epoch)]
            flip = is_flipped(5, epoch, index)
            assert torch.equal(item["latents"], tensors["latents_flip" if flip else "latents"][index])
            assert item["class_labels"] == tensors["labels"][index]
            flips += flip
    assert 0 < flips < 3 * NUM_IMAGES


def test_without_flips(data, tensors):
    dataset = LatentsDataset(data, random_flip=False)
    assert torch.equal(torch.stack([dataset[index]["latents"] for index in range(NUM_IMAGES)]), tensors["latents"])


def test_names_of_labels(rows, shards):
    assert LatentsDataset(rows).id2label == {0: "a", 1: "b", 2: "c"}
    dataset = LatentsDataset(shards)
    assert dataset.id2label is None
    with pytest.raises(ValueError, match=r"`num_classes` is not given, and the labels of .* have no names; required"):
        _ = dataset.num_classes  # the highest label need not be that of the last class


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_shards_give_float32(tensors, tmp_path, dtype):
    write_shard(tmp_path / shard_name(0), tensors["latents"].to(dtype), tensors["latents"].to(dtype), tensors["labels"])
    latents = LatentsDataset(str(tmp_path))[3]["latents"]
    assert latents.dtype == torch.float32
    assert torch.equal(latents, tensors["latents"][3].to(dtype).float())


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_across_shards_are_the_same_on_two_processes(data, num_workers):
    dataset = LatentsDataset(data)

    def batches(rank, world_size, num_batches=5):  # 2 a epoch, so that epochs change
        sampler = GlobalBatchSampler(len(dataset), 6, seed=2, rank=rank, world_size=world_size)
        loader = DataLoader(dataset, batch_sampler=sampler, num_workers=num_workers)
        return [batch["latents"] for batch, _ in zip(loader, range(num_batches), strict=False)]

    for whole, *halves in zip(batches(0, 1), batches(0, 2), batches(1, 2), strict=True):
        assert torch.equal(whole, torch.cat(halves))


def test_more_processes_than_shards_are_served(shards):
    dataset = LatentsDataset(shards)
    samplers = [GlobalBatchSampler(len(dataset), 12, rank=rank, world_size=12) for rank in range(12)]
    assert sorted(int(next(iter(sampler))[0]) for sampler in samplers) == list(range(12))


def test_indices_end(data):
    dataset = LatentsDataset(data)
    assert len(list(dataset)) == NUM_IMAGES
    with pytest.raises(IndexError, match=f"index {NUM_IMAGES} is out of range; required: 0 to {NUM_IMAGES - 1}"):
        dataset.read(NUM_IMAGES, flip=False)


# -- parity --


@pytest.mark.parametrize("in_memory", [False, True])
def test_reads_are_the_originals(golden, in_memory):
    folder = golden("latent_dataset/imagenet_train_64")
    expected = load_file(golden("latent_dataset/expected_reads.safetensors"))
    dataset = LatentsDataset(str(folder), in_memory=in_memory)
    mean, std = read_latents_statistics(folder / "latents_stats.pt")
    assert torch.equal(dataset.labels, expected["labels"])
    for read in json.loads(golden("latent_dataset/info.json").read_text())["reads"]:
        vae = AutoencoderVAVAE(
            block_out_channels=(4,),
            layers_per_block=1,
            norm_num_groups=1,
            scaling_factor=read["latent_multiplier"],
            latents_mean=mean if read["latent_norm"] else None,
            latents_std=std if read["latent_norm"] else None,
        )
        latents = torch.stack([dataset.read(index, flip=read["flip"]) for index in range(5)])
        torch.testing.assert_close(vae.normalize_latents(latents), expected[read["key"]], atol=1e-6, rtol=1e-6)


def test_the_originals_statistics_belong_to_its_shards(golden):
    folder = golden("latent_dataset/imagenet_train_64")
    LatentsDataset(str(folder)).check_statistics(*read_latents_statistics(folder / "latents_stats.pt"))


# -- what doesn't belong together --


def test_statistics_of_other_latents_are_refused(data, tensors):
    dataset = LatentsDataset(data)
    values = tensors["latents"].transpose(0, 1).flatten(1)
    mean, std = values.mean(1).tolist(), values.std(1).tolist()
    dataset.check_statistics(mean, std)
    with pytest.raises(ValueError, match=r"the VAE's config has mean 0.8979, .* for channel 2, the latents in"):
        dataset.check_statistics([*mean[:2], mean[2] + 1, mean[3]], std)
    with pytest.raises(ValueError, match=r"x.pt has mean .*, std .* for channel 0, .* \(12 images measured\)"):
        dataset.check_statistics(mean, [std[0] * 1.1, *std[1:]], name="x.pt")
    with pytest.raises(ValueError, match="the VAE's config has a mean of 3 channels; required: the 4 of the latents"):
        dataset.check_statistics(mean[:3], std[:3])
    with pytest.raises(ValueError, match="has a mean of 0 channels"):
        dataset.check_statistics(None, None)
    with pytest.raises(ValueError, match="has mean nan"):
        dataset.check_statistics([float("nan")] * 4, std)


def test_statistics_are_judged_by_a_sample(tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(600, 2, 1, 1, generator=generator)  # differ more between images than within one
    latents = images + 0.1 * torch.randn(600, 2, 4, 4, generator=generator)
    write_shard(tmp_path / shard_name(0), latents, latents.flip(-1), torch.zeros(600, dtype=torch.int64))
    dataset = LatentsDataset(str(tmp_path))
    values = latents.transpose(0, 1).flatten(1)
    dataset.check_statistics(values.mean(1).tolist(), values.std(1).tolist(), num_images=100)
    with pytest.raises(ValueError, match="100 images measured"):
        dataset.check_statistics((values.mean(1) + 1).tolist(), values.std(1).tolist(), num_images=100)
    with pytest.raises(ValueError, match="100 images measured"):
        dataset.check_statistics(values.mean(1).tolist(), (values.std(1) * 2).tolist(), num_images=100)


def test_the_vae_that_made_them(shards, tmp_path):
    arguments = {"block_out_channels": (4,), "layers_per_block": 1, "norm_num_groups": 1}
    vae, other = AutoencoderVAVAE(**arguments, latent_channels=4), AutoencoderVAVAE(**arguments, latent_channels=4)
    LatentsDataset(shards).check_vae(vae)  # nothing is known of it but the channels
    with pytest.raises(ValueError, match="holds latents of 4 channels; required: the VAE's 8"):
        LatentsDataset(shards).check_vae(AutoencoderVAVAE(**arguments, latent_channels=8))
    info = {"num_images": NUM_IMAGES, "vae_sha256": weights_sha256(vae)}
    write_json(tmp_path / "shards" / "latents_info.json", info)
    LatentsDataset(shards).check_vae(vae)
    with pytest.raises(ValueError, match="was made by a VAE with other weights"):
        LatentsDataset(shards).check_vae(other)


# -- bad input --


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "infinite values")])
@pytest.mark.parametrize("in_memory", [False, True])
def test_latents_that_are_not_finite_are_named(shards, tmp_path, value, kind, in_memory):
    path = tmp_path / "shards" / shard_name(1)
    shard = load_file(path)
    shard["latents"][2, 1, 0, 0] = value
    save_file(shard, path)
    with pytest.raises(ValueError, match=f"{path}, row 2 has {kind} in its latents; required: finite numbers"):
        LatentsDataset(shards, in_memory=in_memory).read(9, flip=False)


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_batch_at_a_time_is_the_same(data, in_memory):
    dataset = LatentsDataset(data, seed=3, in_memory=in_memory)
    order = [EpochIndex(index, epoch) for epoch in (0, 1) for index in (4, 0, 3, 1, 2)]
    for item, index in zip(dataset.__getitems__(order), order, strict=True):
        single = dataset[index]
        assert item.keys() == single.keys() and item["class_labels"] == single["class_labels"]
        assert torch.equal(item["latents"], single["latents"])


def test_great_numbers_are_finite(shards):
    """Though their sum overflows."""
    path = f"{shards}/{shard_name(0)}"
    shard = load_file(path)
    shard["latents"].fill_(3e38)
    save_file(shard, path)
    items = LatentsDataset(shards, random_flip=False).__getitems__([0, 1])
    assert all((item["latents"] == 3e38).all() for item in items)


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_out_of_range_are_named(shards, tmp_path, label):
    path = tmp_path / "shards" / shard_name(1)
    shard = load_file(path)
    shard["labels"][1:] = label
    save_file(shard, path)
    message = rf"{path}, row 1 has label {label} \(3 such labels in all\); required: 0 to 2"
    with pytest.raises(ValueError, match=message):
        LatentsDataset(shards, num_classes=3)


def test_empty_folders_and_other_data(tmp_path):
    with pytest.raises(ValueError, match=f"`data` is '{tmp_path}', an empty folder; required: shards of latents"):
        LatentsDataset(str(tmp_path))
    with pytest.raises(ValueError, match="`data` is '/no/such/folder', split 'train'; required: a folder or Hub id"):
        LatentsDataset("/no/such/folder")
    Rows.from_dict({"text": ["a"]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"has the columns text; required: \*.safetensors shards, or the columns"):
        LatentsDataset(str(tmp_path))


def test_rows_without_flips(tmp_path, tensors):
    features = Features({"latents": Array3D(SHAPE, "float32"), "label": Value("int64")})
    columns = {"latents": list(tensors["latents"].numpy()), "label": tensors["labels"].tolist()}
    Rows.from_dict(columns, features=features).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="has no column `latents_flip` like its `latents`; required, unless flips are"):
        LatentsDataset(str(tmp_path))
    assert torch.equal(LatentsDataset(str(tmp_path), random_flip=False)[4]["latents"], tensors["latents"][4])
