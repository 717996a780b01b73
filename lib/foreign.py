"""Label maps that another tool has drawn (nnU-Net, TotalSegmentator), scored as our own runs are, so that they stand in the same tables."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from lib.datasets import Case, cases_of
from lib.datasets.parallel import in_processes
from lib.metrics import KEY, score_case
from lib.organs import BY_KEY, LABEL_MAPS, label_ids, labelled
from lib.paths import InputError, file_hash, results_root, value_hash
from lib.profiles import ELSEWHERE, Settings, settings_of
from lib.runs import merge_scores
from lib.volumes import read_labels, read_scan


def _names(case: Case) -> Iterator[str]:
    """What a case's label map may be called: by its id, its image (with nnU-Net's _0000 or without), or its labels."""
    for path in (Path(case.id), case.image, case.labels):
        stem = (path or case.image).name.removesuffix(".gz").removesuffix(".nii")
        yield from (f"{name}{suffix}" for name in (stem, stem.removesuffix("_0000")) for suffix in (".nii.gz", ".nii"))


def label_map_of(case: Case, folder: Path) -> Path:
    """The file in `folder` that labels the case. InputError: there is none."""
    names = dict.fromkeys(_names(case))
    if (there := next((folder / name for name in names if (folder / name).is_file()), None)) is None:
        raise InputError(f"{folder} has no label map of {case.id}: put one there under one of the names {', '.join(names)}.")
    return there


def _rows(job: tuple[Case, Path, str]) -> list[dict[str, Any]]:
    """Score rows of one case, for the organs that both label maps know."""
    case, path, ids = job
    assert case.labels is not None
    _, grid = read_scan(case.image)
    truth, theirs = read_labels(case.labels, case.label_map, grid), read_labels(path, ids, grid)
    masks = ((key, theirs == BY_KEY[key].label) for key in labelled(ids))
    return list(score_case(masks, truth, case.label_map, grid.spacing_mm))


def _own_run(name: str, profile: str | None) -> Settings | None:
    try:
        return settings_of(name, profile)
    except InputError:
        return None


def score_label_maps(name: str, dataset: str, folder: Path, ids: str = "", profile: str | None = None, jobs: int = 0) -> pd.DataFrame:
    """Scores the label maps in `folder` against the truth of a test set's cases, puts the rows into scores.csv as run `name`.

    dataset: one that the baseline is tested on. ids: what the numbers in the files mean, a key of LABEL_MAPS or the path of an nnU-Net
    dataset.json; by default the one in the folder, else FLARE22's, which are ours. jobs: processes, by default one for each core.

    Raises:
        InputError: `name` is one of our own runs, a case has no label map, a label map is not on its scan's grid or holds unknown ids.
    """
    settings = settings_of("baseline", profile)
    if not name or _own_run(name, profile):
        raise InputError(
            f"{name!r} names {'a run of our own' if name else 'nothing'}: give the other tool's label maps a name, nnunet for example."
        )
    ids = ids or (str(folder / "dataset.json") if (folder / "dataset.json").is_file() else "FLARE22")
    label_ids(ids)  # before the first scan is read
    work = [(case, label_map_of(case, folder), ids) for case in cases_of(settings, dataset)]
    scored = in_processes(_rows, work, f"scoring {name} on {dataset}", jobs)
    key = {
        "run": name,
        "config": ELSEWHERE + value_hash([ids, *(file_hash(path) for _, path, _ in work)]),
        "dataset": dataset,
        "condition": "",
    }
    table = pd.concat([pd.DataFrame(rows).assign(**key, case=case.id) for (case, _, _), rows in zip(work, scored, strict=True)])
    table = table[[*KEY, *(column for column in table if column not in KEY)]]
    merge_scores(table, results_root(settings.profile), by=("run", "dataset"))
    return table


def main() -> None:
    """Command line: name, data set and folder of the label maps."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("name", help="how the tables call it: nnunet")
    parser.add_argument("dataset", help="FLARE22, BTCV, 'AMOS22 CT', 'AMOS22 MRI'")
    parser.add_argument("labels", type=Path, help="folder of the label maps, one for each test case")
    parser.add_argument(
        "--ids", default="", help=f"{', '.join(LABEL_MAPS)}, or an nnU-Net dataset.json (default: the folder's, else FLARE22)"
    )
    parser.add_argument("--profile")
    asked = parser.parse_args()
    try:
        table = score_label_maps(asked.name, asked.dataset, asked.labels, asked.ids, asked.profile)
    except InputError as error:
        sys.exit(f"score: {error}")
    mean = table.groupby("organ")["dice"].mean().mean()
    print(
        f"score: {asked.name} has a mean Dice of {mean:.3f} on {table['case'].nunique()} cases of {asked.dataset}; `make figures` shows it"
    )


if __name__ == "__main__":
    main()
