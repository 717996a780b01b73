"""Training: one loop for every model, the weights on disk, and an audit of what moved."""

from lib.training.audit import audit, module_of
from lib.training.folders import take_up
from lib.training.loop import adopt, train
from lib.training.memory import recompute_activations, split
from lib.training.optimizer import assert_gradients_arrive, parameter_groups, schedule
from lib.training.progress import Progress
from lib.training.run import Run, StepLosses
from lib.training.weights import load_weights, save_weights

__all__ = [
    "Progress",
    "Run",
    "StepLosses",
    "adopt",
    "assert_gradients_arrive",
    "audit",
    "load_weights",
    "module_of",
    "parameter_groups",
    "recompute_activations",
    "save_weights",
    "schedule",
    "split",
    "take_up",
    "train",
]
