"""Files and folders are written whole or not at all, and reading never runs what a file contains."""

import errno
import hashlib
import json
import os
import pickle

import huggingface_hub
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from diffusers_lightningdit.files import (
    atomic_write,
    check_output_dir,
    file_sha256,
    first_line,
    json_values,
    new_folder,
    one_line,
    partial_name,
    read_checkpoint,
    read_json,
    resolve_file,
    weights_sha256,
    write_json,
    write_result,
)


def modes(folder):
    return {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def umask_of_a_group():
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_errors_as_lines():
    error = ValueError("  two\n lines\tof  text ")
    assert (one_line(error), first_line(error)) == ("two lines of text", "two")
    assert one_line(KeyError()) == first_line(KeyError()) == "KeyError"


# -- writing a file --


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("before")
    with atomic_write(path) as partial:
        assert partial == partial_name(path) == tmp_path / "a.json.partial"
        partial.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_file_that_fails_leaves_the_one_before(tmp_path, failure):
    (tmp_path / "a").write_text("before")
    with pytest.raises(failure), atomic_write(tmp_path / "a") as partial:
        partial.write_text("half")
        raise failure
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "before")]


def test_a_file_has_the_permissions_of_new_files(tmp_path, umask_of_a_group):
    partial_name(tmp_path / "a").touch(0o600)  # of a process that was killed
    with atomic_write(tmp_path / "a") as partial:
        partial.chmod(0o600)  # as safetensors does
    assert modes(tmp_path) == {0o640}


# -- JSON --


def test_json(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1, 2.5, None]})
    assert (tmp_path / "a.json").read_text().endswith("}\n")
    assert read_json(tmp_path / "a.json") == {"a": [1, 2.5, None]}
    assert json_values({1: (2, torch.float32)}) == {"1": [2, "torch.float32"]}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 200_000, b'{"a": ' * 200_000, None])
def test_no_json(tmp_path, content):
    file = tmp_path / "a.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json is missing or no JSON file \(.+\); required: another") as error:
        read_json(file, "another one")
    check_one_line(error)


def test_json_without_a_dictionary(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match=r"a\.json holds a list; required: .* a dictionary"):
        read_json(tmp_path / "a.json")


# -- writing a folder --


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


def test_files_of_a_new_folder_have_the_permissions_of_new_files(tmp_path, umask_of_a_group):
    with new_folder(tmp_path / "a") as folder:
        (folder / "b").mkdir()
        for file in (folder / "c", folder / "b" / "d"):
            file.touch(0o600)
    assert modes(tmp_path) == {0o640}
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o750


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "file").write_text("x")
    for target in (tmp_path, tmp_path / "file"):
        message = "`output_dir` is '.*', which exists; required: a new or an empty folder"
        with pytest.raises(ValueError, match=message):
            check_output_dir(target)
        with pytest.raises(ValueError, match=message), new_folder(target):
            pytest.fail("must not be entered")
    assert (tmp_path / "file").read_text() == "x"


def test_output_dir(tmp_path):
    check_output_dir(str(tmp_path))
    check_output_dir(str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(ValueError, match="which exists; required: a new or an empty folder"):
            check_output_dir(str(taken))


def test_a_resumed_run_may_have_checkpoints_but_no_result(tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    check_output_dir(str(tmp_path), resuming=True)
    check_output_dir(str(tmp_path / "new"), resuming=True)
    (tmp_path / "model_index.json").touch()
    with pytest.raises(ValueError, match="which holds a finished result; required: another folder"):
        check_output_dir(str(tmp_path), resuming=True)


def test_a_result_joins_checkpoints_and_replaces_what_a_killed_process_left(tmp_path, umask_of_a_group):
    folder = tmp_path / "run"
    (folder / "checkpoint-5").mkdir(parents=True)
    (folder / "unet").mkdir()
    (folder / "unet" / "half").touch()

    with write_result(str(folder)) as partial:
        (partial / "unet").mkdir()
        (partial / "unet" / "whole").touch()
        (partial / "model_index.json").write_text("{}")
        (partial / "model_index.json").chmod(0o600)
    assert modes(folder) == {0o640}
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    assert names == ["checkpoint-5", "model_index.json", "unet", "unet/whole"]


# -- hashes --


def test_a_file_has_a_hash(tmp_path):
    content = bytes(range(256)) * 40_000  # more than is read at a time
    (tmp_path / "a").write_bytes(content)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_weights_have_a_hash():
    model = torch.nn.Linear(3, 2)
    before = weights_sha256(model)
    assert weights_sha256(model) == before
    model.bias.data[0] += 1e-3
    assert weights_sha256(model) != before


# -- reading --


class Malicious:
    """Unpickling it would create a file."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return (os.mkdir, (self.marker,))


def check_one_line(error: pytest.ExceptionInfo) -> None:
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_and_not_run(tmp_path, zipped):
    file, marker = tmp_path / "evil.pt", tmp_path / "marker"
    torch.save({"ema": Malicious(marker)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"evil.pt: contains the Python object \w+\.mkdir") as error:
        read_checkpoint(file)
    check_one_line(error)
    assert not marker.exists()


def test_plain_pickle_is_refused_and_not_run(tmp_path):
    file, marker = tmp_path / "evil.ckpt", tmp_path / "marker"
    file.write_bytes(pickle.dumps({"model": Malicious(marker)}))
    with pytest.raises(ValueError, match=r"evil\.ckpt") as error:
        read_checkpoint(file)
    check_one_line(error)
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
    with pytest.raises(ValueError, match=name) as error:
        read_checkpoint(tmp_path / name)
    check_one_line(error)


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
    with pytest.raises(ValueError, match="is damaged or no checkpoint") as error:
        read_checkpoint(file)
    check_one_line(error)


def test_not_a_dictionary(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list; required: a dictionary"):
        read_checkpoint(tmp_path / "list.pt")
    with pytest.raises(ValueError, match="is a folder"):
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
    with pytest.raises(ValueError, match=r"user/repo:file\.pt: cannot be fetched from the Hub: no network$"):
        resolve_file("user/repo:file.pt")


@pytest.mark.parametrize("name", ["missing.pt", "folder/missing.pt", "a:b", "a/b/c:d", "user/repo:", "user/repo"])
def test_no_such_file(name, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *args: pytest.fail("not a name of the Hub"))
    with pytest.raises(ValueError, match="no such file"):
        resolve_file(name)


def test_a_full_disk_names_the_file(tmp_path):
    errors = OSError(errno.ENOSPC, "No space left on device"), OSError("encoder error -2"), SafetensorError("I/O error")
    for raised in errors:
        with (
            pytest.raises(OSError, match=rf"{raised.args[-1]}: '.*numbers\.json'"),
            atomic_write(tmp_path / "numbers.json"),
        ):
            raise raised  # without a name, as writing to an open file or Pillow raises it
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_names_the_folder(tmp_path):
    error = SafetensorError("I/O error: No space left on device")
    with pytest.raises(OSError, match=r"No space left on device: '.*result'"), write_result(tmp_path / "result"):
        raise error
    with pytest.raises(OSError, match=r"No space left on device: '.*new'"), new_folder(tmp_path / "new"):
        raise error
