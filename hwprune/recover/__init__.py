"""Recovery: give a pruned network back what pruning cost it, from unlabelled images or by training.

`reestimate_norms` and `reconstruct` need images but no labels and take seconds to a minute;
`finetune` trains, with the dense model as teacher; `fidelity` says how far two networks agree.
"""

from hwprune.recover.bar import training_bar
from hwprune.recover.callback import Callback, Step
from hwprune.recover.config import TrainConfig
from hwprune.recover.features import Features, features
from hwprune.recover.fidelity import fidelity
from hwprune.recover.images import load_images
from hwprune.recover.norms import reestimate_norms
from hwprune.recover.processes import Processes, distributed
from hwprune.recover.reconstruct import LayerError, Reconstruction, reconstruct
from hwprune.recover.train import TrainResult, finetune

__all__ = [
    "Callback",
    "Features",
    "LayerError",
    "Processes",
    "Reconstruction",
    "Step",
    "TrainConfig",
    "TrainResult",
    "distributed",
    "features",
    "fidelity",
    "finetune",
    "load_images",
    "reconstruct",
    "reestimate_norms",
    "training_bar",
]
