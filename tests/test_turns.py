"""Turns of a search: what is learnt of a miss, and when another turn is worth its time."""

import pytest

from hwprune.calibrate import Calibration
from hwprune.turns import MOST, USUAL, Turns, nearest, through


def begun(**options) -> Turns:
    return Turns(50.0, Calibration(0.0, 1.0), [(100.0, 100.0)], **options)


def played(turns: Turns, *measured: float) -> int:
    """How many turns there are when the network of each takes the next of these."""
    for network_us in measured:
        wanted = (turns.goal_us - turns.calibration.overhead_us) / turns.calibration.factor
        if not turns.learn(max(wanted, 1.0), network_us):
            break
    return turns.done


@pytest.mark.parametrize(
    ("measured", "turns"),
    [
        ((49.0,), 1),
        ((50.4,), 1),  # within what is accepted
        ((60.0, 49.0), 2),
        ((60.0, 47.0, 47.1, 47.2), USUAL),  # a little is left
        ((60.0, 40.0, 41.0, 42.0, 43.0, 44.0, 45.0), MOST),  # much is left
        ((60.0, 40.0, 41.0, 47.0, 43.0), 4),
        ((60.0,) * 9, MOST),
    ],
)
def test_turns_end_once_the_budget_is_used(measured, turns) -> None:
    assert played(begun(), *measured) == turns


def test_nothing_to_add_ends_the_turns() -> None:
    turns = begun()
    assert not turns.learn(30.0, 30.0, full=True)


def test_the_same_plan_again_ends_the_turns() -> None:
    turns = begun()
    assert turns.learn(40.0, 40.0)
    assert turns.learn(60.0, 60.0)
    assert not turns.learn(40.0, 41.0)


def test_the_narrowest_network_teaches_once() -> None:
    turns, sure = begun(rough=True), begun()
    assert turns.learn(30.0, 40.0, narrowest=True)
    assert not turns.learn(30.0, 40.0, narrowest=True)
    assert sure.learn(30.0, 60.0, narrowest=True)
    assert sure.learn(30.0, 55.0, narrowest=True)  # they may have been disturbed


def test_only_where_nothing_met_the_goal_it_is_out_of_reach() -> None:
    turns = begun()
    assert turns.hopeless(60.0)
    assert not turns.hopeless(50.0)
    turns.learn(30.0, 40.0, narrowest=True)
    assert not turns.hopeless(60.0)


@pytest.mark.parametrize("rough", [False, True])
def test_a_plan_that_was_too_slow_is_not_chosen_again(rough) -> None:
    turns = begun(rough=rough)
    turns.learn(50.0, 55.0)
    assert turns.calibration.network_us(50.0) > turns.over * turns.goal_us


def test_between_two_misses_the_line_through_them_aims() -> None:
    turns = begun()
    turns.learn(55.0, 60.0)
    turns.learn(40.0, 40.0)
    assert turns.calibration.network_us(55.0) == pytest.approx(60.0)
    assert turns.calibration.network_us(47.5) == pytest.approx(50.0)


def test_runs_on_one_side_or_far_away_leave_the_calibration() -> None:
    fitted = Calibration(1.0, 2.0)
    assert nearest([(100.0, 100.0), (60.0, 70.0)], 50.0, fitted) is fitted
    assert nearest([(100.0, 100.0), (10.0, 20.0)], 50.0, fitted) is fitted
    assert nearest([(40.0, 100.0), (45.0, 45.0)], 50.0, fitted) is fitted  # disturbed


def test_a_calibration_through_a_network_gives_its_latency() -> None:
    found = through(Calibration(10.0, 2.0, runs=2), 20.0, 100.0)
    assert found.network_us(20.0) == pytest.approx(100.0)
    assert found.network_us(10.0) == pytest.approx(60.0)  # overhead and factor by the same share
