from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, debug_launcher
from torch.utils.data import Dataset

from diffusers_lightningdit.evaluation.ordered_batches import exact_arithmetic, ordered_batches, results_in_order

pytestmark = pytest.mark.usefixtures("fresh_accelerate_state")


class Numbers(Dataset):
    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> dict:
        return {"number": index}


@pytest.mark.parametrize("indices", [None, range(5), [6, 0, 3, 1]])
def test_each_item_once_and_in_order(indices):
    measured = list(ordered_batches(Numbers(), lambda batch: batch, Accelerator(cpu=True), 3, indices=indices))
    expected = list(range(7) if indices is None else indices)
    assert torch.cat([batch["number"] for batch in measured]).tolist() == expected
    assert [len(batch["number"]) for batch in measured[:-1]] == [3] * (len(measured) - 1)


def square_in_turn(folder: Path, error: Exception | None, place: str) -> None:
    """Each process writes its results for 11 batches, two in a turn, or the error that it ends with.

    The process that has batch 6 raises the error there, or at the end of its batches.
    """
    accelerator = Accelerator(cpu=True)

    def read(own: list[range]):
        for batch in own:
            if place == "reading" and batch.start == 6:
                raise error
            yield batch
        if place == "the end" and range(6, 7) in own:
            raise error

    def measure(batch: range) -> list[int]:
        if place == "measuring" and batch.start == 6:
            raise error
        return [accelerator.process_index, batch.start**2]

    try:
        batches = [range(number, number + 1) for number in range(11)]
        text = str(list(results_in_order(batches, read, measure, accelerator, batches_per_turn=2)))
    except (ValueError, OSError) as met:
        text = repr(met)
    (folder / f"{accelerator.process_index}.txt").write_text(text)


def test_two_processes_take_turns(tmp_path):
    debug_launcher(square_in_turn, (tmp_path, None, "nowhere"), num_processes=2)  # by fork, which spares all imports
    squares = [[number // 2 % 2, number**2] for number in range(11)]
    assert (tmp_path / "0.txt").read_text() == str(squares)
    assert (tmp_path / "1.txt").read_text() == "[]"


@pytest.mark.parametrize("place", ["reading", "measuring", "the end"])
@pytest.mark.parametrize("error", [ValueError("6.png cannot be read"), OSError(28, "No space left on device", "6.png")])
def test_an_error_of_one_process_ends_all_of_them(place, error, tmp_path):
    debug_launcher(square_in_turn, (tmp_path, error, place), num_processes=2)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == [repr(error)] * 2


def test_threads_are_limited_only_where_networks_compute_on_them():
    """On a GPU the Fréchet distance has all threads of the CPU, and only convolutions are restricted."""
    before = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    for device, expected in (("cpu", before[0] + 1), ("cuda", before[0])):
        with exact_arithmetic(before[0] + 1, torch.device(device)):
            assert torch.get_num_threads() == expected
            assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.allow_tf32
        assert (torch.get_num_threads(), torch.backends.cudnn.allow_tf32) == before
