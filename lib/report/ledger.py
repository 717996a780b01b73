"""The claims of the T-Gated paper as data (ledger.csv), and its own arithmetic, done again from the tables that it prints."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lib.organs import KEYS, labelled
from lib.published import TGATED_TABLE2, TGATED_TABLE3, TGATED_TABLE3_MEAN, TGATED_TABLE4

HALF = 0.0005  # what rounding can hide in a number of three decimals
Check = tuple[str, bool, str]  # the recomputed text, whether it agrees, and a note


@dataclass(frozen=True)
class Claim:
    """One statement of the paper. `measure` names how it is checked: see MEASURES and SETTINGS of claims.py, SUMS and CHECKS here."""

    id: str
    kind: str  # setting, pairing, direction, size or arithmetic
    place: str
    claim: str
    published: str  # of a direction: "> 0" or "< 0"
    measure: str
    of: tuple[str, ...]  # tables "run/data set" or "run/data set/condition"; names of settings
    organs: tuple[str, ...]  # none: all of them
    checked_in: str  # notebook, and the heading of the cell
    note: str


def _parts(text: str) -> tuple[str, ...]:
    return tuple(text.split("; ")) if text else ()


def read_ledger() -> list[Claim]:
    """All claims, in the order of the paper; its arithmetic stands last."""
    table = pd.read_csv(Path(__file__).with_name("ledger.csv"), dtype=str, keep_default_na=False)
    return [
        Claim(
            row.id, row.kind, row.place, row.claim, row.published, row.measure, _parts(row.of), _parts(row.organs), row.checked_in, row.note
        )
        for row in table.rename(columns={"checked in": "checked_in"}).itertuples()
    ]


def number(published: str) -> float:
    """The number in a published text: "+0.206" is 0.206, "38.0 %" is 0.38, "10 of 13" is 10."""
    return float(published.split()[0]) / (100 if published.endswith("%") else 1)


# Numbers that follow from printed ones: a function of an array, and the array
Sum = tuple[Callable[[np.ndarray], float], Sequence[float]]
_BASELINE, _ADAPTER, _GAIN = (list(column) for column in zip(*TGATED_TABLE3.values(), strict=True))
_HOME, _AWAY = TGATED_TABLE2["FLARE22"], [TGATED_TABLE2[name] for name in ("BTCV", "AMOS22 CT")]


def _drop(dice: np.ndarray) -> float:
    """Share of the first Dice that the others lack on average."""
    return float(1 - np.mean(dice[1:]) / dice[0])


def _change(dice: np.ndarray) -> float:
    return float(dice[1] / dice[0] - 1)


SUMS: dict[str, Sum] = {
    **{f"gain {name}": (lambda dice: float(dice[1] - dice[0]), row[:2]) for name, row in TGATED_TABLE2.items()},
    "relative gain of means": (_change, _HOME[:2]),
    "relative printed gain": (lambda dice: float(dice[1] / dice[0]), (_HOME[0], _HOME[2])),
    "drop baseline": (_drop, (_HOME[0], *(row[0] for row in _AWAY))),
    "drop adapter": (_drop, (_HOME[1], *(row[1] for row in _AWAY))),
    "mean baseline": (np.mean, _BASELINE),
    "mean adapter": (np.mean, _ADAPTER),
    "mean gain": (np.mean, _GAIN),
    **{name: (_change, (TGATED_TABLE4[""][0], TGATED_TABLE4[name][0])) for name in ("blank", "wrong organ")},
}


def _sum_check(published: str, function: Callable[[np.ndarray], float], inputs: Sequence[float]) -> Check:
    """A number against the printed one at its printed digits; the note says if rounding of the printed inputs explains a difference."""
    array = np.array(inputs)
    value = function(array)
    hidden = sum(abs(function(array + HALF * unit) - value) for unit in np.eye(len(array)))
    percent, sign = published.endswith("%"), "+" if published[0] in "+-" else ""
    decimals = len(published.split()[0].partition(".")[2])
    scale, unit = (100, " %") if percent else (1, "")
    agrees = f"{scale * value:{sign}.{decimals}f}{unit}" == published
    apart = abs(scale * value - scale * number(published))
    explained = apart <= scale * hidden + 0.5 * 10**-decimals
    note = "" if agrees else f"Rounding of the printed numbers {'can' if explained else 'cannot'} explain it."
    return f"{scale * value:{sign}.{max(decimals, 1)}f}{unit}", agrees, note


# Statements about printed numbers that are no single number
def _named(organs: Sequence[str]) -> str:
    return ", ".join(f"{organ} {TGATED_TABLE3[organ][2]:+.3f}" for organ in organs)


def _rows(organs: Sequence[str]) -> Check:
    """Whether every row of Table 3 prints the difference of its two numbers."""
    off = [organ for organ, (one, two, gain) in TGATED_TABLE3.items() if round(two - one, 3) != gain]
    return f"{len(TGATED_TABLE3) - len(off)} of {len(TGATED_TABLE3)}", not off, f"Not so: {', '.join(off)}." if off else ""


def _largest(organs: Sequence[str]) -> Check:
    first = sorted(TGATED_TABLE3, key=lambda organ: -TGATED_TABLE3[organ][2])[: len(organs)]
    return _named(first), set(first) == set(organs), ""


def _less_than_others(organs: Sequence[str]) -> Check:
    these, others = (np.mean([row[2] for organ, row in TGATED_TABLE3.items() if (organ in organs) == side]) for side in (True, False))
    return f"{these:+.3f} against {others:+.3f}", bool(these < others), ""


def _losses(organs: Sequence[str]) -> Check:
    losing = [organ for organ in TGATED_TABLE3 if TGATED_TABLE3[organ][2] < 0]
    return _named(losing), set(losing) == set(organs), ""


def _minor(organs: Sequence[str]) -> Check:
    baseline, _, gain = TGATED_TABLE3[organs[0]]
    others = np.mean([abs(row[2]) for organ, row in TGATED_TABLE3.items() if organ not in organs])
    return (
        f"{abs(gain):.3f} against {others:.3f}",
        bool(abs(gain) < others),
        f"It is {100 * abs(gain) / baseline:.0f} % of the baseline's Dice.",
    )


def _drop_in_dice(organs: Sequence[str]) -> Check:
    """Loss of Dice from FLARE22 to the mean of the other sites, not as a share."""
    baseline, adapter = (_HOME[place] - np.mean([row[place] for row in _AWAY]) for place in (0, 1))
    return f"{baseline:.4f} against {adapter:.4f}", bool(adapter < baseline), ""


def _plain_means(organs: Sequence[str]) -> Check:
    """Agrees if neither printed mean is the plain mean of its column."""
    plain = [round(float(np.mean(column)), 3) for column in (_BASELINE, _ADAPTER)]
    text = f"plain means: {plain[0]:.3f} and {plain[1]:.3f}"
    return text, all(mean != printed for mean, printed in zip(plain, TGATED_TABLE3_MEAN, strict=False)), ""


def _same_means(organs: Sequence[str]) -> Check:
    return "; ".join(f"{value:.3f}" for value in TGATED_TABLE3_MEAN), TGATED_TABLE3_MEAN == _HOME, ""


def _organs_of_btcv(organs: Sequence[str]) -> Check:
    count = len(labelled("BTCV"))
    return str(count), count == len(KEYS), ""


CHECKS: dict[str, Callable[[Sequence[str]], Check]] = {
    "rows": _rows,
    "largest": _largest,
    "less than others": _less_than_others,
    "losses": _losses,
    "minor": _minor,
    "drop in Dice": _drop_in_dice,
    "plain means": _plain_means,
    "same means": _same_means,
    "organs of BTCV": _organs_of_btcv,
}


def arithmetic(claim: Claim) -> Check:
    """What comes out where the paper's own numbers are put together again."""
    return CHECKS[claim.measure](claim.organs) if claim.measure in CHECKS else _sum_check(claim.published, *SUMS[claim.measure])
