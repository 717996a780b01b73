"""Every table of a profile, with its caption, written from the stored scores."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd

from lib.organs import PROMPT_SETS
from lib.profiles import (
    AS_RELEASED,
    ASKED_OTHERWISE,
    BY_CASES,
    BY_TEXT,
    CONTROLS,
    HEADLINE,
    MEDVLM_RUNS,
    PARTS,
    RELEASED,
    SHUFFLED,
    WINDOW_IN_MM,
    WITHOUT_TURNS,
    settings_of,
)
from lib.statistics import conventions

from .ablations import absent, consistency, controls, doses, parts, released, samplers, spacings, tests
from .captions import captions, medvlm_captions
from .claims import write_claims
from .formatting import write_table
from .medvlm import (
    MODELS,
    ON_BTCV,
    common_ground,
    held_out_scans,
    medvlm_cases,
    medvlm_prompts,
    medvlm_table1,
    medvlm_table2,
    medvlm_table3,
    medvlm_table4,
    medvlm_turns,
)
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
        "tgated_ablation_samplers": bool(here & {*SHUFFLED}),
        "tgated_ablation_doses": any("degraded" in name for name in sets),
        "tgated_ablation_spacings": WINDOW_IN_MM in conditions or any("slices x" in name for name in sets),
        "tgated_ablation_absent": bool((plain.loc[plain["run"].isin(["baseline", "adapter"]), "truth_voxels"] == 0).any()),
        "tgated_tests": here >= {"baseline", "adapter"},
        "tgated_consistency": bool(here & {*HEADLINE}),
        "tgated_conventions": bool(here & {"baseline", "adapter"}),
    }


def medvlm_due(scores: pd.DataFrame, held_out: str) -> dict[str, bool]:
    """`due` of the Med-VLM paper's tables: none without one of its runs, whatever T-Gated's have scored on the held-out scans."""
    here = scores[scores["dataset"] == held_out]
    runs, conditions = {str(run).partition(", seed ")[0] for run in here["run"]}, {*here["condition"]}
    own = {
        **{f"medvlm_table{number}": {*MEDVLM_RUNS} for number in (1, 2, 3, 4)},
        "medvlm_table3": {*MODELS},
        "medvlm_prompts": {*BY_TEXT.values()} - {BY_TEXT["description"]},
        "medvlm_cases": {run for fewer in BY_CASES.values() for run in fewer.values()},
        "medvlm_turns": {*WITHOUT_TURNS},
        "common_ground": {"baseline", "adapter", *ON_BTCV},
    }
    wanted = {name: bool(runs & {*MEDVLM_RUNS} and runs & these) for name, these in own.items()}
    return wanted | {"medvlm_prompts": wanted["medvlm_prompts"] or bool(conditions & {*ASKED_OTHERWISE})}


def tables_due(scores: pd.DataFrame, profile: str) -> dict[str, bool]:
    """{table: whether the scores hold anything of its own}: every table there is, in the order in which they are shown."""
    return due(scores, settings_of("baseline", profile).test_on[0]) | medvlm_due(scores, held_out_scans(profile))


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
        "tgated_ablation_samplers": partial(samplers, scores, profile, dataset),
        "tgated_ablation_doses": partial(doses, scores),
        "tgated_ablation_spacings": partial(spacings, scores, profile),
        "tgated_ablation_absent": partial(absent, scores),
        "tgated_tests": partial(tests, scores, dataset),
        "tgated_consistency": partial(consistency, scores, dataset),
        "tgated_conventions": partial(conventions, scores, ["baseline", "adapter"], dataset),
        "medvlm_table1": medvlm_table1,
        "medvlm_table2": partial(medvlm_table2, profile),
        "medvlm_table3": partial(medvlm_table3, scores, profile),
        "medvlm_table4": partial(medvlm_table4, profile),
        "medvlm_prompts": partial(medvlm_prompts, scores, profile),
        "medvlm_cases": partial(medvlm_cases, scores, profile),
        "medvlm_turns": partial(medvlm_turns, scores, profile),
        "common_ground": partial(common_ground, scores, profile),
    }
    said = captions(scores, dataset) | medvlm_captions(scores, profile)
    wanted = tables_due(scores, profile)
    written = [path for name, make in makers.items() if wanted[name] for path in write_table(make(), name, said[name], profile)]
    return [*written, *write_claims(profile)]
