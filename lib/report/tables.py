"""Published against measured: T-Gated's Tables, from results/<profile>/scores.csv alone."""

from typing import Any

import numpy as np
import pandas as pd

from lib.organs import BY_KEY, KEYS, PROMPT_SETS
from lib.profiles import HEADLINE, HELD_OUT
from lib.published import (
    NAN,
    TGATED_DROP,
    TGATED_TABLE1,
    TGATED_TABLE2,
    TGATED_TABLE3,
    TGATED_TABLE3_MEAN,
    TGATED_TABLE4,
    TGATED_TABLE5,
)
from lib.statistics import average_drop, bootstrap_interval, dice_table, difference, mean_dice, mean_over_organs, mean_with_interval

from .formatting import cells
from .scores import METHODS, from_elsewhere, provenance

# Rows of a table: a method, or its difference to another; the paper's stand first
TABLE2_ROWS = (("baseline", ""), ("adapter", ""), ("adapter", "baseline"), ("centre only", ""), ("adapter", "centre only"))
TABLE5_ROWS = (("dynunet", ""), ("adapter", ""), ("adapter", "dynunet"), ("baseline", ""), ("adapter", "baseline"), ("centre only", ""))
PROMPTED = {"": "correct prompt", "blank": "blank prompt", "wrong organ": "wrong organ"}  # beyond the paper: "synonym", "template"


def tgated_table1(share: dict[str, float] | None = None) -> pd.DataFrame:
    """Sampling weight of every organ: published, and what the samplers here use; on request each organ's `share` of the training."""
    rows = [(BY_KEY[key].short, weight, BY_KEY[key].weight) for key, weight in TGATED_TABLE1.items()]
    table = pd.DataFrame(rows, columns=["organ", "published weight", "weight here"]).convert_dtypes()
    return table if share is None else table.assign(**{"share of training": [share[key] for key in TGATED_TABLE1]})


def samples_in(scores: pd.DataFrame) -> list[str]:
    """The sample scans among the data sets: where there are any, they take the place of the paper's."""
    return [dataset for dataset in scores["dataset"].unique() if dataset.startswith("sample")]


def _name(method: str, minus: str) -> str:
    return f"Difference: {method} - {minus}" if minus else METHODS.get(method, method)


def _measured(scores: pd.DataFrame, method: str, minus: str, dataset: str) -> dict[str, float]:
    """Columns of a method's mean Dice on a data set, or of its difference to another's."""
    dice, other = dice_table(scores, method, dataset), dice_table(scores, minus, dataset)
    values = (*difference(other, dice), len(dice.index.intersection(other.index))) if minus else mean_with_interval(dice)
    return cells(f"{dataset} measured", values)


def _drop(scores: pd.DataFrame, method: str, minus: str) -> dict[str, float]:
    """Columns of a method's average drop from FLARE22 to the other CT sites, or of its difference to another's."""
    frames, others = ([dice_table(scores, run, dataset) for dataset in TGATED_TABLE2] for run in (method, minus))
    return cells("average drop measured", average_drop(frames, others if minus else None))


