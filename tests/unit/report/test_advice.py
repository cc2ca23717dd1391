from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest

from launcher.config.schema import RunConfig
from launcher.report.advice import Advice, epoch_advice, plateau_advice, spike_indices
from launcher.report.epochs import Snapshot, best_eval, snapshots
from launcher.report.smoothing import centred, smoothed
from launcher.runs.metrics import Metrics
from tests.unit.report.made_runs import eval_record, step_record


def shots(heldout: list[float | None], train: list[float] | None = None) -> list[Snapshot]:
    train = train or [2.0 / (place + 1) for place in range(len(heldout))]
    return [
        Snapshot(epoch=place + 1.0, step=10 * (place + 1), train_loss=loss, validation_loss=held, time="")
        for place, (held, loss) in enumerate(zip(heldout, train, strict=True))
    ]


def codes(advice: Advice) -> list[str]:
    return [finding.code for finding in advice.findings]


@pytest.mark.parametrize(
    ("heldout", "code", "epochs"),
    [
        ([2.0, 1.5, 1.2, 1.0, 0.999, 0.998, 0.997], "plateau", 4.0),
        ([1.0, 0.99, 0.99], "plateau", 2.0),
        ([1.0, 0.999], "plateau", 1.0),
        ([1.0, 0.5, 0.505], "plateau", 2.0),
        ([1.0, 0.8, 0.9, 1.2], "overfit", 2.0),
        ([1.0, 1.1], "overfit", 1.0),
        ([1.0, 0.80, 0.795, 0.95], "overfit", 2.0),
        ([2.0, 1.5, 1.2, 1.0], "still_falling", None),
        ([1.0, 0.5], "still_falling", None),
        ([0.03, 0.02, 0.015], "still_falling", None),
        ([1.0], "too_short", None),
        ([], "too_short", None),
        ([math.nan, 1.0], "still_falling", None),
        ([0.0, 0.0], "plateau", 1.0),
    ],
)
def test_epochs_follow_the_held_out_losses(heldout: list[float | None], code: str, epochs: float | None) -> None:
    advice = epoch_advice(shots(heldout))
    assert (codes(advice)[0], advice.best_epochs) == (code, epochs)


def test_plateau_advice_says_what_the_later_epochs_gained() -> None:
    advice = epoch_advice(shots([2.0, 1.5, 1.2, 1.0, 0.999, 0.998, 0.997]))
    assert advice.headline == "validation loss flattens after epoch 4: epochs 5-7 gained 0.3%; set optim.epochs=4"
    assert advice.findings[0].override == "optim.epochs=4"


def test_over_fitting_advice_names_the_lowest_epoch_and_the_rise() -> None:
    assert epoch_advice(shots([1.0, 0.8, 0.9, 1.2])).headline == (
        "over-fitting: validation loss is lowest after epoch 2 (0.8) and rises to 1.2 (50.0% more) "
        "while training loss falls; set optim.epochs=2"
    )


def test_held_out_loss_that_rises_with_the_training_loss_is_not_over_fitting() -> None:
    advice = epoch_advice(shots([1.0, 0.8, 1.2], train=[1.0, 0.9, 1.3]))
    assert codes(advice) == ["rising"]
    assert "over-fitting" not in advice.headline


def test_a_loss_that_still_falls_asks_for_more_epochs() -> None:
    advice = epoch_advice(shots([2.0, 1.5, 1.2, 1.0]))
    assert advice.findings[0].override == "optim.epochs=6"
    assert "the last epoch gained 16.7%" in advice.headline


def test_without_held_out_examples_training_loss_is_read_and_the_blindness_said() -> None:
    advice = epoch_advice(shots([None, None, None], train=[1.0, 0.5, 0.499]))
    assert codes(advice) == ["plateau", "no_heldout"]
    assert advice.headline.startswith("training loss flattens after epoch 2")
    assert advice.findings[1].override == "data.validation_fraction=0.1"


def metrics_of(losses: list[float], heldout: list[float] | None = None) -> Metrics:
    steps = [step_record(step, loss) for step, loss in enumerate(losses, 1)]
    evals = [eval_record(10 * place, loss) for place, loss in enumerate(heldout or [], 1)]
    return Metrics(steps, evals)


def falling(count: int) -> list[float]:
    draw = random.Random(1)
    return [(1 + 2 * math.exp(-step / 20)) * math.exp(draw.gauss(0, 0.1)) for step in range(count)]


