"""The claim ledger: its data, its rule for verdicts, the paper's arithmetic by hand, and scores made up to meet or miss a claim."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lib.organs import KEYS, PROMPT_SETS
from lib.paths import ROOT, InputError
from lib.profiles import HEADLINE, PROFILES, Settings
from lib.published import TGATED_DROP, TGATED_TABLE2, TGATED_TABLE3, TGATED_TABLE4, TGATED_TABLE5
from lib.report import claims as module
from lib.report.claims import MEASURES, SETTINGS, Measured, claims, verdict, write_claims
from lib.report.ledger import CHECKS, SUMS, number, read_ledger

pytestmark = pytest.mark.filterwarnings("error")
NAN = float("nan")
LEDGER = {claim.id: claim for claim in read_ledger()}
SCORED = [claim for claim in LEDGER.values() if claim.kind in ("direction", "size")]
# Dice of every organ in ten scans, by "run/data set/condition": a number for all organs, or some organs' own
Dice = dict[str, float | dict[str, float]]


def scores(dice: Dice, scans: int = 10) -> pd.DataFrame:
    rows = []
    for table, value in dice.items():
        run, dataset, condition = [*table.split("/"), ""][:3]
        organs = value if isinstance(value, dict) else dict.fromkeys(KEYS, value)
        about = {"run": run, "config": "0123456789ab", "dataset": dataset, "condition": condition}
        for scan in range(scans):
            jitter = 0.01 * (scan % 2) * (run == "adapter")  # the interval of a difference is not a point
            rows += [
                about | {"case": f"s{scan}", "organ": key, "dice": d + jitter * (d > 0.1), "false_slices": 2} for key, d in organs.items()
            ]
    return pd.DataFrame(rows)


Put = Callable[..., pd.DataFrame]


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Stores scores for a profile and returns the ledger, by id."""
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path))

    def store(frame: pd.DataFrame | None, profile: str = "demo") -> pd.DataFrame:
        (tmp_path / profile).mkdir(exist_ok=True)
        if frame is not None:
            frame.to_csv(tmp_path / profile / "scores.csv", index=False)
        return claims(profile).set_index("id")

    return store


def test_ids_are_unique_and_every_field_means_something() -> None:
    assert max(Counter(claim.id for claim in read_ledger()).values()) == 1
    assert {claim.kind for claim in LEDGER.values()} == {"setting", "pairing", "direction", "size", "arithmetic"}
    names = {field.name for field in fields(Settings)}
    for claim in LEDGER.values():
        assert claim.place and claim.claim.endswith(".") and claim.published, claim.id
        assert set(claim.organs) <= set(KEYS), claim.id
        known = SUMS | CHECKS if claim.kind == "arithmetic" else SETTINGS if claim.kind in ("setting", "pairing") else MEASURES
        assert claim.measure in known or claim.measure == "settings" or claim.id == "pretraining-images", claim.id
        assert claim.measure != "settings" or (claim.of and set(claim.of) <= names), claim.id


def test_scored_claims_name_runs_data_sets_and_conditions_that_there_are() -> None:
    for claim in SCORED:
        for table in claim.of:
            run, dataset, condition = [*table.split("/"), ""][:3]
            assert run in HEADLINE and dataset in Settings.test_on and condition in ("", *PROMPT_SETS), claim.id
        assert (claim.published in ("> 0", "< 0")) == (claim.kind == "direction"), claim.id


@pytest.mark.parametrize("claim", LEDGER.values(), ids=list(LEDGER))
def test_every_claim_names_a_heading_of_a_notebook(claim: module.Claim) -> None:
    for place in (claim.checked_in, *re.findall(r"\b0\d [a-z ]+: [^)\n.]+", claim.note)):
        name, _, heading = place.partition(": ")
        assert f"\n# ## {heading}\n" in (ROOT / "notebooks" / f"{name.replace(' ', '_')}.py").read_text(), place


