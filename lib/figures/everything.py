"""Every extract and every figure of a profile."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from matplotlib.figure import Figure

from lib.profiles import HEADLINE

from .ablations import doses_figure, spacings_figure
from .architecture import extract_architecture, tgated_fig2
from .audit import extract_audit, extract_windows, gradient_audit, window_audit_figure
from .confusion import confusion, extract_confusion
from .extracts import NotRun, extract_presence, joined, stored, write_extract
from .gallery import extract_gallery
from .gates import extract_gates, gate_maps
from .medvlm import CURVES, GALLERY, MEDVLM_FIGURES, PARAMETERS, extract_medvlm_curves, extract_medvlm_gallery, extract_medvlm_parameters
from .pages import save
from .samplers import extract_samplers
from .tgated import tgated_fig1, tgated_fig3, tgated_fig4, training_curves

FIGURES: dict[str, Callable[[str], Figure]] = {
    "tgated_fig1": tgated_fig1,
    "tgated_fig2": tgated_fig2,
    "tgated_fig3": tgated_fig3,
    "tgated_fig4": tgated_fig4,
    "gate_maps": gate_maps,
    "window_audit": window_audit_figure,
    "confusion": confusion,
    "doses": doses_figure,
    "spacings": spacings_figure,
    "gradient_audit": gradient_audit,
    "training_curves": training_curves,
    **MEDVLM_FIGURES,
}
TAKEN: tuple[Callable[[str], None], ...] = (
    extract_audit,
    extract_architecture,
    extract_windows,
    extract_samplers,
    extract_gates,
    extract_confusion,
    extract_presence,
    extract_medvlm_curves,
    extract_medvlm_parameters,
    extract_medvlm_gallery,
    extract_gallery,
)
EXTRACTS = (
    "curves.csv",
    "audit.csv",
    "architecture.json",
    "windows.csv",
    "samplers.csv",
    "gates.csv",
    "gate_maps.npz",
    "confusion.csv",
    "presence.csv",
)


def extract(profile: str, runs: Iterable[str] = HEADLINE) -> list[Path]:
    """Stores and returns all that the figures read; curves.csv holds the logs of `runs`. The gallery comes last, as a mark of the end."""
    write_extract(joined(profile, "log.csv", runs), profile, "curves.csv")  # all digits: as drawn from the logs themselves
    for take in TAKEN:
        take(profile)
    return [stored(profile, name) for name in (*EXTRACTS, CURVES, PARAMETERS, GALLERY, "gallery.npz")]


def all_figures(profile: str) -> list[Path]:
    """Draws and saves every figure of a profile, from its extracts and scores; a figure whose runs are not there is left out.

    Raises:
        InputError: there are no extracts or no scores yet.
    """
    paths: list[Path] = []
    for name, draw in FIGURES.items():
        with suppress(NotRun):
            paths += save(draw(profile), name, profile)
    return paths
