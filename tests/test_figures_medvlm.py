"""lib/figures/medvlm.py: extracts of made-up logs and masks, and the figures that are drawn from them alone."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_figures import LIVER, make_store, texts, truth

from lib import figures
from lib.figures.medvlm import COLUMNS, CURVES, GALLERY, PARAMETERS, SHOWN, TITLES
from lib.organs import BY_KEY, KEYS
from lib.paths import InputError
from lib.profiles import HEADLINE, MEDVLM_HEADLINE, run_folder, settings_of

pytestmark = pytest.mark.filterwarnings("error")
SPLEEN = BY_KEY["spleen"].label
LOG = {"step": [2, 3, 5, 6], "epoch": [0, 1, 1, 2], "loss": [1.2, 0.9, 0.7, 0.1 + 0.2], "gate": [None] * 4, "lr": [1e-3] * 4}
LOG |= {"validation_dice": [None, 0.3, None, 0.4], "validation_loss": [None, 1.0, None, 0.8], "training_dice": [None, 0.5, None, 0.7]}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the extracts."""
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path / "results"))
    monkeypatch.setenv("FIGURES_ROOT", str(tmp_path / "figures"))
    return tmp_path / "results" / "smoke" / "figure_data"


def train(run: str, finished: bool = True, **columns: object) -> None:
    """Stands in for a training: its log, and what marks a finished run."""
    folder = run_folder(run, "smoke")
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(LOG | columns).to_csv(folder / "log.csv", index=False)
    (folder / "config.json").write_text(json.dumps({"finished": settings_of(run, "smoke").hash()} if finished else {}))
    (folder / "best.safetensors").touch()


def labels() -> np.ndarray:
    """Canonical labels: the liver as in `truth`, whose largest area comes first in slice 2, and a spleen that is largest in slice 5."""
    ids = truth()
    ids[ids != LIVER] = 0
    ids[18:22, 12:16, 3:6] = SPLEEN
    ids[17, 12:16, 5] = SPLEEN
    return ids


