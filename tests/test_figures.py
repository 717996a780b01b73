"""lib/figures: extracts of a small scan in an odd orientation whose masks are known, and figures drawn from nothing but extracts."""

import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from lib import figures
from lib.datasets import Case, Store, prepare
from lib.figures.everything import FIGURES
from lib.figures.pages import save
from lib.organs import BY_KEY, KEYS
from lib.paths import ROOT, InputError
from lib.profiles import run_folder, settings_of
from lib.volumes import Grid

pytestmark = pytest.mark.filterwarnings("error")
X, Y, Z = 24, 20, 8
LIVER, PANCREAS, DUODENUM = (BY_KEY[key].label for key in ("liver", "pancreas", "duodenum"))
NATIVE = np.array([[0.0, 0, 2, 0], [-1.5, 0, 0, 0], [0, 4, 0, 0], [0, 0, 0, 1]])  # axes PSR: a back, b head, c the patient's right


def truth() -> np.ndarray:
    """Canonical (X, Y, Z) labels: the liver at the patient's right (low x) and front (low y), the pancreas in slices 2 to 4."""
    labels = np.zeros((X, Y, Z), np.uint8)
    labels[2:10, 3:8, 1:7] = LIVER
    labels[2:10, 3:5, 1] = 0  # its first slice shows little of it
    labels[12:16, 9:12, 2:5] = PANCREAS
    return labels


def claims(shift: int, false: tuple[int, ...], missed: tuple[int, ...] = ()) -> np.ndarray:
    """Canonical claims: the truth moved along x, the pancreas marked in the slices `false` and not in `missed`."""
    labels = truth()
    found = np.zeros(labels.shape, np.uint16)
    for label in (LIVER, PANCREAS):
        found |= np.roll(labels == label, shift, 0).astype(np.uint16) << (label - 1)
    bit = np.uint16(1 << (PANCREAS - 1))
    found[4:6, 4:6, list(false)] |= bit  # over the liver: two organs claim these voxels
    found[:, :, list(missed)] &= ~bit
    return found


def make_store(name: str, folder: Path, label_map: str = "FLARE22", modality: str = "CT") -> Store:
    """A real store of a scan in PSR axes, with what `truth` says."""
    grid = Grid((Y, Z, X), NATIVE)
    ids = truth()
    for path, volume in (("image", np.where(ids > 0, 200, -100).astype(np.int16)), ("labels", ids)):
        nib.save(nib.Nifti1Image(np.ascontiguousarray(grid.to_native(volume)), NATIVE), folder / f"{name}_{path}.nii.gz")
    case = Case(name, folder / f"{name}_image.nii.gz", folder / f"{name}_labels.nii.gz", label_map, modality)
    return prepare(case, settings_of("baseline", "smoke"), folder / "stores")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path / "results"))
    monkeypatch.setenv("FIGURES_ROOT", str(tmp_path / "figures"))
    return tmp_path


