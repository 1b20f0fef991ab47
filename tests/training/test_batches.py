import itertools

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import Dataset

from diffusers_lightningdit.data.global_batches import EpochIndex
from diffusers_lightningdit.keyed_random import is_flipped
from diffusers_lightningdit.training.batches import RandomlyFlipped, make_batch_sampler, train_steps
from diffusers_lightningdit.training.config import TrainingConfig


def example_config(tmp_path, **settings) -> TrainingConfig:
    settings = {"global_batch_size": 4, "max_train_steps": 5, "learning_rate": 1.0, **settings}
    return TrainingConfig(data="images", output_dir=str(tmp_path / "new"), **settings)


class Numbers(Dataset):
    def __init__(self, length=10):
        self.length = length

    def data_sha256(self):
        return str(self.length)

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return {"number": int(index)}


def batches(config, batch_index=0):
    accelerator = Accelerator(cpu=True)
    sampler = make_batch_sampler(config, Numbers(), accelerator)
    return train_steps(config, Numbers(), sampler, batch_index, accelerator)


def test_steps_run_over_epochs_and_can_be_found_again(tmp_path):
    config = example_config(tmp_path)
    steps = list(itertools.islice(batches(config), 5))
    assert [len(step) for step in steps] == [1] * 5
    numbers = [batch["number"].tolist() for step in steps for batch, _ in step]
    assert len({*numbers[0], *numbers[1]}) == 8  # no number twice in an epoch
    resumed = [batch["number"].tolist() for ((batch, _),) in itertools.islice(batches(config, 3), 2)]
    assert resumed == numbers[3:]


def test_parts_of_a_step_have_the_same_samples_and_random_numbers(tmp_path):
    ((batch, draws),) = next(batches(example_config(tmp_path)))
    parts = next(batches(example_config(tmp_path, gradient_accumulation_steps=2)))
    assert torch.equal(torch.cat([part["number"] for part, _ in parts]), batch["number"])
    assert torch.equal(torch.cat([part.normal("noise", (2,)) for _, part in parts]), draws.normal("noise", (2,)))


def test_the_processes_generators_depend_on_the_position_alone(tmp_path):
    numbers = [torch.rand(3) for _ in itertools.islice(batches(example_config(tmp_path)), 4)]
    assert not torch.equal(numbers[0], numbers[1])
    next(batches(example_config(tmp_path), batch_index=3))
    assert torch.equal(torch.rand(3), numbers[3])


def test_a_batch_that_is_larger_than_the_data_set(tmp_path):
    config = example_config(tmp_path)
    with pytest.raises(ValueError, match="`global_batch_size` is 4; required: at most the 3 samples"):
        make_batch_sampler(config, Numbers(3), Accelerator(cpu=True))


class Images:
    def __len__(self):
        return 20

    def __getitem__(self, index):
        return {"pixel_values": torch.arange(6.0).view(1, 2, 3) + index}


def test_flips_depend_on_seed_epoch_and_index():
    images = Images()
    flipped = RandomlyFlipped(images, seed=3)
    assert len(flipped) == 20
    for epoch in range(3):
        for number in range(20):
            pixels = flipped[EpochIndex(number, epoch)]["pixel_values"]
            expected = images[number]["pixel_values"]
            assert torch.equal(pixels, expected.flip(-1) if is_flipped(3, epoch, number) else expected)