def test_a_healthy_noisy_curve_raises_no_alarm() -> None:
    advice = plateau_advice(metrics_of(falling(400)), RunConfig())
    assert {finding.code for finding in advice.findings} <= {"plateau", "no_heldout", "still_falling"}


def test_a_curve_that_climbs_away_is_divergence_and_nothing_else_is_advised() -> None:
    config = RunConfig()
    config.optim.lr_multiplier = 2.0
    advice = plateau_advice(metrics_of(falling(40) + [1.5 + 0.2 * step for step in range(40)]), config)
    assert codes(advice) == ["diverged"]
    assert advice.findings[0].override == "optim.lr_multiplier=0.6"
    assert advice.best_epochs is None


def test_a_loss_that_is_no_number_is_counted() -> None:
    advice = plateau_advice(metrics_of([2.0, 1.9, math.nan]), RunConfig())
    assert codes(advice) == ["not_finite"]
    assert "in 1 step;" in advice.headline


def test_the_noise_of_small_batches_near_zero_loss_is_no_spike() -> None:
    losses = [2.0] * 10 + [0.01] * 60
    losses[40], losses[60] = 0.3, 0.9
    assert spike_indices(losses) == [60]


def test_spikes_are_found_where_they_are() -> None:
    losses = falling(200)
    losses[120] *= 4
    losses[150] *= 5
    assert spike_indices(losses) == [120, 150]
    assert "spikes" in codes(plateau_advice(metrics_of(losses), RunConfig()))


def test_a_loss_that_does_not_move_suggests_a_larger_learning_rate() -> None:
    advice = plateau_advice(metrics_of([2.0] * 40), RunConfig())
    (slow,) = [finding for finding in advice.findings if finding.code == "slow"]
    assert slow.override == "optim.lr_multiplier=3"


def test_held_out_loss_that_swings_suggests_a_smaller_learning_rate() -> None:
    metrics = metrics_of(falling(60), [1.0, 0.8, 0.9, 0.75, 0.85, 0.7])
    (swing,) = [finding for finding in plateau_advice(metrics, RunConfig()).findings if finding.code == "oscillation"]
    assert swing.override == "optim.lr_multiplier=0.5"


def test_a_run_without_a_step_gets_a_sentence_too() -> None:
    assert codes(plateau_advice(Metrics(), RunConfig())) == ["no_data"]


def test_snapshots_weigh_losses_by_supervised_tokens_and_take_the_last_evaluation_inside() -> None:
    metrics = metrics_of([3.0] * 10 + [1.0] * 5, [2.0])
    metrics.evals.append(eval_record(13, 1.5, epoch=1.3))
    found = snapshots(metrics)
    assert [(shot.epoch, shot.step, shot.train_loss, shot.validation_loss) for shot in found] == [
        (1.0, 10, 3.0, 2.0),
        (1.5, 15, 1.0, 1.5),
    ]


def test_the_step_that_ends_an_epoch_belongs_to_it_despite_rounding() -> None:
    metrics = Metrics([step_record(1, 1.0, epoch=0.5), step_record(2, 1.0, epoch=1.0000000001)])
    assert [shot.step for shot in snapshots(metrics)] == [2]


def test_the_best_evaluation_is_the_first_lowest_finite_one() -> None:
    metrics = metrics_of([1.0], [1.0, 0.5, 0.5, math.nan])
    best = best_eval(metrics)
    assert best is not None and best.step == 20
    assert best_eval(Metrics()) is None


def test_smoothing_starts_at_the_first_value_halves_by_half_life_and_skips_gaps() -> None:
    assert smoothed([4.0], 5)[0] == pytest.approx(4.0)
    assert smoothed([math.nan, 2.0, math.nan], 5)[1:] == pytest.approx([2.0, 2.0])
    curve = smoothed([0.0] * 200 + [1.0] * 10, half_life=10)
    assert curve[-1] == pytest.approx(0.5, abs=1e-3)
    assert all(before <= after for before, after in pairwise(curve))


def test_smoothing_from_both_sides_draws_a_straight_line_where_it_is() -> None:
    line = [300.0 - place for place in range(200)]
    assert centred(line)[100] == pytest.approx(line[100])
    assert smoothed(line, half_life=3)[100] > line[100] + 1
    assert centred([2.0, math.nan, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
    assert math.isnan(centred([math.nan])[0])
