"""Every number that the T-Gated paper states, beside ours, with a verdict by one rule for all: claims.csv and claims.md."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from lib.organs import BY_KEY, KEYS
from lib.paths import InputError, replacing, results_root
from lib.profiles import Settings, data_note, differences, settings_of
from lib.published import TGATED_TABLE1
from lib.statistics import DRAWS, LEVEL, average_drop, dice_table, difference, mean_over_organs, mean_with_interval

from .ledger import Claim, arithmetic, number, read_ledger
from .scores import read_scores

REPRODUCED, NOT_REPRODUCED, UNTESTABLE = "reproduced", "not reproduced", "not testable in this profile"
AGREES, DISAGREES = "agrees", "does not agree"
COLUMNS = ["id", "kind", "place", "claim", "published", "measured", "verdict", "checked in", "note"]
RULE = (
    "A direction is reproduced if the measured difference has the claimed sign and its 95 % interval excludes 0, else not reproduced. "
    "A size is tested in the full profile alone, where it is reproduced if the published value lies in the measured 95 % interval; "
    "elsewhere our number stands beside it without a verdict. A setting is reproduced if this profile has the paper's value; a smaller "
    "profile may depart from it on purpose, which makes the claim not testable there. A pairing is reproduced if the settings of the two "
    "runs differ in nothing that it rules out. What has no score, or no interval, is not testable. "
    "Arithmetic agrees if the paper's printed numbers give the printed result at its printed digits. "
    "Measured values: runs of seed 0, means over organs of the mean over scans, intervals by bootstrap over scans, not "
    "corrected for the number of claims. A number that the paper repeats has one row with all its places."
)


class Measured(NamedTuple):
    """A value, its 95 % interval (NaN for a single scan), and the scans behind it."""

    value: float
    low: float
    high: float
    n: int


Frames = list[pd.DataFrame]  # (cases, organs)


def _resampled(statistic: Callable[..., np.ndarray], frames: Frames) -> Measured:
    """A statistic of (..., cases, organs) arrays on their common cases, with its bootstrap interval: all arrays of the same drawn cases."""
    cases = frames[0].index.intersection(frames[-1].index)
    arrays, n = [frame.loc[cases].to_numpy() for frame in frames], len(cases)
    value, low, high = float(statistic(*arrays)), math.nan, math.nan
    if n > 1 and math.isfinite(value):
        picks = np.random.default_rng(0).integers(0, n, (DRAWS, n))
        low, high = map(float, np.nanquantile(statistic(*(array[picks] for array in arrays)), [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    return Measured(value, low, high, n)


def _change(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    one, two = mean_over_organs(first), mean_over_organs(second)
    return np.divide(two, one, out=np.full_like(two, np.nan), where=one > 0) - 1


def _below(dice: np.ndarray, least: float) -> np.ndarray:
    """How many organs have a mean Dice below `least`; an organ without a score does not count."""
    return np.sum([mean_over_organs(dice[..., [place]]) < least for place in range(dice.shape[-1])], 0)


def _difference(frames: Frames) -> Measured:
    """Second minus first; n counts the common cases in which one of the organs has a score."""
    cases = frames[0].index.intersection(frames[1].index)
    seen = frames[0].loc[cases].combine_first(frames[1].loc[cases]).notna().any(axis=1)
    return Measured(*difference(*frames), int(seen.sum()))


def _contrast(frames: Frames, organs: Sequence[str]) -> Measured:
    """Mean gain of these organs, second minus first, minus the mean gain of all others."""
    gains = (frames[1] - frames[0]).dropna(how="all")
    return Measured(*difference(gains[[key for key in KEYS if key not in organs]], gains[list(organs)]), len(gains))


def _of(measure: Callable[[Frames], Measured]) -> Callable[[Frames, Sequence[str]], Measured]:
    """A measure that looks at the claim's organs alone."""
    return lambda frames, organs: measure([frame[list(organs or KEYS)] for frame in frames])


