"""Every table of a profile, with its caption, written from the stored scores."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd

from lib.organs import PROMPT_SETS
from lib.profiles import AS_RELEASED, CONTROLS, HEADLINE, PARTS, RELEASED, WINDOW_IN_MM, settings_of
from lib.statistics import conventions

from .ablations import absent, consistency, controls, doses, parts, released, spacings, tests
from .captions import captions
from .claims import write_claims
from .formatting import write_table
from .scores import read_scores
from .tables import seeds, tgated_table1, tgated_table2, tgated_table3, tgated_table4, tgated_table5


def due(scores: pd.DataFrame, dataset: str) -> dict[str, bool]:
    """{table: whether the scores hold anything of its own, beside the headline runs that its other rows are measured against}."""
    runs = {str(run).partition(", seed ")[0] for run in scores["run"]}
    plain = scores[scores["condition"] == ""]
    here, sets, conditions = {*plain.loc[plain["dataset"] == dataset, "run"]}, {*scores["dataset"]}, {*scores["condition"]}
    departures = {f"{run}, released {name}" for name, changed in RELEASED.items() for run in changed}
    return {
        "tgated_table1": True,
        "tgated_table2": bool(runs & {"baseline", "adapter", "centre only"}),
        "tgated_table3": bool(here & {"baseline", "adapter"}),
        "tgated_table4": bool(conditions & {*PROMPT_SETS}),
        "tgated_table5": any("MRI" in name for name in sets),
        "tgated_seeds": bool(runs & {*HEADLINE}),
        "tgated_ablation_released": bool(runs & (departures | {f"{run}, as released" for run in AS_RELEASED})),
        "tgated_ablation_parts": bool(runs & {f"adapter, {name}" for name in PARTS}),
        "tgated_ablation_controls": bool(runs & {"centre only", *(f"adapter, {name}" for name in CONTROLS)}),
        "tgated_ablation_doses": any("degraded" in name for name in sets),
        "tgated_ablation_spacings": WINDOW_IN_MM in conditions or any("slices x" in name for name in sets),
        "tgated_ablation_absent": bool((plain.loc[plain["run"].isin(["baseline", "adapter"]), "truth_voxels"] == 0).any()),
        "tgated_tests": here >= {"baseline", "adapter"},
        "tgated_consistency": bool(here & {*HEADLINE}),
        "tgated_conventions": bool(here & {"baseline", "adapter"}),
    }


def all_tables(profile: str) -> list[Path]:
    """Writes every table of a profile that has scores, and the claims; returns the files. InputError: there are no scores yet."""
    scores, dataset = read_scores(profile), settings_of("baseline", profile).test_on[0]
    makers: dict[str, Callable[[], pd.DataFrame]] = {
        "tgated_table1": tgated_table1,
        "tgated_table2": partial(tgated_table2, scores),
        "tgated_table3": partial(tgated_table3, scores, dataset),
        "tgated_table4": partial(tgated_table4, scores, dataset),
        "tgated_table5": partial(tgated_table5, scores),
        "tgated_seeds": partial(seeds, scores),
        "tgated_ablation_released": partial(released, scores, dataset),
        "tgated_ablation_parts": partial(parts, scores, dataset),
        "tgated_ablation_controls": partial(controls, scores, dataset),
        "tgated_ablation_doses": partial(doses, scores),
        "tgated_ablation_spacings": partial(spacings, scores, profile),
        "tgated_ablation_absent": partial(absent, scores),
        "tgated_tests": partial(tests, scores, dataset),
        "tgated_consistency": partial(consistency, scores, dataset),
        "tgated_conventions": partial(conventions, scores, ["baseline", "adapter"], dataset),
    }
    said, wanted = captions(scores, dataset), due(scores, dataset)
    written = [path for name, make in makers.items() if wanted[name] for path in write_table(make(), name, said[name], profile)]
    return [*written, *write_claims(profile)]
