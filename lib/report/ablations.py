"""Beyond the paper's tables: what each switch, part and control does to Dice, from results/<profile>/scores.csv alone.

Runs of several seeds stand side by side in one table, (cases, seeds x 13). Its mean over columns is one over seeds, too, and an
interval draws cases, each with all its seeds. A difference takes the seeds that both runs have.
"""

from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd

from lib.organs import BY_KEY, KEYS
from lib.profiles import (
    ABLATION_SEEDS,
    ABSENT,
    AS_RELEASED,
    CONTROLS,
    DOSES,
    HEADLINE,
    HELD_OUT,
    PARTS,
    RELEASED,
    SHUFFLED_SEEDS,
    SPACINGS,
    WINDOW_IN_MM,
    Settings,
    settings_of,
)
from lib.published import NAN
from lib.statistics import dice_table, difference, mean_over_organs, mean_with_interval, paired_tests

from .formatting import cells
from .scores import METHODS, read_stored


def seeds_of(scores: pd.DataFrame, run: str, dataset: str, condition: str = "") -> set[int]:
    """Seeds with which a run was trained and scored on a data set: "adapter, seed 1" is the run "adapter" with seed 1."""
    runs = scores.loc[(scores["dataset"] == dataset) & (scores["condition"] == condition), "run"].unique()
    parts = (str(name).partition(", seed ") for name in runs)
    return {int(seed or 0) for name, _, seed in parts if name == run}


def side_by_side(
    scores: pd.DataFrame, run: str, dataset: str, seeds: Collection[int], condition: str = "", column: str = "dice"
) -> pd.DataFrame:
    """(cases, seeds x 13) of a column of the scores: the tables of a run's seeds beside each other; (0, 13) without seeds."""
    if not seeds:
        return dice_table(scores.iloc[:0], run, dataset)
    names = {seed: f"{run}, seed {seed}" if seed else run for seed in sorted(seeds)}
    return pd.concat({seed: dice_table(scores, name, dataset, condition, column) for seed, name in names.items()}, axis=1)


def released(scores: pd.DataFrame, dataset: str = "FLARE22") -> pd.DataFrame:
    """Baseline, adapter and their difference: as published, with each departure of the released code, and with all of them.

    A departure that touches one of the two leaves the other's published run in its row. Every row takes the seeds of the ablations.
    """
    rows = []
    for name, changed in {"as published": {}, **RELEASED, "as released": AS_RELEASED}.items():
        tag = name if name == "as released" else f"released {name}"
        runs = {method: f"{method}, {tag}" if method in changed else method for method in ("baseline", "adapter")}
        common = set.intersection({*ABLATION_SEEDS}, *(seeds_of(scores, run, dataset) for run in runs.values()))
        tables = {method: side_by_side(scores, run, dataset, common) for method, run in runs.items()}
        row: dict[str, Any] = {"code": name}
        for method, table in tables.items():
            row |= cells(method, mean_with_interval(table)[:3])
        row |= cells("difference adapter - baseline", difference(tables["baseline"], tables["adapter"]))
        rows.append(row | {"n": len(tables["adapter"]), "seeds": len(common)})
    return pd.DataFrame(rows)


def false_share(false: pd.DataFrame, absent: pd.DataFrame) -> float:
    """Share of the slices without the organ in which it is predicted, all cases, organs and seeds together."""
    return float(mean_over_organs((false / absent).to_numpy(), absent.to_numpy()))


def _against_adapter(scores: pd.DataFrame, dataset: str, runs: Mapping[str, str], seeds: Collection[int] | None = None) -> pd.DataFrame:
    """A row for each run of {row's name: run}: its mean Dice, its difference to the adapter, its false slices and stray voxels.

    seeds: those that count; by default all that a run has.
    """
    rows = []
    for name, run in runs.items():
        own, reference = (
            found if seeds is None else found & {*seeds} for found in (seeds_of(scores, r, dataset) for r in (run, "adapter"))
        )
        dice, false, absent, off = (
            side_by_side(scores, run, dataset, own, column=column) for column in ("dice", "false_slices", "slices_absent", "off_component")
        )
        row: dict[str, Any] = {"run": name} | cells("mean Dice", mean_with_interval(dice)[:3])
        pair = [side_by_side(scores, either, dataset, own & reference) for either in ("adapter", run)]
        row |= cells("difference to the adapter", (NAN,) * 3 if run == "adapter" else difference(pair[0], pair[1]))
        row |= {"false slices (share)": false_share(false, absent), "off-component share": float(mean_over_organs(off.to_numpy()))}
        rows.append(row | {"n": len(dice), "seeds": len(own)})
    return pd.DataFrame(rows)


