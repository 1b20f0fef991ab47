import pytest

from diffusers_lightningdit.settings import make_config
from diffusers_lightningdit.training.vavae.config import VAVAETrainingConfig


def config(tmp_path, **settings) -> VAVAETrainingConfig:
    needed = {"data": "x", "output_dir": str(tmp_path / "new"), "foundation_model": "dinov2", "lpips": "file"}
    return make_config(VAVAETrainingConfig, {**needed, **settings})


def test_one_stage_by_default(tmp_path):
    (stage,) = config(tmp_path).schedule
    assert (stage.first_step, stage.num_steps, config(tmp_path).max_train_steps) == (0, 100_000, 100_000)
    assert (stage.losses.vf_weight, stage.losses.distmat_margin, stage.losses.cos_margin) == (0.1, 0.25, 0.5)
    assert (stage.losses.kl_weight, stage.losses.disc_weight, stage.losses.adaptive_vf) == (1e-6, 0.5, True)


def test_stages_follow_one_another_and_change_what_they_name(tmp_path):
    stages = [
        {"num_steps": 10, "vf_weight": 0.5, "disc_start": 4},
        {"num_steps": 5, "disc_start": 0, "cos_margin": 0.1},
    ]
    settings = config(tmp_path, stages=stages, distmat_margin=0.2)
    assert settings.max_train_steps == 15
    assert [settings.schedule.index(settings.stage_at(step)) for step in (0, 9, 10, 14)] == [0, 0, 1, 1]
    first, second = (stage.losses for stage in settings.schedule)
    assert (first.vf_weight, first.distmat_margin, first.cos_margin) == (0.5, 0.2, 0.5)
    assert (second.vf_weight, second.distmat_margin, second.cos_margin) == (0.1, 0.2, 0.1)


def test_the_discriminator_is_a_step_ahead_as_in_the_original(tmp_path):
    """There, each batch counts two steps, and both start at 5001: the autoencoder's of batch n is 2 n."""
    stage = config(tmp_path, disc_start=2500).schedule[0]
    for batch in (0, 2499, 2500, 2501, 2502):
        assert stage.is_judged(batch) == (2 * batch >= 5001)
        assert stage.discriminator_trains(batch) == (2 * batch + 1 >= 5001)
    first = config(tmp_path, stages=[{"num_steps": 3, "disc_start": 1}, {"num_steps": 3, "disc_start": 0}])
    trains = [first.stage_at(step).discriminator_trains(step) for step in range(6)]
    judged = [first.stage_at(step).is_judged(step) for step in range(6)]
    assert trains == [False, True, True, True, True, True]
    assert judged == [False, False, True, False, True, True]


def test_a_weight_of_0_needs_no_network(tmp_path):
    settings = config(
        tmp_path, foundation_model=None, lpips=None, vf_weight=0.0, perceptual_weight=0.0, disc_weight=0.0
    )
    assert not settings.has_projection and not settings.has_discriminator
    assert not settings.schedule[0].discriminator_trains(5000)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"foundation_model": None}, "`vf_weight` is 0.1 without `foundation_model`; required: both, or"),
        ({"lpips": None}, "`perceptual_weight` is 1.0 without `lpips`; required: both, or"),
        ({"max_train_steps": 2500}, "`disc_start` is 2500; required: below the 2500 steps"),
        ({"max_train_steps": 0}, "`max_train_steps` is 0; required: at least 1"),
        ({"stages": [{"vf_weight": 1}]}, "`stages[0]`: `num_steps` is None; required: a whole number, at least 1"),
        ({"stages": [{"num_steps": "1e1"}]}, "`stages[0]`: `num_steps` is '1e1'; required: a whole number"),
        ({"vae": {"in_channels": 2}}, "`vae.in_channels` is 2; required: 3, those of RGB images, or 1"),
        ({"vae": {"in_channels": 1}}, "`vae.out_channels` is 3; required: 1, as `vae.in_channels`"),
        ({"discriminator": {"in_channels": 1}}, "`discriminator.in_channels` is 1; required: 3"),
        ({"discriminator": {"num_layers": "abc"}}, "`discriminator.num_layers` is 'abc'; required: a whole number"),
        ({"discriminator": {"num_layers": 0}}, "`discriminator.num_layers` is 0; required: at least 1"),
        ({"discriminator": {"base_channels": 0}}, "`discriminator.base_channels` is 0; required: at least 1"),
        (
            {"stages": [{"num_steps": 9, "disc_start": 9}]},
            "`stages[0]`: `disc_start` is 9; required: below the 9 steps",
        ),
        ({"stages": [{"num_steps": 3000}, {"num_steps": 3000, "vf_wieght": 1}]}, "`stages[1]`: `vf_wieght` is no key"),
        ({"stages": [{"num_steps": 3000, "vf_weight": -1}]}, "`stages[0]`: `vf_weight` is -1"),
        ({"stages": [{"num_steps": 3000}], "max_train_steps": 5000}, "but the stages have 3000 steps"),
        ({"vae": {"latent_channels": 4}, "weight_init": "folder"}, "required: one of them"),
        ({"foundation_normalization": "imagenet"}, "`foundation_normalization` is 'imagenet'; required: one of"),
        ({"disc_loss": "softplus"}, "`disc_loss` is 'softplus'; required: one of hinge, vanilla"),
        ({"discriminator": {"layers": 3}}, "`discriminator.layers` is no key of PatchGANDiscriminator"),
        ({"ema_decay": 1.0}, "`ema_decay` is 1.0; required: at least 0 and below 1"),
        ({"statistics_samples": 0}, "`statistics_samples` is 0; required: at least 1"),
    ],
)
def test_errors_name_key_value_and_requirement(tmp_path, settings, message):
    with pytest.raises(ValueError) as error:
        config(tmp_path, **settings)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
