import json
import math

import pytest

from diffusers_lightningdit.training.spike_guard import SpikeGuard, TrainingDiverged


def trained(num_steps=50, **arguments) -> SpikeGuard:
    guard = SpikeGuard(**arguments)
    for step in range(num_steps):
        assert guard.check(1.0 + 0.01 * (step % 3), 2.0) is None
    return guard


@pytest.mark.parametrize(
    ("loss", "grad_norm", "reason"),
    [
        (math.nan, 2.0, "loss is nan"),
        (math.inf, 2.0, "loss is inf"),
        (1.0, math.nan, "gradient norm is nan"),
        (3.1, 2.0, "loss is 3.1, over 3 times its median of 1.01"),
        (1.0, 20.5, "gradient norm is 20.5, over 10 times its median of 2"),
        (2.9, 19.5, None),
    ],
)
def test_judgement(loss, grad_norm, reason):
    guard = trained()
    assert guard.check(loss, grad_norm) == reason
    assert guard.num_skipped == guard.num_bad_in_a_row == (reason is not None)


@pytest.mark.parametrize(
    ("losses", "good", "spike"),
    [
        ([-1.0, -1.02, -0.98], (-5.0, 0.0, 0.99), 1.01),  # a log-likelihood: as far up as from 1 to 3
        ([-0.02, 0.01, 0.0, 0.02, -0.01], (-1.0, 0.09), 0.11),  # around zero: 5 median deviations of 0.01, twice
        ([0.0, -1.0, -2.0, -3.0, -4.0], (2.9,), 8.1),
    ],
)
def test_losses_of_any_sign(losses, good, spike):
    def guard():
        guard = SpikeGuard()
        for number in range(50):
            assert guard.check(losses[number % len(losses)], 1.0) is None
        return guard

    for loss in good:
        assert guard().check(loss, 1.0) is None
    assert "the limit for its median of" in guard().check(spike, 1.0)


def test_nothing_but_nan_is_judged_before_there_is_a_history():
    guard = trained(49)
    assert guard.check(100.0, 1e6) is None
    assert SpikeGuard().check(math.nan, 1.0) is not None


def test_bad_steps_do_not_enter_the_history():
    guard = trained()
    for _ in range(8):
        assert guard.check(100.0, 2.0) is not None
    assert guard.num_bad_in_a_row == guard.num_skipped == 8
    assert guard.check(1.0, 2.0) is None
    assert (guard.num_bad_in_a_row, guard.num_skipped) == (0, 8)


def test_overflow_is_left_to_the_loss_scaler():
    guard = trained()
    assert guard.check(1.0, math.inf, may_overflow=True) is None
    assert len(guard.losses) == 50
    assert guard.check(math.nan, math.inf, may_overflow=True) == "loss is nan"


def test_other_numbers_have_to_be_finite():
    guard = trained()
    assert guard.check(1.0, 2.0, only_finite={"kl_loss": 1e9}) is None
    assert guard.check(1.0, 2.0, only_finite={"kl_loss": 1e9, "vf_loss": math.nan}) == "vf_loss is nan"
    assert guard.num_bad_in_a_row == 1


def test_another_objective_begins_without_a_history():
    guard = trained()
    guard.check(100.0, 2.0)
    guard.forget_history()
    assert guard.check(100.0, 200.0) is None
    assert guard.num_skipped == 1


def test_roll_back_after_patience():
    guard = trained(patience=2)
    checkpoint = guard.state_dict()
    guard.check(math.nan, 1.0)
    assert not guard.must_roll_back
    guard.check(math.nan, 1.0)
    assert guard.must_roll_back
    guard.load_state_dict(guard.state_after_rollback(100, checkpoint))
    assert not guard.must_roll_back
    assert (guard.num_skipped, guard.num_rollbacks) == (2, 1)


def test_the_same_checkpoint_is_not_gone_back_to_for_ever():
    guard = trained(max_rollbacks=2, advice="more luck")
    checkpoint = guard.state_dict()
    for step in (100, 100, 200, 200):
        guard.load_state_dict(guard.state_after_rollback(step, checkpoint))
    message = "bad again after 2 returns to the checkpoint of step 200; required: more luck, or an earlier checkpoint"
    with pytest.raises(TrainingDiverged, match=message):
        guard.state_after_rollback(200, checkpoint)


def test_the_state_survives_json_bit_for_bit():
    guard = trained()
    guard.check(1 / 3, 2 / 3)
    guard.check(math.nan, 1.0)
    other = SpikeGuard()
    other.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    assert other.__dict__ == guard.__dict__
