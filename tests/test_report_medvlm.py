"""lib.report's tables of the Med-VLM paper on scores, logs and sizes whose means and differences are worked out by hand."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lib import report
from lib.organs import TEXTS
from lib.paths import InputError
from lib.profiles import ASKED_OTHERWISE, HELD_OUT, MEDVLM_RUNS, WITHOUT_TURNS, settings_of
from lib.published import MEDVLM_TABLE2, MEDVLM_TABLE3, MEDVLM_TABLE4, MEDVLM_UNETR
from lib.report.captions import medvlm_captions
from lib.report.everything import medvlm_due
from lib.report.medvlm import COMMON, GAP, MODELS

pytestmark = pytest.mark.filterwarnings("error")  # they would end up in a notebook's output
NAN = float("nan")
Dice = dict[str, tuple[float, float]]
COUNTS = {"truth_voxels": 10, "predicted_voxels": 10, "overlap_voxels": 5, "false_slices": 1, "slices_absent": 4, "off_component": 0.1}
COUNTS |= {"voxel_ml": 0.5, "nsd": 0.5, "hd95_mm": 2.0, "flare_dice": 0.5, "flare_nsd": 0.5}


def rows(run: str, dice: Dice, condition: str = "", dataset: str = HELD_OUT, **others: float) -> pd.DataFrame:
    """Score rows of one run: {case: Dice of its spleen and of its liver}, and other columns that are the same in all of them."""
    key = {"run": run, "config": "0123456789ab", "dataset": dataset, "condition": condition, "source": "trained here"}
    pairs = [(case, organ, value) for case, both in dice.items() for organ, value in zip(("spleen", "liver"), both, strict=True)]
    return pd.DataFrame([{**key, "case": case, "organ": organ, "dice": value, **COUNTS, **others} for case, organ, value in pairs])


def row(table: pd.DataFrame, name: str) -> pd.Series:
    return table.set_index(table.columns[0]).loc[name]


def values(table: pd.DataFrame, name: str, *columns: str) -> list:
    return list(row(table, name)[list(columns)])


def with_ends(name: str) -> tuple[str, str, str]:
    return name, f"{name} low", f"{name} high"


# (run, epoch, training Dice, validation Dice); a log also has rows between epochs
LOG = [
    ("unet", 1, 0.7, 0.2),
    ("unet", 2, 0.6, 0.5),
    ("unet", 3, 0.65, 0.4),
    ("unet, seed 1", 3, 0.95, 0.3),
    ("unet, seed 2", 3, 0.0, 0.0),  # it has no scores, and so no part in the row
    ("unet, 3 cases", 3, 0.9, 0.1),
    ("unetr", 1, NAN, 0.3),
    ("unetr", 2, NAN, 0.2),
]


@pytest.fixture(autouse=True)
def extracts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of the smoke profile's extracts, with logs and sizes."""
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path))
    monkeypatch.setenv("PROFILE", "smoke")
    folder = tmp_path / "smoke" / "figure_data"
    folder.mkdir(parents=True)
    log = pd.DataFrame(LOG, columns=["run", "epoch", "training_dice", "validation_dice"]).assign(step=lambda frame: 10 * frame["epoch"])
    between = pd.DataFrame({"run": ["unet"], "step": [35], "epoch": [3], "training_dice": [0.99], "validation_dice": [NAN]})
    pd.concat([log[::-1], between]).to_csv(folder / "medvlm_curves.csv", index=False)
    sizes = [("med-vlm large", "full", 53e6, 194.97e6), ("unet", "full", 7.777e6, 0), ("unet", "smoke", 2.5e4, 0)]
    sizes += [("med-vlm large", "smoke", 1e5, 3e5)]
    pd.DataFrame(sizes, columns=["run", "scope", "trainable", "frozen"]).to_csv(folder / "medvlm_parameters.csv", index=False)
    return folder


def scores() -> pd.DataFrame:
    """The U-Net with two seeds, one of them with fewer scans; everything else has not run."""
    return pd.concat(
        [
            rows("unet", {"a": (0.2, 0.4), "b": (0.4, 0.6)}),
            rows("unet, seed 1", {"a": (0.4, 0.6), "b": (0.6, 0.8)}),
            rows("unet, 3 cases", {"a": (0.1, 0.1), "b": (0.1, 0.5)}),
        ]
    )


