"""The papers' numbers as printed, and the ledger of their claims that notebook 08 measures."""

import contextlib
import io
import re
import shutil
from dataclasses import replace
from typing import Any

import jupytext
import numpy as np
import pandas as pd
import pytest

from lib.config import settings_of
from lib.files import ROOT
from lib.organs import BY_KEY, KEYS
from lib.statistics import Estimate
from lib.tables import published

NAN = float("nan")
CLAIMS = pd.read_csv(ROOT / "published" / "claims.csv", dtype=str, keep_default_na=False).set_index("id")

# As the papers print them, misprints included


def test_tgated_table1() -> None:
    """Weights of the sampling, which are those of lib.organs."""
    rare = "right adrenal gland", "left adrenal gland", "duodenum", "esophagus"
    weights = dict.fromkeys(KEYS, 1.0) | dict.fromkeys(("pancreas", "stomach", "gallbladder"), 2.0)
    weights |= dict.fromkeys(rare, 8.0)
    assert published("tgated_table1")["weight"].to_dict() == weights
    assert {key: BY_KEY[key].weight for key in KEYS} == weights


def test_tgated_table3() -> None:
    """A slip of a row's three numbers would show in its sum or in the means, which are not as printed."""
    table = published("tgated_table3")
    assert list(table) == ["baseline", "adapter", "difference"]
    assert table.loc["mean as printed"].tolist() == [0.497, 0.704, 0.206]
    organs = table.drop("mean as printed")
    assert sorted(organs.index) == sorted(KEYS)
    gains = (organs["adapter"] - organs["baseline"]).tolist()
    assert organs["difference"].tolist() == pytest.approx(gains, abs=1e-9)
    assert organs.sum().tolist() == pytest.approx([6.753, 9.146, 2.393], abs=1e-9)
    assert organs.loc["liver"].tolist() == [0.911, 0.960, 0.049]
    assert organs.loc["esophagus"].tolist() == [0.524, 0.381, -0.143], "the only loss"


def test_tgated_table4() -> None:
    table = published("tgated_table4")
    columns = ["Dice", "change in %", "organs at exactly 0", "organs below 0.001"]
    assert list(table.index) == ["correct prompt", "blank prompt", "wrong organ"] and list(table) == columns
    printed = [[0.704, NAN, NAN, NAN], [0.005, -99.3, 10, NAN], [0.011, -98.4, NAN, 11]]
    np.testing.assert_array_equal(table.to_numpy(), printed)
    for dice, change in ((0.005, -99.3), (0.011, -98.4)):
        assert 100 * (dice / 0.704 - 1) == pytest.approx(change, abs=0.05)


def test_medvlm_tables_2_and_3() -> None:
    two, three = published("medvlm_table2"), published("medvlm_table3")
    assert list(two) == ["trainable", "frozen", "total"] and list(three) == ["training", "validation"]
    millions = {"med-vlm large": [53, 194, 247], "med-vlm small": [2.9, 28, 31], "unet": [7.7, 0, 7.7]}
    best = {"med-vlm large": [0.56, 0.37], "med-vlm small": [0.58, 0.34], "unet": [0.38, 0.24]}
    assert {run: row.tolist() for run, row in two.iterrows()} == millions
    assert {run: row.tolist() for run, row in three.drop("unetr").iterrows()} == best
    assert three.loc["unetr", "validation"] == 0.97, "cited from UNETR's paper"
    assert all(abs(trained + frozen - total) < 0.11 for trained, frozen, total in millions.values())


def test_medvlm_table4_and_what_the_text_says_of_the_trainings() -> None:
    table = published("medvlm_table4")
    assert list(table) == ["med-vlm large", "med-vlm small", "unet"]
    assert (table["med-vlm large"] == table["med-vlm small"]).all()
    large = "Text + CT slice; Yes; Single-organ; BCE + Dice; Binary; Yes; about 10; 0.0001; Yes"
    assert table["med-vlm large"].tolist() == large.split("; ")
    had = "input, pretrained, task, loss, mask type, duplicate slices, epochs, learning rate"
    assert ", ".join(table.index) == f"{had}, flips and rotations"
    unet = "CT slice only; No; Multi-organ; CE + Dice; Non-binary; No; 50"
    assert table["unet"].tolist()[:7] == unet.split("; ")