def test_published_sizes_are_those_of_the_printed_tables() -> None:
    printed: dict[str, float] = {}
    for (name, row), short in zip(TGATED_TABLE2.items(), ("flare", "btcv", "amos"), strict=True):
        printed |= dict(zip((f"{short}-baseline", f"{short}-adapter", f"{short}-gain-size"), row, strict=True))
        assert LEDGER[f"{short}-gain-size"].of == (f"baseline/{name}", f"adapter/{name}")
    printed |= {f"drop-{run}": drop for run, drop in TGATED_DROP.items()} | {f"mri-{run}": dice for run, dice in TGATED_TABLE5.items()}
    for (_, row), short in zip(list(TGATED_TABLE4.items())[1:], ("blank", "wrong"), strict=True):
        printed |= {f"{short}-dice": row[0], f"{short}-change": row[1] / 100}
    printed |= {"blank-zeros": TGATED_TABLE4["blank"][2], "wrong-below": TGATED_TABLE4["wrong organ"][3], "flare-gain-relative": 0.41}
    gains = {c.organs[0]: number(c.published) for c in SCORED if c.kind == "size" and c.organs}
    assert gains == {organ: row[2] for organ, row in TGATED_TABLE3.items()}
    others = {c.id: number(c.published) for c in SCORED if c.kind == "size" and c.measure and not c.organs}
    assert others == pytest.approx(printed)


def test_published_settings_are_the_defaults() -> None:
    for claim in LEDGER.values():
        for name in claim.of if claim.measure == "settings" else ():
            value = getattr(Settings, name)
            for part in value if isinstance(value, tuple) else (value,):
                assert (f"{part:.3g}" if isinstance(part, float) else str(part)) in claim.published, claim.id


@pytest.mark.parametrize(
    ("kind", "published", "low", "high", "full", "expected"),
    [
        ("direction", "> 0", 0.01, 0.2, False, "reproduced"),
        ("direction", "> 0", -0.01, 0.2, False, "not reproduced"),
        ("direction", "> 0", 0.0, 0.2, True, "not reproduced"),
        ("direction", "> 0", -0.2, -0.1, True, "not reproduced"),
        ("direction", "< 0", -0.2, -0.1, True, "reproduced"),
        ("direction", "< 0", -0.2, 0.1, False, "not reproduced"),
        ("direction", "< 0", NAN, NAN, True, "not testable in this profile"),
        ("size", "0.704", 0.69, 0.71, True, "reproduced"),
        ("size", "0.704", 0.705, 0.71, True, "not reproduced"),
        ("size", "0.704", 0.69, 0.71, False, "not testable in this profile"),
        ("size", "38.0 %", 0.3, 0.38, True, "reproduced"),
        ("size", "-99.3 %", -1.0, -0.994, True, "not reproduced"),
        ("size", "10 of 13", 9, 11, True, "reproduced"),
        ("size", "10 of 13", NAN, NAN, True, "not testable in this profile"),
    ],
)
def test_the_rule(kind: str, published: str, low: float, high: float, full: bool, expected: str) -> None:
    assert verdict(kind, published, Measured(0.0, low, high, 10), full) == expected


def test_directions_that_hold_and_that_do_not(put: Put) -> None:
    organs = dict.fromkeys(KEYS, 0.6) | {"pancreas": 0.495, "liver": 0.4, "esophagus": 0.3}  # 0.01 more in every second scan
    table = put(scores({"baseline/FLARE22": 0.5, "adapter/FLARE22": organs}))
    assert table.loc["flare-gain", "verdict"] == "reproduced"
    assert table.loc["flare-gain", "measured"] == "+0.058 [+0.055, +0.061], n = 10"  # (10 * 0.1 - 0.005 - 0.1 - 0.2) / 13 + 0.005
    assert table.loc["stomach", ["measured", "verdict"]].tolist() == ["+0.105 [+0.102, +0.108], n = 10", "reproduced"]
    assert table.loc["pancreas", ["measured", "verdict"]].tolist() == ["+0.000 [-0.003, +0.003], n = 10", "not reproduced"]
    assert table.loc["liver", ["measured", "verdict"]].tolist() == ["-0.095 [-0.098, -0.092], n = 10", "not reproduced"]
    assert table.loc["esophagus", "verdict"] == "reproduced"


