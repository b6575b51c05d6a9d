"""`LatencyModel`: terms times coefficients, a smoothed residual, an interval.

In: the counts of kernels and measured microseconds; or a stored calibration. Out: `Predicted`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from hwprune.predict.fit import fit_coefficients
from hwprune.predict.residual import Residual

FEWEST = 8  # rows of an algorithm that have coefficients of their own
FOLDS = 5  # of the cross-validation that gives the interval
TAILS = (0.1, 0.9)  # the interval holds four of five kernels
Coefficients = Mapping[str, np.ndarray]  # algorithm -> (terms,)


class Terms(Protocol):
    """Times that a latency is a positive combination of."""

    def array(self) -> np.ndarray:
        """(terms,) float64 microseconds."""


class Counts(Protocol):
    """What a kernel asks of a device: `Work` of a core, `GpuWork` of a GPU."""

    @property
    def algorithm(self) -> str:
        """Whose coefficients count."""

    @property
    def traits(self) -> tuple[float, ...]:
        """Where the kernel lies among others: see `residual`."""

    def terms(self, machine: Any, /) -> Terms:
        """The counts at the best that a device is described to do."""


@dataclass(frozen=True)
class Predicted:
    """A latency and the interval that holds four of five, microseconds."""

    median_us: float
    low_us: float
    high_us: float


@dataclass(frozen=True)
class Sample:
    """A measured kernel; `layer` names what must not be on both sides of a validation."""

    work: Counts
    measured_us: float
    layer: str


@dataclass(frozen=True)
class LatencyModel:
    """Coefficients by algorithm, the logarithms that bound the error, and what is left, smoothed.

    The residual belongs to the schedules it was measured with; it is None where those are not ours.
    """

    coefficients: Coefficients
    interval: tuple[float, float]
    residual: Residual | None = None

    @staticmethod
    def fit(
        samples: Sequence[Sample], machine: Any, prior: LatencyModel, *, smooth: bool = True
    ) -> LatencyModel:
        """Calibrate on measured kernels; the interval is of kernels that were left out.

        Without `smooth` there are coefficients alone, for schedules other than those measured.
        Raises ValueError where there are fewer than `FEWEST` samples.
        """
        if len(samples) < FEWEST:
            raise ValueError(f"{len(samples)} rows: at least {FEWEST} are needed")
        model = _fit(samples, machine, prior, smooth)
        left_out = cross_validate(samples, machine, prior, folds=FOLDS, smooth=smooth)
        measured = np.array([s.measured_us for s in samples])
        low, high = np.quantile(np.log(measured / left_out), TAILS)
        return replace(model, interval=(min(float(low), 0.0), max(float(high), 0.0)))

    def median_us(self, works: Sequence[Counts], machine: Any) -> np.ndarray:
        """(works,) float64 microseconds."""
        terms = np.array([w.terms(machine).array() for w in works]).reshape(len(works), -1)
        scale = np.array([self.coefficients[w.algorithm] for w in works]).reshape(terms.shape)
        modelled = np.asarray((terms * scale).sum(axis=1))
        if self.residual is None or not len(works):
            return modelled
        return modelled * np.exp(self.residual.at(np.array([w.traits for w in works])))

    def bounded(self, median_us: float) -> Predicted:
        """A latency with its interval."""
        low, high = (median_us * float(np.exp(bound)) for bound in self.interval)
        return Predicted(median_us, low, high)


def _fit(
    samples: Sequence[Sample], machine: Any, prior: LatencyModel, smooth: bool
) -> LatencyModel:
    works = [s.work for s in samples]
    measured = np.array([s.measured_us for s in samples])
    terms = np.array([w.terms(machine).array() for w in works])
    ratios = measured / LatencyModel(prior.coefficients, prior.interval).median_us(works, machine)
    found: dict[str, np.ndarray] = {}
    for algorithm, start in prior.coefficients.items():
        rows = np.array([w.algorithm == algorithm for w in works])
        scaled = start * float(np.median(ratios[rows] if rows.any() else ratios))
        enough = rows.sum() >= FEWEST
        found[algorithm] = (
            fit_coefficients(terms[rows], measured[rows], scaled) if enough else scaled
        )
    plain = LatencyModel(found, prior.interval)
    if not smooth:
        return plain
    logs = np.log(measured / plain.median_us(works, machine))
    return replace(plain, residual=Residual.fit(np.array([w.traits for w in works]), logs))


def cross_validate(
    samples: Sequence[Sample],
    machine: Any,
    prior: LatencyModel,
    *,
    folds: int = 10,
    seed: int = 0,
    smooth: bool = True,
) -> np.ndarray:
    """(samples,) float64: every kernel predicted by a model that never saw its layer."""
    layers = sorted({s.layer for s in samples})
    order = np.random.default_rng(seed).permutation(len(layers))
    fold_of = {layers[i]: place % folds for place, i in enumerate(order)}
    fold = np.array([fold_of[s.layer] for s in samples])
    predicted = np.zeros(len(samples))
    for number in range(min(folds, len(layers))):
        inside = [s for s, f in zip(samples, fold, strict=True) if f != number]
        outside = [s.work for s, f in zip(samples, fold, strict=True) if f == number]
        predicted[fold == number] = _fit(inside, machine, prior, smooth).median_us(outside, machine)
    return predicted