# The claims


def test_ids_are_unique_and_every_field_means_something() -> None:
    assert CLAIMS.index.is_unique
    assert {*CLAIMS["kind"]} == {"setting", "direction", "size", "arithmetic"}
    assert {*CLAIMS["paper"]} == {"T-Gated", "Med-VLM"}
    assert CLAIMS["claim"].str.endswith(".").all() and (CLAIMS[["place", "published"]] != "").all(axis=None)
    directions = CLAIMS["published"].isin(["> 0", "< 0"])
    assert (directions == (CLAIMS["kind"] == "direction")).all()
    notes = CLAIMS.loc[CLAIMS["note"] != "", "note"]
    assert notes.str.endswith((".", '"')).all()


def test_notes_name_headings_that_there_are() -> None:
    named = [pair for note in CLAIMS["note"] for pair in re.findall(r"\b(0\d [a-z ]+): ([^)\n.]+)", note)]
    assert len(named) > 3
    for name, heading in named:
        text = (ROOT / "notebooks" / f"{name.replace(' ', '_')}.py").read_text(encoding="utf-8")
        assert f"\n# ## {heading}\n" in text, (name, heading)


def numbers(text: str) -> list[float]:
    """0.38 and 0.249 of "38.0 %; 24.9 %", 0.206 of "+0.206"."""
    return [float(part.rstrip(" %")) / (100 if part.endswith("%") else 1) for part in text.split("; ")]


def test_published_sizes_are_those_of_the_printed_tables() -> None:
    """Tables 2 and 5 of T-Gated stand here twice, so that a slip of one shows."""
    two, four = published("tgated_table2"), published("tgated_table4")
    five, vlm = published("tgated_table5"), published("medvlm_table3")["validation"]
    sites, runs = {"flare": "FLARE22", "btcv": "BTCV", "amos": "AMOS22 CT"}, ["baseline", "adapter"]
    printed = {f"{short}-dice": two.loc[runs, site].tolist() for short, site in sites.items()}
    printed["gain-size"] = two.loc["adapter - baseline", [*sites.values()]].tolist()
    printed |= {"drop-size": two.loc[runs, "average drop"].tolist()}
    printed |= {"prompt-dice": four.loc[["blank prompt", "wrong organ"], "Dice"].tolist()}
    printed |= {"mri-dice": five.loc[["adapter", "dynunet"], "AMOS22 MRI"].tolist()}
    printed |= {"medvlm-dice": vlm[["med-vlm large", "med-vlm small", "unet"]].tolist()}
    sizes = CLAIMS.loc[CLAIMS["kind"] == "size", "published"].map(numbers).to_dict()
    assert sizes.keys() == printed.keys()
    for claim, values in printed.items():
        assert sizes[claim] == pytest.approx(values), claim


# Notebook 08, whose cells measure them from the committed scores


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What notebook 08's cells about claims leave behind; the tables are written elsewhere."""
    folder, values, heading = tmp_path_factory.mktemp("results"), dict[str, Any](), ""
    (folder / "demo").mkdir()
    for name in ("scores.csv", "logs.csv"):
        shutil.copy(ROOT / "results" / "demo" / name, folder / "demo")
    wanted = ("", "Both papers on common ground", "The claims, one by one", "The table of claims")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setenv("RESULTS_ROOT", str(folder))
        patch.chdir(ROOT / "notebooks")
        for cell in jupytext.read(ROOT / "notebooks" / "08_figures.py").cells:
            if cell.cell_type == "markdown":
                heading = [heading, *re.findall("^## (.+)", cell.source, re.MULTILINE)][-1]
            elif heading in wanted and "colab" not in cell.metadata.get("tags", []):
                exec(compile(cell.source, "08_figures", "exec"), values)
                values |= {"TRAIN": False}
    return values | {"tables_written": sorted(path.name for path in (folder / "demo" / "tables").iterdir())}


