import hashlib
import subprocess
import sys

import pytest
import torch

from diffusers_lightningdit.networks.inception import InceptionFeatures

torch_fidelity = pytest.importorskip("torch_fidelity", exc_type=ImportError)


@pytest.fixture(scope="module")
def weights_file(inception_file):
    return inception_file[0]


@pytest.fixture(scope="module")
def network(inception_file):
    return InceptionFeatures(*inception_file)


def test_features_of_torch_fidelity(network, weights_file):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    images = torch.randint(256, (2, 3, 40, 40), dtype=torch.uint8)
    outputs = network(images)
    other = FeatureExtractorInceptionV3("other", ["2048", "logits_unbiased"], str(weights_file))
    blocks = []
    other.Mixed_6d.register_forward_hook(lambda module, inputs, output: blocks.append(output))
    features, logits = other(images)
    assert torch.equal(outputs["features"], features) and features.std() > 0
    assert torch.allclose(outputs["probabilities"].log(), logits.log_softmax(1), atol=1e-5)
    # ADM's order: the channels of a position are neighbours
    spatial = outputs["spatial"].view(2, 17, 17, 7)
    assert torch.equal(spatial, blocks[0][:, :7].permute(0, 2, 3, 1)) and spatial.std() > 0
    assert {name: outputs[name].shape[1] for name in network.num_features} == network.num_features


def test_another_file_than_the_published(weights_file):
    with pytest.raises(
        ValueError, match=r"has the sha256 \w{64}; required: the one that `inception_sha256` gives, '6726825d'"
    ):
        InceptionFeatures(weights_file)
    with pytest.raises(ValueError, match=r"`inception` is 'missing.pth'; required: a file"):
        InceptionFeatures("missing.pth")


@pytest.mark.parametrize("content", [{"a.weight": torch.zeros(1)}, {"code": subprocess.Popen}])
def test_other_contents(content, tmp_path):
    """Neither other weights nor a pickle that would run something."""
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"weights\.pth"):
        InceptionFeatures(path, hashlib.sha256(path.read_bytes()).hexdigest())


def test_without_torch_fidelity(weights_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ImportError, match=r"`inception` needs torch-fidelity: pip install .*\[inception\]"):
        InceptionFeatures(weights_file, hashlib.sha256(weights_file.read_bytes()).hexdigest()[:8])