def parts(scores: pd.DataFrame, dataset: str = "FLARE22") -> pd.DataFrame:
    """The adapter without each of its parts and with other windows, all with the seeds of the ablations; it has a window of 5 itself."""
    runs = {f"adapter (window {Settings.window})": "adapter"} | {name: f"adapter, {name}" for name in PARTS}
    return _against_adapter(scores, dataset, runs, ABLATION_SEEDS)


def controls(scores: pd.DataFrame, dataset: str = "FLARE22") -> pd.DataFrame:
    """The adapter against the baseline, and against adapters whose neighbours are no neighbours, with every seed that there is."""
    runs = {METHODS[run]: run for run in ("baseline", "adapter", "centre only")}
    return _against_adapter(scores, dataset, runs | {f"Control: {name}": f"adapter, {name}" for name in CONTROLS})


def samplers(scores: pd.DataFrame, profile: str, dataset: str = "FLARE22") -> pd.DataFrame:
    """Both methods trained by slabs and by the paper's sampler: Dice over the seeds that both have and of each, and what a training costs.

    The runs differ in what the samplers are and in `terms a step`; seconds are those of figure_data/samplers.csv.
    """
    costs = ["terms a step", "steps", "seconds a training"]
    cost = read_stored(profile, "samplers.csv").set_index("run").reindex(columns=costs).round()
    rows = []
    for method in ("baseline", "adapter"):
        runs = {"slab": method, "shuffled": f"{method}, shuffled"}
        common = set.intersection({*SHUFFLED_SEEDS}, *(seeds_of(scores, run, dataset) for run in runs.values()))
        tables = {sampler: side_by_side(scores, run, dataset, common) for sampler, run in runs.items()}
        for sampler, table in tables.items():
            row: dict[str, Any] = {"run": f"{method}, {sampler}"} | cells("mean Dice", mean_with_interval(table)[:3])
            row |= {f"seed {seed}": float(mean_over_organs(table[seed].to_numpy())) if seed in common else NAN for seed in SHUFFLED_SEEDS}
            row |= cells("difference to slab", (NAN,) * 3 if sampler == "slab" else difference(tables["slab"], table))
            row |= dict(cost.reindex([runs[sampler]]).iloc[0])
            rows.append(row | {"n": len(table), "seeds": len(common)})
    return pd.DataFrame(rows).astype(dict.fromkeys(costs, "Int64"))


def doses(scores: pd.DataFrame) -> pd.DataFrame:
    """Dice by share of degraded slices of the same test phantoms, and what the adapter gains, over seeds and for each of them.

    The models are the headline's, trained with the share that "FLARE22" itself has. Scans of patients have no such share: NaN throughout.
    """
    names = {dose: f"FLARE22, {dose:.0%} degraded" for dose in DOSES}
    if {*names.values()} & {*scores["dataset"]}:
        names[Settings.degraded] = "FLARE22"
    rows = []
    for dose in sorted({*DOSES, Settings.degraded}):
        dataset = names.get(dose, "")
        row: dict[str, Any] = {"degraded slices": f"{100 * dose:.0f} %"}
        there = {run: seeds_of(scores, run, dataset) for run in ("baseline", "adapter", "centre only")}
        for run, own in there.items():
            row |= cells(run, mean_with_interval(side_by_side(scores, run, dataset, own))[:3])
        for minus in ("baseline", "centre only"):
            row |= _gain(scores, dataset, minus, there["adapter"] & there[minus])
        n = len(side_by_side(scores, "adapter", dataset, there["adapter"]))
        rows.append(row | {"n": n, "seeds": len(there["adapter"] & there["baseline"])})
    return pd.DataFrame(rows)


def _gain(scores: pd.DataFrame, dataset: str, minus: str, seeds: Collection[int]) -> dict[str, float]:
    """Columns of the adapter's difference to a run: over the seeds with its interval, and the least and the greatest of one seed."""

    def gain(some: Collection[int]) -> tuple[float, float, float]:
        one, two = (side_by_side(scores, run, dataset, some) for run in (minus, "adapter"))
        return difference(one, two)

    name, each = f"difference adapter - {minus}", [gain([seed])[0] for seed in seeds]
    return cells(name, gain(seeds)) | {f"{name}, least seed": min(each, default=NAN), f"{name}, greatest seed": max(each, default=NAN)}