def test_each_claim_is_measured_and_nothing_else_is(book: dict[str, Any]) -> None:
    assert set(book["measured"]) == set(CLAIMS.index) - {"steps"} and set(book["holds"]) <= set(CLAIMS.index)
    ledger = book["ledger"]
    assert len(ledger) == len(CLAIMS) and ledger.index[ledger["verdict"] == "not run"].tolist() == ["steps"]


def test_the_committed_tables_are_those_of_the_committed_scores(book: dict[str, Any]) -> None:
    """Verdict by verdict; numbers may differ in their last digit between machines."""
    for kind, part in book["ledger"].groupby("kind"):
        assert f"claims_{kind}.csv" in book["tables_written"]
        stored = pd.read_csv(ROOT / "results" / "demo" / "tables" / f"claims_{kind}.csv", dtype=str)
        assert stored["claim"].tolist() == part["claim"].tolist()
        assert stored["verdict"].tolist() == part["verdict"].tolist()


def test_the_papers_settings_agree_and_others_do_not(book: dict[str, Any]) -> None:
    """Of what the run's settings say; what two runs differ in and the steps are measured otherwise."""
    said = CLAIMS.loc[CLAIMS["kind"] == "setting", "published"]
    said = said.drop(["only-difference", "same-scans", "steps"])
    paper = settings_of("adapter", "full", sampler="shuffled")
    assert {claim: str(text) for claim, text in book["as_text"](paper).items()} == said.to_dict()
    other = replace(paper, sampler="slab", precision="fp16", flip=False, balance="equal", batch=4)
    found = book["as_text"](other)
    odd = [claim for claim in said.index if str(found[claim]) != said[claim]]
    assert odd == ["sampler", "augmentation", "epochs", "precision"]


def test_the_papers_steps_by_hand(book: dict[str, Any]) -> None:
    """Two scans with 5 and 3 organs' slices: 8 positives and 4 negatives are an epoch of 3 steps of 4."""
    one, two = np.zeros((4, 14), int), np.zeros((2, 14), int)
    one[:, 1] = one[0, 13] = two[:, 2] = two[1, 5] = 7
    one[:, 0] = two[:, 0] = 100  # the background is no organ
    paper = settings_of("adapter", "full", epochs=2, batch=4, negatives_per_positive=0.5)
    assert book["paper_steps"](paper, [one, two]) == 2 * 3
    assert book["paper_steps"](settings_of("adapter", "full"), [one] * 480) == 30 * 400


ARITHMETIC = {  # worked out by hand: what comes out, and whether it is what the paper prints
    "gain-sum": ("+0.207; +0.210; +0.230", False),
    "relative-gain": ("+42 %", False),  # 0.704 / 0.497 = 1.4165
    "drop-sum": ("37.9 %; 24.9 %", False),  # 1 - (0.334 + 0.283) / 2 / 0.497 = 0.3793
    "drop-in-dice": ("0.1885 against 0.1755", True),
    # 1 - 0.334 / (6.449 / 12) and 1 - 0.544 / (8.652 / 12)
    "btcv-organs": ("12; over these the losses on BTCV are 37.9 % and 24.5 %", False),
    "rows-differ": ("13 of 13", True),
    "column-means": ("0.519; 0.704; +0.184", False),
    "volume-weighted": ("plain means 0.519 and 0.704", False),
    "same-means": ("0.497; 0.704; 0.206", True),
    "four-largest": ("gallbladder, pancreas, right kidney, stomach", True),
    "two-largest": ("pancreas, right kidney", False),
    "large-less": ("+0.110 against +0.198", True),
    "only-loss": ("esophagus, -0.143", True),  # against a mean change of 0.211
    "prompt-sum": ("-99.3 %; -98.4 %", True),
}


