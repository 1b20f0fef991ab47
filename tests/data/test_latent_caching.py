import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Array3D, ClassLabel, Dataset, Features, load_dataset
from datasets import Image as ImageFeature
from diffusers.models.autoencoders.vae import Encoder
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from diffusers_lightningdit import AutoencoderVAVAE
from diffusers_lightningdit.data import latent_caching
from diffusers_lightningdit.data.images import image_to_pixels
from diffusers_lightningdit.data.latent_caching import CachingConfig, cache_latents
from diffusers_lightningdit.data.latent_dataset import LatentsDataset
from diffusers_lightningdit.data.latent_encoding import draw_latents, encode_moments
from diffusers_lightningdit.interruption import Interrupted
from diffusers_lightningdit.keyed_random import posterior_noise
from diffusers_lightningdit.locks import FolderInUse
from diffusers_lightningdit.networks.foundation_model import FoundationModel
from diffusers_lightningdit.original import load_autoencoder, read_latents_statistics

NUM_IMAGES = 11


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae")
    arguments = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4}
    AutoencoderVAVAE(**arguments, sample_size=8).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 10, 12, 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in pixels]


@pytest.fixture(scope="module")
def data(tmp_path_factory, images) -> str:
    folder = tmp_path_factory.mktemp("data")
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["cat", "dog", "owl"])})
    columns = {"image": images, "label": [number % 3 for number in range(NUM_IMAGES)]}
    Dataset.from_dict(columns, features=features).to_parquet(folder / "train.parquet")
    return str(folder)


@pytest.fixture
def cache(data, vae, tmp_path):
    """cache(output name, option=...) -> the folder; shards of 4, 4 and 3 images, batches of 3."""

    def run(name="latents", **options) -> Path:
        defaults = {"data": data, "vae": vae, "resolution": 8, "shard_size": 4, "batch_size": 3}
        config = CachingConfig(**{**defaults, "output_dir": str(tmp_path / name), **options})
        cache_latents(config, Accelerator(cpu=True))
        return tmp_path / name

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    shards = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}


def test_what_is_written(cache, vae, images):
    folder = cache()
    assert sorted(contents(folder)) == [
        "latents_info.json",
        "latents_rank00_shard000.safetensors",
        "latents_rank00_shard001.safetensors",
        "latents_rank00_shard002.safetensors",
        "latents_stats.pt",
        "skipped_images.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    with safe_open(folder / "latents_rank00_shard002.safetensors", "pt") as file:
        assert file.metadata() == {"total_size": "3", "dtype": "torch.float32", "device": "cpu"}
    tensors = tensors_of(folder)
    assert tensors["labels"].tolist() == [number % 3 for number in range(NUM_IMAGES)]  # each image exactly once
    model = AutoencoderVAVAE.from_pretrained(vae).eval()
    pixels = torch.stack([image_to_pixels(image, 8) for image in images])
    for flip, name in enumerate(("latents", "latents_flip")):
        noise = torch.stack([posterior_noise(0, index, bool(flip), (4, 4, 4)) for index in range(NUM_IMAGES)])
        expected = draw_latents(encode_moments(model, pixels.flip(-1) if flip else pixels), noise)
        torch.testing.assert_close(tensors[name], expected, atol=1e-5, rtol=1e-5)


def test_statistics_are_written_for_the_original_and_into_a_copy_of_the_vae(cache, vae):
    before = contents(Path(vae))
    folder = cache()
    values = tensors_of(folder)["latents"].double().transpose(0, 1).flatten(1)
    mean, std = read_latents_statistics(folder / "latents_stats.pt")
    assert mean == pytest.approx(values.mean(1).tolist(), abs=1e-7)
    assert std == pytest.approx(values.std(1).tolist(), rel=1e-6)
    copy = AutoencoderVAVAE.from_pretrained(folder / "vae")
    assert copy.config.latents_mean == pytest.approx(mean, abs=1e-7)
    assert copy.config.latents_std == pytest.approx(std, rel=1e-6)
    dataset = LatentsDataset(str(folder))
    dataset.check_vae(copy)
    dataset.check_statistics(copy.config.latents_mean, copy.config.latents_std)
    dataset.check_statistics(mean, std)
    assert dataset.id2label == {0: "cat", 1: "dog", 2: "owl"}
    assert contents(Path(vae)) == before


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(cache, dtype):
    stored = tensors_of(cache(dtype=dtype))
    assert torch.equal(stored["latents"], tensors_of(cache("full"))["latents"].to(getattr(torch, dtype)))


def test_the_encoder_is_compiled(cache, monkeypatch):
    modules = []  # not compiled: it takes a minute, and is torch's
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: modules.append(self))
    plain = tensors_of(cache())
    assert not modules
    compiled = tensors_of(cache("compiled", compile_vae=True))
    assert [type(module) for module in modules] == [Encoder]
    assert modules[0].conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(compiled, plain, atol=1e-5, rtol=1e-5)


