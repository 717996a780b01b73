"""Two audits as pictures: what the windows of the samples hold, and which parts of a model a training moved."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.organs import KEYS, labelled
from lib.profiles import Settings, settings_of

from .extracts import joined, joined_or_stored, read_extract, with_stored, write_extract
from .pages import STYLE, colour_of, new_page

KINDS = ("true slices", "manifest rows")
TERMS = {"positive": "#333333", "negative": "#b5b5b5"}
AUDITED = ("baseline", "adapter", "baseline, released frozen encoders")
MARKS = ("o", "D", "s", "^", "v")


def _case_windows(store: Any, settings: Settings) -> Iterator[tuple[str, str, str, int, float, int]]:
    """(case, kind, term, distinct slices, span in mm, how many terms have this window) of a scan."""
    from lib.windows import manifest_windows, store_window  # here, because it loads torch

    shown = store.presence[:, 1:] > 0
    absent = ~shown & np.isin(KEYS, labelled(store.label_map))
    among_rows = manifest_windows(store.presence, settings.reach)

    def row(kind: str, term: str, window: list[int], count: int) -> tuple[str, str, str, int, float, int]:
        return store.id, kind, term, len(set(window)), round((max(window) - min(window)) * store.spacing_mm, 3), count

    for z, organs in enumerate(shown):
        window = store_window(store, z, settings)
        yield row("true slices", "positive", window, int(organs.sum()))
        yield row("true slices", "negative", window, int(absent[z].sum()))
        for organ in np.flatnonzero(organs):
            yield row("manifest rows", "positive", among_rows(z, int(organ)), 1)
        if not organs.any():
            yield row("manifest rows", "negative", among_rows(z, len(KEYS)), 1)


def window_audit(stores: Sequence[Any], settings: Settings) -> pd.DataFrame:
    """What the windows hold: columns case, kind, term, distinct (slices), span_mm (lowest to highest slice), count (terms).

    kind: "true slices", the neighbours of the slice, or "manifest rows", the neighbours among the released code's rows of slice and
    organ. term: "positive" for a slice that shows the organ, "negative" for one that does not; the released code's negatives are the
    slices without any organ. Stores without labels are left out.
    """
    settings = replace(settings, adapter=True, neighbours="true")
    rows = [row for store in stores if store.presence is not None for row in _case_windows(store, settings)]
    table = pd.DataFrame(rows, columns=["case", "kind", "term", "distinct", "span_mm", "count"])
    table = table.groupby(list(table)[:-1], as_index=False)["count"].sum()
    return table[table["count"] > 0].reset_index(drop=True)


def extract_windows(profile: str) -> None:
    """windows.csv: `window_audit` of the profile's training scans."""
    from lib.datasets import stores_of

    settings = settings_of("adapter", profile)
    write_extract(window_audit(stores_of(settings, "training"), settings), profile, "windows.csv", float_format="%g")


def window_means(table: pd.DataFrame) -> pd.DataFrame:
    """By (kind, term): mean number of distinct slices, mean span_mm, and `one`, the share of windows with one slice throughout."""
    weighted = table.assign(one=table["distinct"] == 1)
    columns = ["distinct", "span_mm", "one"]
    weighted[columns] = weighted[columns].mul(weighted["count"], axis=0)
    sums = weighted.groupby(["kind", "term"])[[*columns, "count"]].sum()
    return sums[columns].div(sums["count"], axis=0)


def _shares(axis: Axes, table: pd.DataFrame, most: int) -> None:
    """Bars: share of the windows of each term, in percent, that hold so many distinct slices."""
    for offset, (term, colour) in zip((-0.2, 0.2), TERMS.items(), strict=True):
        counts = table[table["term"] == term].groupby("distinct")["count"].sum()
        share = (100 * counts / max(counts.sum(), 1)).reindex(range(1, most + 1), fill_value=0)
        bars = axis.bar(share.index + offset, share, 0.38, color=colour, label=term)
        axis.bar_label(bars, [f"{value:.0f}" if value >= 0.5 else "" for value in share], fontsize=6.5, padding=1)
    axis.set(xlabel="distinct slices in the window", ylim=(0, 110), xticks=range(1, most + 1))


def _spans(axis: Axes, table: pd.DataFrame) -> None:
    """Steps: share of the windows, in percent, that span so many mm at most."""
    end = 1.05 * max(table["span_mm"].max(), 1)
    counts = table.groupby(["kind", "term", "span_mm"])["count"].sum()
    for kind, term in ((kind, term) for kind in KINDS for term in TERMS if (kind, term) in counts.index.droplevel(2)):
        share = 100 * counts[kind, term].cumsum() / counts[kind, term].sum()
        style: dict[str, Any] = {"color": TERMS[term], "linestyle": "-" if kind == KINDS[0] else (0, (3, 1.5)), "linewidth": 1.4}
        axis.step([0, *share.index, end], [0, *share, 100], where="post", label=f"{kind.split()[0]}, {term}", **style)
    axis.set(xlabel="span at most, mm", ylim=(0, 110), xlim=(0, end))
    axis.legend(fontsize=6.5, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, borderpad=0, handlelength=2, columnspacing=1)