def test_a_size_has_a_verdict_in_the_full_profile_alone(put: Put) -> None:
    dice: Dice = {"baseline/FLARE22": 0.52, "adapter/FLARE22": 0.699}  # with the jitter 0.704
    for profile, expected in (("demo", ["not testable in this profile"] * 2), ("full", ["reproduced", "not reproduced"])):
        table = put(scores(dice), profile)
        assert table.loc[["flare-adapter", "flare-baseline"], "verdict"].tolist() == expected
        assert table.loc["flare-adapter", "measured"] == "0.704 [0.701, 0.707], n = 10"
        assert table.loc["flare-gain", "verdict"] == "reproduced"


@pytest.mark.parametrize("profile", PROFILES)
def test_nothing_run_is_not_testable_and_nothing_fails(put: Put, profile: str) -> None:
    table = put(None, profile)
    scored = table.loc[[claim.id for claim in SCORED if claim.measure]]
    assert set(scored["verdict"]) == {"not testable in this profile"} and set(scored["measured"]) == {""}
    assert scored["note"].str.startswith("This profile has no " if profile == "sample" else "Not run yet.").all()
    assert set(table.loc[table["kind"] == "arithmetic", "verdict"]) == {"agrees", "does not agree"}


def test_one_missing_run_leaves_the_other_claims(put: Put) -> None:
    table = put(scores({"baseline/FLARE22": 0.5, "adapter/FLARE22": 0.6, "adapter/AMOS22 MRI": 0.4}))
    assert table.loc["flare-gain", "verdict"] == "reproduced"
    assert table.loc["mri-adapter", "measured"].startswith("0.405 [")
    assert table.loc["mri-better", ["measured", "verdict"]].tolist() == ["", "not testable in this profile"]
    assert table.loc["mri-better", "note"].startswith("Not run yet.")


def test_a_single_scan_has_no_interval_and_no_verdict(put: Put) -> None:
    table = put(scores({"baseline/FLARE22": 0.5, "adapter/FLARE22": 0.6, "adapter/FLARE22/blank": 0.0}, scans=1), "full")
    assert table.loc["flare-gain", "measured"] == "+0.100 [n/a], n = 1"
    assert set(table.loc[["flare-gain", "flare-baseline", "blank", "blank-zeros"], "verdict"]) == {"not testable in this profile"}
    assert table.loc["flare-gain", "note"].startswith("An interval needs two scans.")


def test_scores_that_are_undefined_throughout(put: Put) -> None:
    table = put(scores({"baseline/FLARE22": NAN, "adapter/FLARE22": NAN, "adapter/FLARE22/blank": NAN}), "full")
    assert table.loc["flare-gain", ["measured", "note"]].tolist()[0] == ""
    assert table.loc["flare-baseline", "note"] == "No scan has a score."


def test_drops_by_hand(put: Put) -> None:
    sites = ("FLARE22", "BTCV", "AMOS22 CT", "AMOS22 MRI")
    dice: Dice = {f"baseline/{site}": d for site, d in zip(sites, (0.5, 0.4, 0.3, 0.1), strict=True)}
    dice |= {f"dynunet/{site}": d for site, d in zip(sites, (0.8, 0.4, 0.4, 0.2), strict=True)}
    dice |= {f"adapter/{site}": dict.fromkeys(KEYS, d) for site, d in zip(sites, (0.795, 0.795, 0.635, 0.595), strict=True)}
    table = put(scores(dice))
    assert table.loc["drop-baseline", "measured"] == "30.0 % [30.0 %, 30.0 %], n = 20"  # (0.2 + 0.4) / 2
    assert table.loc["drop-adapter", "measured"].startswith("10.0 % [")  # (0 + 0.2) / 2
    assert table.loc["drop-smaller", "measured"].startswith("-20.0 % [") and table.loc["drop-smaller", "verdict"] == "reproduced"
    assert table.loc["mri-decline", ["measured", "verdict"]].tolist() == ["75.0 % [75.0 %, 75.0 %], n = 10", "reproduced"]
    assert table.loc["mri-less-affected", "measured"].startswith("-50.0 % [")
    assert table.loc["mri-better", "verdict"] == "reproduced"


