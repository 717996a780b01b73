"""Tables: published against measured, from the stored scores alone, as CSV, Markdown and LaTeX."""

from lib.profiles import data_note
from lib.report.ablations import absent, consistency, controls, doses, parts, released, samplers, seeds_of, side_by_side, spacings, tests
from lib.report.claims import write_claims
from lib.report.everything import all_tables, tables_due
from lib.report.formatting import cells, formatted, show, write_table
from lib.report.medvlm import (
    common_ground,
    medvlm_cases,
    medvlm_prompts,
    medvlm_table1,
    medvlm_table2,
    medvlm_table3,
    medvlm_table4,
    medvlm_turns,
)
from lib.report.scores import METHODS, provenance, read_scores
from lib.report.tables import seeds, tgated_table1, tgated_table2, tgated_table3, tgated_table4, tgated_table5
from lib.statistics import conventions

__all__ = [
    "METHODS",
    "absent",
    "all_tables",
    "cells",
    "common_ground",
    "consistency",
    "controls",
    "conventions",
    "data_note",
    "doses",
    "formatted",
    "medvlm_cases",
    "medvlm_prompts",
    "medvlm_table1",
    "medvlm_table2",
    "medvlm_table3",
    "medvlm_table4",
    "medvlm_turns",
    "parts",
    "provenance",
    "read_scores",
    "released",
    "samplers",
    "seeds",
    "seeds_of",
    "show",
    "side_by_side",
    "spacings",
    "tables_due",
    "tests",
    "tgated_table1",
    "tgated_table2",
    "tgated_table3",
    "tgated_table4",
    "tgated_table5",
    "write_claims",
    "write_table",
]
