"""What a kernel takes while nothing else has the machine: its quietest moment.

In: times of kernels in turn, round after round. Out: of every kernel, some rounds in a row. Others
on a shared machine only ever add: one that read memory made small kernels take up to three times
as long, for a tenth of a second or for several. Of the small kernels of ResNet-20 the medians of 31
rounds, 8 ms, differed by 20 to 40 % from run to run; the least median of 5 rounds within a quarter
of a second by 10 %.
"""

from __future__ import annotations

import numpy as np

WINDOW = 5  # rounds in a row: one alone may have had luck
SECONDS = 0.25  # that rounds last at least, to meet with a quiet moment


def quietest(times: np.ndarray) -> np.ndarray:
    """Of (rounds, kernels) times, every kernel's window of least median: (window, kernels).

    All rounds where there are fewer than two windows.
    """
    count = len(times) // WINDOW
    if count < 2:
        return times
    windows = times[: count * WINDOW].reshape(count, WINDOW, -1)
    least = np.median(windows, axis=1).argmin(axis=0)
    found: np.ndarray = np.take_along_axis(windows, least[None, None, :], axis=0)[0]
    return found
