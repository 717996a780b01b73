"""Published against measured: T-Gated's Tables 1 to 3, from results/<profile>/scores.csv alone, as CSV, Markdown and LaTeX.

A table is a frame of raw numbers whose first column names its rows. Where it has a column X, columns `X low`, `X high` and `X n`
hold X's 95 % interval and its number of cases; `formatted` folds them into X.
"""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.metrics import bootstrap_interval, mean_dice
from lib.organs import BY_KEY, KEYS
from lib.paths import InputError, replacing, results_root
from lib.profiles import settings_of
from lib.published import TGATED_TABLE1, TGATED_TABLE2, TGATED_TABLE3, TGATED_TABLE3_MEAN

METHODS = {"baseline": "CLIPSeg baseline", "adapter": "CLIPSeg + temporal adapter", "centre only": "Control: centre slice only"}
# Rows of Table 2: a method, or its difference to another; the first three are the paper's
TABLE2_ROWS = (("baseline", ""), ("adapter", ""), ("adapter", "baseline"), ("centre only", ""), ("adapter", "centre only"))


def data_note(profile: str) -> str:
    """Which profile, and what its numbers can claim: stands on every table and figure."""
    settings = settings_of("baseline", profile)
    if settings.train_on == "samples":
        return f"{profile} profile: two real scans (slabs of the CT count as cases), no claim about accuracy"
    return f"{profile} profile: {'phantoms, not patients: not clinical' if settings.phantoms else 'scans of patients'}"


def read_scores(profile: str) -> pd.DataFrame:
    """scores.csv with a column `source`: "trained here" where a finished run of those settings lies in runs/, else the settings' hash.

    Raises:
        InputError: there are no scores.
    """
    path = results_root(profile) / "scores.csv"
    if not path.is_file():
        raise InputError(f"{path} does not exist: run `make paper PROFILE={profile}` to train the runs and score them.")
    scores = pd.read_csv(path, dtype={"config": str, "case": str})
    finished = {json.loads(config.read_text()).get("finished") for config in path.parent.glob("runs/*/config.json")}
    committed = "committed scores, config " + scores["config"]
    return scores.assign(source=committed.where(~scores["config"].isin(finished), "trained here"))


def provenance(scores: pd.DataFrame) -> dict[str, str]:
    """{method: where its scores come from}. `scores`: as `read_scores` gives them, here and below."""
    source = scores.drop_duplicates("run").set_index("run")["source"]
    return {run: source.get(run, "not run yet") for run in METHODS}


def _dice(scores: pd.DataFrame, run: str, dataset: str, column: str = "dice") -> pd.DataFrame:
    """(cases, 13) of a column of the scores; NaN where it is undefined or the data set does not label the organ."""
    rows = scores[(scores["run"] == run) & (scores["dataset"] == dataset)]
    return rows.pivot(index="case", columns="organ", values=column).reindex(columns=list(KEYS)).astype(float)


def _mean(dice: np.ndarray, voxels: np.ndarray | None = None) -> np.ndarray:
    """(..., cases, organs) -> (...): mean over organs of the mean over cases; with voxels, one mean over all, weighted by them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # an organ that no case has
        if voxels is not None:
            return np.nansum(dice * voxels, (-2, -1)) / np.nansum(voxels, (-2, -1))
        return np.nanmean(np.nanmean(dice, -2), -1)


def difference(first: pd.DataFrame, second: pd.DataFrame, voxels: pd.DataFrame | None = None) -> tuple[float, float, float]:
    """Second mean minus first on their common cases, and its 95 % interval by paired bootstrap: both means on the same drawn cases.

    Frames are (cases, organs) of Dice; `voxels` weighs them, as in `_mean`. NaN where no case is common; the interval needs two.
    """
    cases = first.index.intersection(second.index)
    one, two = first.loc[cases].to_numpy(), second.loc[cases].to_numpy()
    weight = None if voxels is None else voxels.loc[cases].to_numpy()
    value = float(_mean(two, weight) - _mean(one, weight))
    if len(cases) < 2 or np.isnan(value):
        return value, np.nan, np.nan
    picks = np.random.default_rng(0).integers(0, len(cases), (2000, len(cases)))  # the draws of bootstrap_interval
    weight = None if weight is None else weight[picks]
    low, high = np.nanquantile(_mean(two[picks], weight) - _mean(one[picks], weight), [0.025, 0.975])
    return value, float(low), float(high)


def tgated_table1(share: dict[str, float] | None = None) -> pd.DataFrame:
    """Sampling weight of every organ: published, and what the samplers here use; on request each organ's `share` of the training."""
    rows = [(BY_KEY[key].short, weight, BY_KEY[key].weight) for key, weight in TGATED_TABLE1.items()]
    table = pd.DataFrame(rows, columns=["organ", "published weight", "weight here"]).convert_dtypes()
    return table if share is None else table.assign(**{"share of training": [share[key] for key in TGATED_TABLE1]})


