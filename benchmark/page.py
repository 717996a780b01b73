"""The benchmark's table and figure, from results/bench.json alone."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from lib.figures.pages import COLOURS, STYLE, new_page
from lib.report.formatting import cells

OURS, NAN = COLOURS["adapter"], float("nan")


def ratio(pair: Mapping[str, Sequence[float]], ours: str = "ours") -> tuple[float, float, float]:
    """Median, least and greatest of the rounds' ratios, released over ours."""
    each = np.divide(pair["released"], pair[ours])
    return float(np.median(each)), float(each.min()), float(each.max())


def _pairs(found: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Sequence[float]], str, float]]:
    """(what, seconds of both ways, which of ours, at least how many times as fast it should be)."""
    yield "a slice for 13 prompts, float32", found["inference"]["seconds"], "ours", 45
    if "ours, bf16" in found["inference"]["seconds"]:
        yield "a slice for 13 prompts, bf16", found["inference"]["seconds"], "ours, bf16", 85
    yield "a training term, slab", found["training"]["seconds"], "slab", 10
    yield "a training term, shuffled", found["training"]["seconds"], "shuffled", NAN
    yield "preparing a scan", found["preparation"]["seconds"], "ours", 5
    yield "reading a slice from disk", found["loader"]["seconds a slice read"], "ours", NAN


def doublings(prompts: Mapping[str, Mapping[str, float]], most: int = 13) -> list[float]:
    """By how much, as a share, the cost of a slice grows with each doubling of the prompts, up to `most` (8 to 13 is less than one)."""
    cost = {int(n): entry["seconds"] for n, entry in prompts.items() if int(n) <= most}
    return [cost[b] / cost[a] - 1 for a, b in pairwise(sorted(cost))]


