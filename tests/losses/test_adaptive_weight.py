"""Weights from gradients, on losses whose gradients are known; in two processes as in one."""

import multiprocessing

import pytest
import torch
import torch.distributed as dist

from diffusers_lightningdit.losses import adaptive_weight, gradient_norm_ratio


@pytest.fixture
def losses():
    """(reference, loss, w): gradients (3, 4) and (0, 2) at w."""
    w = torch.tensor([1.0, 1.0], requires_grad=True)
    return w @ torch.tensor([3.0, 4.0]), w[1].square(), w


def test_ratio_of_known_gradients(losses):
    reference, loss, w = losses
    ratio = gradient_norm_ratio(reference, loss, w, 1e4)
    assert ratio.item() == pytest.approx(5 / (2 + 1e-4), rel=1e-6)
    assert not ratio.requires_grad
    assert gradient_norm_ratio(reference, loss, w, 2.0) == 2
    assert adaptive_weight(reference, loss, w, 0.5, 2.0) == 1
    assert gradient_norm_ratio(reference, 0 * loss, w, 1e4) == 1e4  # 5 / 1e-4, clamped
    (reference + loss).backward()  # the graph is still there
    assert w.grad.tolist() == [3, 6]


def test_no_gradients_no_weight(losses):
    reference, loss, w = losses
    assert gradient_norm_ratio(reference.detach(), loss, w, 1e4) == 0
    assert gradient_norm_ratio(reference, loss.detach(), w, 1e4) == 0
    with torch.no_grad():
        assert adaptive_weight(reference, loss, w, 0.5, 1e4) == 0


def test_frozen_parameter(losses):
    reference, loss, _ = losses
    with pytest.raises(ValueError, match="`parameter` does not require gradients"):
        gradient_norm_ratio(reference, loss, torch.ones(2), 1e4)


def ratio_of(images: torch.Tensor) -> torch.Tensor:
    """Losses that are means over images, as those of the autoencoder."""
    w = torch.linspace(-1, 1, 3, requires_grad=True)
    outputs = (images @ w).tanh()
    return gradient_norm_ratio(outputs.abs().mean(), (1 - outputs).square().mean(), w, 1e4)


def in_one_process_of_two(rank: int, file: str, images: list, queue) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    queue.put(ratio_of(torch.tensor(images)[rank::2]).item())
    dist.destroy_process_group()


def test_every_process_gets_the_ratio_of_the_whole_batch(tmp_path):
    images = torch.randn(6, 3)
    context = multiprocessing.get_context("spawn")  # a fork would hang where gradients were computed before
    queue = context.Queue()
    processes = [
        context.Process(
            target=in_one_process_of_two, args=(rank, tmp_path / "meeting", images.tolist(), queue), daemon=True
        )
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    found = [queue.get(timeout=300) for _ in processes]
    for process in processes:
        process.join(timeout=300)
        assert process.exitcode == 0
    whole, half = ratio_of(images).item(), ratio_of(images[::2]).item()
    assert found == pytest.approx([whole] * 2, rel=1e-5)
    assert abs(half - whole) > 1e-2 * whole  # a process alone would have had another