def test_files_know_whether_the_encoder_was_compiled():
    """Those that were begun before there was the setting do not name it, and are continued."""
    paths = {"data": "data", "vae": "vae", "output_dir": "out"}
    assert "compile_vae" not in CachingConfig(**paths).identity()
    assert CachingConfig(**paths, compile_vae=True).identity()["compile_vae"] is True


def test_streaming_writes_the_same_shards(cache):
    whole, streamed = contents(cache()), contents(cache("streamed", streaming=True))
    assert whole.keys() == streamed.keys()
    assert [name for name in whole if whole[name] != streamed[name]] == ["latents_info.json"]  # tells of the streaming


def test_parquet_is_a_data_set(cache):
    folder = cache("rows", format="parquet")
    rows = load_dataset(str(folder), split="train")
    assert rows.features["latents"] == rows.features["latents_flip"] == Array3D((4, 4, 4), "float32")
    assert rows.features["label"].names == ["cat", "dog", "owl"]
    expected, dataset = tensors_of(cache()), LatentsDataset(str(folder))
    dataset.check_vae(AutoencoderVAVAE.from_pretrained(folder / "vae"))
    assert dataset.info["num_images"] == NUM_IMAGES
    assert len(dataset) == NUM_IMAGES
    for index in range(NUM_IMAGES):
        assert torch.equal(dataset.read(index, flip=False), expected["latents"][index])
        assert torch.equal(dataset.read(index, flip=True), expected["latents_flip"][index])


# -- interruptions --


@pytest.mark.parametrize("format", ["safetensors", "parquet"])
def test_a_run_stopped_before_any_rename_goes_on_to_the_same_files(cache, monkeypatch, format):
    expected = contents(cache("whole", format=format))
    replace, calls = os.replace, []

    class Stopped(BaseException):
        pass

    def stop(*paths):
        calls.append(paths)
        if len(calls) == stop_at:
            raise Stopped
        replace(*paths)

    for stop_at in range(1, 13):
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", stop)
            try:
                cache(f"stopped_{stop_at}", format=format)
            except Stopped:
                pass
            else:
                break  # there are no more renames
        assert contents(cache(f"stopped_{stop_at}", format=format)) == expected
    assert stop_at == 12  # settings, 3 shards with their records, report, statistics, VAE, information


def test_whole_shards_are_not_encoded_again(cache, monkeypatch):
    encoded, encode_batch = [], latent_caching.ShardEncoder._encode_batch

    def count(self, samples):
        encoded.extend(sample.index for sample in samples)
        if len(encoded) > 5:
            raise KeyboardInterrupt
        return encode_batch(self, samples)

    monkeypatch.setattr(latent_caching.ShardEncoder, "_encode_batch", count)
    with pytest.raises(KeyboardInterrupt):
        cache()
    encoded.clear()
    monkeypatch.setattr(
        latent_caching.ShardEncoder,
        "_encode_batch",
        lambda self, samples: encoded.extend(sample.index for sample in samples) or encode_batch(self, samples),
    )
    cache()
    assert encoded == list(range(4, NUM_IMAGES))
    encoded.clear()
    cache()  # complete
    assert encoded == []


def test_other_settings_are_refused(cache, tmp_path):
    before = contents(cache())
    with pytest.raises(ValueError, match="was begun with `seed` 0, now it is 1; required: the same, or another"):
        cache(seed=1)
    assert contents(tmp_path / "latents") == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match=r"`output_dir` is .*other', which exists; required: a new or an empty folder"):
        cache("other")


# -- images that change between two runs --


