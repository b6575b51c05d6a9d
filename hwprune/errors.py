"""The exceptions of hwprune: each says what is wrong, where, and what to do about it.

Everything a user can cause derives from `HwpruneError`; the command line prints its
text as one message and exits with status 2. Anything else is a defect of hwprune.
"""

from __future__ import annotations


class HwpruneError(Exception):
    """Base of every error a user can cause.

    Args:
        what: what is wrong, one sentence.
        where: file and line, graph node, option or table row; empty if it has no place.
        hint: what to do about it; empty if `what` says it all.
    """

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        self.what, self.where, self.hint = what, where, hint
        super().__init__(self.__str__())

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text} ({self.hint})" if self.hint else text


class ModelError(HwpruneError):
    """The model or its example inputs cannot be used: not exportable, NaN weights, wrong shapes."""


class TargetError(HwpruneError):
    """The target is unknown, its description is invalid, or this machine lacks what it needs."""


class BudgetError(HwpruneError):
    """The budget is malformed or cannot be met; states the smallest reachable value."""


class PlanError(HwpruneError):
    """A plan is malformed or was made for another model."""


class TableError(HwpruneError):
    """A latency table is malformed, or has no row that covers the workload asked for."""


class LoweringError(HwpruneError):
    """TVM could not compile a kernel, or the compiled result disagrees with PyTorch."""


class CertificateError(HwpruneError):
    """The smaller model is not the silenced original: a defect, never to be shipped."""


class ArtifactError(HwpruneError):
    """An artifact directory is incomplete, corrupt or cannot be written."""


class ToolchainError(HwpruneError):
    """A program that hwprune calls is missing; names the package that has it."""
