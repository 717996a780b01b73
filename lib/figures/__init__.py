"""Figures, drawn from small stored extracts: seconds, no training."""

from .ablations import doses_figure, spacings_figure
from .architecture import extract_architecture, tgated_fig2
from .audit import extract_audit, extract_windows, gradient_audit, window_audit, window_audit_figure, window_means
from .confusion import claimed_voxels, confusion, extract_confusion
from .everything import FIGURES, all_figures, extract
from .extracts import NotRun, extract_presence
from .gallery import extract_gallery, gallery, median_case
from .gates import extract_gates, gate_maps, organ_gates
from .medvlm import (
    MEDVLM_FIGURES,
    extract_medvlm_curves,
    extract_medvlm_gallery,
    extract_medvlm_parameters,
    medvlm_curves,
    medvlm_overfitting,
    medvlm_slice,
)
from .pages import COLOURS, colour_of, save, slice_overlay
from .scan import prompt_colours, scan_overview
from .tgated import tgated_fig1, tgated_fig3, tgated_fig4, training_curves

__all__ = [
    "COLOURS",
    "FIGURES",
    "MEDVLM_FIGURES",
    "NotRun",
    "all_figures",
    "claimed_voxels",
    "colour_of",
    "confusion",
    "doses_figure",
    "extract",
    "extract_architecture",
    "extract_audit",
    "extract_confusion",
    "extract_gallery",
    "extract_gates",
    "extract_medvlm_curves",
    "extract_medvlm_gallery",
    "extract_medvlm_parameters",
    "extract_presence",
    "extract_windows",
    "gallery",
    "gate_maps",
    "gradient_audit",
    "median_case",
    "medvlm_curves",
    "medvlm_overfitting",
    "medvlm_slice",
    "organ_gates",
    "prompt_colours",
    "save",
    "scan_overview",
    "slice_overlay",
    "spacings_figure",
    "tgated_fig1",
    "tgated_fig2",
    "tgated_fig3",
    "tgated_fig4",
    "training_curves",
    "window_audit",
    "window_audit_figure",
    "window_means",
]
