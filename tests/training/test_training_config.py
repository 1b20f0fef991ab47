import pytest

from diffusers_lightningdit.training.config import ImageTrainingConfig


def example_config(tmp_path, **settings) -> ImageTrainingConfig:
    settings = {"global_batch_size": 4, "max_train_steps": 5, "learning_rate": 1.0, **settings}
    return ImageTrainingConfig(data="images", output_dir=str(tmp_path / "new"), **settings)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"resolution": 0}, "`resolution` is 0; required: at least 1"),
        ({"learning_rate": 0.0}, "`learning_rate` is 0.0; required: a positive number"),
        ({"num_workers": -1}, "`num_workers` is -1; required: at least 0"),
        ({"streaming": True, "num_workers": 1}, "`num_workers` is 1; required: 0 with `streaming`"),
        ({"shuffle_block_size": 0}, "`shuffle_block_size` is 0; required: at least 1"),
        ({"num_open_files": 0}, "`num_open_files` is 0; required: at least 1"),
        ({"checkpointing_steps": 0}, "`checkpointing_steps` is 0; required: at least 1"),
        ({"loss_spike_factor": 1.0}, "`loss_spike_factor` is 1.0; required: above 1"),
        ({"lr_scheduler": "cosin"}, "`lr_scheduler` is 'cosin'; required: one of linear, cosine"),
        ({"lr_scheduler": "piecewise_constant"}, "`lr_step_rules` is None; required: given"),
        ({"lr_step_rules": "1:2,0.1"}, "`lr_step_rules` is '1:2,0.1'; required: given if"),
        ({"mixed_precision": "int8"}, "`mixed_precision` is 'int8'; required: one of no, fp16, bf16, fp8"),
        ({"report_to": "paper"}, "`report_to` is 'paper'; required: of the trackers that are installed"),
    ],
)
def test_values_that_cannot_be_trained_with(tmp_path, setting, message):
    with pytest.raises(ValueError, match=message):
        example_config(tmp_path, **setting)
