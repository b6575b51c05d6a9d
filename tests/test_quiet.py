"""Of many rounds, every kernel's quietest moment."""

import numpy as np

from hwprune.measure import timed_rows
from hwprune.quiet import WINDOW, quietest
from tests.test_measure import kernel


def test_every_kernel_has_a_quiet_moment_of_its_own() -> None:
    times = np.full((4 * WINDOW, 2), 9.0)
    times[WINDOW : 2 * WINDOW, 0] = 5.0
    times[3 * WINDOW :, 1] = 4.0
    assert quietest(times).tolist() == [[5.0, 4.0]] * WINDOW


def test_one_lucky_round_is_no_moment() -> None:
    times = np.full((4 * WINDOW, 1), 9.0)
    times[2 * WINDOW, 0] = 1.0
    assert np.median(quietest(times)) == 9.0


def test_few_rounds_are_taken_as_they_are() -> None:
    times = np.arange(2.0 * WINDOW - 1)[:, None]
    assert quietest(times) is times


def test_rounds_that_fill_no_window_are_left_out() -> None:
    times = np.full((3 * WINDOW + 2, 1), 9.0)
    times[-2:] = 1.0
    assert quietest(times).max() == 9.0


def test_what_others_took_is_not_in_a_row() -> None:
    rng = np.random.default_rng(0)
    quiet = 10.0 + rng.random((10 * WINDOW, 1))
    disturbed = quiet + np.repeat(rng.choice([0.0, 8.0], 10), WINDOW)[:, None]
    (row,) = timed_rows([kernel(16)], 1, disturbed)
    assert row.repeats == 10 * WINDOW
    assert 10.0 <= row.p10_us <= row.median_us <= row.p90_us < 11.0
