"""Training: one loop for every model, the weights on disk, and an audit of what moved."""

from lib.training.audit import audit, module_of
from lib.training.loop import Progress, Run, StepLosses, assert_gradients_arrive, parameter_groups, schedule, train
from lib.training.weights import load_weights, save_weights

__all__ = [
    "Progress",
    "Run",
    "StepLosses",
    "assert_gradients_arrive",
    "audit",
    "load_weights",
    "module_of",
    "parameter_groups",
    "save_weights",
    "schedule",
    "train",
]
