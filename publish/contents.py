"""What a profile has to show, read from its files: tables from their CSV, figures with their captions, claims, and where all is from."""

import os
import platform
import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import psutil
import torch
from packaging.requirements import Requirement
from PIL import Image

from lib.figures import FIGURES
from lib.paths import ROOT, InputError, figures_root, results_root
from lib.profiles import data_note, settings_of
from lib.report import formatted, read_scores, tables_due
from lib.report.claims import AGREES, DISAGREES, NOT_REPRODUCED, REPRODUCED, UNTESTABLE

TGATED, MEDVLM, COMMON = "T-Gated Adapter", "Med-VLM on BTCV", "Both papers on common ground"
KINDS = ("direction", "size", "setting", "pairing", "arithmetic")  # of claims
VERDICTS = (REPRODUCED, NOT_REPRODUCED, UNTESTABLE, AGREES, DISAGREES)
PARTS = (TGATED, MEDVLM, COMMON)
HEADLINE = ("tgated_table2", "medvlm_table3")  # what a reader wants first


class Table(NamedTuple):
    """A table as text, from results/<profile>/tables/<name>.csv."""

    name: str
    caption: str
    cells: pd.DataFrame


class Picture(NamedTuple):
    """A figure's PNG in figures/<profile>/, and the caption that it holds for who cannot see it."""

    name: str
    caption: str
    path: Path


class Contents(NamedTuple):
    """All that a profile has to show. `absent`: titles of the tables and figures that it has not run, by part."""

    profile: str
    note: str
    tables: list[Table]
    pictures: list[Picture]
    absent: dict[str, list[str]]
    claims: pd.DataFrame
    rule: str
    runs: pd.DataFrame


def part_of(name: str) -> str:
    """The paper that a table or a figure belongs to."""
    return {"medvlm": MEDVLM, "common": COMMON}.get(name.partition("_")[0], TGATED)


def title_of(name: str) -> str:
    """ "tgated_table2" -> "Table 2", "medvlm_fig4" -> "Figure 4", "tgated_ablation_doses" -> "Ablation doses"."""
    words = re.sub("^(tgated|medvlm)_", "", name)
    words = re.sub(r"^fig(?=\d)", "figure ", re.sub(r"^table(?=\d)", "table ", words)).replace("_", " ")
    return words[:1].upper() + words[1:]


def _typed(column: pd.Series) -> pd.Series:
    """Counts as whole numbers, values as floats, both with what is missing; all else is text, as printed numbers are ("53", "2.9")."""
    filled = column[column != ""]
    if filled.str.fullmatch(r"-?\d+").all():
        return pd.to_numeric(column, errors="coerce").astype("Int64")
    if filled.str.fullmatch(r"-?(\d+\.\d+|\d+(\.\d+)?e[+-]\d+|inf)").all():
        return pd.to_numeric(column, errors="coerce")
    return column


def read_table(path: Path) -> Table:
    """A table of raw numbers with its caption, as the same text as in the Markdown file beside it.

    Raises:
        InputError: the file is no such table.
    """
    try:
        raw = pd.read_csv(path, dtype=str, keep_default_na=False)
        caption = str(raw.pop("caption").iloc[0])
    except (KeyError, IndexError, ValueError) as error:  # pandas' own errors of reading are ValueErrors
        raise InputError(f"{path} is no table with a caption in its last column: run `make figures` to write it anew.") from error
    return Table(path.stem, caption, formatted(raw.apply(_typed)))


def read_picture(path: Path) -> Picture:
    """A figure with the caption in its PNG's "Description"; its title stands in where a figure was saved without one."""
    with Image.open(path) as image:
        return Picture(path.stem, image.info.get("Description", f"{part_of(path.stem)}, {title_of(path.stem)}."), path)


