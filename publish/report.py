"""`make report`: one PDF with every table and figure of a profile, typeset offline by typst from the profile's files."""

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import typst

from lib.paths import InputError, replacing, results_root

from .contents import (
    KINDS,
    PARTS,
    Contents,
    Table,
    at_a_glance,
    hardware,
    part_of,
    project,
    read_contents,
    sentence,
    title_of,
    verdicts,
    versions,
    warning,
)

WIDEST = 118  # characters that fit on an upright page beside each other
LEDGER = {
    "claim": "claim",
    "place": "where in the paper",
    "published": "published",
    "measured": "measured",
    "verdict": "verdict",
    "note": "note",
}
RUNS = (
    "Every run behind the tables. The seed draws a run's first weights and the order of its training; the splits and the phantoms have "
    "fixed seeds of their own. Tests: data sets and conditions that it was scored on; scans: how many different ones; scores: rows of "
    "scores.csv, one for each scan and organ. A config names the settings by their hash."
)


def _grid(cells: pd.DataFrame) -> dict[str, Any]:
    """A table for report.typ: header, rows, and which columns stand to the right."""
    columns = [cells[name].astype(str) for name in cells]
    return {
        "header": list(cells),
        "rows": cells.astype(str).to_numpy().tolist(),
        "right": [place > 0 and bool(column.str.match(r"[+-]?\d|–").all()) for place, column in enumerate(columns)],
    }


def _width(cells: pd.DataFrame) -> int:
    """Characters of the longest words that cannot be broken, an interval under its value, all columns beside each other."""
    pieces = ([name, *cells[name].astype(str)] for name in cells)
    return sum(2 + max(len(part) for text in column for part in re.split(r" \[|(?<!,) (?!=)", text)) for column in pieces)


def _table(table: Table) -> dict[str, Any]:
    wide = _width(table.cells) > WIDEST
    return _grid(table.cells) | {"title": title_of(table.name), "caption": table.caption, "wide": wide}


def _part(contents: Contents, part: str) -> dict[str, Any]:
    tables = [_table(table) for table in contents.tables if part_of(table.name) == part]
    names = ", ".join(contents.absent[part])
    return {
        "title": part,
        "absent": f"Not run in the {contents.profile} profile: {names}." if names else "",
        "groups": [{"wide": wide, "tables": list(group)} for wide, group in groupby(tables, lambda table: table["wide"])],
        "pictures": [
            {"title": title_of(picture.name), "caption": picture.caption, "path": f"{picture.name}.png"}
            for picture in contents.pictures
            if part_of(picture.name) == part
        ],
    }


def _ledger(claims: pd.DataFrame) -> Iterable[dict[str, Any]]:
    """A table for each kind of claim, in the order of KINDS."""
    for kind in KINDS:
        group = claims[claims["kind"] == kind]
        if len(group):
            yield _grid(group[list(LEDGER)].rename(columns=LEDGER)) | {
                "title": f"{kind.capitalize()}: {len(group)}",
                "right": [False] * len(LEDGER),
            }


def _pairs(values: dict[str, str], names: tuple[str, str]) -> pd.DataFrame:
    return pd.DataFrame(list(values.items()), columns=list(names))


def document(contents: Contents) -> dict[str, Any]:
    """All that report.typ shows, as JSON."""
    about, parts = project(), [part for part in PARTS if any(part_of(table.name) == part for table in contents.tables)]
    return {
        "title": about["description"],
        "version": about["version"],
        "repository": about["urls"]["Repository"],
        "note": contents.note[:1].upper() + contents.note[1:],
        "warning": warning(contents.profile),
        "glance": {
            "sentence": sentence(contents.claims),
            "verdicts": _grid(verdicts(contents.claims)),
            "tables": [_table(table) | {"title": f"{part_of(table.name)}, {title_of(table.name)}"} for table in at_a_glance(contents)],
        },
        "parts": [_part(contents, part) for part in parts],
        "rule": contents.rule,
        "ledger": list(_ledger(contents.claims)),
        "runs": _grid(contents.runs) | {"caption": RUNS},
        "versions": _grid(_pairs(versions(), ("package", "version"))) | {"caption": "Installed where this report was typeset."},
        "hardware": _grid(_pairs(hardware(), ("part", "here"))) | {"caption": "The machine on which this report was typeset."},
    }


def typeset(profile: str) -> Path:
    """Writes results/<profile>/report.pdf, tagged for screen readers (PDF/UA-1), the same bytes from the same files; returns its path.

    Raises:
        InputError: the profile has no scores or no tables, or a file cannot be read or written.
    """
    contents = read_contents(profile)
    with tempfile.TemporaryDirectory() as folder:  # typst reads nothing outside its root
        root = Path(folder)
        shutil.copy(Path(__file__).parent / "assets" / "report.typ", root)
        for picture in contents.pictures:
            shutil.copy(picture.path, root)
        (root / "report.json").write_text(json.dumps(document(contents)))
        try:
            pdf = typst.compile(root / "report.typ", root=root, ignore_system_fonts=True, pdf_standards="ua-1")
        except typst.TypstError as error:
            raise InputError(f"The report of the {profile} profile cannot be typeset ({error.message}).") from error
    with replacing(results_root(profile) / "report.pdf") as part:
        part.write_bytes(pdf)
    return results_root(profile) / "report.pdf"


def main() -> None:
    """Command line of the Makefile."""
    parser = argparse.ArgumentParser(description="Print a profile's tables and figures as one PDF.")
    parser.add_argument("--profile", default="demo")
    try:
        print(f"report: {typeset(parser.parse_args().profile)}")
    except InputError as error:
        sys.exit(f"report: {error}")


if __name__ == "__main__":
    main()
