"""`Forms`: what a unit is, where several answers keep every layer dense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from hwprune.errors import HwpruneError

AUTO, GROUPS = "auto", "groups"
HEADS, HEAD_DIM, BOTH = "heads", "head_dim", "both"
OFFSETS, EVENLY = "offsets", "evenly"


@dataclass(frozen=True)
class Forms:
    """The options of the units; a plan records those that it was made with.

    `attention`: "heads", "head_dim" (the same channel of every head), or for a search "both", one
    after the other. `grouped`: of a grouped convolution "groups" (whole groups), "offsets" (the
    same channels of each group) or "auto" (whichever leaves more units). `group_norm`: "groups"
    (whole norm groups), "evenly" (the same channels of each, whose statistics then run over fewer)
    or "auto". `branches`: whether residual branches may be removed whole.
    """

    attention: str = HEADS
    grouped: str = AUTO
    group_norm: str = AUTO
    branches: bool = False

    def stages(self) -> tuple[Forms, ...]:
        """What a search prunes in turn: heads, then channels of the heads that are left."""
        if self.attention != BOTH:
            return (self,)
        return replace(self, attention=HEADS), replace(self, attention=HEAD_DIM)

    def checked(self, *, search: bool = False) -> Forms:
        """These forms; HwpruneError for one that there is not.

        A `search` may take "both" forms of an attention, a single plan has one.
        """
        for name, known in KNOWN.items():
            known = (*known, BOTH) if search and name == "attention" else known
            word = getattr(self, name)
            if type(word) is not type(known[0]) or word not in known:
                listed = " or ".join(str(k).lower() for k in known)
                raise HwpruneError(f"unknown units {word!r}", where=name, hint=listed)
        return self

    @staticmethod
    def asked(options: Mapping[str, Any], weighed: bool) -> Forms:
        """The forms among the options of a search, not checked yet.

        Where nothing, or None, says whether branches may go, they may if it is `weighed` what
        they are worth: by the measured error of the outputs without them.
        """
        given = {name: options[name] for name in KNOWN if name in options}
        if given.get("branches") is None:
            given["branches"] = weighed
        return Forms(**given)

    @staticmethod
    def read(raw: Mapping[str, Any]) -> Forms:
        """The forms in the data of a plan; usual ones where it has none. Raises HwpruneError."""
        return Forms(**{f.name: raw[f.name] for f in fields(Forms) if f.name in raw}).checked()


USUAL = Forms()
KNOWN: dict[str, tuple[str | bool, ...]] = {
    "attention": (HEADS, HEAD_DIM),
    "grouped": (AUTO, GROUPS, OFFSETS),
    "group_norm": (AUTO, GROUPS, EVENLY),
    "branches": (False, True),
}
"""The words that every option takes."""