@pytest.fixture
def tested(data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Predictions of two runs for three scans: all masks moved to the patient's left by 2, 0 and 1 of the liver's 8 columns."""
    stores = [make_store(name, data.parents[2]) for name in ("c1", "c2", "c3")]
    asked: list[str] = []
    monkeypatch.setattr("lib.datasets.stores_of", lambda settings, dataset: asked.append(settings.model) or stores)
    monkeypatch.setattr("lib.volumes.read_labels", lambda *of: labels())
    for run in ("med-vlm small", "unet"):
        folder = run_folder(run, "smoke") / "predictions" / "BTCV held out"
        folder.mkdir(parents=True)
        for store, shift in zip(stores, (2, 0, 1), strict=True):
            found = np.zeros(labels().shape, np.uint16)
            for key in ("liver", "spleen"):
                found |= np.roll(labels() == BY_KEY[key].label, shift, 0).astype(np.uint16) << KEYS.index(key)
            np.savez_compressed(folder / f"{store.id}.npz", claims=store.grid.to_native(found))
    figures.extract_medvlm_gallery("smoke")
    assert set(asked) == {"unet"}, "the baseline's split has no held-out scans of BTCV"
    return data


def note(figure: figures.medvlm.Figure) -> str:
    return figure.texts[0].get_text().replace("\n", " ")


def test_the_curves_are_those_of_all_finished_runs_and_seeds(data: Path) -> None:
    figures.extract_medvlm_curves("smoke")
    assert (data / CURVES).read_text() == ",".join(COLUMNS) + "\n"
    for run in ("unet, seed 2", "med-vlm small, 3 cases", "med-vlm large", "baseline"):
        train(run)
    train("unet", finished=False)
    figures.extract_medvlm_curves("smoke")
    table = pd.read_csv(data / CURVES)
    assert list(table) == COLUMNS and list(table["run"].unique()) == ["med-vlm large", "unet, seed 2", "med-vlm small, 3 cases"]
    assert table["bce"].isna().all() and list(table["loss"][:4]) == LOG["loss"]


def test_curves_of_runs_that_are_not_trained_here_stay_as_they_are(data: Path) -> None:
    for run in ("med-vlm small", "unet", "unet, 3 cases"):
        train(run, loss=[1 / 3, 2 / 3, 0.1, 1e-17])
    figures.extract_medvlm_curves("smoke")
    before = (data / CURVES).read_bytes()
    assert b",0.3333333333333333," in before and b",1e-17," in before
    for run in ("med-vlm small", "unet", "unet, 3 cases"):
        for path in run_folder(run, "smoke").iterdir():
            path.unlink()
    figures.extract_medvlm_curves("smoke")
    assert (data / CURVES).read_bytes() == before, "a clone loses nothing"
    train("unet", loss=[9.0] * 4)
    train("unet, 3 cases", finished=False, loss=[8.0] * 4)
    figures.extract_medvlm_curves("smoke")
    losses = pd.read_csv(data / CURVES).groupby("run", sort=False)["loss"].first().to_dict()
    assert losses == {"med-vlm small": 1 / 3, "unet": 9.0, "unet, 3 cases": 1 / 3}, "new rows in the place of the old, in order"
    assert list(losses) == ["med-vlm small", "unet", "unet, 3 cases"]
    again = (data / CURVES).read_bytes()
    figures.extract_medvlm_curves("smoke")
    assert (data / CURVES).read_bytes() == again


def test_parameters_are_counted_at_both_sizes(data: Path) -> None:
    figures.extract_medvlm_parameters("smoke")
    table = pd.read_csv(data / PARAMETERS).set_index(["run", "scope"])
    assert list(table) == ["trainable", "frozen"] and list(table.index) == [(run, scope) for scope in ("full", "smoke") for run in TITLES]
    millions = table.loc[[(run, "full") for run in TITLES]].div(1e6).round(1).to_numpy().tolist()
    assert millions == [[53.3, 193.5], [3.0, 28.1], [7.8, 0.0]]  # the paper's Table 2: 53, 194; 2.9, 28; 7.7, 0
    assert table.loc[("unet", "smoke")].tolist() == [12423, 0] and table.loc[("med-vlm small", "smoke"), "frozen"] > 2e7  # MiniLM's


def test_the_slice_is_the_largest_of_the_scan_in_the_middle(tested: Path) -> None:
    with np.load(tested / GALLERY) as file:
        entries, arrays = json.loads(str(file["about"])), {name: file[name] for name in file.files}
    assert list(entries) == ["med-vlm small, spleen", "med-vlm small, liver", "unet, spleen and liver"]
    assert {entry["case"] for entry in entries.values()} == {"c3"} and {entry["cases"] for entry in entries.values()} == {3}
    spleen, liver, both = entries.values()
    assert (spleen["z"], liver["z"], both["z"]) == (5, 2, 5)
    assert spleen["dice"] == {"spleen": 0.8} and liver["dice"] == {"liver": 0.875} and both["dice"] == {"spleen": 0.8, "liver": 0.875}
    masks = arrays["unet, spleen and liver.masks"][:, 0]
    assert [int(mask.sum()) for mask in masks] == [20, 40, 20, 40]  # truth of both organs, then what was found
    (rows, columns), (_, others) = (np.nonzero(mask) for mask in masks[:2])
    assert rows.min() > masks.shape[1] // 2 and columns.min() > others.max()  # the spleen: at the back, on the patient's left
    found = np.nonzero(masks[2])[1]
    assert found.min() == columns.min() + 1


def test_scans_without_an_organ_are_not_shown(tested: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib.volumes.read_labels", lambda *of: np.where(labels() == LIVER, LIVER, 0).astype(np.uint8))
    figures.extract_medvlm_gallery("smoke")
    with np.load(tested / GALLERY) as file:
        assert list(json.loads(str(file["about"]))) == ["med-vlm small, liver"]
    with pytest.raises(figures.NotRun, match="'unet' has no slice of spleen and liver to show in the smoke profile"):
        figures.medvlm_slice("smoke", "unet")


def test_an_organ_that_is_not_in_the_slice_has_no_dice(tested: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = labels()
    ids[:, 10:, 4:] = 0  # the spleen is left in slice 3 alone, and the liver is largest elsewhere, too
    ids[2:10, 3:9, 1] = LIVER
    monkeypatch.setattr("lib.volumes.read_labels", lambda *of: ids)
    figures.extract_medvlm_gallery("smoke")
    assert texts(figures.medvlm_slice("smoke", "unet"))[2].startswith("2D U-Net: spleen 0.")
    ids[2:10, 3:15, 1] = LIVER
    figures.extract_medvlm_gallery("smoke")
    assert texts(figures.medvlm_slice("smoke", "unet"))[2] == "2D U-Net: no spleen, liver 0.35"


def test_figures_4_to_8_show_the_dice_and_say_how_the_slice_was_chosen(tested: Path) -> None:
    names = [f"medvlm_fig{place}" for place in range(4, 9)]
    drawn = {name: figures.MEDVLM_FIGURES[name] for name in names}
    assert len(drawn) == len(SHOWN)
    for name in names[:2]:
        with pytest.raises(figures.NotRun, match="'med-vlm large' has no slice"):
            drawn[name]("smoke")
    assert texts(drawn["medvlm_fig7"]("smoke")) == ["picture", "truth", "Med-VLM Small: liver 0.88"]
    figure = drawn["medvlm_fig8"]("smoke")
    assert texts(figure) == ["picture", "truth", "2D U-Net: spleen 0.80, liver 0.88"]
    assert "that show both (n = 3), the one with this model's (lower) median Dice (0.82, whole scan)" in note(figure)
    assert "after its last epoch (2) in c3" in note(figure) and "z = 5" in note(figure)
    colours = [collection.get_facecolor()[0][:3] for collection in figure.axes[1].collections[::2]]
    wanted = [figures.pages.mpl.colors.to_rgb(BY_KEY[key].colour) for key in ("liver", "spleen")]
    np.testing.assert_allclose(colours, wanted)
    assert not figure.axes[0].collections and figure.axes[0].get_aspect() == 0.75


def test_the_curves_stand_over_the_epoch_with_the_published_values(data: Path) -> None:
    train("unet")
    figure = figures.medvlm_curves("smoke", "unet")
    left, right = figure.axes
    np.testing.assert_allclose(left.lines[0].get_xdata(), [2 / 3, 1, 5 / 3, 2])
    assert list(left.lines[1].get_xdata()) == [1, 2]
    assert [list(line.get_ydata()) for line in right.lines] == [[0.5, 0.7], [0.3, 0.4], [0.38] * 2, [0.24] * 2]
    assert texts(figure) == ["published,\ntraining 0.38", "published,\nvalidation 0.24"]
    assert "over 2 epochs" in note(figure) and "held-out scans (n = 1)" in note(figure) and "loss (cross-entropy plus" in note(figure)
    assert right.lines[1].get_color() == right.lines[3].get_color() == figures.COLOURS["unet"]
    figures.extract_medvlm_curves("smoke")
    for path in run_folder("unet", "smoke").iterdir():
        path.unlink()
    assert texts(figures.MEDVLM_FIGURES["medvlm_fig3"]("smoke")) == texts(figure), "from the extract alone"
    with pytest.raises(figures.NotRun, match="med-vlm large"):
        figures.MEDVLM_FIGURES["medvlm_fig1"]("smoke")


def test_a_run_without_a_whole_epoch_has_no_curves(data: Path) -> None:
    train("unet", finished=False, validation_dice=[None] * 4)
    with pytest.raises(figures.NotRun, match="'unet' has not trained for an epoch"):
        figures.medvlm_curves("smoke", "unet")


def test_overfitting_has_a_point_for_each_seed_and_a_line_through_their_means(data: Path) -> None:
    train("unet")
    train("unet, seed 1", validation_dice=[None, 0.3, None, 0.6])
    figures.extract_medvlm_curves("smoke")
    with pytest.raises(figures.NotRun, match="fewer training scans"):
        figures.medvlm_overfitting("smoke")
    train("unet, 3 cases", validation_dice=[None, 0.3, None, 0.1])  # of the smoke profile: one
    figures.extract_medvlm_curves("smoke")
    figure = figures.medvlm_overfitting("smoke")
    points, line, _ = figure.axes[0].lines[3:]
    assert sorted(zip(points.get_xdata(), points.get_ydata(), strict=True)) == [(1, 0.1), (2, 0.4), (2, 0.6)]
    assert list(line.get_xdata()) == [1, 2] and list(line.get_ydata()) == [0.1, 0.5]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["2D U-Net, training", "2D U-Net, held out"]
    assert list(figure.axes[0].get_xticks()) == [1, 2] and "the same 1 scans throughout" in note(figure)


def test_without_its_extract_a_figure_says_what_to_run(data: Path) -> None:
    for draw in figures.MEDVLM_FIGURES.values():
        with pytest.raises(InputError, match=r"figure_data/medvlm_\w+\.\w+ does not exist: run `make paper PROFILE=smoke`") as error:
            draw("smoke")
        assert not isinstance(error.value, figures.NotRun)


def test_the_case_of_figure_1_is_still_chosen_by_the_baseline() -> None:
    """`median_case` takes the runs in the order of COLOURS."""
    assert list(figures.COLOURS)[: 1 + len(HEADLINE)] == ["truth", *HEADLINE]
    assert set(MEDVLM_HEADLINE) <= set(figures.COLOURS)
