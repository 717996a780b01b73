"""`make data-check`: is every data set below DATA_ROOT complete and as it should be? One table, one verdict."""

import argparse
import json
import os
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from tqdm.auto import tqdm

from lib.datasets.anatomy import examine
from lib.datasets.cases import split
from lib.datasets.layouts import LAYOUTS, home_of, survey
from lib.datasets.parallel import in_processes
from lib.datasets.stores import Case
from lib.organs import label_ids
from lib.paths import InputError, cache_root, data_root, file_hash, value_hash, write_json
from lib.profiles import settings_of
from lib.volumes import readable

CHECK_VERSION = 1  # raise it whenever the same files would be judged otherwise


class Fault(NamedTuple):
    """What is wrong with one case, as a sentence without its end."""

    dataset: str
    case: str
    what: str


def _record(case: Case) -> Path:
    """Where is kept what was seen in files with these hashes. InputError: one of them cannot be read."""
    assert case.labels is not None
    key: list[Any] = [CHECK_VERSION, case.modality, list(label_ids(case.label_map).items())]
    for path in (case.image, case.labels):
        with readable(path):
            key += [str(path), file_hash(path)]
    return cache_root() / "checked" / f"{value_hash(key)}.json"


def _remembered(case: Case) -> dict[str, Any] | None:
    """What was seen in the case's files before; None where they were not looked at yet."""
    try:
        return json.loads(_record(case).read_text())
    except InputError as error:
        return {"faults": [str(error).removesuffix(".")]}
    except (OSError, ValueError):
        return None


def _examined(case: Case) -> dict[str, Any]:
    write_json(_record(case), seen := examine(case))
    return seen


def _all_seen(cases: list[Case], jobs: int, progress: bool) -> dict[Path, dict[str, Any]]:
    """{image: what was seen in its case}: hashes in threads, which need no start, then what is new in processes."""
    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        bar = tqdm(pool.map(_remembered, cases), "reading hashes", len(cases), leave=False, disable=not progress)
        seen = dict(zip((case.image for case in cases), bar, strict=True))
    new = [case for case in cases if seen[case.image] is None]
    seen |= zip((case.image for case in new), in_processes(_examined, new, "checking scans", jobs, progress), strict=True)
    return {image: one for image, one in seen.items() if one is not None}


def _parts(found: dict[str, list[Case]]) -> dict[str, dict[Path, str]]:
    """{data set that is trained on: {image: the part it stands in}}, for each of the two papers, where there are cases enough."""
    parts: dict[str, dict[Path, str]] = {}
    for run in ("baseline", "unet"):
        settings = settings_of(run, "full")
        cases = found.get(settings.train_on, [])
        if len(cases) >= sum(settings.cases):
            drawn = {case.image: part for part, those in split(cases, settings.cases).items() for case in those}
            others = [case for name in settings.test_on if name != settings.train_on for case in found.get(name, [])]
            tested = {case.image: "test" for case in others}
            parts[settings.train_on] = tested | drawn
    return parts


def _twins(found: dict[str, list[Case]], seen: dict[Path, dict[str, Any]]) -> Iterable[Fault]:
    """One scan under two names, by the hash of its voxels; worse where the names stand in two parts of a split."""
    first: dict[str, Case] = {}
    parts = _parts(found)
    for dataset, case in ((dataset, case) for dataset, cases in found.items() for case in cases):
        content = seen[case.image].get("content")
        twin = first.setdefault(content, case) if content else case
        if twin is case:
            continue
        apart = [
            f"{part[twin.image]} and {part[case.image]}"
            for part in parts.values()
            if len({part.get(c.image) for c in (twin, case)} - {None}) == 2
        ]
        where = f"stands in two splits ({', '.join(apart)}), for it" if apart else "is a duplicate: it"
        yield Fault(dataset, case.id, f"{case.image} {where} holds the same voxels as {twin.image}")


def _span(values: list[float]) -> str:
    return f"{min(values):.3g}-{max(values):.3g}" if min(values) < max(values) else f"{values[0]:.3g}"


def _row(dataset: str, home: Path, cases: list[Case], seen: list[dict[str, Any]], faults: int) -> dict[str, str]:
    """A data set's line of the table."""
    read = [one for one in seen if "content" in one]
    axes = pd.Series([one["axes"] for one in read], dtype=str).value_counts()
    row = {"data set": dataset, "folder": str(home), "cases": f"{len(cases)} of {LAYOUTS[dataset].cases}"}
    if read:
        row["slices"] = _span([one["slices"] for one in read])
        row["pixel mm"] = _span([one["spacing_mm"][0] for one in read])
        row["slice mm"] = _span([one["spacing_mm"][2] for one in read])
        row["axes"] = ", ".join(f"{count} {name}" for name, count in axes.items())
        row["organs"] = str(len({key for one in read for key in one.get("organs_ml", ())}))
    return row | {"faults": str(faults)}


def check(jobs: int = 0, progress: bool = True) -> tuple[pd.DataFrame, list[Fault]]:
    """A row for each data set below DATA_ROOT, and every fault of every case. A data set that is not there is no fault.

    InputError: DATA_ROOT is no folder, or holds none of the data sets.
    """
    root = data_root()
    if not root.is_dir():
        raise InputError(
            f"DATA_ROOT names {root}, which is {'no folder' if root.exists() else 'not there'}: name the folder that holds the data sets."
        )
    homes = {dataset: home_of(dataset) for dataset in LAYOUTS}
    surveyed = {dataset: survey(dataset, home) for dataset, home in homes.items()}
    if not any(cases or errors for cases, errors in surveyed.values()):
        wanted = ", ".join(dict.fromkeys(layout.folder for layout in LAYOUTS.values()))
        raise InputError(f"{root} holds none of the data sets ({wanted}): see data/README.md for their layouts, or name another DATA_ROOT.")
    found = {dataset: cases for dataset, (cases, _) in surveyed.items()}
    seen = _all_seen([case for cases in found.values() for case in cases], jobs, progress)
    faults = [Fault(dataset, "", str(error).removesuffix(".")) for dataset, (_, errors) in surveyed.items() for error in errors]
    faults += [Fault(dataset, case.id, what) for dataset in found for case in found[dataset] for what in seen[case.image]["faults"]]
    faults += _twins(found, seen)
    rows = [
        _row(dataset, homes[dataset], cases, [seen[case.image] for case in cases], sum(fault.dataset == dataset for fault in faults))
        if any(surveyed[dataset])
        else {"data set": dataset, "folder": f"not there: {homes[dataset]}"}
        for dataset, cases in found.items()
    ]
    return pd.DataFrame(rows).fillna(""), faults


def main() -> None:
    """Command line: prints the table, every fault and the verdict; the exit status is 0 where there is no fault."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--jobs", type=int, default=0, help="processes (default: one for each core)")
    try:
        table, faults = check(parser.parse_args().jobs)
    except InputError as error:
        sys.exit(f"data-check: {error}")
    print(table.to_string(index=False))
    for fault in faults:
        print(f"{fault.dataset}: {fault.what}.")
    cases = {(fault.dataset, fault.what if not fault.case else fault.case) for fault in faults}
    count, within = len(faults), len(cases)
    print(f"data-check: {count} fault{'s'[: count > 1]} in {within} case{'s'[: within > 1]}" if faults else "data-check: no fault found")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
