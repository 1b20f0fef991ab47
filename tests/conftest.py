"""What every test shares: no network, seeds, and the golden data of the original implementation."""

import functools
import hashlib
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any Hugging Face import
os.environ["HF_DATASETS_OFFLINE"] = "1"
# Tiny tensors: a second thread costs more than it gives, far more on a machine busy with other work. The same
# for processes that tests start: sums on two threads round differently, and some tests compare bits.
os.environ["OMP_NUM_THREADS"] = "1"

from pathlib import Path

import pytest
import torch
from diffusers.utils import is_accelerate_version
from golden.small_set import restore
from golden_change3d.change3d_weights import draw_checkpoint
from packaging.version import Version

torch.set_num_threads(1)
# What is compared with the CPU's numbers is computed as exactly: by default a GPU's convolutions round to ten bits.
torch.backends.cudnn.allow_tf32 = False

TESTS = Path(__file__).parent
# The whole recorded set, where it lies beside a checkout, and the small form of it that every checkout carries.
WHOLE_SET, SMALL_SET = TESTS.parent.parent / "shared" / "golden", TESTS / "golden"
WHOLE_CHANGE3D = TESTS.parent.parent / "shared" / "change3d" / "golden"


@pytest.fixture(scope="session")
def golden(tmp_path_factory):
    """golden("dit/released/io.safetensors") -> path of a file or folder of the numbers recorded from the original.

    They come from the whole set where it is present, otherwise from the small one, whose checkpoints are drawn again.
    """
    root = WHOLE_SET if WHOLE_SET.is_dir() else restore(SMALL_SET, tmp_path_factory.mktemp("recorded") / "golden")

    def find(name: str) -> Path:
        if not (root / name).exists():
            pytest.fail(f"{name} is not in {root}; required: a recorded file that tests/golden/cut_golden.py keeps")
        return root / name

    return find


@pytest.fixture(scope="session")
def golden_frontier():
    """golden_frontier("facm/time_sampling.safetensors") -> path of numbers recorded from projects that go on from it.

    They come from the whole set where it lies beside a checkout, else from the part of it under tests/; a test of what
    is only in the whole set is skipped then.
    """

    def find(name: str) -> Path:
        for root in (TESTS.parent.parent / "shared" / "golden_frontier", TESTS / "golden_frontier"):
            if (root / name).exists():
                return root / name
        pytest.skip(f"{name} is only in the whole set of recorded numbers")

    return find


@pytest.fixture(scope="session")
def golden_change3d():
    """golden_change3d("bcd_64x64.safetensors") -> path of a file of the numbers recorded from Change3D.

    It is of the whole set where it is present, otherwise of the small one, whose maps are cut.
    """
    root = WHOLE_CHANGE3D if WHOLE_CHANGE3D.is_dir() else TESTS / "golden_change3d"

    def find(name: str) -> Path:
        if not (root / name).exists():
            pytest.fail(f"{name} is not in {root}; required: a file that tests/golden_change3d/cut_change3d.py keeps")
        return root / name

    return find


@pytest.fixture(scope="session")
def change3d_checkpoint(golden_change3d):
    """change3d_checkpoint("bcd_64x64") -> the recorded model's state dict, in the original's names."""
    return functools.cache(lambda name: draw_checkpoint(golden_change3d("configs.json"), name))


@pytest.fixture
def fresh_accelerate_state():
    """Reset accelerate's state after the test, so that each run of a command is a new one."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def separate_processes(monkeypatch):
    """Two processes on CPUs as torchrun starts them without ACCELERATE_USE_CPU: each takes itself for the only one."""
    if is_accelerate_version("<", "1.13"):
        pytest.skip("before Accelerate 1.13 such processes find each other")
    monkeypatch.setenv("WORLD_SIZE", "2")


@pytest.fixture(scope="session")
def repository() -> Path:
    return TESTS.parent


@pytest.fixture(scope="session")
def digits_pipeline(repository) -> str:
    return str(repository / "model_cards" / "lightningdit-digits")


@pytest.fixture(scope="session")
def vision_transformer(tmp_path_factory) -> str:
    """A folder of a DINOv2 of random weights, patches of 8x8 pixels and 12 channels."""
    from transformers import Dinov2Config, Dinov2Model  # which takes long

    folder = str(tmp_path_factory.mktemp("vision") / "dinov2")
    config = Dinov2Config(
        hidden_size=12, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, image_size=32, patch_size=8
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Dinov2Model(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory) -> tuple[Path, str]:
    """A file of random weights of Inception in torch-fidelity's layout, which is torchvision's, and its SHA-256."""
    pytest.importorskip("torch_fidelity", exc_type=ImportError)
    torchvision = pytest.importorskip("torchvision", exc_type=ImportError)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torchvision.models.inception_v3(num_classes=1008, aux_logits=False, init_weights=False)
    torch.save(network.state_dict(), path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def regional_compilation():
    if Version(torch.__version__) < Version("2.8"):
        pytest.skip("compiles to a graph for each block with torch 2.6; seen in one with 2.8")


@pytest.fixture
def dynamic_compilation():
    if Version(torch.__version__) < Version("2.15"):
        pytest.skip("compiles again for each size with torch 2.8; seen in one graph with 2.15")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, none is available"))