def test_prompts_by_hand(put: Put) -> None:
    blank = dict.fromkeys(KEYS, 0.0) | {"liver": 0.04, "spleen": 0.02, "aorta": 0.005}
    wrong = dict.fromkeys(KEYS, 0.0) | {"liver": 0.0009, "spleen": 0.001}
    table = put(scores({"adapter/FLARE22": 0.645, "adapter/FLARE22/blank": blank, "adapter/FLARE22/wrong organ": wrong}), "full")
    assert table.loc["blank-dice", ["measured", "verdict"]].tolist() == ["0.005 [0.005, 0.005], n = 10", "reproduced"]
    assert table.loc["blank-change", "measured"] == "-99.2 % [-99.2 %, -99.2 %], n = 10"  # 0.005 / 0.65 = 0.77 %
    assert table.loc["blank-zeros", ["measured", "verdict"]].tolist() == ["10 [10, 10], n = 10", "reproduced"]
    assert table.loc["wrong-below", ["measured", "verdict"]].tolist() == ["12 [12, 12], n = 10", "not reproduced"]
    assert table.loc[["blank", "wrong"], "verdict"].tolist() == ["reproduced"] * 2


def test_contrasts_and_relative_gain_by_hand(put: Put) -> None:
    four = ("pancreas", "stomach", "gallbladder", "right kidney")
    adapter = dict.fromkeys(KEYS, 0.5) | dict.fromkeys(four, 0.7)
    table = put(scores({f"{run}/{site}": d for site in ("FLARE22", "BTCV") for run, d in (("baseline", 0.4), ("adapter", adapter))}))
    assert table.loc["largest-gains", ["measured", "verdict"]].tolist() == ["+0.200 [+0.200, +0.200], n = 10", "reproduced"]
    assert table.loc["trend-btcv", "verdict"] == "reproduced"
    assert table.loc["large-gain-less", "measured"].startswith(f"{0.1 - (9 * 0.1 + 4 * 0.3 - 0.2) / 11:+.3f} [")
    assert table.loc["flare-gain-relative", "measured"].startswith(f"+{100 * ((9 * 0.5 + 4 * 0.7) / 13 + 0.005 - 0.4) / 0.4:.1f} % [")


def test_false_slices_are_counted_for_each_scan(put: Put) -> None:
    frame = scores({"baseline/FLARE22": 0.5, "adapter/FLARE22": 0.5})
    fewer = (frame["run"] == "adapter") & (frame["organ"] == "pancreas")
    table = put(frame.assign(false_slices=frame["false_slices"].where(~fewer, np.where(frame["case"] == "s0", 1, 0))))
    assert table.loc["false-pancreas", "measured"].startswith("-1.90 [") and table.loc["false-pancreas", "verdict"] == "reproduced"
    assert table.loc["false-slices", "measured"].startswith("-0.15 [")


def test_settings_and_departures(put: Put) -> None:
    demo, full = put(None), put(None, "full")
    assert demo.loc["gate-start", ["measured", "verdict"]].tolist() == ["0 (gate 0.5000)", "not testable in this profile"]
    assert demo.loc["gate-start", "note"].startswith("Departure of the demo profile.")
    assert full.loc["gate-start", ["measured", "verdict"]].tolist() == ["-5 (gate 0.0067)", "reproduced"]
    assert demo.loc["window", ["measured", "verdict"]].tolist() == ["window 5", "reproduced"]
    assert demo.loc["table1", "verdict"] == "reproduced" and demo.loc["epochs", "measured"] == "epochs 3"
    assert set(full.loc[full["kind"] == "setting", "verdict"]) == {"reproduced"}


def test_a_setting_that_departs_in_the_full_profile_is_not_reproduced(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROFILES, "full", {"window": 7})
    assert put(None, "full").loc["window", ["measured", "verdict"]].tolist() == ["window 7", "not reproduced"]