# How a claim is measured, and how the value is written
MEASURES: dict[str, tuple[Callable[[Frames, Sequence[str]], Measured], str]] = {
    "mean": (_of(lambda frames: Measured(*mean_with_interval(frames[0]))), ".3f"),
    "difference": (_of(_difference), "+.3f"),
    "false slices": (_of(_difference), "+.2f"),
    "contrast": (_contrast, "+.3f"),
    "change": (_of(lambda frames: _resampled(_change, frames)), "+.1%"),
    "drop": (_of(lambda frames: Measured(*average_drop(frames))), ".1%"),
    "drop difference": (_of(lambda frames: Measured(*average_drop(frames[: len(frames) // 2], frames[len(frames) // 2 :]))), "+.1%"),
    "zeros": (_of(lambda frames: _resampled(lambda dice: _below(dice, 1e-12), frames)), ".0f"),
    "below 0.001": (_of(lambda frames: _resampled(lambda dice: _below(dice, 0.001), frames)), ".0f"),
}


def verdict(kind: str, published: str, measured: Measured, full: bool) -> str:
    """The rule for what is measured: RULE in code. `full`: whether sizes can be tested."""
    if math.isnan(measured.low) or (kind == "size" and not full):
        return UNTESTABLE
    if kind == "size":
        held = measured.low <= number(published) <= measured.high
    else:
        held = measured.low > 0 if published == "> 0" else measured.high < 0
    return REPRODUCED if held else NOT_REPRODUCED


def _text(measured: Measured, form: str) -> str:
    """ "+0.028 [+0.011, +0.044], n = 10"."""
    value, low, high = (format(part, form).replace("%", " %") for part in measured[:3])
    return f"{value} [{'n/a' if math.isnan(measured.low) else f'{low}, {high}'}], n = {measured.n}"


def _from_scores(claim: Claim, scores: pd.DataFrame, profile: str) -> tuple[str, str, str]:
    """Measured text, verdict and note of a direction or a size."""
    if not claim.measure:
        return "", UNTESTABLE, ""
    specs = [[*table.split("/"), ""][:3] for table in claim.of]
    if missing := {dataset for _, dataset, _ in specs} - set(settings_of("adapter", profile).test_on):
        return "", UNTESTABLE, f"This profile has no {' or '.join(sorted(missing))}."
    column = "false_slices" if claim.measure == "false slices" else "dice"
    frames = [dice_table(scores, run, dataset, condition, column) for run, dataset, condition in specs]
    if any(frame.empty for frame in frames):
        return "", UNTESTABLE, "Not run yet."
    measure, form = MEASURES[claim.measure]
    measured = measure(frames, claim.organs)
    if math.isnan(measured.value):
        return "", UNTESTABLE, "No scan has a score."
    alone = "An interval needs two scans." if math.isnan(measured.low) else ""
    return _text(measured, form), verdict(claim.kind, claim.published, measured, profile == "full"), alone


def _written(value: Any) -> str:
    return ", ".join(map(_written, value)) if isinstance(value, tuple) else f"{value:.3g}" if isinstance(value, float) else str(value)


def _listed(settings: Settings, names: Sequence[str]) -> tuple[str, bool]:
    """Settings by name, and whether all have their defaults, which are the paper's."""
    pairs = [(getattr(settings, name), getattr(Settings(), name)) for name in names]
    shown = "; ".join(f"{name} {_written(here)}" for name, (here, _) in zip(names, pairs, strict=True))
    return shown, all(here == paper for here, paper in pairs)


def _gate(settings: Settings) -> tuple[str, bool]:
    bias = settings.gate_bias
    return f"{bias:g} (gate {1 / (1 + math.exp(-bias)):.4f})", bias == Settings.gate_bias


def _table1(settings: Settings) -> tuple[str, bool]:
    weights = {key: BY_KEY[key].weight for key in TGATED_TABLE1}
    shown = "; ".join(f"{weight:g}" for weight in sorted(set(weights.values()), reverse=True))
    return f"{shown} (balance: {settings.balance})", weights == TGATED_TABLE1 and settings.balance == "table 1"


# Claims about settings: what this profile has, and whether that is the paper's
SETTINGS: dict[str, Callable[[Settings, str], tuple[str, bool]]] = {
    "weights": lambda settings, _: (settings.weights or "a small model, from random numbers", bool(settings.weights)),
    "gate": lambda settings, _: _gate(settings),
    "table 1": lambda settings, _: _table1(settings),
    "test scans": lambda settings, _: (f"{settings.cases[2]} of each", settings.cases[2] == Settings.cases[2]),
    "adapter alone": lambda _, profile: _pairing("baseline", "adapter", profile, lambda names: names == {"adapter"}),
    "same scans": lambda _, profile: _same_scans("adapter", "dynunet", profile),
}


def _pairing(first: str, second: str, profile: str, fair: Callable[[set[str]], bool]) -> tuple[str, bool]:
    names = differences(first, second, profile)
    return f"differ in: {', '.join(names)}", fair(set(names))


def _same_scans(first: str, second: str, profile: str) -> tuple[str, bool]:
    """Of all settings of two runs only those that choose the training scans: methods as unlike as these differ in most others."""
    chosen = [name for name in differences(first, second, profile) if name in ("train_on", "cases", "training_cases", "degraded")]
    return f"scans differ in: {', '.join(chosen)}" if chosen else "same training scans; the trainings differ otherwise", not chosen


def _from_settings(claim: Claim, profile: str) -> tuple[str, str, str]:
    """Measured text, verdict and note of a setting or a pairing."""
    settings = settings_of("adapter", profile)
    shown, held = SETTINGS[claim.measure](settings, profile) if claim.measure in SETTINGS else _listed(settings, claim.of)
    if held:
        return shown, REPRODUCED, ""
    if claim.kind == "pairing" or profile == "full":
        return shown, NOT_REPRODUCED, ""
    return shown, UNTESTABLE, f"Departure of the {profile} profile."


def _row(claim: Claim, scores: pd.DataFrame, profile: str) -> tuple[str, ...]:
    if claim.kind == "arithmetic":
        measured, agrees, note = arithmetic(claim)
        outcome = AGREES if agrees else DISAGREES
    elif claim.kind in ("setting", "pairing"):
        measured, outcome, note = _from_settings(claim, profile)
    else:
        measured, outcome, note = _from_scores(claim, scores, profile)
    notes = " ".join(part for part in (note, claim.note) if part)
    return claim.id, claim.kind, claim.place, claim.claim, claim.published, measured, outcome, claim.checked_in, notes


def claims(profile: str) -> pd.DataFrame:
    """One row for each claim, as text; see RULE for the verdicts. Claims whose runs have no scores yet are not testable."""
    try:
        scores = read_scores(profile)
    except InputError:  # nothing has been scored: what needs no score has its verdict all the same
        scores = pd.DataFrame(columns=["run", "dataset", "condition", "case", "organ", "dice", "false_slices"])
    return pd.DataFrame([_row(claim, scores, profile) for claim in read_ledger()], columns=COLUMNS)


def _markdown(table: pd.DataFrame) -> str:
    lines = [list(table), ["---"] * table.shape[1], *table.to_numpy().tolist()]
    return "".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines)


def _count(table: pd.DataFrame) -> str:
    return "".join(
        f"- {kind}: " + ", ".join(f"{n} {v}" for v, n in part.value_counts().items()) + "\n"
        for kind, part in table.groupby("kind", sort=False)["verdict"]
    )


def write_claims(profile: str) -> list[Path]:
    """Writes results/<profile>/claims.csv (the caption in the last column) and claims.md, each whole or not at all."""
    table, caption = claims(profile), f"Claims of the T-Gated paper, published and measured ({data_note(profile)}). {RULE}"
    own = table["kind"] == "arithmetic"
    page = f"# Claims of the T-Gated paper\n\n{caption}\n\n{_count(table)}\n## Against our runs\n\n{_markdown(table[~own])}"
    page += f"\n## The paper's own arithmetic\n\n{_markdown(table[own].rename(columns={'measured': 'recomputed'}))}"
    texts = {"csv": table.assign(caption=[caption] + [""] * (len(table) - 1)).to_csv(index=False), "md": page}
    paths = [results_root(profile) / f"claims.{kind}" for kind in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")
    return paths