def spacings(scores: pd.DataFrame, profile: str | None = None) -> pd.DataFrame:
    """The adapter with its fixed window and with one in millimetres, by distance of the slices; by data set where these are real.

    profile: whose distances the phantoms have, by default as in `settings_of`. At the training's own distance both windows hold the
    same slices, so the one in millimetres is not scored there.
    """
    settings = settings_of("adapter", profile)
    step, scans = settings.window_step_mm, {dataset: dataset for dataset in settings.test_on}
    if settings.phantoms:
        spaced = {factor: f"FLARE22, slices x{factor:g}" for factor in SPACINGS} | {1.0: "FLARE22"}
        scans = {f"{factor * step:g} mm": spaced[factor] for factor in sorted(spaced)}
    rows = []
    for name, dataset in scans.items():
        fixed, in_mm = (seeds_of(scores, "adapter", dataset, condition) for condition in ("", WINDOW_IN_MM))
        common = fixed & in_mm or fixed
        one, two = (side_by_side(scores, "adapter", dataset, some, kind) for some, kind in ((common, ""), (common & in_mm, WINDOW_IN_MM)))
        row: dict[str, Any] = {"distance of slices" if settings.phantoms else "scans": name}
        row |= cells("fixed window", mean_with_interval(one)[:3]) | cells("window in mm", mean_with_interval(two)[:3])
        rows.append(row | cells("difference mm - fixed", difference(one, two)) | {"n": len(one), "seeds": len(common)})
    return pd.DataFrame(rows)


def absent(scores: pd.DataFrame) -> pd.DataFrame:
    """Organs that a scan does not show: how often a method claims them all the same, and how much of them where it does.

    A row for each organ that is absent from a scan, and one for all. Spoiled and respaced phantoms, and Med-VLM's scans of BTCV, are left
    out: they are the same patients again.
    """
    own = (scores["dataset"] == ABSENT) | ~(scores["dataset"].str.contains(",") | scores["dataset"].eq(HELD_OUT))
    none = scores[own & (scores["condition"] == "") & (scores["truth_voxels"] == 0) & scores["run"].isin(["adapter", "baseline"])]
    rows = []
    for name in (*(key for key in KEYS if key in set(none["organ"])), "all organs"):
        row: dict[str, Any] = {"organ": BY_KEY[name].short if name in BY_KEY else "All organs"}
        for run in ("adapter", "baseline"):
            scans = none[(none["run"] == run) & (none["organ"].eq(name) | (name == "all organs"))]
            claimed = scans[scans["predicted_voxels"] > 0]
            share = len(claimed) / len(scans) if len(scans) else NAN
            millilitres = (claimed["predicted_voxels"] * claimed["voxel_ml"]).median()
            row |= {f"{run}: scans": len(scans), f"{run}: share claimed": share, f"{run}: median ml": millilitres}
        rows.append(row)
    return pd.DataFrame(rows)


def tests(scores: pd.DataFrame, dataset: str = "FLARE22", first: str = "baseline", second: str = "adapter") -> pd.DataFrame:
    """Second minus first run, organ by organ, with Wilcoxon's signed-rank test and Holm's correction (`statistics.paired_tests`)."""
    table = paired_tests(dice_table(scores, first, dataset), dice_table(scores, second, dataset))
    return table.assign(organ=[BY_KEY[key].short for key in table["organ"]])


def consistency(scores: pd.DataFrame, dataset: str = "FLARE22") -> pd.DataFrame:
    """Slices in which an organ is predicted and absent, and voxels outside an organ's largest component, by headline run.

    The share of false slices is one over all cases and organs together, the off-component share a mean over organs of the mean over
    cases. Differences are to the baseline, on the same cases.
    """
    columns = ("false_slices", "slices_absent", "off_component")
    rows, tables = [], {run: [dice_table(scores, run, dataset, column=column) for column in columns] for run in HEADLINE}
    shares = {run: false / absent for run, (false, absent, _) in tables.items()}
    for run, (false, absent, off) in tables.items():
        totals = {"false slices": false, "slices without the organ": absent}
        row: dict[str, Any] = {"method": METHODS[run]} | {name: table.sum().sum() if len(table) else NAN for name, table in totals.items()}
        pairs = {
            "share of false slices": (shares, shares[run], absent),
            "off-component share": ({"baseline": tables["baseline"][2]}, off, None),
        }
        for name, (others, own, weight) in pairs.items():
            row |= cells(name, mean_with_interval(own, weight))
            moved = (NAN,) * 3 if run == "baseline" else difference(others["baseline"], own, weight)
            row |= cells(f"difference in {name}", moved)
        rows.append(row | {"false slices of an organ in a scan": float(mean_over_organs(false.to_numpy()))})
    return pd.DataFrame(rows).astype({"false slices": "Int64", "slices without the organ": "Int64"})