def on_a_line(prompts: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """The same numbers of prompts with their seconds on the line fitted to all: two runs of the same differ by more than a few prompts."""
    counts = [int(n) for n in prompts]
    line = np.polyfit(counts, [entry["seconds"] for entry in prompts.values()], 1)
    return {n: {"seconds": float(np.polyval(line, int(n)))} for n in prompts}


def _row(what: str, unit: str, released: float, ours: float, times: Sequence[float] = (), wanted: str = "") -> dict[str, Any]:
    """A line of the table; `times` is a ratio, released over ours, and its ends."""
    return {"measured": what, "unit": unit, "released": released, "ours": ours} | cells("released / ours", times) | {"wanted": wanted}


def bench_table(found: Mapping[str, Any]) -> pd.DataFrame:
    """Both ways and their ratio, then what has no counterpart; `wanted` is what the authors ask for."""
    rows = []
    for name, pair, ours, least in _pairs(found):
        unit, scale = ("ms", 1000) if "reading" in name else ("s", 1)
        middle = [scale * float(np.median(pair[way])) for way in ("released", ours)]
        rows.append(_row(name, unit, middle[0], middle[1], ratio(pair, ours), f"at least {least:g}" if least > 0 else ""))
    for part in ("inference", "training"):
        peaks = found["memory"][part]
        rows += [_row(f"peak memory, {part} ({way})", "GiB", peaks["released"], peaks[way]) for way in peaks if way != "released"]
    slices, hours, loader, prompts = found["growth"]["slices"], found["estimate"], found["loader"], found["growth"]["prompts"]
    each = [entry["seconds"] / int(n) for n, entry in slices.items()]
    peaks, last = list(found["memory"]["slices"].values()), list(slices)[-1]
    alone = [
        ("metrics of 13 organs in a scan", "s", found["metrics"]["seconds"], "seconds"),
        ("encoder, share of the matmul peak", "", found["encoder"]["share of matmul peak"], "at least 0.75"),
        ("seconds a slice, most over least by number of slices", "", max(each) / min(each), "1: linear"),
        (f"peak memory with {last} slices over that with {next(iter(slices))}", "", peaks[-1] / peaks[0], "1: flat"),
        ("growth of a slice's cost with twice the prompts, at most", "", max(doublings(prompts)), "under 0.1"),
        ("the same by a line fitted to all numbers of prompts", "", max(doublings(on_a_line(prompts))), ""),
        ("loader, batches a second over the model's", "", loader["seconds a step"]["this processor"] / loader["seconds a batch"], "over 1"),
    ]
    waiting = loader["share of waiting"].items()
    alone += [(f"share of time spent waiting for the loader, {name}", "", share, "about 0") for name, share in waiting]
    times = [hours["released"] / hours["ours"]]
    rows.append(_row("T4-hours of Table 2's two models, estimated", "h", hours["released"], hours["ours"], times, "ours under 6"))
    reached = found["inference"]["released GFLOP"] / min(found["inference"]["seconds"]["released"]) / found["machine"]["matmul GFLOP/s"]
    rows.append(_row("inference, share of the matmul peak", "", reached, NAN))
    rows += [_row(what, unit, NAN, value, (), wanted) for what, unit, value, wanted in alone]
    return pd.DataFrame(rows)


def caption_of(found: Mapping[str, Any]) -> str:
    """What was measured, on which machine, and what the estimate takes for granted."""
    machine, half = found["machine"], ""
    if not machine["has bf16"]:
        half = f" bf16 is left out: the processor has no instructions for it ({machine['bf16 GFLOP/s']:.0f} GFLOP/s)."
    return (
        "The released way, written anew from its description, against ours, by turns in one process: medians over the rounds "
        f"({found['rounds']}; least and greatest ratio in brackets) on {machine['threads']} threads of {machine['processor']}, whose "
        f"matrix products reach {machine['matmul GFLOP/s']:.0f} GFLOP/s in float32. {found['estimate']['parameters'] / 1e6:.1f} M "
        f"parameters.{half} Peak memory is beside what a process of its own held before: of one term in the released way, of a slab or a "
        "chunk in ours; where slices are counted, without the masks themselves. T4-hours: counted operations at 60 % of 8.1 TFLOP/s; "
        "30 scans of 100 slices that show 7 organs, 30 epochs; ours with the validation of 10 scans after each epoch. Growth with prompts: "
        "these are read before, as they are once for a scan; up to 13 take three times the rounds. The encoder's peak is measured by turns "
        "with it, for the speed of a shared machine moves. Waiting: for the training's own loader, while a pause of a T4's estimated "
        "seconds a step stands in for its work."
    )


def _bars(axis: Axes, found: Mapping[str, Any]) -> None:
    names, middle, ends, wanted = [], [], [], []
    for name, pair, ours, least in _pairs(found):
        value, low, high = ratio(pair, ours)
        names.append(name)
        middle.append(value)
        ends.append((value - low, high - value))
        wanted.append(least)
    places = np.arange(len(names))[::-1]
    axis.barh(places, middle, 0.6, xerr=np.transpose(ends), color=OURS, error_kw={"linewidth": 0.8})
    axis.plot(wanted, places, "|", color="black", markersize=13, markeredgewidth=1.4)
    for place, value, (_, above) in zip(places, middle, ends, strict=True):
        text = f"{value:.0f}x" if value >= 10 else f"{value:.1f}x"
        axis.annotate(text, (value + above, place), (4, 0), textcoords="offset points", va="center")
    axis.set_yticks(places, names)
    axis.set_xscale("log")
    axis.axvline(1, color="#999999", linewidth=0.8)
    axis.set(
        xlabel="times as fast as the released way (mark: what is wanted)",
        xlim=(0.5, 2 * max(value + above for value, (_, above) in zip(middle, ends, strict=True))),
    )
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _line(axis: Axes, found: Mapping[str, Mapping[str, float]], column: str, label: str, **style: Any) -> None:
    x = [int(n) for n in found]
    axis.plot(x, [entry[column] for entry in found.values()], marker="o", markersize=3.5, linewidth=1.2, **style)
    axis.set(xlabel=label)


def _ticks(axis: Axes, x: Sequence[int]) -> None:
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(FixedLocator(x))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


@mpl.rc_context(STYLE)
def bench_figure(found: Mapping[str, Any]) -> Figure:
    """Above: how many times as fast each part is. Below: growth with slices (time and memory), prompts, and the window."""
    figure = new_page("bench", caption_of(found), 5.6)
    above: Any = figure.subfigures(2, 1)
    top, bottom = above
    _bars(top.subplots(), found)
    growth = found["growth"]
    left, middle, right = bottom.subplots(1, 3)
    _line(left, growth["slices"], "seconds", f"slices of a scan ({found['growth pixels']} px)", color=OURS)
    _ticks(left, [int(n) for n in growth["slices"]])
    left.set_yscale("log", base=2)
    left.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    left.set_ylabel("seconds", color=OURS)
    memory = left.twinx()
    peaks = {count: {"GiB": gib} for count, gib in found["memory"]["slices"].items()}
    _line(memory, peaks, "GiB", left.get_xlabel(), color=COLOURS["centre only"], linestyle="--")
    memory.spines["right"].set_visible(True)
    memory.set_ylim(0, 2 * max(found["memory"]["slices"].values()))
    memory.set_ylabel("peak memory, GiB", color=COLOURS["centre only"])
    _line(middle, growth["prompts"], "seconds", "prompts", color=OURS)
    _ticks(middle, [n for n in map(int, growth["prompts"]) if n != 13 or len(growth["prompts"]) < 5])
    _line(right, growth["window"], "seconds", "slices of a window", color=OURS)
    right.set_xticks([int(n) for n in growth["window"]])
    for axis in (middle, right):
        axis.set(ylabel="seconds a slice")
        axis.set_ylim(0, 1.15 * axis.get_ylim()[1])
    return figure