def _runs(scores: pd.DataFrame) -> pd.DataFrame:
    """What stands behind the numbers: every run with its seed, what it was scored on, and where the scores are from."""
    rows = []
    for run, own in scores.groupby("run", sort=False):
        method, _, seed = str(run).partition(", seed ")
        sets = own[["dataset", "condition"]].drop_duplicates()
        rows.append((method, int(seed or 0), len(sets), own["case"].nunique(), len(own), own["source"].iloc[0]))
    columns = ["run", "seed", "tests", "scans", "scores", "source"]
    return pd.DataFrame(rows, columns=columns).sort_values(["run", "seed"], ignore_index=True)


def read_contents(profile: str) -> Contents:
    """Reads a profile's tables, figures, claims and scores.

    Raises:
        InputError: there are no scores, or no tables or claims of them yet.
    """
    scores = read_scores(profile)
    results, figures = results_root(profile), figures_root(profile)
    paths = {name: results / "tables" / f"{name}.csv" for name in tables_due(scores, profile)}
    drawn = {path.stem: path for path in sorted(figures.glob("*.png"))}
    if not (results / "claims.csv").is_file() or not any(path.is_file() for path in paths.values()):
        raise InputError(f"{results} has scores and no tables of them: run `make figures PROFILE={profile}`.")
    claims = pd.read_csv(results / "claims.csv", dtype=str).fillna("")
    absent: dict[str, list[str]] = {part: [] for part in PARTS}
    for name in [name for name, path in paths.items() if not path.is_file()] + [name for name in FIGURES if name not in drawn]:
        absent[part_of(name)].append(title_of(name))
    order = [*(name for name in FIGURES if name in drawn), *(name for name in drawn if name not in FIGURES)]
    return Contents(
        profile,
        data_note(profile),
        [read_table(path) for path in paths.values() if path.is_file()],
        [read_picture(drawn[name]) for name in order],
        absent,
        claims.drop(columns="caption"),
        claims["caption"].iloc[0],
        _runs(scores),
    )


def project() -> dict[str, Any]:
    """What pyproject.toml says of the repository: its version, description and urls."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def sentence(claims: pd.DataFrame) -> str:
    """The T-Gated paper's ledger in words."""
    count = verdicts(claims).set_index("claims about")
    of, total = count.loc, count.sum(axis=1)
    return (
        f"T-Gated Adapter: of {of['direction', REPRODUCED] + of['direction', NOT_REPRODUCED]} claimed directions that can be tested here "
        f"(who is ahead), {of['direction', REPRODUCED]} are reproduced. {of['size', UNTESTABLE]} of {total['size']} claimed sizes (by how "
        f"much) cannot be tested in this profile. {of['arithmetic', AGREES]} of {total['arithmetic']} sums of the paper's own printed "
        "numbers agree."
    )


def warning(profile: str) -> str:
    """What the reader must not take the profile's numbers for."""
    if settings_of("baseline", profile).phantoms:
        return "Phantoms are procedural drawings of an abdomen: they show how the methods behave, not how well they work on patients."
    return "Research code: no medical device, and not for clinical use."


def at_a_glance(contents: Contents) -> list[Table]:
    """The headline tables without where their scores are from, and with the first sentence of their captions."""
    tables = [table for table in contents.tables if table.name in HEADLINE]
    return [Table(t.name, re.split(r"[.;] ", t.caption)[0] + ".", t.cells.drop(columns="scores", errors="ignore")) for t in tables]


def verdicts(claims: pd.DataFrame) -> pd.DataFrame:
    """How many claims of each kind have which verdict."""
    counts = pd.crosstab(claims["kind"], claims["verdict"]).reindex(index=KINDS, columns=VERDICTS, fill_value=0)
    return counts.rename_axis(index="claims about", columns=None).reset_index()


def versions() -> dict[str, str]:
    """Python, and each package of requirements.txt, as installed here."""
    found = {"Python": platform.python_version()}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name = Requirement(line).name
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = "not installed"
    return found


def hardware() -> dict[str, str]:
    """The machine that this runs on."""
    info = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    cards: list[Any] = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "processor": f"{models[0] if models else platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "graphics card": ", ".join(cards) or "none",
        "system": platform.platform(terse=True),
    }
