"""`make bench`: measures the released way against ours; --show redraws table and figure from results/bench.json."""

import argparse
import json
import sys

import torch

from benchmark import SIZES, benchmark, show, write
from lib.paths import InputError, results_root


def main() -> None:
    """Command line of the Makefile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=tuple(SIZES), default="full")
    parser.add_argument("--rounds", type=int, default=0, help="rounds of what alternates (default: by size)")
    parser.add_argument("--threads", type=int, default=0, help="processor threads (default: all)")
    parser.add_argument("--show", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    stored = results_root("bench").with_suffix(".json")
    try:
        if arguments.show and not stored.is_file():
            raise InputError(f"{stored} does not exist: run `make bench` first.")
        say = lambda part: print(f"bench: {part}", flush=True)  # noqa: E731
        paths = show(json.loads(stored.read_text())) if arguments.show else write(benchmark(arguments.size, arguments.rounds, say))
    except InputError as error:
        sys.exit(f"bench: {error}")
    for path in paths:
        print(f"  {path}")


if __name__ == "__main__":
    main()
