"""What the figures read: small extracts in results/<profile>/figure_data. Here is what all of them share, and the simplest ones.

An extract whose runs have not been trained is written all the same, and empty: so a figure that is left out for want of a run can be
told from one whose extract was never made.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.organs import KEYS, ORGANS, labelled
from lib.paths import InputError, replacing, results_root
from lib.profiles import HEADLINE, run_folder, settings_of


class NotRun(InputError):
    """What a figure shows has not been run in this profile: `all_figures` leaves the figure out."""


def stored(profile: str, name: str, needed: bool = True) -> Path:
    """Path of an extract. InputError: it is `needed` and not there."""
    if needed and not (path := results_root(profile) / "figure_data" / name).is_file():
        raise InputError(f"{path} does not exist: run `make paper PROFILE={profile}` to train, predict and store what the figures show.")
    return results_root(profile) / "figure_data" / name


def write_extract(table: pd.DataFrame, profile: str, name: str, **how: Any) -> None:
    """Writes a table as results/<profile>/figure_data/<name>, whole or not at all."""
    with replacing(stored(profile, name, needed=False)) as part:
        table.to_csv(part, index=False, **how)


def read_extract(profile: str, name: str, what: str) -> pd.DataFrame:
    """A stored table.

    Raises:
        NotRun: it has no rows, because `what` ("the adapter", say) had not been run when it was made.
    """
    table = pd.read_csv(stored(profile, name), dtype={"case": str})
    if table.empty:
        raise NotRun(f"{stored(profile, name)} holds no rows: {what} has not been run in the {profile} profile.")
    return table


def spread(places: np.ndarray, count: int) -> np.ndarray:
    """`count` of the given places, evenly spread and away from the ends; all of them where there are no more."""
    return places if len(places) <= count else places[((np.arange(count) + 0.5) * len(places) / count).astype(int)]


def scans(
    profile: str, datasets: Iterable[str], runs: Iterable[str] | None = None, like: str = "baseline"
) -> Iterator[tuple[str, Any, dict[str, np.ndarray]]]:
    """(data set, store, {"truth" or run: canonical (X, Y, Z) uint16, bit p for ORGANS[p]}) of test scans and runs.

    runs: by default HEADLINE. like: the run whose settings say which scans the data sets are.
    """
    from lib.datasets import stores_of  # here, because these load torch, and figures alone should take seconds
    from lib.volumes import read_labels

    settings, runs = settings_of(like, profile), list(HEADLINE if runs is None else runs)
    bits = np.array([0, *(1 << place for place in range(len(ORGANS)))], np.uint16)
    for dataset in datasets:
        for store in stores_of(settings, dataset):
            assert store.source.labels is not None
            files = {run: run_folder(run, profile) / "predictions" / dataset / f"{store.id}.npz" for run in runs}
            claims = {run: store.grid.to_canonical(np.load(path)["claims"]) for run, path in files.items() if path.is_file()}
            yield dataset, store, {"truth": bits[read_labels(store.source.labels, store.label_map, store.grid)]} | claims


def extract_presence(profile: str) -> None:
    """presence.csv: pixels of each organ that the data set labels, for the truth and every run, case and slice z of the first data set."""
    tables = []
    for dataset, store, claims in scans(profile, settings_of("baseline", profile).test_on[:1]):
        for run, volume in claims.items():
            pixels = {key: (volume >> KEYS.index(key) & 1).sum((0, 1)) for key in labelled(store.label_map)}
            table = pd.DataFrame({"run": run, "dataset": dataset, "case": store.id, "z": range(volume.shape[2])} | pixels)
            tables.append(table.reindex(columns=["run", "dataset", "case", "z", *KEYS]))
    write_extract(pd.concat(tables), profile, "presence.csv", float_format="%g")


def joined(profile: str, name: str, runs: Iterable[str]) -> pd.DataFrame:
    """The CSV file `name` ("log.csv", "audit.csv") of those `runs` that were trained here, one below the other, with a column `run`."""
    tables = (pd.read_csv(path).assign(run=run) for run in runs if (path := run_folder(run, profile) / name).is_file())
    return pd.concat([pd.DataFrame(columns=["run"]), *tables])


def with_stored(table: pd.DataFrame, profile: str, extract: str, runs: Iterable[str]) -> pd.DataFrame:
    """`table`, and below it the rows of those `runs` that it lacks from the stored `extract`, where there is one."""
    if not (kept := stored(profile, extract, needed=False)).is_file():
        return table
    old = pd.read_csv(kept)
    return pd.concat([table, old[old["run"].isin(set(runs) - set(table["run"]))]])


def joined_or_stored(profile: str, name: str, runs: Iterable[str], extract: str) -> pd.DataFrame:
    """What `joined` gives; runs that were not trained here come from the stored `extract`.

    Raises:
        InputError: neither is there; NotRun: the extract is there, and holds none of the runs.
    """
    table = with_stored(joined(profile, name, runs := list(runs)), profile, extract, runs)
    if table.empty:
        raise NotRun(f"{stored(profile, extract)} holds no rows of {', '.join(runs)}: they have not been trained in the {profile} profile.")
    return table
