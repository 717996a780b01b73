"""Scans: which there are, which a profile uses for what, and their prepared stores."""

from lib.datasets.cases import (
    cases_of,
    check_disjoint,
    degraded_slices,
    phantom_cases,
    sample_cases,
    site_of,
    split,
    stores_of,
)
from lib.datasets.layouts import LAYOUTS, find_cases, home_of, survey
from lib.datasets.stores import Case, Store, prepare, prepare_all

__all__ = [
    "LAYOUTS",
    "Case",
    "Store",
    "cases_of",
    "check_disjoint",
    "degraded_slices",
    "find_cases",
    "home_of",
    "phantom_cases",
    "prepare",
    "prepare_all",
    "sample_cases",
    "site_of",
    "split",
    "stores_of",
    "survey",
]