def test_the_papers_own_arithmetic(book: dict[str, Any]) -> None:
    rows = book["ledger"].query("kind == 'arithmetic'")
    found = {claim: (row.measured, row.verdict) for claim, row in rows.iterrows()}
    assert found == {
        claim: (text, "agrees" if agrees else "does not agree")
        for claim, (text, agrees) in ARITHMETIC.items()
    }


@pytest.mark.parametrize(
    ("said", "value", "p", "trainings", "expected"),
    [
        ("> 0", 0.1, 0.04, 3, "reproduced"),
        ("> 0", 0.1, 0.05, 3, "open (same sign)"),
        ("> 0", -0.1, 0.04, 3, "contradicted"),
        ("< 0", -0.1, 0.04, 2, "reproduced"),
        ("< 0", 0.1, 0.2, 3, "open (opposite sign)"),
        ("< 0", -0.1, 1e-9, 1, "untested (same sign)"),
        ("< 0", 0.0, 1.0, 3, "open (no difference)"),
    ],
)
def test_the_rule_for_directions(
    book: dict, said: str, value: float, p: float, trainings: int, expected: str
) -> None:
    claim = CLAIMS.index[CLAIMS["published"] == said][0]
    measured = {claim: Estimate(value, value - 0.01, value + 0.01, 10, True, trainings, p)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(book["verdict"].__globals__, "measured", measured)
        assert book["verdict"](claim, book["corrected"](measured)) == expected


def test_the_correction_and_the_rule_for_sizes_and_for_what_has_not_run(book: dict[str, Any]) -> None:
    trained = {"flare-gain": (3, 0.01), "btcv-gain": (3, 0.03), "amos-gain": (1, 0.001)}
    p = book["corrected"]({c: Estimate(0.1, trainings=count, p=x) for c, (count, x) in trained.items()})
    assert p.dropna().to_dict() == pytest.approx({"flare-gain": 0.02, "btcv-gain": 0.03}), "two are tested"
    rule = book["verdict"]
    with pytest.MonkeyPatch.context() as patch:
        assert rule("flare-dice", p) == "not testable on phantoms"
        patch.setitem(rule.__globals__, "PROFILE", "full")
        assert rule("flare-dice", p) == "measured on patients"
        patch.setitem(rule.__globals__, "measured", {"flare-dice": [Estimate(0.5), Estimate(NAN)]})
        assert rule("flare-dice", p) == rule("flare-gain", p) == rule("epochs", p) == "not run"


def test_a_gain_and_a_contrast_by_hand(book: dict[str, Any]) -> None:
    """Two scans, three organs; the pancreas gains 0.3 and 0.1, the others 0.1 in both."""
    same = {"seed": 0, "dataset": "site A", "variant": "", "condition": ""}
    rows = [
        same | {"run": run, "case": case, "organ": organ, "dice": 0.4 + gain * (run == "adapter")}
        for run in ("baseline", "adapter")
        for case, most in (("a", 0.3), ("b", 0.1))
        for organ, gain in (("pancreas", most), ("liver", 0.1), ("spleen", 0.1))
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(book["dice"].__globals__, "scores", pd.DataFrame(rows))
        assert book["gain"]("site A").value == pytest.approx((0.2 + 0.1 + 0.1) / 3)
        assert book["gain"]("site A", "pancreas").value == pytest.approx((0.3 + 0.1) / 2)
        found = book["contrast"]("site A", "pancreas")
        assert found.value == pytest.approx((0.2 + 0.0) / 2) and (found.n, found.trainings) == (2, 1)
        assert found.high - found.value == pytest.approx(12.7062 * (0.2 - 0.0) / 2, rel=1e-5)
        assert book["contrast"]("site A", "pancreas", "liver").value == pytest.approx(0.15 - 0.1)