@pytest.fixture
def folder(tmp_path, images) -> Path:
    """11 images: cat/00.png to cat/05.png and owl/06.png to owl/10.png; shards of 4, 4 and 3."""
    for number, image in enumerate(images):
        path = tmp_path / "images" / ("cat" if number < 6 else "owl") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return tmp_path / "images"


def half_done(cache, monkeypatch, data: Path, streaming: bool) -> Path:
    """A run that ended when two of the three shards were there."""
    with monkeypatch.context() as patch:
        encode = latent_caching.ShardEncoder.encode

        def end(self, rows, progress_bar):
            tensors, skipped = encode(self, rows, progress_bar)
            if len(tensors["labels"]) == 3:
                raise KeyboardInterrupt
            return tensors, skipped

        patch.setattr(latent_caching.ShardEncoder, "encode", end)
        with pytest.raises(KeyboardInterrupt):
            cache(data=str(data), streaming=streaming)
    return data


def replaced_under_another_name(data: Path) -> None:
    (data / "cat" / "03.png").unlink()
    Image.new("RGB", (12, 10), (1, 1, 1)).save(data / "cat" / "000.png")


def replaced_in_place(data: Path) -> None:
    path = data / "owl" / "06.png"
    size = path.stat().st_size
    Image.effect_noise((12, 10), 50).convert("RGB").save(path)
    with open(path, "ab") as file:  # of the same size: only its time is another
        file.write(b"0" * max(size - path.stat().st_size, 0))


def removed_at_the_end(data: Path) -> None:
    for number in (8, 9, 10):
        (data / "owl" / f"{number:02d}.png").unlink()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("change", "made_anew"),
    [
        (replaced_under_another_name, "latents_rank00_shard000.safetensors"),
        (replaced_in_place, "latents_rank00_shard001.safetensors"),
        (removed_at_the_end, None),
    ],
)
def test_a_run_that_goes_on_makes_shards_of_changed_images_anew(
    cache, monkeypatch, capsys, folder, change, made_anew, streaming
):
    change(half_done(cache, monkeypatch, folder, streaming))
    capsys.readouterr()
    went_on = contents(cache(data=str(folder), streaming=streaming))
    assert (f"made anew, since images have changed: {made_anew}" in capsys.readouterr().out) == (made_anew is not None)
    assert went_on == contents(cache("at_once", data=str(folder), streaming=streaming))


@pytest.mark.parametrize("change", [replaced_under_another_name, replaced_in_place, removed_at_the_end])
def test_a_complete_data_set_of_other_images_is_refused(cache, folder, change, tmp_path):
    before = contents(cache(data=str(folder)))
    change(folder)
    with pytest.raises(ValueError, match=r"is complete, but the images of latents_rank00_shard00.* have changed since"):
        cache(data=str(folder))
    assert contents(tmp_path / "latents") == before


@pytest.mark.parametrize("complete", [False, True])
def test_renamed_classes_are_refused(cache, monkeypatch, folder, complete):
    if complete:
        cache(data=str(folder))
    else:
        half_done(cache, monkeypatch, folder, streaming=False)
    (folder / "owl").rename(folder / "eagle")
    with pytest.raises(ValueError, match="was begun with `class_names` 'owl', now it is 'eagle'; required: the same"):
        cache(data=str(folder))


