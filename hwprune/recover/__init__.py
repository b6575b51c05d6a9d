"""Recovery: give a pruned network back what pruning cost it, from unlabelled images or by training.

`reestimate_norms` and `reconstruct` need images but no labels and take seconds to a minute;
`finetune` trains, with the dense model as teacher; `fidelity` says how far two networks agree.
"""

from hwprune.recover.fidelity import fidelity
from hwprune.recover.images import load_images
from hwprune.recover.norms import reestimate_norms
from hwprune.recover.reconstruct import LayerError, Reconstruction, reconstruct
from hwprune.recover.train import Step, TrainConfig, TrainResult, finetune

__all__ = [
    "LayerError",
    "Reconstruction",
    "Step",
    "TrainConfig",
    "TrainResult",
    "fidelity",
    "finetune",
    "load_images",
    "reconstruct",
    "reestimate_norms",
]