def test_what_is_printed_agrees_with_itself() -> None:
    for trainable, frozen, total in MEDVLM_TABLE2.values():
        assert trainable + frozen == pytest.approx(total, abs=0.11)
    assert all(train > validation for train, validation in MEDVLM_TABLE3.values()) and MEDVLM_UNETR == 0.97
    assert list(MEDVLM_TABLE2) == list(MEDVLM_TABLE3) == list(MEDVLM_TABLE4) == list(MODELS)[:3]


def test_table1_prints_every_prompt_and_asks_two() -> None:
    table = report.medvlm_table1()
    assert len(table) == 13 and list(table.loc[table["asked here"] == "yes", "organ"]) == ["Spleen", "Liver"]
    assert row(table, "Gallbladder")["words"] == 16 and row(table, "Spleen")["prompt"].startswith("The spleen's long axis")
    assert report.show(table).loc["Portal and splenic veins", "asked here"] == "no"


def test_table2_by_hand() -> None:
    table = report.medvlm_table2("smoke")
    large, unet = row(table, "Med-VLM Large"), row(table, "2D U-Net")
    names = [f"{part} {column}" for part in ("trainable", "frozen", "total") for column in ("here (M)", "difference in %", "smoke (M)")]
    assert list(large[names]) == pytest.approx([53, 0, 0.1, 194.97, 0.5, 0.3, 247.97, 100 * 0.97 / 247, 0.4])
    assert list(unet[names]) == pytest.approx([7.777, 1, 0.025, 0, NAN, 0, 7.777, 1, 0.025], nan_ok=True)
    shown = report.show(table)
    assert list(shown.loc["2D U-Net", ["trainable published (M)", "trainable difference in %"]]) == ["7.7", "+1.0"]
    assert list(shown.loc["Med-VLM Small", ["total published (M)", "total here (M)"]]) == ["31", "–"]


def test_table2_has_the_profiles_own_sizes_where_they_are_stored(extracts: Path) -> None:
    path = extracts / "medvlm_parameters.csv"
    pd.read_csv(path).query("scope == 'full'").to_csv(path, index=False)
    assert not any("smoke" in name for name in report.medvlm_table2("smoke"))


@pytest.mark.parametrize("name", ["medvlm_curves.csv", "medvlm_parameters.csv"])
def test_an_extract_that_is_missing_is_one_sentence_that_says_what_to_run(extracts: Path, name: str) -> None:
    (extracts / name).unlink()
    with pytest.raises(InputError, match=rf"{name} does not exist: run `make paper PROFILE=smoke`"):
        report.medvlm_table2() if "parameters" in name else report.medvlm_table3(scores())


def test_table3_takes_the_best_epochs_and_the_last_weights() -> None:
    table = report.medvlm_table3(scores())
    names = [f"{kind} best {part}" for kind in ("published", "measured") for part in ("training", "validation")]
    assert values(table, "2D U-Net", *names) == pytest.approx([0.38, 0.24, 0.7, 0.5]), "seed 0; each best at an epoch of its own"
    assert values(table, "2D U-Net", "held-out Dice", "held-out Dice n", "seeds") == pytest.approx([0.5, 2, 2])
    # both seeds together: 0.4 in case a, 0.6 in case b
    assert values(table, "2D U-Net", *with_ends("held-out Dice")) == pytest.approx([0.5, 0.4, 0.6])
    assert values(table, "2D U-Net", "spleen", "liver") == pytest.approx([0.4, 0.6])
    # at the last epoch, not at the best one: 0.65 - 0.4 and 0.95 - 0.3
    assert values(table, "2D U-Net", GAP) == pytest.approx([0.45])
    unetr = "UNETR (published: cited)"
    assert values(table, unetr, *names) == pytest.approx([NAN, 0.97, NAN, 0.3], nan_ok=True)
    shown = report.show(table)
    assert shown.loc["2D U-Net", GAP] == "+0.450" and shown.loc[unetr, "held-out Dice"] == "– (not run yet)"


def test_logs_of_no_run_leave_dashes(extracts: Path) -> None:
    path = extracts / "medvlm_curves.csv"
    pd.read_csv(path)[:0].to_csv(path, index=False)
    for table in (report.medvlm_table3(scores()), report.medvlm_cases(scores())):
        assert table[GAP].isna().all()
    assert row(report.medvlm_cases(scores()), "2D U-Net, 24 cases")["held-out Dice"] == pytest.approx(0.5)


