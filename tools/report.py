"""`make report`: one PDF with every table and figure of a profile; report.typ reads their files itself."""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import typst

from lib.config import data_note
from lib.files import InputError, figures_root, replacing, results_root


def typeset(profile: str) -> Path:
    """Writes results/<profile>/report.pdf, the same bytes from the same files; returns its path.

    InputError: the profile has no tables, or a file cannot be read or written.
    """
    results, figures = results_root(profile), figures_root(profile)
    stems = [sorted(path.stem for path in found)
             for found in ((results / "tables").glob("*.csv"), figures.glob("*.png"))]
    if not stems[0]:
        raise InputError(f"{results / 'tables'} holds no table: run `make figures PROFILE={profile}` first.")
    inputs = {"profile": profile, "note": data_note(profile)}
    inputs |= {"tables": ",".join(stems[0]), "figures": ",".join(stems[1])}
    with tempfile.TemporaryDirectory() as folder:  # typst reads nothing outside its root
        for name, root in (("results", results), ("figures", figures)):
            Path(folder, name).mkdir()
            Path(folder, name, profile).symlink_to(root.resolve())
        (source := Path(folder, "report.typ")).write_bytes(Path(__file__).with_suffix(".typ").read_bytes())
        options: dict[str, Any] = {"sys_inputs": inputs, "ignore_system_fonts": True, "pdf_standards": "ua-1"}
        try:
            pdf = typst.compile(source, root=Path(folder), **options)
        except typst.TypstError as error:
            raise InputError(f"The report of the {profile} profile cannot be typeset ({error}).") from error
    with replacing(results / "report.pdf") as part:
        part.write_bytes(pdf)
    return results / "report.pdf"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="demo")
    try:
        print(f"report: {typeset(parser.parse_args().profile)}")
    except InputError as error:
        sys.exit(f"report: {error}")
