"""What a step of a training gets: terms with their windows of neighbours (T-Gated), or slices by themselves (Med-VLM)."""

from lib.windows.slices import Slices, SliceSampler, augmentation, class_labels, label_classes
from lib.windows.terms import Terms, TermSampler, expected_weights, manifest_windows, store_window, window_of

__all__ = [
    "SliceSampler",
    "Slices",
    "TermSampler",
    "Terms",
    "augmentation",
    "class_labels",
    "expected_weights",
    "label_classes",
    "manifest_windows",
    "store_window",
    "window_of",
]
