"""Dose and response: what the adapter gains by the share of spoiled slices, and its two windows by the distance of slices."""

from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.profiles import WINDOW_IN_MM, Settings, settings_of
from lib.statistics import dice_table, difference, mean_over_organs

from .. import report
from .extracts import NotRun
from .pages import COLOURS, STYLE, new_page


def _names(run: str, seeds: set[int]) -> list[str]:
    """The runs of some seeds."""
    return [f"{run}, seed {seed}" if seed else run for seed in sorted(seeds)]


def _line(axis: Axes, places: pd.Series, table: pd.DataFrame, column: str, seeds: list[list[float]], **style: Any) -> None:
    """Means joined by a line, with intervals as whiskers; seeds[i] are the values of single seeds at places[i], as thin points."""
    marks = pd.DataFrame({"x": places, "y": table[column], "low": table[f"{column} low"], "high": table[f"{column} high"]})
    known = marks.dropna(subset=["y"])
    whiskers = [(known["y"] - known["low"]).clip(0).fillna(0), (known["high"] - known["y"]).clip(0).fillna(0)]
    axis.errorbar(known["x"], known["y"], whiskers, marker="o", markersize=4, linewidth=1.2, **style)
    for place, values in zip(places, seeds, strict=True):
        axis.plot([place] * len(values), values, "_", color=style["color"], markersize=7, markeredgewidth=0.8, alpha=0.8)


@mpl.rc_context(STYLE)
def doses_figure(profile: str, scores: pd.DataFrame | None = None) -> Figure:
    """The adapter's gain in Dice over the baseline and over its control, by the share of degraded slices in the same test scans.

    scores: as `report.read_scores` gives them, which is what is taken by default.

    Raises:
        NotRun: no run has been scored on such scans.
    """
    scores = report.read_scores(profile) if scores is None else scores
    table = report.doses(scores)
    others = [run for run in ("baseline", "centre only") if table[f"difference adapter - {run}"].notna().any()]
    if not others:
        raise NotRun(f"No pair of runs has been scored by share of degraded slices in the {profile} profile.")
    share = table["degraded slices"].str.rstrip("%").astype(float)
    shift = 0.02 * (share.max() - share.min())
    caption = "Dose and response: the adapter's gain in mean Dice against the share of test slices that were spoiled; the organs and the "
    caption += "models are the same throughout. Whiskers: 95 % intervals over cases, all seeds together; dashes: single seeds."
    figure = new_page(profile, caption, 3.2)
    axis = figure.add_subplot()
    axis.axhline(0, color="#999999", linewidth=0.8)
    for place, run in enumerate(others):
        single = []
        for percent in share:
            dataset = "FLARE22" if percent == round(100 * Settings.degraded) else f"FLARE22, {percent:.0f}% degraded"
            common = report.seeds_of(scores, "adapter", dataset) & report.seeds_of(scores, run, dataset)
            pairs = zip(_names(run, common), _names("adapter", common), strict=True)
            single.append([difference(*(dice_table(scores, name, dataset) for name in pair))[0] for pair in pairs])
        where = share + shift * (place - (len(others) - 1) / 2)
        _line(axis, where, table, f"difference adapter - {run}", single, color=COLOURS[run], label=f"adapter - {run}")
    _training(axis, 100 * Settings.degraded)
    axis.set(xlabel="degraded slices, %", ylabel="difference in mean Dice", xticks=share)
    figure.legend(loc="outside upper right", ncols=2)
    return figure


def _training(axis: Axes, place: float) -> None:
    """Marks what the training scans have."""
    axis.axvline(place, color="#999999", linewidth=0.8, linestyle=":")
    axis.annotate("as in training", (place, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=7)


@mpl.rc_context(STYLE)
def spacings_figure(profile: str, scores: pd.DataFrame | None = None) -> Figure:
    """Mean Dice of the adapter with its fixed window and with one in millimetres, by the distance of the slices (of scans: by data set).

    scores: as `report.read_scores` gives them, which is what is taken by default.

    Raises:
        NotRun: the window in millimetres has not been scored.
    """
    scores = report.read_scores(profile) if scores is None else scores
    table, settings = report.spacings(scores, profile), settings_of("adapter", profile)
    if table["window in mm"].isna().all():
        raise NotRun(f"The window in millimetres has not been scored in the {profile} profile.")
    if settings.phantoms:  # at the training's own distance both windows hold the same slices
        for end in ("", " low", " high"):
            table[f"window in mm{end}"] = table[f"window in mm{end}"].fillna(table[f"fixed window{end}"])
    names = table.iloc[:, 0]
    places = names.str.split().str[0].astype(float) if settings.phantoms else pd.Series(range(len(names)), dtype=float)
    caption = "The adapter with the window that it was trained with, and with one that takes the slices nearest to the distances of the "
    same = ", on phantoms with slices closer or further apart (at the training's distance they are one)"
    caption += (
        f"training{same if settings.phantoms else ''}. Whiskers: 95 % intervals over cases, all seeds together; dashes: single seeds."
    )
    figure = new_page(profile, caption, 3.2)
    axis = figure.add_subplot()
    line, dashes = ("-", "--") if settings.phantoms else ("", "")  # data sets have no order
    styles: dict[str, dict[str, Any]] = {"": {"linestyle": line}, WINDOW_IN_MM: {"linestyle": dashes, "markerfacecolor": "white"}}
    for shift, (condition, style) in zip((-0.01, 0.01), styles.items(), strict=True):
        column, single = condition or "fixed window", []
        for name in names:
            dataset = _spaced(float(name.split()[0]) / settings.window_step_mm) if settings.phantoms else name
            runs = _names("adapter", report.seeds_of(scores, "adapter", dataset, condition))
            single.append([float(mean_over_organs(dice_table(scores, run, dataset, condition).to_numpy())) for run in runs])
        style |= {"color": COLOURS["adapter"], "label": column}
        _line(axis, places + shift * (places.max() - places.min()), table, column, single, **style)
    if settings.phantoms:
        _training(axis, settings.window_step_mm)
    axis.set_xticks(places, names)
    axis.set(xlabel=names.name, ylabel="mean Dice")
    figure.legend(loc="outside upper right", ncols=2)
    return figure


def _spaced(factor: float) -> str:
    """Data set of the phantoms whose slices are `factor` times as far apart as the training's."""
    return "FLARE22" if factor == 1 else f"FLARE22, slices x{factor:g}"
