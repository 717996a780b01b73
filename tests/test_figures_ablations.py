"""lib/figures beyond the paper's own: audits, gates, confusion, dose and response, worked out by hand on tiny arrays."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_figures import LIVER, make_store, texts
from tiny import tiny_settings

from lib import figures
from lib.clipseg import build
from lib.organs import BY_KEY, KEYS
from lib.paths import InputError
from lib.profiles import SPACINGS, WINDOW_IN_MM, run_folder, settings_of

pytestmark = pytest.mark.filterwarnings("error")
LIVER_BIT, SPLEEN_BIT = (np.uint16(1 << KEYS.index(key)) for key in ("liver", "spleen"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path / "results"))
    monkeypatch.setenv("FIGURES_ROOT", str(tmp_path / "figures"))
    (tmp_path / "results" / "smoke" / "figure_data").mkdir(parents=True)
    return tmp_path


def caption(figure: Any) -> str:
    return figure.texts[0].get_text().replace("\n", " ")


def presence_store(name: str = "a", label_map: str = "FLARE22") -> SimpleNamespace:
    """Four slices 2.5 mm apart: none, liver, liver and spleen, none. So the manifest's rows are of the slices 0, 1, 2, 2, 3."""
    presence = np.zeros((4, 14), int)
    presence[1:3, LIVER] = 9
    presence[2, BY_KEY["spleen"].label] = 4
    return SimpleNamespace(id=name, presence=presence, image=np.zeros((4, 1, 1)), spacing_mm=2.5, label_map=label_map, donor=None)


def windows(table: pd.DataFrame, kind: str, term: str) -> list[tuple[int, float, int]]:
    part = table[(table["kind"] == kind) & (table["term"] == term)]
    return [tuple(row) for row in part[["distinct", "span_mm", "count"]].to_numpy().tolist()]


def test_the_window_audit_counts_distinct_slices_and_their_span() -> None:
    table = figures.window_audit([presence_store()], settings_of("baseline", "smoke"))
    assert list(table) == ["case", "kind", "term", "distinct", "span_mm", "count"]
    # true windows: 0 0 0 1 2, 0 0 1 2 3, 0 1 2 3 3, 1 2 3 3 3
    assert windows(table, "true slices", "positive") == [(4, 7.5, 3)]
    assert windows(table, "true slices", "negative") == [(3, 5.0, 26), (4, 7.5, 23)]
    # rows around liver in 1: 0 0 1 2 2, liver in 2: 0 1 2 2 3, spleen in 2: 1 2 2 3 3; around the empty slices: 0 0 0 1 2, 2 2 3 3 3
    assert windows(table, "manifest rows", "positive") == [(3, 5.0, 2), (4, 7.5, 1)]
    assert windows(table, "manifest rows", "negative") == [(2, 2.5, 1), (3, 5.0, 1)]


def test_an_organ_without_labels_is_no_negative_and_a_store_without_labels_is_left_out() -> None:
    without = presence_store("c")
    without.presence = None
    table = figures.window_audit([presence_store("b", "BTCV"), without], settings_of("adapter", "smoke"))
    assert windows(table, "true slices", "negative") == [(3, 5.0, 24), (4, 7.5, 21)] and set(table["case"]) == {"b"}


def test_the_audit_of_a_window_in_mm_follows_the_settings() -> None:
    settings = tiny_settings("adapter", window_unit="mm", window_step_mm=5.0)
    assert windows(figures.window_audit([presence_store()], settings), "true slices", "positive") == [(3, 7.5, 3)]  # 0 0 1 3 3, 0 0 2 3 3


