"""The exponential moving average of a network's weights and statistics."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Average:
    """Follows a module; early on the decay is smaller, so that the start is soon forgotten."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.count = decay, 0
        self.tensors = {n: t.detach().clone() for n, t in module.state_dict().items()}

    def update(self, module: nn.Module) -> None:
        """Move towards the module as it is now; integers are taken as they are."""
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        with torch.no_grad():
            for name, tensor in module.state_dict().items():
                if tensor.is_floating_point():
                    self.tensors[name].lerp_(tensor, 1 - decay)
                else:
                    self.tensors[name].copy_(tensor)

    def state(self) -> dict[str, object]:
        """What a checkpoint has to hold."""
        tensors = {n: t.clone() for n, t in self.tensors.items()}
        return {"count": self.count, "tensors": tensors}

    def restore(self, state: Mapping[str, object]) -> None:
        """Go on from a checkpoint."""
        tensors = state["tensors"]
        assert isinstance(tensors, Mapping)
        self.count = int(state["count"])  # type: ignore[call-overload]
        held: Mapping[str, Tensor] = tensors
        self.tensors = {n: t.to(self.tensors[n].device, copy=True) for n, t in held.items()}
