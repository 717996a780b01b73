"""The stored scores, and where they come from."""

import json
from collections.abc import Iterable

import pandas as pd

from lib.paths import InputError, results_root
from lib.profiles import ELSEWHERE, EVERY_CASE, every_case

METHODS = {
    "baseline": "CLIPSeg baseline",
    "adapter": "CLIPSeg + temporal adapter",
    "centre only": "Control: centre slice only",
    "dynunet": "DynUNet",
}


def read_scores(profile: str) -> pd.DataFrame:
    """scores.csv with a column `source`: "trained here" where a finished run of those settings lies in runs/, else the settings' hash.

    Raises:
        InputError: there are no scores.
    """
    path = results_root(profile) / "scores.csv"
    if not path.is_file():
        raise InputError(f"{path} does not exist: run `make paper PROFILE={profile}` to train the runs and score them.")
    scores = pd.read_csv(path, dtype={"config": str, "case": str, "condition": str}).fillna({"condition": ""})
    finished = {json.loads(config.read_text()).get("finished") for config in path.parent.glob("runs/*/config.json")}
    source = ("committed scores, config " + scores["config"]).where(~scores["config"].isin(finished), "trained here")
    return _of_every_case(scores.assign(source=source.where(~from_elsewhere(scores), "label maps from elsewhere")))


def from_elsewhere(scores: pd.DataFrame) -> pd.Series:
    """Which rows score label maps that no run here made (see lib.foreign)."""
    return scores["config"].str.startswith(ELSEWHERE)


def _of_every_case(scores: pd.DataFrame) -> pd.DataFrame:
    """Where $ALL_CASES asks for every case of a data set, its rows take the place of those of the drawn cases."""
    suffix = f", {EVERY_CASE}"
    every = scores["dataset"].str.endswith(suffix)
    if not every_case() or not every.any():
        return scores
    wide = scores[every].assign(dataset=scores.loc[every, "dataset"].str.removesuffix(suffix))
    key = ["run", "dataset", "condition"]
    drawn = pd.MultiIndex.from_frame(scores[key]).isin(pd.MultiIndex.from_frame(wide[key]))
    return pd.concat([scores[~every & ~drawn], wide], ignore_index=True)


def read_stored(profile: str, name: str) -> pd.DataFrame:
    """A table that was stored in results/<profile>/figure_data, for tables that say more than scores can.

    Raises:
        InputError: it is not there.
    """
    path = results_root(profile) / "figure_data" / name
    if not path.is_file():
        raise InputError(f"{path} does not exist: run `make paper PROFILE={profile}` to train, predict and store what the tables show.")
    return pd.read_csv(path)


def provenance(scores: pd.DataFrame, runs: Iterable[str] = METHODS) -> dict[str, str]:
    """{method: where its scores come from}. `scores`: as `read_scores` gives them, here and below."""
    source = scores.drop_duplicates("run").set_index("run")["source"]
    return {run: source.get(run, "not run yet") for run in runs}