def test_table4_sets_the_paper_beside_the_profile() -> None:
    table = report.medvlm_table4("full")
    assert list(table["set-up"]) == list(MEDVLM_TABLE4["unet"]) and len(table.columns) == 7
    assert values(table, "epochs", "Med-VLM Large published", "Med-VLM Large here", "2D U-Net published", "2D U-Net here") == [
        "about 10",
        "10",
        "50",
        "50",
    ]
    pretrained = row(table, "pretrained")
    assert pretrained["Med-VLM Small here"] == "Yes: WinKawaks/vit-tiny-patch16-224 and sentence-transformers/all-MiniLM-L6-v2"
    assert list(pretrained[["2D U-Net published", "2D U-Net here"]]) == ["No", "No"]
    for same in ("task", "loss", "mask type", "learning rate", "flips and turns"):
        for model in ("Med-VLM Large", "2D U-Net"):
            assert row(table, same)[f"{model} published"] == row(table, same)[f"{model} here"]
    demo = report.medvlm_table4("demo")
    assert row(demo, "pretrained")["Med-VLM Large here"] == "Yes: run 'vit large' and MiniLM"
    assert row(demo, "epochs")["2D U-Net here"] == "8 of 60 steps"


def test_texts_are_compared_over_the_seeds_that_both_have() -> None:
    more = [
        rows("med-vlm small", {"a": (0.4, 0.4), "b": (0.6, 0.6)}),
        rows("med-vlm small, seed 1", {"a": (0.8, 0.8), "b": (0.8, 0.8)}),
        rows("med-vlm small, name, seed 1", {"a": (0.7, 0.5), "b": (0.9, 0.7)}),
        rows("med-vlm small, name, seed 2", {"a": (0.0, 0.0), "b": (0.0, 0.0)}),  # a seed that the description has not
        rows("med-vlm small", {"a": (0.3, 0.1), "b": (0.5, 0.3)}, "another's description"),
        rows("med-vlm small, seed 1", {"a": (0.0, 0.0), "b": (0.0, 0.0)}, "another's description"),
    ]
    table = report.medvlm_prompts(pd.concat(more))
    assert list(table["prompts"][:5]) == [f"Small, trained and asked by {text}" for text in TEXTS] and len(table) == 11
    names, moved = ("mean Dice", "spleen", "liver", "n", "seeds"), "difference to the description"
    ways = ("and asked by description", "and asked by name", "by description, asked by ")
    first, named, other = (f"Small, trained {how}" for how in ways)
    assert values(table, first, *names) == pytest.approx([0.65, 0.65, 0.65, 2, 2]) and np.isnan(row(table, first)[moved])
    assert values(table, named, *names) == pytest.approx([0.7, 0.8, 0.6, 2, 1]), "seed 1 alone"
    # seed 1 of both: 0.6 - 0.8 in case a, 0.8 - 0.8 in case b
    assert values(table, named, *with_ends(moved)) == pytest.approx([-0.1, -0.2, 0.0])
    # the same weights of seed 0: 0.2 - 0.4 and 0.4 - 0.6
    assert values(table, f"{other}another's description", *names) == pytest.approx([0.3, 0.4, 0.2, 2, 1])
    assert values(table, f"{other}another's description", *with_ends(moved)) == pytest.approx([-0.2, -0.2, -0.2])
    shown = report.show(table)
    assert shown.loc[named, moved] == "-0.100 [-0.200, 0.000]"
    large = [f"Large, trained by description, asked by {text}" for text in ASKED_OTHERWISE]
    assert list(shown.index[-3:]) == large and set(shown.loc[large[0]][["mean Dice", moved]]) == {"–"}


def test_a_text_without_its_counterpart_still_has_its_dice() -> None:
    table = report.medvlm_prompts(rows("med-vlm small, one-hot, seed 1", {"a": (0.4, 0.8)}))
    assert values(table, "Small, trained and asked by one-hot", "mean Dice", "n", "seeds") == pytest.approx([0.6, 1, 1])
    assert row(table, "Small, trained and asked by one-hot")[["difference to the description"]].isna().all()
    assert values(table, "Small, trained and asked by description", "n", "seeds") == [0, 0]


