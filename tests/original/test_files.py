"""Reading files that may be anything, and writing folders that are whole or not there."""

import os
import pickle

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from diffusers_lightningdit.original import CheckpointError, read_checkpoint
from diffusers_lightningdit.original.files import (
    check_new_folder,
    load_model_folder,
    new_folder,
    plain_state_dict,
    resolve_file,
)


class Malicious:
    """Unpickling it would create a file."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return (os.mkdir, (self.marker,))


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_and_not_run(tmp_path, zipped):
    file, marker = tmp_path / "evil.pt", tmp_path / "marker"
    torch.save({"ema": Malicious(marker)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"evil.pt: contains the Python object \w+\.mkdir") as error:
        read_checkpoint(file)
    one_line(error)
    assert not marker.exists()


def test_plain_pickle_is_refused_and_not_run(tmp_path):
    file, marker = tmp_path / "evil.ckpt", tmp_path / "marker"
    file.write_bytes(pickle.dumps({"model": Malicious(marker)}))
    with pytest.raises(CheckpointError, match=r"evil\.ckpt") as error:
        read_checkpoint(file)
    one_line(error)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["file.pt", "file.ckpt", "file.safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint at all", b"PK\x03\x04 nor this", b"\x80\x02.", b"\x08\0\0\0\0\0\0\0{}      "]
)
def test_no_checkpoint(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    if name.endswith(".safetensors") and content.startswith(b"\x08\0"):
        assert read_checkpoint(tmp_path / name) == {}  # valid, but holds nothing
        return
    with pytest.raises(CheckpointError, match=name) as error:
        read_checkpoint(tmp_path / name)
    one_line(error)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated(tmp_path, fraction, kind):
    file = tmp_path / ("file.safetensors" if kind == "safetensors" else "file.pt")
    tensors = {"a": torch.randn(50, 50), "b": torch.randn(50)}
    if kind == "safetensors":
        save_file(tensors, file)
    else:
        torch.save({"ema": tensors}, file, _use_new_zipfile_serialization=kind == "zip")
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(CheckpointError, match="is damaged or no checkpoint") as error:
        read_checkpoint(file)
    one_line(error)


def test_not_a_dictionary(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="holds a list; required: a dictionary"):
        read_checkpoint(tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["a.pt", "legacy.pt", "a.safetensors"])
def test_read(tmp_path, name):
    tensors = {"a": torch.randn(3)}
    if name.endswith(".safetensors"):
        save_file(tensors, tmp_path / name)
    else:
        torch.save(tensors, tmp_path / name, _use_new_zipfile_serialization=name == "a.pt")
    assert torch.equal(read_checkpoint(tmp_path / name)["a"], tensors["a"])


def test_file_on_the_hub(tmp_path, monkeypatch):
    torch.save({"a": torch.ones(1)}, tmp_path / "file.pt")
    asked = []

    def download(repo, file):
        asked.append((repo, file))
        return str(tmp_path / "file.pt")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert read_checkpoint("some-user/some.repo:folder/file.pt")["a"] == 1
    assert asked == [("some-user/some.repo", "folder/file.pt")]


def test_hub_without_network(monkeypatch):
    def download(repo, file):
        raise ConnectionError("no network\nand more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(CheckpointError, match=r"user/repo:file\.pt: cannot be fetched from the Hub: no network$"):
        resolve_file("user/repo:file.pt")


@pytest.mark.parametrize("name", ["missing.pt", "folder/missing.pt", "a:b", "a/b/c:d", "user/repo:", "user/repo"])
def test_no_such_file(name, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *args: pytest.fail("not a name of the Hub"))
    with pytest.raises(CheckpointError, match="no such file"):
        resolve_file(name)


def test_state_dict_prefix_and_types():
    tensor = torch.zeros(1)
    assert plain_state_dict({"module.a": tensor, "module.module.b": tensor}, "x").keys() == {"a", "module.b"}
    assert plain_state_dict({"module.a": tensor, "b": tensor}, "x").keys() == {"module.a", "b"}
    with pytest.raises(CheckpointError, match="x has the entry `a` of type int"):
        plain_state_dict({"a": 3}, "x")
    for empty in ({}, None, tensor):
        with pytest.raises(CheckpointError, match="x holds no weights"):
            plain_state_dict(empty, "x")


def test_new_folder(tmp_path):
    with new_folder(tmp_path / "a/b/c") as folder:
        (folder / "file").write_text("x")
        assert not (tmp_path / "a/b/c").exists()
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["c"]
    assert (tmp_path / "a/b/c/file").read_text() == "x"
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as folder:
        (folder / "file").write_text("y")
    assert (tmp_path / "empty/file").read_text() == "y"


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_failed_folder_leaves_nothing(tmp_path, failure):
    with pytest.raises(failure), new_folder(tmp_path / "a/b") as folder:
        (folder / "half").write_text("x")
        raise failure
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "file").write_text("x")
    for target, message in ((tmp_path, "is not empty"), (tmp_path / "file", "is a file")):
        with pytest.raises(CheckpointError, match=f"output_dir .* {message}; required: a new or empty folder"):
            check_new_folder(target)
        with pytest.raises(CheckpointError), new_folder(target):
            pytest.fail("must not be entered")
    assert (tmp_path / "file").read_text() == "x"


def test_model_folder_is_read_strictly(tmp_path):
    from diffusers_lightningdit import AutoencoderVAVAE

    def load():
        return load_model_folder(AutoencoderVAVAE, tmp_path, ("AutoencoderVAVAE",))

    model = AutoencoderVAVAE(block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4)
    model.to(torch.float16).save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    assert load().dtype == torch.float16  # as stored
    state = {key: value.clone() for key, value in load().state_dict().items()}

    for changed, message in (
        ({k: v for k, v in state.items() if k != "quant_conv.bias"}, "lack 1 tensors .*`quant_conv.bias`"),
        (state | {"extra": torch.zeros(1).half()}, "key `extra` is unexpected"),
        (state | {"quant_conv.bias": torch.zeros(8)}, "has type F"),
        (state | {"quant_conv.bias": torch.zeros(9).half()}, "quant_conv.bias"),
    ):
        save_file(changed, weights)
        with pytest.raises(CheckpointError, match=message) as error:
            load()
        one_line(error)
    weights.write_bytes(b"123")
    with pytest.raises(CheckpointError, match="is damaged"):
        load()
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(CheckpointError, match="holds a UNet2DModel; required: AutoencoderVAVAE"):
        load()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json: is missing or no JSON file"):
        load()
