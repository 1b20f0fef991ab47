import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import Dataset

from diffusers_lightningdit.evaluation.ordered_batches import ordered_batches, patient_accelerator


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


def test_processes_that_do_not_know_of_each_other(monkeypatch):
    accelerator = Accelerator(cpu=True)  # its state is shared by those that are made after it
    monkeypatch.setenv("WORLD_SIZE", str(accelerator.num_processes + 1))
    with pytest.raises(ValueError, match="2 processes were started which do not know of each other; required on CPUs"):
        patient_accelerator()