def tgated_table2(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean Dice by method and data set, their average drop, and differences on the same cases.

    The control has rows once it has scores, and label maps from elsewhere have one each (see lib.foreign).

    The drop is the share of the Dice on FLARE22 that is lost on BTCV (a mean over the 12 organs that it labels) and on AMOS22 CT.
    """
    samples, rows = samples_in(scores), []
    elsewhere = [(run, "") for run in sorted(scores.loc[from_elsewhere(scores), "run"].unique())]
    for place, (method, minus) in enumerate((*TABLE2_ROWS, *elsewhere)):
        if "centre only" in (method, minus) and "centre only" not in set(scores["run"]):
            continue
        row: dict[str, Any] = {"method": _name(method, minus)}
        for dataset, published in TGATED_TABLE2.items():
            row[f"{dataset} published"] = published[place] if place < len(published) else NAN
            row |= {} if samples else _measured(scores, method, minus, dataset)
        printed = TGATED_DROP.get(method, NAN) - (TGATED_DROP.get(minus, NAN) if minus else 0)
        row["average drop published"] = round(printed, 3)
        row |= {} if samples else _drop(scores, method, minus)
        for dataset in samples:
            row |= _measured(scores, method, minus, dataset)
        rows.append(row | {"scores": "" if minus else provenance(scores, [method])[method]})
    return pd.DataFrame(rows)


def tgated_table3(scores: pd.DataFrame, dataset: str = "FLARE22") -> pd.DataFrame:
    """Dice by organ, baseline against adapter, on a data set; n: cases in which the organ is present or predicted.

    The first mean is the headline (over organs, of the mean over cases), beside what the paper's rows average; the second weighs
    every case and organ by its true voxels, beside the mean that the paper prints and calls volume-weighted.
    """
    first, second = (dice_table(scores, run, dataset) for run in ("baseline", "adapter"))
    voxels = dice_table(scores, "baseline", dataset, column="truth_voxels").combine_first(
        dice_table(scores, "adapter", dataset, column="truth_voxels")
    )
    averages = tuple(np.mean(list(TGATED_TABLE3.values()), 0).round(6))
    means = {"Mean over organs (published: of the rows above)": averages, "Mean by voxels (published: as printed)": TGATED_TABLE3_MEAN}
    rows = []
    for name, published in (TGATED_TABLE3 | means).items():
        organs = [name] if name in BY_KEY else list(KEYS)
        weight = voxels[organs] if "voxels" in name else None
        one, two = first[organs], second[organs]
        measured = [float(mean_over_organs(f.to_numpy(), None if weight is None else weight.loc[f.index].to_numpy())) for f in (one, two)]
        n = int(one.combine_first(two).notna().any(axis=1).sum())
        rows.append((BY_KEY[name].short if name in BY_KEY else name, *published, *measured, *difference(one, two, weight), n))
    columns = [f"{side} {column}" for side in ("published", "measured") for column in ("baseline", "+ temporal", "difference")]
    return pd.DataFrame(rows, columns=["organ", *columns, "measured difference low", "measured difference high", "n"])


def tgated_table4(scores: pd.DataFrame, dataset: str = "FLARE22") -> pd.DataFrame:
    """The adapter's mean Dice by kind of prompt, its change against the correct prompts, and how many organs are lost by it."""
    right, rows = float(mean_over_organs(dice_table(scores, "adapter", dataset).to_numpy())), []
    for condition in ("", *PROMPT_SETS):
        dice = dice_table(scores, "adapter", dataset, condition)
        measured, by_organ = mean_with_interval(dice), dice.mean()
        lost = (int((by_organ == 0).sum()), int((by_organ < 0.001).sum())) if measured[3] else (NAN, NAN)
        change = 100 * (measured[0] / right - 1) if condition and right > 0 else NAN
        asked = PROMPT_SETS[condition][KEYS.index("liver")] if condition else "liver"
        row: dict[str, Any] = {"prompt": PROMPTED.get(condition, condition), "the liver's": f'"{asked}"'}
        counts = ("organs at exactly 0", "organs below 0.001")
        names = ("Dice", "change in %", *counts)
        row |= {f"published {name}": value for name, value in zip(names, TGATED_TABLE4.get(condition, (NAN,) * 4), strict=True)}
        row |= cells("measured Dice", measured)
        rows.append(row | {f"measured {name}": value for name, value in zip(names[1:], (change, *lost), strict=True)})
    return pd.DataFrame(rows).astype({f"{side} {name}": "Int64" for side in ("published", "measured") for name in counts})


def tgated_table5(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean Dice on MRI, published and measured, with the same models' Dice on CT beside it, and differences on the same cases."""
    mri, ct = ("sample MRI", "sample CT") if samples_in(scores) else ("AMOS22 MRI", "FLARE22")
    rows = []
    elsewhere = [(run, "") for run in sorted(scores.loc[from_elsewhere(scores) & (scores["dataset"] == mri), "run"].unique())]
    for method, minus in (*TABLE5_ROWS, *elsewhere):
        printed = TGATED_TABLE5.get(method, NAN) - (TGATED_TABLE5.get(minus, NAN) if minus else 0)
        row = {"method": _name(method, minus), "AMOS22 MRI published": round(printed, 3)}
        row |= _measured(scores, method, minus, mri) | _measured(scores, method, minus, ct)
        rows.append(row | {"scores": "" if minus else provenance(scores, [method])[method]})
    return pd.DataFrame(rows)


def seeds(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean Dice of every headline run and its repetitions with other seeds: how much of a difference is the draw of the seed."""
    name = scores["run"].str.partition(", seed ")[0]
    own = scores[name.isin(list(HEADLINE)) & (scores["condition"] == "") & ~scores["dataset"].str.contains(f",|{HELD_OUT}")]
    rows = []
    for (run, dataset), part in own.groupby(["run", "dataset"], sort=False):
        method, _, seed = str(run).partition(", seed ")
        interval = bootstrap_interval(dice_table(own, str(run), str(dataset)))
        rows.append((method, int(seed or 0), dataset, mean_dice(part), *interval, part["case"].nunique(), part["source"].iloc[0]))
    columns = ["run", "seed", "dataset", "mean Dice", "mean Dice low", "mean Dice high", "n", "scores"]
    return pd.DataFrame(rows, columns=columns).sort_values(["dataset", "run", "seed"], ignore_index=True)
