"""LPIPS: what a distance has to be, and what its file has to hold; its values are tested with the conversion."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusers_lightningdit.networks.lpips import LPIPS, ORIGIN, PUBLISHED_SHA256


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("lpips") / "lpips.safetensors"
    save_file(LPIPS().state_dict(), file)
    return file


@pytest.fixture(scope="module")
def digest(weights_file):
    return hashlib.sha256(weights_file.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def model(weights_file, digest):
    return LPIPS.from_file(weights_file, digest)


@pytest.fixture
def pair():
    return (torch.rand(2, 2, 3, 16, 16) * 2 - 1).unbind()


def test_properties_of_a_distance(model, pair):
    x, y = pair
    assert torch.equal(model(x, x), torch.zeros(2, 1, 1, 1))
    assert (model(x, y) > 0).all()
    torch.testing.assert_close(model(x, y), model(y, x))
    torch.testing.assert_close(model(x, y)[:1], model(x[:1], y[:1]))


def test_gradients_reach_the_images_alone(model, pair):
    x, y = pair[0], pair[1].requires_grad_()
    model(x, y).sum().backward()
    assert y.grad.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_nothing_is_kept_of_a_target_without_gradient(model, pair):
    """The same distances and gradients of the reconstruction, for half of the memory."""

    def run(target):
        reconstruction, kept = pair[0].clone().requires_grad_(), {}
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.update({tensor.data_ptr(): tensor.nbytes}) or tensor, lambda tensor: tensor
        )
        with hooks:
            distance = model(target, reconstruction)
        distance.sum().backward()
        weights = {parameter.data_ptr() for parameter in model.parameters()}
        return distance, reconstruction.grad, sum(kept[pointer] for pointer in kept if pointer not in weights)

    distance, gradient, num_bytes = run(pair[1])
    expected, expected_gradient, num_bytes_of_both = run(pair[1].clone().requires_grad_())
    assert torch.equal(distance, expected)
    assert torch.equal(gradient, expected_gradient)
    assert num_bytes < 0.6 * num_bytes_of_both


def test_gradient_is_finite_where_all_features_are_zero(pair):
    model = LPIPS()
    for parameter in model.stages.parameters():
        parameter.zero_()
    y = pair[1].requires_grad_()
    model(pair[0], y).sum().backward()
    assert torch.equal(y.grad, torch.zeros_like(y))


@pytest.mark.parametrize("shape", [(2, 3, 16, 8), (2, 1, 16, 16), (3, 16, 16)])
def test_bad_images(model, shape):
    with pytest.raises(ValueError, match=r"`x` has shape .* required: the same, \[batch, 3, height, width\]"):
        model(torch.zeros(shape), torch.zeros(shape))
    with pytest.raises(ValueError, match="`y`"):
        model(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 32, 32))


def test_hash(weights_file, digest):
    LPIPS.from_file(weights_file, sha256=digest.upper())
    LPIPS.from_file(weights_file, sha256=digest[:8])
    for other in ("0" * 64, digest[:7]):
        with pytest.raises(ValueError, match=f"has the sha256 {digest}; required: .* `lpips_sha256` gives, '{other}'"):
            LPIPS.from_file(weights_file, sha256=other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"vgg16": "0" * 64}, "was converted from vgg16 weights of sha256 0+; required: a file by conversion/"),
        ({"linear": None}, "was converted from linear weights of sha256 None; required"),
        (None, "does not say what it was converted from; required: .*, or the sha256 of this one"),
    ],
)
def test_without_a_hash_it_has_to_be_the_published_weights(weights_file, tmp_path, changes, message):
    weights = load_file(weights_file)
    origin = {name: digits.ljust(64, "0") for name, digits in PUBLISHED_SHA256.items()}
    metadata = {ORIGIN: json.dumps({**origin, **(changes or {})})}
    save_file(weights, tmp_path / "lpips.safetensors", metadata if changes is not None else None)
    if message is None:
        LPIPS.from_file(tmp_path / "lpips.safetensors")
    else:
        with pytest.raises(ValueError, match=rf"lpips\.safetensors: {message}"):
            LPIPS.from_file(tmp_path / "lpips.safetensors")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("stages.4.2.bias", None, "is missing"),
        ("classifier.0.bias", torch.zeros(1), "is unknown"),
        ("linear.0", torch.zeros(1, 64, 1, 1), r"of shape \[1, 64, 1, 1\]; required: torch.float32 of shape \[64\]"),
        ("linear.1", torch.zeros(128, dtype=torch.float16), "is torch.float16"),
        ("linear.2", torch.full((256,), -1.0), "values out of range"),
        ("stages.0.0.bias", torch.full((64,), torch.nan), "values out of range"),
    ],
)
def test_bad_weights(weights_file, tmp_path, key, value, message):
    weights = {name: tensor for name, tensor in {**load_file(weights_file), key: value}.items() if tensor is not None}
    save_file(weights, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match=rf"bad\.safetensors: key `{key}`.*{message}"):
        LPIPS.from_file(tmp_path / "bad.safetensors")


def test_other_files(weights_file, tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(weights_file.read_bytes()[:1000])
    torch.save({}, tmp_path / "lpips.pth")
    (tmp_path / "folder.safetensors").mkdir()
    for name, message in (
        ("cut.safetensors", "is damaged"),
        ("lpips.pth", r"required: a \.safetensors file"),
        ("folder.safetensors", "is a folder"),
        ("missing.safetensors", "no such file"),
    ):
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            LPIPS.from_file(tmp_path / name)


def test_a_file_of_the_hub_is_fetched_only_by_name(weights_file, digest, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *names: asked.append(names) or str(weights_file))
    LPIPS.from_file("user/lpips:vgg16/lpips.safetensors", digest)
    assert asked == [("user/lpips", "vgg16/lpips.safetensors")]
