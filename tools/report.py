"""`make report`: one PDF with every table and figure of a profile.

Report.typ reads the profile's CSV files itself.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import typst

from lib.config import data_note
from lib.files import InputError, figures_root, replacing, results_root


def typeset(profile: str) -> Path:
    """Writes results/<profile>/report.pdf, the same bytes from the same files; returns its path.

    Raises:
        InputError: the profile has no tables, or a file cannot be read or written.
    """
    tables = sorted(path.stem for path in (results_root(profile) / "tables").glob("*.csv"))
    figures = sorted(path.stem for path in figures_root(profile).glob("*.png"))
    if not tables:
        raise InputError(
            f"{results_root(profile) / 'tables'} holds no table: run `make figures PROFILE={profile}` first."
        )
    inputs = {
        "profile": profile, "note": data_note(profile), "tables": ",".join(tables),
        "figures": ",".join(figures),
    }
    with tempfile.TemporaryDirectory() as folder:  # typst reads nothing outside its root
        for name, root in (("results", results_root(profile)), ("figures", figures_root(profile))):
            Path(folder, name).mkdir()
            Path(folder, name, profile).symlink_to(root.resolve())
        source = Path(folder, "report.typ")
        source.write_text(Path(__file__).with_suffix(".typ").read_text(encoding="utf-8"), encoding="utf-8")
        try:
            pdf = typst.compile(
                source, root=Path(folder), ignore_system_fonts=True, sys_inputs=inputs, pdf_standards="ua-1"
            )
        except typst.TypstError as error:
            raise InputError(f"The report of the {profile} profile cannot be typeset ({error}).") from error
    with replacing(results_root(profile) / "report.pdf") as part:
        part.write_bytes(pdf)
    return results_root(profile) / "report.pdf"


def main() -> None:
    """Command line of the Makefile."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--profile", default="demo")
    try:
        print(f"report: {typeset(parser.parse_args().profile)}")
    except InputError as error:
        sys.exit(f"report: {error}")


if __name__ == "__main__":
    main()