def test_cases_are_those_of_the_full_profile(extracts: Path) -> None:
    shutil.copytree(extracts, extracts.parents[1] / "full" / "figure_data")
    table = report.medvlm_cases(scores(), "full")
    assert list(table["model"]) == [f"{model}, {cases} cases" for model in ("Med-VLM Small", "2D U-Net") for cases in (3, 6, 12, 24)]
    assert list(table["training scans"]) == [3, 6, 12, 24] * 2


def test_gaps_by_number_of_cases() -> None:
    table = report.medvlm_cases(scores(), "smoke")
    names = ("training scans", "training Dice", "held-out Dice", GAP, "n", "seeds")
    assert values(table, "2D U-Net, 3 cases", *names) == pytest.approx([1, 0.9, 0.2, 0.8, 2, 1])
    assert values(table, "2D U-Net, 24 cases", *names) == pytest.approx([2, 0.8, 0.5, 0.45, 2, 2]), "seed 2 has a log and no scores"
    assert values(table, "2D U-Net, 3 cases", *with_ends("held-out Dice")) == pytest.approx([0.2, 0.1, 0.3])
    assert values(table, "Med-VLM Small, 6 cases", "n", "seeds") == [0, 0]
    shown = report.show(table)
    assert list(shown.loc["2D U-Net, 3 cases", ["training scans", GAP]]) == ["1", "+0.800"]
    assert list(shown.loc["2D U-Net, 6 cases", ["training Dice", "held-out Dice", GAP]]) == ["–"] * 3


def test_turns_take_common_seeds() -> None:
    more = rows("unet, no turns", {"a": (0.4, 0.8), "b": (0.8, 0.8)})
    table, moved = report.medvlm_turns(pd.concat([scores(), more])), "difference without - with"
    assert list(table["model"]) == [MODELS[run.partition(", ")[0]] for run in WITHOUT_TURNS]
    # seed 0 alone has both: 0.6 - 0.3 in case a, 0.8 - 0.5 in case b
    assert values(table, "2D U-Net", "flips and turns (published)", "without", "n", "seeds") == pytest.approx([0.4, 0.7, 2, 1])
    assert values(table, "2D U-Net", *with_ends(moved)) == pytest.approx([0.3, 0.3, 0.3])
    alone = report.medvlm_turns(scores())
    assert values(alone, "2D U-Net", "flips and turns (published)", "without", moved, "n", "seeds") == pytest.approx(
        [0.5, NAN, NAN, 2, 2], nan_ok=True
    )
    assert values(alone, "Med-VLM Large", "n", "seeds") == [0, 0]


def test_common_ground_counts_the_two_organs_of_seed_0() -> None:
    adapter = pd.concat(
        [
            rows("adapter", {"a": (0.5, 0.7)}, slices_absent=1),
            rows("adapter", {"b": (0.7, 0.9)}, slices_absent=9),
            rows("adapter", {"a": (0.0, 0.0), "b": (0.0, 0.0)}, false_slices=4).assign(organ="aorta").drop_duplicates("case"),
            rows("adapter, seed 1", {"a": (0.0, 0.0)}),
            rows("adapter", {"a": (0.0, 0.0)}, dataset="BTCV"),
        ]
    )
    table = report.common_ground(pd.concat([scores(), adapter]), "full")
    assert list(table["model"]) == list(COMMON.values()) and table["model"].is_unique
    name = "CLIPSeg + temporal adapter"
    assert values(table, name, "mean Dice", "spleen", "liver", "mean Dice n") == pytest.approx([0.7, 0.6, 0.8, 2])
    assert values(table, name, "mean Dice low", "mean Dice high") == pytest.approx([0.6, 0.8])
    assert row(table, name)["false slices (share)"] == pytest.approx(4 / 20), "2 of 2 slices and 2 of 18"
    assert values(table, "2D U-Net", "mean Dice", "trained on") == [pytest.approx(0.4), "BTCV, 24 scans"]
    assert list(table["trained on"])[:3] == ["FLARE22, 30 scans"] * 2 + ["BTCV, 24 scans"]
    shown = report.show(table)
    assert list(shown.loc["CLIPSeg baseline", ["mean Dice", "spleen", "false slices (share)"]]) == ["– (not run yet)", "–", "–"]


