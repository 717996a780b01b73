"""Which scan has which part in a profile, with its hashes: results/<profile>/splits.csv, beside the scores.

Neither paper lists its scans. FLARE22's 30, 10 and 10 are those that T-Gated's released code draws, Med-VLM's 24 and 6 of BTCV and the
10 test scans of each other data set are drawn in the same way (`split`).
"""

import argparse
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pandas as pd

from lib.datasets.cases import cases_of
from lib.paths import InputError, file_hash, locked, replacing, results_root
from lib.profiles import HEADLINE, MEDVLM_HEADLINE, Settings, evaluations, settings_of

COLUMNS = ["trained_on", "dataset", "part", "case", "image_sha256", "labels_sha256"]


def split_table(settings: Settings, parts: Iterable[str]) -> pd.DataFrame:
    """One row for each case of each part (see `cases_of`). A test set's part is "test"; hashes are SHA-256 of the files."""
    rows, settings = [], replace(settings, training_cases=0)  # where fewer train, they are the first of these
    for part in parts:
        own = part in ("training", "validation")
        dataset = settings.train_on if own else part
        for case in sorted(cases_of(settings, part), key=lambda case: case.id):
            hashes = (file_hash(case.image), file_hash(case.labels) if case.labels else "")
            rows.append((settings.train_on, dataset, part if own else "test", case.id, *hashes))
    return pd.DataFrame(rows, columns=COLUMNS)


def record_split(settings: Settings, parts: Iterable[str]) -> Path:
    """Puts the rows of these parts into the profile's splits.csv, in the place of those that it has; runs that end at once take turns."""
    path, new = results_root(settings.profile) / "splits.csv", split_table(settings, parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(results_root(settings.profile) / "runs" / "splits.lock"):
        if path.exists():
            old = pd.read_csv(path, dtype=str).fillna("")
            if list(old) != COLUMNS:
                raise InputError(f"{path} is no table of splits: move it away, or name another folder by RESULTS_ROOT.")
            kept = pd.MultiIndex.from_frame(old[COLUMNS[:3]]).isin(pd.MultiIndex.from_frame(new[COLUMNS[:3]]))
            new = pd.concat([old[~kept], new])
        with replacing(path) as part:
            new.sort_values(COLUMNS[:4]).to_csv(part, index=False)
    return path


def main() -> None:
    """Command line: the parts of both papers' headline runs, as far as their data sets are there."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--profile")
    profile, done = parser.parse_args().profile, 0
    for runs in (HEADLINE, MEDVLM_HEADLINE):
        settings = settings_of(next(iter(runs)), profile)
        tested = (dataset for run in runs for dataset, _ in evaluations(run, profile))
        for part in dict.fromkeys(("training", "validation", *tested)):
            try:
                path = record_split(settings, [part])
                done += 1
            except InputError as error:
                print(f"splits: left out {part}: {error}")
    if not done:
        sys.exit("splits: nothing is written, for none of the data sets is there.")
    print(f"splits: {path}")


if __name__ == "__main__":
    main()
