"""`make segment`: a scan of your own in, label map, volumes and a picture out. Not a medical device."""

import argparse
import sys
from pathlib import Path

from lib.figures import scan_overview
from lib.organs import PROMPTS
from lib.paths import InputError
from lib.scans import OVERVIEW, segment_scan
from lib.written import writing_into


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line, whose names are those of `segment_scan`."""
    parser = argparse.ArgumentParser(description=__doc__, argument_default=argparse.SUPPRESS)
    parser.add_argument("scan", type=Path, help="a NIfTI file, or a folder of DICOM files")
    parser.add_argument("out", type=Path, help="the folder for what comes out")
    parser.add_argument("--prompts", default=",".join(PROMPTS), help="organs or other text, with commas between them (default: 13 organs)")
    parser.add_argument(
        "--checkpoint", help="a finished run or its folder, safetensors beside their config.json, or a released .pt (adapter)"
    )
    parser.add_argument("--profile", help="of a run that is named (default: $PROFILE, else demo)")
    parser.add_argument("--modality", help="CT or MR (default: as DICOM says, or by the intensities)")
    parser.add_argument("--series", help="which of several DICOM series: its number, description or UID")
    parser.add_argument("--probabilities", action="store_true", help="write each prompt's probability, too")
    parser.add_argument("--overwrite", action="store_true", help="replace the results that an earlier call wrote there, and nothing else")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    """Command line; an error is one sentence."""
    asked = arguments(words)
    try:
        found = segment_scan(**vars(asked))
        with writing_into(asked.out) as part:  # what was there of an older call is gone
            scan_overview(found).savefig(part / OVERVIEW, dpi=150, metadata={"Software": None})
    except InputError as error:
        sys.exit(str(error))
    print(found.volumes[["prompt", "label", "ml", "claimed_ml", "cut"]].to_string(index=False, float_format="%.1f"))
    print(f"{found.modality}, {found.note}: {asked.out} holds {', '.join(file.name for file in (*found.files, asked.out / OVERVIEW))}")


if __name__ == "__main__":
    main()