@pytest.mark.parametrize(("extra", "expected"), [("", "reproduced"), ("freeze_encoders", "not reproduced"), ("cases", "not reproduced")])
def test_pairings_are_computed_from_the_settings(put: Put, monkeypatch: pytest.MonkeyPatch, extra: str, expected: str) -> None:
    names = {"adapter", extra} - {""}
    monkeypatch.setattr(module, "differences", lambda *_: dict.fromkeys(sorted(names), (0, 1)))
    table = put(None)
    assert table.loc["only-difference", ["measured", "verdict"]].tolist() == [f"differ in: {', '.join(sorted(names))}", expected]
    assert "Not so in the released code" in table.loc["only-difference", "note"]
    same = (
        ["scans differ in: cases", "not reproduced"]
        if extra == "cases"
        else ["same training scans; the trainings differ otherwise", "reproduced"]
    )
    assert table.loc["same-scans", ["measured", "verdict"]].tolist() == same


@pytest.mark.parametrize(
    ("name", "recomputed", "agrees", "note"),
    [
        ("gain-flare-sum", "+0.207", False, "can explain"),
        ("gain-btcv-sum", "+0.210", True, ""),
        ("gain-amos-sum", "+0.230", True, ""),
        ("relative-from-means", "+41.6 %", False, "can explain"),  # 0.704 / 0.497 = 1.4165
        ("relative-from-gain", "+41.4 %", True, ""),
        ("drop-baseline-sum", "37.9 %", False, "can explain"),  # 1 - (0.334 + 0.283) / 2 / 0.497 = 0.3793
        ("drop-adapter-sum", "24.9 %", True, ""),
        ("drop-in-dice", "0.1885 against 0.1755", True, ""),
        ("btcv-organs", "12", False, ""),
        ("rows-differ", "13 of 13", True, ""),
        ("mean-baseline", "0.519", False, "cannot explain"),
        ("mean-adapter", "0.704", True, ""),
        ("mean-gain", "+0.184", False, "cannot explain"),
        ("volume-weighted", "plain means: 0.519 and 0.704", False, ""),
        ("same-means", "0.497; 0.704; 0.206", True, ""),
        ("four-largest", "pancreas +0.404, right kidney +0.337, gallbladder +0.273, stomach +0.268", True, ""),
        ("two-largest", "pancreas +0.404, right kidney +0.337", False, "among the four largest"),
        ("large-less", "+0.110 against +0.198", True, ""),
        ("only-loss", "esophagus -0.143", True, ""),
        ("minor-loss", "0.143 against 0.211", True, "27 % of the baseline's"),
        ("blank-sum", "-99.3 %", True, ""),
        ("wrong-sum", "-98.4 %", True, ""),
    ],
)
def test_the_papers_own_arithmetic(name: str, recomputed: str, agrees: bool, note: str) -> None:
    text, verdict, *_ = module._row(LEDGER[name], pd.DataFrame(), "demo")[5:]
    assert (text, verdict) == (recomputed, "agrees" if agrees else "does not agree")
    assert note in module._row(LEDGER[name], pd.DataFrame(), "demo")[-1]


def test_all_arithmetic_rows_are_worked_out_above() -> None:
    (mark,) = (mark for mark in test_the_papers_own_arithmetic.pytestmark if mark.name == "parametrize")
    assert {case[0] for case in mark.args[1]} == {claim.id for claim in LEDGER.values() if claim.kind == "arithmetic"}


def test_the_files_carry_profile_and_rule(put: Put, tmp_path: Path) -> None:
    table = put(scores({"baseline/FLARE22": 0.5, "adapter/FLARE22": 0.6}))
    csv, md = write_claims("demo")
    assert [csv, md] == [tmp_path / "demo" / "claims.csv", tmp_path / "demo" / "claims.md"]
    stored = pd.read_csv(csv, keep_default_na=False, dtype=str)
    assert stored.drop(columns="caption").set_index("id").equals(table)
    for text in (stored["caption"][0], md.read_text()):
        assert "demo profile: phantoms, not patients: not clinical" in text and module.RULE in text
    assert md.read_text().count("\n| ") == len(table) + 4, "every claim once, and two heads of two lines"
    before = [path.read_bytes() for path in (csv, md)]
    assert [path.read_bytes() for path in write_claims("demo")] == before
    assert not list(tmp_path.rglob("*.part*"))


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot be written"):
        write_claims("demo")