def test_changed_labels_in_metadata(cache, folder):
    rows = [f"{path.parent.name}/{path.name}" for path in sorted(folder.glob("*/*.png"))]
    lines = [f"{row},{number % 2}" for number, row in enumerate(rows)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,label", *lines]))
    cache(data=str(folder))
    lines[0], lines[1] = lines[0][:-1] + "1", lines[1][:-1] + "0"
    (folder / "metadata.csv").write_text("\n".join(["file_name,label", *lines]))
    with pytest.raises(ValueError, match=r"the images of latents_rank00_shard000\.safetensors have changed since"):
        cache(data=str(folder))


@pytest.mark.parametrize("content", [{}, {"settings": 3}, {"settings": {}}, {"num_images": 11}])
def test_information_of_another_kind_is_refused(cache, tmp_path, content):
    (cache() / "latents_info.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{tmp_path}/latents was begun with `data` None, now it is"):
        cache()


# -- signals, locks and leftovers --


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_a_batch_and_the_same_command_goes_on(cache, monkeypatch, number):
    expected = contents(cache("whole"))
    read = latent_caching.ShardedImages.read

    def signalled(self, index, row):
        if index == 5:
            os.kill(os.getpid(), number)
        return read(self, index, row)

    with monkeypatch.context() as patch:
        patch.setattr(latent_caching.ShardedImages, "read", signalled)
        with pytest.raises(
            Interrupted, match=rf"interrupted by {number.name}; whole shards are kept in .*latents, whe"
        ):
            cache()
    assert contents(cache()) == expected


def test_a_folder_that_is_being_written_is_refused(cache, monkeypatch, tmp_path):
    prepare = latent_caching.LatentFiles.prepare

    def second_run(self):
        monkeypatch.setattr(latent_caching.LatentFiles, "prepare", prepare)
        with pytest.raises(FolderInUse, match=f"latents is being written by process {os.getpid()} on "):
            cache()
        return prepare(self)

    monkeypatch.setattr(latent_caching.LatentFiles, "prepare", second_run)
    assert contents(cache()) == contents(cache("alone"))


def test_a_run_that_was_killed_when_all_was_done_leaves_nothing(cache, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(latent_caching.shutil, "rmtree", lambda path, **_: path.name == "progress" and 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cache()
    folder = cache()
    assert not (folder / "progress").exists()
    assert contents(folder) == contents(cache("at_once"))


def test_the_resolution_is_that_of_the_vae(cache, tmp_path):
    folder = cache(resolution=None)
    assert tensors_of(folder)["latents"].shape == (NUM_IMAGES, 4, 4, 4)
    assert contents(folder) == contents(cache("stated", resolution=8))


# -- bad images --


@pytest.fixture
def damaged(tmp_path, images) -> str:
    for number, image in enumerate(images):
        path = tmp_path / "damaged" / "abc"[number % 3] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    path.write_bytes(path.read_bytes()[:100])
    return str(tmp_path / "damaged")


def test_a_corrupt_image_is_fatal_or_skipped_and_listed(cache, damaged, tmp_path):
    with pytest.raises(ValueError, match=rf"b/10.png \(row 7\) in {damaged} cannot be used \(.*; required: a sound"):
        cache(data=damaged, on_error="fail")
    folder = cache(data=damaged, on_error="skip")
    report = json.loads((folder / "skipped_images.json").read_text())
    assert [(entry["index"], entry["name"]) for entry in report] == [(7, f"{damaged}/b/10.png (row 7)")]
    assert json.loads((folder / "latents_info.json").read_text())["num_images"] == NUM_IMAGES - 1
    assert tensors_of(folder)["labels"].tolist() == [0] * 4 + [1] * 3 + [2] * 3
    assert contents(cache("at_once", data=damaged, on_error="skip")) == contents(folder)


def test_latents_that_overflow_are_reported(cache, vae, tmp_path):
    model = AutoencoderVAVAE.from_pretrained(vae)
    model.quant_conv.bias.data[0] = 66_000.0  # beyond float16
    model.save_pretrained(tmp_path / "large")
    with pytest.raises(ValueError, match=r"row 0\) in .* \(its latents hold inf in float16 \(VAE in float32\)\)"):
        cache(vae=str(tmp_path / "large"), dtype="float16")
    with pytest.raises(ValueError, match=r"none of the 11 images of .* can be used; required: sound images, see"):
        cache(vae=str(tmp_path / "large"), dtype="float16", on_error="skip")


# -- other bad input --


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "`dtype` is 'int8'; required: one of float32, bfloat16, float16"),
        ({"format": "parquet", "dtype": "bfloat16"}, "`dtype` is 'bfloat16'; required: float32 or float16"),
        ({"on_error": "ignore"}, "`on_error` is 'ignore'; required: one of fail, skip"),
        ({"shard_size": 0}, "`shard_size` is 0; required: at least 1"),
        ({"resolution": 9}, "`resolution` is 9; required: a multiple of the VAE's factor, 2"),
        ({"vae": "/no/such/folder"}, "`vae` is '/no/such/folder'; required"),
        ({"data": "/no/such/folder"}, "`data` is '/no/such/folder', split 'train'; required"),
    ],
)
def test_bad_input_before_any_file(cache, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        cache(**options)
    assert not (tmp_path / "latents").exists()


def test_more_processes_than_shards(cache, monkeypatch, tmp_path):
    monkeypatch.setattr(Accelerator, "num_processes", 4)
    with pytest.raises(ValueError, match="4 processes are more than the shards, of `shard_size` 4, that 11 images"):
        cache()
    assert not (tmp_path / "latents").exists()


def test_a_full_disk_is_one_line_and_keeps_what_was_written(cache, monkeypatch, tmp_path):
    calls, write_shard = [], latent_caching.write_shard

    def full(path, **tensors):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        write_shard(path, **tensors)

    monkeypatch.setattr(latent_caching, "write_shard", full)
    with pytest.raises(ValueError, match=r"shard001.safetensors cannot be written \(.*No space left on device\); req"):
        cache()
    assert (tmp_path / "latents" / "latents_rank00_shard000.safetensors").exists()
    assert contents(cache()) == contents(cache("again"))


# -- parity --


def test_latents_are_the_originals(golden):
    folder = golden("latent_dataset")
    info = json.loads((folder / "info.json").read_text())
    noise = load_file(folder / "posterior_noise.safetensors")
    sources = load_file(folder / "source_images.safetensors")
    vae = load_autoencoder(golden("vae/vavae/vavae.ckpt")).eval()
    names = [name.removesuffix(".png").replace("/", ".") for name in info["order_of_images"]]
    pixels = torch.stack([image_to_pixels(Image.fromarray(sources[name].numpy()), 64) for name in names])
    expected = tensors_of(folder / "imagenet_train_64")
    for flip, name in enumerate(("latents", "latents_flip")):
        draws = [noise[f"draw{2 * number + flip:02d}"] for number in range(2)]
        moments = [encode_moments(vae, batch) for batch in (pixels.flip(-1) if flip else pixels).split(info["batch"])]
        latents = torch.cat([draw_latents(*pair) for pair in zip(moments, draws, strict=True)])
        torch.testing.assert_close(latents, expected[name], atol=1e-4, rtol=0)


# ---------------------------------------------------------------------------------------------------------------------
# Features beside the latents
# ---------------------------------------------------------------------------------------------------------------------


def test_features_of_the_images_lie_beside_the_latents(cache, images, vision_transformer):
    """They are the foundation model's of each image and of the mirrored one; the latents stay as they are without."""
    plain = cache("plain")
    folder = cache("features", foundation_model=vision_transformer, foundation_normalization="minus_one_to_one")
    dataset, without = LatentsDataset(str(folder), with_features=True), LatentsDataset(str(plain))
    assert dataset.feature_shape == (12, 4, 4)
    model = FoundationModel.from_pretrained(vision_transformer)
    pixels = torch.stack([image_to_pixels(image, 8) for image in images])
    for flip in (False, True):
        expected = model(pixels.flip(-1) if flip else pixels, 4)
        found = torch.stack([dataset._source.read(index, flip, "features") for index in range(NUM_IMAGES)])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(dataset.read(3, flip), without.read(3, flip))
    item = dataset[2]
    flipped = torch.equal(item["latents"], dataset.read(2, True))
    assert torch.equal(item["features"], dataset._source.read(2, flipped, "features"))
    assert "features" not in without[2]
    with pytest.raises(ValueError, match=r"has `features` none; required: \[4, F, h, w\], as cache_latents"):
        LatentsDataset(str(plain), with_features=True)


def test_features_on_a_grid_of_larger_tokens(cache, vision_transformer):
    folder = cache("grid", foundation_model=vision_transformer, foundation_normalization="minus_one_to_one",
                   feature_grid_size=2, dtype="float16")  # fmt: skip
    dataset = LatentsDataset(str(folder), with_features=True)
    assert dataset.feature_shape == (12, 2, 2) and dataset[0]["features"].dtype == torch.float32


def test_features_are_not_for_parquet(cache, vision_transformer):
    with pytest.raises(ValueError, match="`format` is 'parquet'; required: safetensors for the features"):
        cache("parquet", foundation_model=vision_transformer, format="parquet")


def test_settings_of_features_are_no_part_of_a_cache_without(cache):
    """A cache that was begun before there were such settings goes on."""
    info = json.loads((cache() / "latents_info.json").read_text())
    assert not any("foundation" in name or "feature" in name for name in info["settings"])