def _measured(scores: pd.DataFrame, method: str, minus: str, dataset: str) -> dict[str, float]:
    """Columns of Table 2: a method's mean Dice on a data set, or its difference to another's."""
    dice, other = _dice(scores, method, dataset), _dice(scores, minus, dataset)
    values = difference(other, dice) if minus else (float(_mean(dice.to_numpy())), *bootstrap_interval(dice))
    n = len(dice.index.intersection(other.index)) if minus else len(dice)
    return dict(zip([f"{dataset} measured{end}" for end in ("", " low", " high", " n")], (*values, n), strict=True))


def tgated_table2(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean Dice by method and data set, and differences on the same cases; the control's rows appear once it has scores."""
    samples = [dataset for dataset in scores["dataset"].unique() if dataset.startswith("sample")]  # the paper has none of them
    rows = []
    for place, (method, minus) in enumerate(TABLE2_ROWS):
        if "centre only" in (method, minus) and "centre only" not in set(scores["run"]):
            continue
        row: dict[str, Any] = {"method": f"Difference: {method} - {minus}" if minus else METHODS[method]}
        for dataset, published in TGATED_TABLE2.items():
            row[f"{dataset} published"] = (*published, np.nan, np.nan)[place]
            row |= {} if samples else _measured(scores, method, minus, dataset)
        for dataset in samples:
            row |= _measured(scores, method, minus, dataset)
        rows.append(row | {"scores": "" if minus else provenance(scores)[method]})
    return pd.DataFrame(rows)


def tgated_table3(scores: pd.DataFrame, dataset: str = "FLARE22") -> pd.DataFrame:
    """Dice by organ, baseline against adapter, on a data set; n: cases in which the organ is present or predicted.

    The first mean is the headline (over organs, of the mean over cases), beside what the paper's rows average; the second weighs
    every case and organ by its true voxels, beside the mean that the paper prints and calls volume-weighted.
    """
    first, second = (_dice(scores, run, dataset) for run in ("baseline", "adapter"))
    voxels = _dice(scores, "baseline", dataset, "truth_voxels").combine_first(_dice(scores, "adapter", dataset, "truth_voxels"))
    averages = tuple(np.mean(list(TGATED_TABLE3.values()), 0).round(6))
    means = {"Mean over organs (published: of the rows above)": averages, "Mean by voxels (published: as printed)": TGATED_TABLE3_MEAN}
    rows = []
    for name, published in (TGATED_TABLE3 | means).items():
        organs = [name] if name in BY_KEY else list(KEYS)
        weight = voxels[organs] if "voxels" in name else None
        one, two = first[organs], second[organs]
        measured = [float(_mean(f.to_numpy(), None if weight is None else weight.loc[f.index].to_numpy())) for f in (one, two)]
        n = int(one.combine_first(two).notna().any(axis=1).sum())
        rows.append((BY_KEY[name].short if name in BY_KEY else name, *published, *measured, *difference(one, two, weight), n))
    columns = [f"{side} {column}" for side in ("published", "measured") for column in ("baseline", "+ temporal", "difference")]
    return pd.DataFrame(rows, columns=["organ", *columns, "measured difference low", "measured difference high", "n"])


def seeds(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean Dice of every run and its repetitions with other seeds: how much of a difference is the draw of the seed."""
    rows = []
    for (run, dataset), part in scores.groupby(["run", "dataset"], sort=False):
        name, _, seed = str(run).partition(", seed ")
        interval = bootstrap_interval(_dice(scores, str(run), dataset))
        rows.append((name, int(seed or 0), dataset, mean_dice(part), *interval, part["case"].nunique(), part["source"].iloc[0]))
    columns = ["run", "seed", "dataset", "mean Dice", "mean Dice low", "mean Dice high", "n", "scores"]
    return pd.DataFrame(rows, columns=columns).sort_values(["dataset", "run", "seed"], ignore_index=True)


def _cell(row: pd.Series, name: str) -> str:
    value, n = row[name], row.get(f"{name} n")
    if isinstance(value, str | int | np.integer):
        return str(value)
    if np.isnan(value):
        return "– (not run yet)" if n == 0 else "–"
    text = f"{value:{'+' if 'difference' in f'{row.iloc[0]} {name}'.lower() else ''}.3f}"
    if f"{name} low" in row:
        low, high = row[f"{name} low"], row[f"{name} high"]
        text += " [n/a]" if np.isnan(low) else f" [{low:.3f}, {high:.3f}]"
    return text if n is None else f"{text}, n = {n}"


def formatted(frame: pd.DataFrame) -> pd.DataFrame:
    """The table as text: 3 decimals, "value [low, high], n = cases", a dash for what there is not, n/a for an interval of one case."""
    shown = [name for name in frame if re.sub(" (low|high|n)$", "", name) == name or re.sub(" (low|high|n)$", "", name) not in frame]
    return pd.DataFrame([{name: _cell(row, name) for name in shown} for _, row in frame.iterrows()], columns=shown)


def show(frame: pd.DataFrame) -> pd.DataFrame:
    """The formatted table with its row names as index: what a notebook displays, the same on every run."""
    return formatted(frame).set_index(frame.columns[0])


def _markdown(table: pd.DataFrame, caption: str) -> str:
    lines = [list(table), ["---", *["---:"] * (table.shape[1] - 1)], *table.to_numpy().tolist()]
    return f"{caption}\n\n" + "".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines)


def write_table(frame: pd.DataFrame, name: str, caption: str, profile: str) -> list[Path]:
    """Writes results/<profile>/tables/<name>.csv (raw numbers; the caption in the last column), .md and .tex, each whole or not at all."""
    table, caption = formatted(frame), f"{caption} ({data_note(profile)}.)"
    escaped = re.sub(r"([%&_#$])", r"\\\1", caption)
    texts = {
        "csv": frame.assign(caption=[caption] + [""] * (len(frame) - 1)).to_csv(index=False, float_format="%.6g"),
        "md": _markdown(table, caption),
        "tex": table.to_latex(
            index=False, escape=True, caption=escaped, label=f"tab:{name}", column_format="l" + "r" * (table.shape[1] - 1)
        ),
    }
    paths = [results_root(profile) / "tables" / f"{name}.{kind}" for kind in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        with replacing(path) as part:
            part.write_text(text)
    return paths


def all_tables(profile: str) -> list[Path]:
    """Writes every table of a profile and returns the files. InputError: there are no scores yet."""
    scores, dataset = read_scores(profile), settings_of("baseline", profile).test_on[0]
    how = "95 % bootstrap intervals over cases; a difference takes both methods on the same resampled cases. An organ that is absent "
    how += "counts 0 where it is predicted and is left out where it is not. "
    how += "Scores: " + "; ".join(f"{run}: {source}" for run, source in provenance(scores).items()) + "."
    two = (
        "mean Dice over organs of the mean over cases, published and measured. BTCV labels 12 of the 13 organs. The paper prints a gain of "
    )
    two += "0.206 on FLARE22, where its means differ by 0.207."
    three = f"Dice by organ, published (FLARE22) and measured ({dataset}); n: cases in which the organ is present or predicted. "
    three += "The paper prints a mean of 0.497 for its baseline, whose rows average 0.519."
    return [
        *write_table(tgated_table1(), "tgated_table1", "T-Gated Table 1: sampling weights, published and used here.", profile),
        *write_table(tgated_table2(scores), "tgated_table2", f"T-Gated Table 2: {two} {how}", profile),
        *write_table(tgated_table3(scores, dataset), "tgated_table3", f"T-Gated Table 3: {three} {how}", profile),
        *write_table(
            seeds(scores), "tgated_seeds", "Mean Dice of every run and seed that was trained, with intervals over cases.", profile
        ),
    ]