def test_the_samples_have_a_data_set_of_their_own() -> None:
    samples = rows("unet", {"a": (0.2, 0.4)}, dataset="sample CT")
    table = report.common_ground(pd.concat([scores(), samples]), "sample")
    assert values(table, "2D U-Net", "mean Dice", "mean Dice n", "trained on") == [pytest.approx(0.3), 1, "samples"]
    text = medvlm_captions(samples, "sample")["common_ground"]
    assert "1 cases (sample CT)" in text and "zero-shot" not in text


def test_a_table_is_due_once_one_of_its_own_runs_is_there() -> None:
    def due(*tables: pd.DataFrame) -> set[str]:
        return {name.removeprefix("medvlm_") for name, is_due in medvlm_due(pd.concat(tables), HELD_OUT).items() if is_due}

    one: Dice = {"a": (0.5, 0.5)}
    always = {"table1", "table2", "table4"}
    assert due(rows("adapter", one)) == set(), "T-Gated's alone"
    assert due(rows("unet", one, dataset="sample CT")) == set()
    assert due(rows("unet, seed 1", one)) == always | {"table3"}
    assert due(rows("unet", one), rows("adapter", one)) == always | {"table3", "common_ground"}
    assert due(rows("med-vlm small, name", one)) == always | {"prompts"}
    assert due(rows("med-vlm small", one), rows("med-vlm small", one, "name")) == always | {"table3", "prompts"}
    assert due(rows("unet, 3 cases", one)) == always | {"cases"}
    assert due(rows("unet, no turns", one)) == always | {"turns"}


def test_captions_say_what_differs_and_over_what() -> None:
    said = medvlm_captions(pd.concat([scores(), rows("adapter", {"x": (0.5, 0.5)})]), "full")
    assert set(said) == set(medvlm_due(scores(), HELD_OUT))
    assert "rank 16" in said["medvlm_table2"] and "(512 in Large, 64 in Small)" in said["medvlm_table2"]
    for name in ("medvlm_table3", "medvlm_prompts", "medvlm_cases", "medvlm_turns", "common_ground"):
        assert "Held out: 2 cases (BTCV held out), which validate the curves and choose no weights." in said[name]
    assert "fewer steps" in said["medvlm_cases"] and "fewer steps" not in medvlm_captions(scores(), "demo")["medvlm_cases"]
    assert "unet: trained here" in said["medvlm_table3"] and "baseline: not run yet" in said["common_ground"]


@pytest.mark.parametrize("run", ["unet", "unetr", "med-vlm large", "med-vlm small, name, seed 2", "adapter on BTCV", "unet, no turns"])
def test_one_run_alone_fails_no_table(run: str) -> None:
    table = rows(run, {"a": (0.5, NAN)})
    made = [make(table) for make in (report.medvlm_table3, report.medvlm_prompts, report.medvlm_cases, report.medvlm_turns)]
    shown = [report.show(frame) for frame in (*made, report.common_ground(table))]
    assert [len(frame) for frame in shown] == [4, 11, 8, 3, 8]
    assert all(isinstance(cell, str) and "nan" not in cell.lower() for frame in shown for cell in frame.to_numpy().ravel())


def test_all_tables_are_written_beside_t_gateds(extracts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib.report.everything.write_claims", lambda profile: [])
    path = extracts.parent / "scores.csv"
    scores().drop(columns="source").to_csv(path, index=False)
    written = {file.stem for file in report.all_tables("smoke")}
    assert written == {"tgated_table1", *(f"medvlm_table{number}" for number in (1, 2, 3, 4)), "medvlm_cases"}
    text = (extracts.parent / "tables" / "medvlm_table3.md").read_text()
    assert "| 2D U-Net | 0.380 | 0.240 | 0.700 | 0.500 | 0.500 [0.400, 0.600], n = 2 |" in text
    assert "unet: committed scores, config 0123456789ab" in text and "phantoms, not patients" in text


def test_every_run_of_the_tables_can_be_trained() -> None:
    assert {*MODELS, *WITHOUT_TURNS} <= {*MEDVLM_RUNS} and {*COMMON} - {"baseline", "adapter"} <= {*MEDVLM_RUNS}
    assert all(settings_of(run, "full").test_on == (HELD_OUT,) for run in MEDVLM_RUNS)
