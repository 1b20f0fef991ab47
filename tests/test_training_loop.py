import pytest
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from diffusers_lightningdit.training_config import TrainingConfig
from diffusers_lightningdit.training_loop import (
    check_batch_size,
    make_lr_scheduler,
    make_train_dataloader,
    train_batches,
)


def example_config(tmp_path, **settings) -> TrainingConfig:
    settings = {"train_batch_size": 4, "max_train_steps": 5, "learning_rate": 1.0, **settings}
    return TrainingConfig(data="images", output_dir=str(tmp_path / "new"), **settings)


def test_batches_run_over_epochs_and_stop_at_the_last_step(tmp_path):
    config = example_config(tmp_path)
    dataloader = make_train_dataloader(config, torch.arange(10))
    with tqdm(total=5, disable=True) as progress_bar:
        batches = list(train_batches(config, dataloader, progress_bar))
    assert [len(batch) for batch in batches] == [4] * 5  # the last two of an epoch are dropped
    assert len({int(number) for batch in batches[:2] for number in batch}) == 8  # no number twice in an epoch


def test_the_schedule_ends_at_the_last_step(tmp_path):
    config = example_config(tmp_path, lr_scheduler="linear", lr_warmup_steps=2, max_train_steps=6)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    scheduler = make_lr_scheduler(config, optimizer, Accelerator(cpu=True))
    rates = []
    for _ in range(6):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0, 0.5, 1, 0.75, 0.5, 0.25])
    assert scheduler.get_last_lr() == [0]


def test_a_batch_that_is_larger_than_the_data_set(tmp_path):
    config = example_config(tmp_path)
    check_batch_size(config, 4, Accelerator(cpu=True))
    with pytest.raises(ValueError, match="`train_batch_size` is 4 on 1 processes; required: at most the 3 images"):
        check_batch_size(config, 3, Accelerator(cpu=True))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"resolution": 0}, "`resolution` is 0; required: at least 1"),
        ({"learning_rate": 0.0}, "`learning_rate` is 0.0; required: a positive number"),
        ({"num_workers": -1}, "`num_workers` is -1; required: at least 0"),
        ({"lr_scheduler": "cosin"}, "`lr_scheduler` is 'cosin'; required: one of linear, cosine"),
        ({"mixed_precision": "fp8"}, "`mixed_precision` is 'fp8'; required: one of no, fp16, bf16"),
    ],
)
def test_values_that_cannot_be_trained_with(tmp_path, setting, message):
    with pytest.raises(ValueError, match=message):
        example_config(tmp_path, **setting)