def _in_words(table: pd.DataFrame, size: int) -> str:
    """What the windows hold on average, as a caption says it."""
    means, parts = window_means(table), []
    for kind in KINDS:
        values = [f"{means.loc[(kind, term), 'distinct']:.1f} ({term})" for term in TERMS if (kind, term) in means.index]
        parts.append(f"{' and '.join(values)} among {kind}")
    text = f"Windows of {size} in the {table['case'].nunique()} training scans. Mean number of distinct slices: {', '.join(parts)}. "
    one = means["one"].get((KINDS[1], "positive"), np.nan)
    text += f"Among manifest rows, {100 * one:.0f} % of the positive windows hold one slice {size} times. A negative term is a slice that "
    text += "does not show the organ; in the manifest, a slice that shows no organ at all"
    return text + ("." if (KINDS[1], "negative") in means.index else ", of which these scans have none.")


@mpl.rc_context(STYLE)
def window_audit_figure(profile: str) -> Figure:
    """What the windows of the training scans hold: distinct slices among true neighbours and among manifest rows, and the span."""
    table, size = read_extract(profile, "windows.csv", "the window audit"), settings_of("adapter", profile).window
    figure = new_page(profile, _in_words(table, size), 3.0)
    axes = figure.subplots(1, 3, width_ratios=(1, 1, 1.1))
    for axis, kind in zip(axes, KINDS, strict=False):
        _shares(axis, table[table["kind"] == kind], size)
        axis.set_title(kind)
    axes[0].set_ylabel("share of windows, %")
    axes[0].legend(loc="upper left", borderpad=0)
    _spans(axes[2], table)
    return figure


def extract_audit(profile: str, runs: Iterable[str] = AUDITED) -> None:
    """audit.csv: what the training of each run did to each module (lib/training/audit.py); runs not trained here keep their rows."""
    table = with_stored(joined(profile, "audit.csv", runs := list(runs)), profile, "audit.csv", runs)
    write_extract(table, profile, "audit.csv")


def _places(change: pd.Series, moved: pd.Series, still: float, fresh: float) -> pd.Series:
    """Where a module stands on the axis: its relative change, `still` if it did not move, `fresh` if it was 0 at the start."""
    return change.where(change.notna(), fresh).where(moved > 0, still)


@mpl.rc_context(STYLE)
def gradient_audit(profile: str, runs: Iterable[str] = AUDITED) -> Figure:
    """By module: how far a run's training moved it, relative to its norm at the start; on the left what did not move at all."""
    table = joined_or_stored(profile, "audit.csv", runs := list(runs), "audit.csv")
    names = [run for run in runs if run in set(table["run"])]
    modules = table.drop_duplicates("module").set_index("module")["parameters"]
    change = table.loc[(table["moved"] > 0) & (table["change"] > 0), "change"]
    low, high = (change.min(), change.max()) if len(change) else (1e-4, 1.0)
    still, fresh = low / 5, high * 5
    caption = "What training moved: norm of a module's change over its norm at the start (of the weights that were best on validation). "
    caption += "A run without a mark has no such module. A fair comparison moves the same modules in both runs."
    figure = new_page(profile, caption, 1.3 + 0.15 * len(modules))
    axis = figure.add_subplot()
    for place, run in enumerate(names):
        part = table[table["run"] == run].set_index("module")
        height = modules.index.get_indexer(part.index) + 0.24 * (place - (len(names) - 1) / 2)
        style: dict[str, Any] = {"color": colour_of(run), "markerfacecolor": "white" if "," in run else colour_of(run), "markersize": 4}
        axis.plot(_places(part["change"], part["moved"], still, fresh), height, MARKS[place % len(MARKS)], label=run, **style)
    for edge, text in ((still, "did not\nmove"), (fresh, "was 0\nat first")):
        axis.annotate(text, (edge, -0.6), ha="center", va="bottom", fontsize=6.5, annotation_clip=False)
    for edge in (low / 2.2, high * 2.2):
        axis.axvline(edge, color="#999999", linewidth=0.6)
    axis.set(xscale="log", xlim=(still / 2, fresh * 2), ylim=(len(modules) - 0.4, -0.6), xlabel="relative change")
    axis.set_yticks(range(len(modules)), list(modules.index), fontsize=6.5)
    axis.grid(axis="y", color="#eeeeee", linewidth=0.6)
    figure.legend(loc="outside upper right", ncols=len(names), borderpad=0)
    return figure