@pytest.fixture
def predicted(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stored predictions of two runs for three scans; the baseline has 4, 0 and 2 false slices of the pancreas. Scores of one case."""
    stores = [make_store(name, home) for name in ("c1", "c2", "c3")]
    monkeypatch.setattr("lib.datasets.stores_of", lambda settings, dataset: stores)
    false = {"baseline": [(0, 5, 6, 7), (), (0, 7)], "adapter": [(), (), (5,)]}
    for run, shift in (("baseline", 3), ("adapter", 1)):
        folder = run_folder(run, "smoke") / "predictions" / "FLARE22"
        folder.mkdir(parents=True)
        for store, slices in zip(stores, false[run], strict=True):
            native = store.grid.to_native(claims(shift, slices, (4,) if run == "baseline" else ()))
            np.savez_compressed(folder / f"{store.id}.npz", claims=native)
        log = {"step": [1, 2], "loss": [1.0, 0.5], "gate": [None, 0.1], "validation_dice": [None, 0.3]}
        pd.DataFrame(log).to_csv(folder.parents[1] / "log.csv", index=False)
    score = {"run": "adapter", "config": "a", "dataset": "FLARE22", "condition": "", "case": "c1", "organ": "liver", "dice": 0.5}
    pd.DataFrame([score]).to_csv(home / "results" / "smoke" / "scores.csv", index=False)
    return home / "results" / "smoke" / "figure_data"


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axis in figure.axes for text in [*axis.texts, axis.title] if text.get_text()]


def test_presence_counts_the_pixels_of_each_slice_from_the_feet(predicted: Path) -> None:
    figures.extract_presence("smoke")
    table = pd.read_csv(predicted / "presence.csv")
    assert list(table) == ["run", "dataset", "case", "z", *KEYS]
    assert len(table) == 3 * 3 * Z  # runs, scans, slices: of the first data set alone
    one = table[(table["case"] == "c1")].set_index(["run", "z"])
    assert list(one.loc["truth", "liver"]) == [0, 24, 40, 40, 40, 40, 40, 0]
    assert list(one.loc["truth", "pancreas"]) == [0, 0, 12, 12, 12, 0, 0, 0]
    assert list(one.loc["baseline", "pancreas"]) == [4, 0, 12, 12, 0, 4, 4, 4]
    assert not one["spleen"].any()


def test_an_organ_without_labels_is_blank_not_absent(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib.datasets.stores_of", lambda settings, dataset: [make_store("b", home, "BTCV")])
    figures.extract_presence("smoke")
    table = pd.read_csv(home / "results" / "smoke" / "figure_data" / "presence.csv")
    assert table["duodenum"].isna().all() and table.drop(columns="duodenum").notna().all(axis=None)


def test_the_case_shown_is_the_median_by_the_baselines_false_slices(predicted: Path) -> None:
    figures.extract_presence("smoke")
    case, pixels = figures.median_case("smoke", "pancreas")
    assert case == "c3" and list(pixels) == ["truth", "baseline", "adapter"]
    table = pd.read_csv(predicted / "presence.csv")
    table[table["case"] != "c2"].to_csv(predicted / "presence.csv", index=False)
    assert figures.median_case("smoke", "pancreas")[0] == "c3"  # the lower of two


def test_the_gallery_holds_pictures_the_right_way_round_and_the_best_slices(predicted: Path) -> None:
    figures.extract("smoke")
    gallery = figures.gallery("smoke")
    assert set(gallery) == {"liver", "pancreas", "case"}
    liver = gallery["liver"]
    assert (liver["case"], liver["runs"], liver["aspect"]) == ("c1", ["truth", "baseline", "adapter"], 0.75)
    assert liver["z"] == [1]  # 24 of at most 40 pixels: more than half; all slices score alike
    assert liver["dice"] == {"truth": 1.0, "baseline": 0.625, "adapter": 0.875}  # 8 columns, moved by 3 and by 1
    # all masks together are 11 columns wide; the square of 1.3 times that starts in the picture's upper left corner
    assert liver["picture"].shape == (1, 14, 14) and liver["masks"].shape == (3, 1, 14, 14)
    rows, columns = np.nonzero(liver["masks"][0, 0])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 7, 2, 9)  # rows count from the front, columns from the right side
    assert liver["picture"][0][liver["masks"][0, 0]].min() > liver["picture"][0, 0, 0]
    assert (liver["picture"][0][5:8, 2:10] == liver["picture"][0].max()).all()
    case = gallery["case"]
    assert (case["case"], case["organ"], case["z"]) == ("c3", "pancreas", [0, 1, 2, 3, 4, 5, 6, 7])
    assert case["picture"].shape == (8, 19, 19)  # 15 columns of masks, from column 2 on
    assert case["masks"][1, :, 4, 4 - 2].tolist() == [True, False, False, False, False, False, False, True]


def test_a_slice_with_little_of_the_organ_is_never_the_best(predicted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib.figures.extracts.HEADLINE", ("adapter",))
    for path in run_folder("adapter", "smoke").glob("predictions/*/*.npz"):
        found = np.load(path)["claims"]
        found[:, 2:] = 0  # native axis b counts from the feet: only slice 1 of the liver is found, and none of the pancreas
        np.savez_compressed(path, claims=found)
    labels = truth()
    labels[2:8, :, 1] = 0  # 6 of at most 40 pixels
    monkeypatch.setattr("lib.volumes.read_labels", lambda *of: labels)
    figures.extract_presence("smoke")
    figures.extract_gallery("smoke")
    gallery = figures.gallery("smoke")
    assert gallery["liver"]["z"] == [2] and gallery["liver"]["dice"]["adapter"] == 0


def test_the_confusion_counts_what_the_stored_claims_of_the_adapter_lie_in(predicted: Path) -> None:
    figures.extract_confusion("smoke")
    table = pd.read_csv(predicted / "confusion.csv").set_index("prompt").drop(columns="dataset")
    liver, pancreas = (table.loc[key][lambda row: row > 0].to_dict() for key in ("liver", "pancreas"))
    assert liver == {"liver": 3 * 196, "background": 3 * 28}  # of 8 columns 1 lies beside it
    assert pancreas == {"pancreas": 3 * 27, "background": 3 * 9, "liver": 4}  # and the false slice of one scan
    assert table.drop(index=["liver", "pancreas"]).to_numpy().sum() == 0


def test_extracts_are_small_and_the_same_every_time(predicted: Path) -> None:
    paths = figures.extract("smoke")
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in figures.extract("smoke")] == before
    assert sorted(path.name for path in predicted.iterdir()) == sorted(path.name for path in paths)
    assert len(paths) == 13 and sum(map(len, before)) < 30_000


def test_figures_need_only_extracts_and_have_the_same_bytes_every_time(predicted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures.extract("smoke")
    monkeypatch.setattr("lib.datasets.stores_of", None)
    paths = figures.all_figures("smoke")
    names = ("tgated_fig1", "tgated_fig2", "tgated_fig3", "window_audit", "confusion", "training_curves")
    assert [path.name for path in paths] == [f"{name}.{kind}" for name in names for kind in ("png", "pdf")]
    before = [path.read_bytes() for path in paths]
    assert min(map(len, before)) > 5_000
    assert [path.read_bytes() for path in figures.all_figures("smoke")] == before
    assert b"CreationDate" not in before[1] and not plt.get_fignums()


def test_figure_1_counts_and_marks_false_slices(predicted: Path) -> None:
    figures.extract("smoke")
    figure = figures.tgated_fig1("smoke")
    assert texts(figure)[:3] == ["3 slices, 0 false", "4 slices, 2 false", "4 slices, 1 false"]
    bold = [axis.get_title() for axis in figure.axes if axis.title.get_fontweight() == "bold"]
    assert set(bold) - {""} == {"z = 2", "z = 3", "z = 4"}
    note = figure.texts[0].get_text()
    assert "c3" in note and "median" in note and note.endswith("smoke profile: phantoms, not patients: not clinical")


def test_figure_1_of_another_organ_has_the_strips_alone(predicted: Path) -> None:
    figures.extract("smoke")
    assert len(figures.tgated_fig1("smoke").axes) == 1 + 3 * 8
    assert len(figures.tgated_fig1("smoke", "liver").axes) == 1


def test_figure_3_shows_the_dice_of_the_slice(predicted: Path) -> None:
    figures.extract("smoke")
    titles = texts(figures.tgated_fig3("smoke"))
    assert titles == ["Liver", "truth", "baseline 0.62", "adapter 0.88", "Pancreas", "truth", "baseline 0.25", "adapter 0.75"]


def test_without_extracts_there_is_one_sentence_that_says_what_to_run(home: Path) -> None:
    drawn = [draw for name, draw in FIGURES.items() if name not in ("doses", "spacings")]  # which read the scores alone
    for draw in [*drawn, figures.all_figures]:
        with pytest.raises(InputError, match=r"figure_data/\w+\.\w+ does not exist: run `make paper PROFILE=smoke`") as error:
            draw("smoke")
        assert not isinstance(error.value, figures.NotRun)  # only that is left out without a word
    assert not (home / "figures").exists()


def test_an_overlay_keeps_rows_first_and_takes_the_organs_colours() -> None:
    axis = plt.figure().subplots()
    labels = np.zeros((6, 9), np.uint8)
    labels[1:3, 1:4] = LIVER
    figures.slice_overlay(axis, np.full((6, 9), 128, np.uint8), labels, aspect=2)
    assert axis.get_ylim() == (5.5, -0.5) and axis.get_aspect() == 2
    drawn = axis.collections[1].get_edgecolor()
    assert plt.matplotlib.colors.to_hex(drawn[0]) == BY_KEY["liver"].colour
    plt.close("all")


def test_seeds_and_ablations_have_the_colour_of_their_method() -> None:
    assert figures.colour_of("adapter, seed 1") == figures.colour_of("adapter, no gate") == figures.COLOURS["adapter"]
    assert len(set(figures.COLOURS.values())) == len(figures.COLOURS)


def test_a_figure_is_the_same_whatever_the_user_s_matplotlibrc_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIGURES_ROOT", str(tmp_path))
    pictures = []
    for user in ({}, {"font.size": 19, "axes.grid": True, "savefig.dpi": 33, "savefig.bbox": "tight", "figure.autolayout": True}):
        with plt.rc_context(user):
            png = save(figures.tgated_fig1("demo"), "f", "demo")[0]
        pictures.append(png.read_bytes())
    assert pictures[0] == pictures[1]


def test_drawing_needs_no_torch() -> None:
    code = "import sys, lib.figures; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_figure_4_shows_the_mri_scan_in_the_middle_by_the_adapters_dice(predicted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = predicted.parents[2]
    scans = {"MR": [make_store(name, home, "AMOS22", "MR") for name in ("m1", "m2", "m3")], "CT": [make_store("c1", home)]}
    monkeypatch.setattr("lib.datasets.stores_of", lambda settings, dataset: scans["MR" if "MRI" in dataset else "CT"])
    folder = run_folder("adapter", "smoke") / "predictions" / "AMOS22 MRI"
    folder.mkdir()
    for store, shift in zip(scans["MR"], (1, 4, 2), strict=True):  # the label files are read as AMOS22's: id 1 is the spleen
        spleen = np.roll(truth() == LIVER, shift, 0).astype(np.uint16) << KEYS.index("spleen")
        np.savez_compressed(folder / f"{store.id}.npz", claims=store.grid.to_native(spleen))
    figures.extract_presence("smoke")
    figures.extract_gallery("smoke", mri_organ="spleen")
    entry = figures.gallery("smoke")["mri"]
    assert (entry["case"], entry["runs"], entry["cases"], entry["organ"]) == ("m3", ["truth", "adapter"], 3, "spleen")
    assert entry["z"] == [1, 2, 3, 4, 5, 6] and entry["dice"]["adapter"] == [0.75] * 6  # of slices 1 to 6; moved by 2 of 8 columns
    rows, columns = np.nonzero(entry["masks"][0, 0])
    assert rows.min() < entry["picture"].shape[1] // 2 and columns.min() == 2  # the patient's right is on the left
    figure = figures.tgated_fig4("smoke")
    assert len(figure.axes) == 3 * 6 and texts(figure) == [*(f"z = {z}" for z in range(1, 7)), *["0.75"] * 6]
    assert [axis.get_ylabel() for axis in figure.axes[::6]] == ["picture", "truth", "adapter"]
    assert "m3 of AMOS22 MRI (MRI)" in figure.texts[0].get_text().replace("\n", " ")


def test_without_an_mri_set_figure_4_says_so_and_without_the_organ_it_is_left_out(predicted: Path) -> None:
    figures.extract_presence("smoke")
    figures.extract_gallery("smoke", mri_organ="liver")
    assert "CT, for there is no MRI set" in figures.tgated_fig4("smoke").texts[0].get_text().replace("\n", " ")
    figures.extract_gallery("smoke", mri_organ="spleen")
    with pytest.raises(figures.NotRun, match="figure 4"):
        figures.tgated_fig4("smoke")


def test_a_figure_without_its_runs_is_left_out_and_says_why(predicted: Path) -> None:
    for path in run_folder("adapter", "smoke").rglob("*.*"):
        path.unlink()
    figures.extract("smoke")
    for draw in (figures.tgated_fig3, figures.gate_maps, figures.confusion, figures.gradient_audit):
        with pytest.raises(figures.NotRun, match="the smoke profile"):
            draw("smoke")
    names = {path.stem for path in figures.all_figures("smoke")}
    assert names == {"tgated_fig1", "tgated_fig2", "window_audit", "training_curves"}


def test_the_loss_of_dynunet_is_drawn_alone(home: Path) -> None:
    log = {"step": [1, 2], "loss": [4.0, 3.0], "gate": [None, None], "validation_dice": [0.1, 0.2]}
    for run in ("baseline", "dynunet"):
        run_folder(run, "smoke").mkdir(parents=True)
        pd.DataFrame(log).to_csv(run_folder(run, "smoke") / "log.csv", index=False)
    both, alone = figures.training_curves("smoke"), figures.training_curves("smoke", ("dynunet",))
    assert [len(axis.lines) for axis in both.axes] == [1, 2] and [len(axis.lines) for axis in alone.axes] == [1, 1]
    assert both.axes[1].lines[1].get_color() == figures.COLOURS["dynunet"]
    assert "DynUNet's loss" in both.texts[0].get_text() and "DynUNet" not in alone.texts[0].get_text()