def test_the_picture_of_the_windows_states_their_means(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib.datasets.stores_of", lambda settings, part: [presence_store(), presence_store("b")])
    figures.extract_windows("smoke")
    means = figures.window_means(pd.read_csv(home / "results" / "smoke" / "figure_data" / "windows.csv"))
    assert means.loc[("manifest rows", "positive")].tolist() == pytest.approx([10 / 3, 17.5 / 3, 0])
    figure = figures.window_audit_figure("smoke")
    assert len(figure.axes) == 3 and [axis.get_title() for axis in figure.axes[:2]] == ["true slices", "manifest rows"]
    assert [round(bar.get_height(), 1) for bar in figure.axes[1].patches] == [0, 0, 66.7, 33.3, 0, 0, 50, 50, 0, 0]
    assert "in the 2 training scans" in caption(figure) and "0 % of the positive windows hold one slice 5 times" in caption(figure)
    assert "4.0 (positive) and 3.5 (negative) among true slices, 3.3 (positive) and 2.5 (negative) among manifest rows" in caption(figure)
    spans = {line.get_label(): line.get_ydata()[-1] for line in figure.axes[2].lines}
    assert list(spans) == ["true, positive", "true, negative", "manifest, positive", "manifest, negative"] and {*spans.values()} == {100}


def test_claimed_voxels_are_counted_by_the_organ_that_they_lie_in() -> None:
    truth = np.array([LIVER_BIT, LIVER_BIT, SPLEEN_BIT, 0], np.uint16)
    claims = np.array([LIVER_BIT, LIVER_BIT | SPLEEN_BIT, LIVER_BIT, SPLEEN_BIT], np.uint16)
    counts = figures.claimed_voxels(claims, truth)
    liver, spleen = KEYS.index("liver"), KEYS.index("spleen")
    assert counts.shape == (13, 14) and counts.sum() == 5
    assert (counts[liver, liver], counts[liver, spleen], counts[spleen, liver], counts[spleen, 13]) == (2, 1, 1, 1)


def test_the_confusion_prints_shares_of_each_prompt(home: Path) -> None:
    table = pd.DataFrame(0, index=range(13), columns=[*KEYS, "background"]).assign(prompt=KEYS, dataset="FLARE22")
    table.loc[0, ["liver", "spleen", "background"]] = [90, 1, 909]
    table.to_csv(home / "results" / "smoke" / "figure_data" / "confusion.csv", index=False)
    figure = figures.confusion("smoke")
    axis = figure.axes[0]
    assert texts(figure) == ["0.09", "0.91"]  # 1 in 1000 stays blank
    assert [text.get_position() for text in axis.texts] == [(0, 0), (13, 0)]
    rows, columns = ([label.get_text() for label in labels] for labels in (axis.get_yticklabels(), axis.get_xticklabels()))
    assert rows[:2] == ["Liver", "R. kidney (no claim)"] and columns[-1] == "Background"


def test_a_patch_counts_for_an_organ_by_its_share_of_it() -> None:
    maps = np.array([[[0.1, 0.2], [0.3, 0.4]]])
    labels = np.zeros((1, 4, 4), np.uint8)
    labels[0, :2, :3] = LIVER  # all of the first patch, half of the second
    table = figures.organ_gates(maps, labels).set_index("organ")
    assert table["patches"].to_dict() == {"background": 2.5, "liver": 1.5}
    assert table["gate"].to_dict() == pytest.approx({"background": (0.5 * 0.2 + 0.3 + 0.4) / 2.5, "liver": (0.1 + 0.5 * 0.2) / 1.5})


@pytest.fixture
def gated(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A trained adapter whose gate is 0.2 everywhere in g1, 0.6 in g2 and 0.4 in g3, and 0.3 more in the degraded slices 2 and 3."""
    stores = [make_store(name, home) for name in ("g1", "g2", "g3")]

    def gates(model: object, store: Any, settings: object) -> np.ndarray:
        maps = np.full((8, 6, 6), {"g1": 0.2, "g2": 0.6, "g3": 0.4}[store.id], np.float32)
        maps[2:4] += 0.3
        maps[:, 0, 0] = 0.0  # the upper left corner
        return maps

    monkeypatch.setattr("lib.datasets.stores_of", lambda settings, dataset: stores)
    monkeypatch.setattr("lib.datasets.degraded_slices", lambda case: {2, 3})
    monkeypatch.setattr("lib.figures.gates.is_finished", lambda folder, settings: True)
    monkeypatch.setattr("lib.runs.trained", lambda run, profile: None)
    monkeypatch.setattr("lib.inference.slice_gates", gates)
    figures.extract_gates("smoke")
    return home / "results" / "smoke" / "figure_data"


def test_gates_are_stored_by_slice_and_organ(gated: Path) -> None:
    table = pd.read_csv(gated / "gates.csv")
    assert list(table) == ["case", "slice", "degraded", "organ", "gate", "patches"]
    assert len(table) == 3 * (8 + 6 + 3)  # background everywhere, the liver in 6 slices, the pancreas in 3
    pancreas = table[(table["organ"] == "pancreas") & (table["case"] == "g1")]
    assert pancreas[["slice", "degraded", "gate"]].to_numpy().tolist() == [[2, 1, 0.5], [3, 1, 0.5], [4, 0, 0.2]]
    total = table[(table["case"] == "g1") & (table["slice"] == 0)]
    assert total["patches"].sum() == 36 and total["gate"].item() == pytest.approx(0.2 * 35 / 36, abs=1e-4)


def test_gate_maps_show_the_scan_in_the_middle_the_right_way_round(gated: Path) -> None:
    with np.load(gated / "gate_maps.npz") as file:
        labels, gate, picture = file["labels"], file["gate"], file["picture"]
        assert str(file["about"]).startswith(
            '{"case": "g3", "z": [1, 5, 6, 2, 3], "degraded": [false, false, false, true, true], "aspect": 0.625}'
        )
    assert picture.shape == labels.shape == (5, 24, 24) and gate.shape == (5, 6, 6)
    rows, columns = np.nonzero(labels[0] == LIVER)
    assert (columns.min(), columns.max()) == (2, 9) and rows.max() < 12  # the patient's right on the left, the front up
    figure = figures.gate_maps("smoke")
    assert len(figure.axes) == 12 + 2 and gate[0, 0, 0] == 0
    titles = [axis.get_title() for axis in figure.axes[:12]]
    assert titles[1::2] == ["clean"] * 3 + ["degraded"] * 2 + [""] and titles[0] == "z = 1"
    bars = figure.axes[-1].patches
    heights = dict(zip([label.get_text() for label in figure.axes[-1].get_xticklabels()], [bar.get_height() for bar in bars], strict=False))
    assert heights["Pancreas"] == pytest.approx(0.4) and len(bars) == 2 * 3
    assert "g3, the test scan with the (lower) median gate" in caption(figure) and "spoiled on purpose" in caption(figure)


def test_without_spoiled_slices_there_is_one_bar_for_an_organ(gated: Path) -> None:
    table = pd.read_csv(gated / "gates.csv")
    table[table["degraded"] == 0].to_csv(gated / "gates.csv", index=False)
    assert len(figures.gate_maps("smoke").axes[-1].patches) == 3


def write_audits() -> None:
    """The baseline and the adapter moved all but one module; with frozen encoders the decoder alone moved."""
    base = {"module": ["clip.text", "clip.scale", "decoder"], "parameters": [10, 1, 5], "moved": [10, 0, 5], "change": [0.01, 0.0, 0.1]}
    more = {"module": ["adapter.gate_proj"], "parameters": [4], "moved": [4], "change": [np.nan]}  # it was 0 at first
    tables = {"baseline": base, "adapter": {key: [*base[key], *more[key]] for key in base}}
    tables["baseline, released frozen encoders"] = base | {"moved": [0, 0, 5], "change": [0.0, 0.0, 0.2]}
    for run, table in tables.items():
        run_folder(run, "smoke").mkdir(parents=True)
        pd.DataFrame(table).to_csv(run_folder(run, "smoke") / "audit.csv", index=False)


@pytest.mark.parametrize("kept", (False, True), ids=("from the runs", "from the extract"))
def test_the_gradient_audit_shows_which_modules_moved(home: Path, kept: bool) -> None:
    write_audits()
    if kept:
        figures.extract_audit("smoke")
        for path in (home / "results" / "smoke" / "runs").rglob("audit.csv"):
            path.unlink()
    axis = figures.gradient_audit("smoke").axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["clip.text", "clip.scale", "decoder", "adapter.gate_proj"]
    marks = {line.get_label(): line for line in axis.lines if len(line.get_xdata()) > 2}
    still, fresh = 0.01 / 5, 0.2 * 5
    assert list(marks["baseline"].get_xdata()) == pytest.approx([0.01, still, 0.1])
    assert list(marks["adapter"].get_xdata()) == pytest.approx([0.01, still, 0.1, fresh])
    frozen = marks["baseline, released frozen encoders"]
    assert list(frozen.get_xdata()) == pytest.approx([still, still, 0.2])
    assert frozen.get_color() == marks["baseline"].get_color() and frozen.get_markerfacecolor() == "white"
    assert list(np.rint(marks["adapter"].get_ydata())) == [0, 1, 2, 3]
    two = figures.gradient_audit("smoke", ("baseline", "adapter"))
    assert len(two.legends[0].get_texts()) == 2


def test_figure_2_says_what_the_built_model_is(home: Path) -> None:
    figures.extract_architecture("smoke")
    model = build(settings_of("adapter", "smoke"))
    total, adapter = (sum(parameter.numel() for parameter in part.parameters()) for part in (model, model.adapter))
    figure = figures.tgated_fig2("smoke")
    drawn = texts(figure)
    for text in (
        "5 × 24 × 24",
        "5 × 37 × 32\n",
        "1 × 37 × 5 × 32",
        "1 × 37 × 1 × 32",
        '"pancreas"',
        "proj_in",
        "base_model\n.clip.vision_model",
    ):
        assert any(text in one for one in drawn), text
    assert f"{total / 1e3:.1f} k parameters in all" in caption(
        figure
    ) and f"{adapter / 1e3:.1f} k ({100 * adapter / total:.1f} %)" in caption(figure)
    assert "each of the blocks 2, 1, 0 of the vision encoder's 3" in caption(figure) and not any("blocks" in one for one in drawn)
    assert len(figure.axes) == 1 and len(figure.axes[0].patches) == 14  # 13 boxes and the adapter's frame


@pytest.mark.slow
def test_figure_2_of_the_full_size_needs_no_weights(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTS", str(home / "nothing"))
    figures.extract_architecture("full")
    figure = figures.tgated_fig2("full")
    drawn = texts(figure)
    assert any("5 × 485 × 768\n85.80 M param." in text for text in drawn) and "blocks\n6, 3" in drawn
    # 160.8 M with the head of the released code, 768 x 768 twice, which the paper's adapter does not have
    assert "159.62 M parameters in all" in caption(figure) and "informs block 9 of the vision encoder's 12" in caption(figure)


def score(run: str, dataset: str, dice: tuple[float, float], condition: str = "") -> list[dict[str, Any]]:
    key = {"run": run, "config": "a", "dataset": dataset, "condition": condition, "organ": "liver", "source": "trained here"}
    return [key | {"case": case, "dice": value, "truth_voxels": 9} for case, value in zip("ab", dice, strict=True)]


def dose_scores() -> pd.DataFrame:
    """The adapter gains 0.2 over the baseline where nothing is degraded (0.1 with seed 1) and 0.4 at 80 %; 0.1 over its control."""
    rows = []
    for seed, clean in (("", 0.2), (", seed 1", 0.1)):
        for dataset, gain in (("FLARE22, 0% degraded", clean), ("FLARE22", 0.3), ("FLARE22, 80% degraded", 0.4)):
            rows += score(f"baseline{seed}", dataset, (0.4, 0.5)) + score(f"adapter{seed}", dataset, (0.4 + gain, 0.5 + gain))
    for dataset, dice in (("FLARE22, 0% degraded", 0.5), ("FLARE22", 0.6), ("FLARE22, 80% degraded", 0.7)):
        rows += score("centre only", dataset, (dice, dice + 0.1))
    return pd.DataFrame(rows)


def lines(figure: Any, colour: str, marker: str) -> list[tuple[float, float]]:
    """Points of a figure's only axis with this colour and marker, from left to right."""
    found = [line for line in figure.axes[0].lines if line.get_color() == colour and line.get_marker() == marker]
    return sorted((round(float(x)), round(float(y), 6)) for line in found for x, y in zip(*line.get_data(), strict=True))


def test_dose_and_response_has_means_and_every_seed() -> None:
    figure = figures.doses_figure("smoke", dose_scores())
    pink, blue = figures.COLOURS["baseline"], figures.COLOURS["centre only"]
    assert [(round(y, 2)) for _, y in lines(figure, pink, "o")] == [0.15, 0.3, 0.4]
    assert [y for _, y in lines(figure, blue, "o")] == [0.1, 0.1, 0.1]
    assert [y for _, y in lines(figure, pink, "_")] == [0.1, 0.2, 0.3, 0.3, 0.4, 0.4]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["adapter - baseline", "adapter - centre only"]
    assert texts(figure) == ["as in training"] and list(figure.axes[0].get_xticks()) == [0, 20, 40, 60, 80]


def test_spacings_compare_the_two_windows() -> None:
    step, rows = settings_of("adapter", "smoke").window_step_mm, score("adapter", "FLARE22", (0.5, 0.7))
    for factor in SPACINGS:
        rows += score("adapter", f"FLARE22, slices x{factor:g}", (0.3, 0.5)) + score(
            "adapter", f"FLARE22, slices x{factor:g}", (0.4, 0.6), WINDOW_IN_MM
        )
    figure = figures.spacings_figure("smoke", pd.DataFrame(rows))
    marked = lines(figure, figures.COLOURS["adapter"], "o")
    assert sorted(y for _, y in marked) == [0.4] * 3 + [0.5] * 3 + [0.6] * 2  # at the training's distance the two are one
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["fixed window", "window in mm"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == [f"{factor * step:g} mm" for factor in (0.5, 1, 1.5, 2)]


def test_scores_without_doses_are_no_figure_and_no_scores_are_an_error(home: Path) -> None:
    for draw in (figures.doses_figure, figures.spacings_figure):
        with pytest.raises(figures.NotRun, match="the smoke profile"):
            draw("smoke", pd.DataFrame(score("adapter", "BTCV", (0.1, 0.2))))
        with pytest.raises(InputError, match=r"scores\.csv does not exist"):
            draw("smoke")


def test_real_scans_stand_by_data_set() -> None:
    rows = [
        row
        for dataset in ("FLARE22", "BTCV")
        for condition in ("", WINDOW_IN_MM)
        for row in score("adapter", dataset, (0.5, 0.7), condition)
    ]
    figure = figures.spacings_figure("full", pd.DataFrame(rows))
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["FLARE22", "BTCV", "AMOS22 CT", "AMOS22 MRI"]
    assert len(lines(figure, figures.COLOURS["adapter"], "o")) == 4 and not texts(figure)
