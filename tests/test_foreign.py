"""lib.foreign: label maps that another tool has drawn get the scores, the row and the errors that they should."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from lib import foreign
from lib.datasets import Case, cases_of
from lib.foreign import label_map_of, score_label_maps
from lib.organs import BY_KEY, LABEL_MAPS, ORGANS, labelled
from lib.paths import InputError
from lib.profiles import settings_of
from lib.report import read_scores, tgated_table2, tgated_table5
from lib.runs import merge_scores


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def roots(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_ROOT", str(cache))
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path / "results"))
    monkeypatch.setenv("PROFILE", "smoke")


def case_of(dataset: str) -> Case:
    return cases_of(settings_of("baseline", "smoke"), dataset)[0]


def theirs(dataset: str, folder: Path, ids: str, name: str = "", change: dict[int, int] | None = None) -> Path:
    """A tool's label map of the test case: the truth in other ids, with some of our labels changed. Returns the folder."""
    case = case_of(dataset)
    truth = nib.load(case.labels)
    ours = np.vectorize(LABEL_MAPS[case.label_map].get)(np.asanyarray(truth.dataobj)).astype(np.uint8)
    for old, new in (change or {}).items():
        ours[ours == old] = new
    back = {label: i for i, label in LABEL_MAPS[ids].items() if label} | {0: 0}
    folder.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(np.vectorize(back.get)(ours).astype(np.uint8), truth.affine), folder / f"{name or case.id}.nii.gz")
    return folder


@pytest.mark.parametrize(
    ("dataset", "ids"), [("FLARE22", "TotalSegmentator"), ("BTCV", "BTCV"), ("AMOS22 MRI", "FLARE22"), ("AMOS22 CT", "AMOS22")]
)
def test_a_perfect_label_map_scores_one_in_any_ids(dataset: str, ids: str, tmp_path: Path) -> None:
    table = score_label_maps("tool", dataset, theirs(dataset, tmp_path / "maps", ids), ids, jobs=1)
    assert set(table["organ"]) == set(labelled(case_of(dataset).label_map)) & set(labelled(ids))
    assert (table.loc[table["truth_voxels"] > 0, "dice"] == 1).all() and table["config"].str.startswith("labels-").all()
    stored = pd.read_csv(tmp_path / "results/smoke/scores.csv")
    assert len(stored) == len(table) and set(stored["run"]) == {"tool"} and stored["case"].unique().tolist() == [case_of(dataset).id]


def test_a_lost_and_a_doubled_organ_score_as_they_must(tmp_path: Path) -> None:
    spleen, liver = BY_KEY["spleen"].label, BY_KEY["liver"].label
    folder = theirs("FLARE22", tmp_path / "maps", "FLARE22", change={spleen: liver})
    rows = score_label_maps("tool", "FLARE22", folder, jobs=1).set_index("organ")
    truth = rows["truth_voxels"]
    assert rows.loc["spleen", "dice"] == 0 and rows.loc["spleen", "predicted_voxels"] == 0
    assert rows.loc["liver", "dice"] == pytest.approx(2 * truth["liver"] / (2 * truth["liver"] + truth["spleen"]))
    assert (rows["dice"].drop(["spleen", "liver"]).dropna() == 1).all()


def test_the_names_in_nnunet_s_dataset_json_count_where_it_lies_beside_the_label_maps(tmp_path: Path) -> None:
    """nnU-Net writes it there; an nnU-Net of BTCV has no duodenum, so none is scored on FLARE22."""
    folder = theirs("FLARE22", tmp_path / "maps", "BTCV", change={BY_KEY["duodenum"].label: 0})
    names = {"background": 0} | {organ.key: i for i, label in LABEL_MAPS["BTCV"].items() for organ in ORGANS if organ.label == label}
    (folder / "dataset.json").write_text(json.dumps({"labels": names}))
    table = score_label_maps("nnunet", "FLARE22", folder, jobs=1)
    assert "duodenum" not in set(table["organ"]) and (table["dice"].dropna() == 1).all()


def test_a_label_map_is_found_by_the_names_that_tools_give_it(tmp_path: Path) -> None:
    case = Case("BTCV_0001", Path("img/img0001.nii.gz"), Path("label/label0001.nii.gz"), "BTCV")
    flare = Case("FLARE22_Tr_0001", Path("images/FLARE22_Tr_0001_0000.nii.gz"), Path("labels/FLARE22_Tr_0001.nii.gz"))
    for owner, name in (
        (case, "BTCV_0001.nii.gz"),
        (case, "img0001.nii"),
        (case, "label0001.nii.gz"),
        (flare, "FLARE22_Tr_0001_0000.nii.gz"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).touch()
        assert label_map_of(owner, folder) == folder / name
    with pytest.raises(InputError, match="has no label map of BTCV_0001: put one there under one of the names") as caught:
        label_map_of(case, tmp_path)
    assert "img0001.nii.gz" in str(caught.value)


def test_bad_label_maps_are_one_sentence_and_change_no_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = theirs("FLARE22", tmp_path / "maps", "FLARE22")
    path = good / f"{case_of('FLARE22').id}.nii.gz"
    score_label_maps("tool", "FLARE22", good, jobs=1)
    scores = tmp_path / "results/smoke/scores.csv"
    before, image = scores.read_bytes(), nib.load(path)
    voxels = np.asanyarray(image.dataobj)
    for array, affine, why in (
        (voxels[1:], image.affine, "resample the labels to the scan's grid"),
        (voxels, image.affine + np.eye(4, k=3) * 20, "voxels off its scan"),
        (voxels + 77, image.affine, "does not know"),
    ):
        nib.save(nib.Nifti1Image(array, affine), path)
        monkeypatch.setattr("sys.argv", ["foreign", "tool", "FLARE22", str(good)])
        with pytest.raises(SystemExit, match=why) as ended:
            foreign.main()
        assert str(path) in str(ended.value.code) and "\n" not in str(ended.value.code)
    for name, dataset, folder, ids, why in (
        ("adapter", "FLARE22", good, "", "names a run of our own"),
        ("", "FLARE22", good, "", "names nothing"),
        ("tool", "FLARE22", tmp_path / "nowhere", "", "has no label map of"),
        ("tool", "FLARE22", good, "Synapse", "'Synapse' is no label map"),
        ("tool", "Synapse", good, "", "is no data set"),
    ):
        with pytest.raises(InputError, match=why):
            score_label_maps(name, dataset, folder, ids, jobs=1)
    assert scores.read_bytes() == before


def test_the_tables_show_it_as_a_row_of_its_own(tmp_path: Path) -> None:
    score_label_maps("nnunet", "FLARE22", theirs("FLARE22", tmp_path / "ct", "FLARE22"), jobs=1)
    score_label_maps("nnunet", "BTCV", theirs("BTCV", tmp_path / "btcv", "FLARE22"), jobs=1)
    score_label_maps("nnunet", "AMOS22 MRI", theirs("AMOS22 MRI", tmp_path / "mri", "TotalSegmentatorMR"), "TotalSegmentatorMR", jobs=1)
    ours = score_label_maps("nnunet", "BTCV", theirs("BTCV", tmp_path / "btcv", "FLARE22"), jobs=1).assign(
        run="adapter", config="0123456789ab"
    )
    merge_scores(ours, tmp_path / "results/smoke")
    scores = read_scores("smoke")
    assert scores.groupby("run")["dataset"].unique().map(sorted).to_dict() == {
        "adapter": ["BTCV"],
        "nnunet": ["AMOS22 MRI", "BTCV", "FLARE22"],
    }
    table = tgated_table2(scores).set_index("method")
    assert table.loc["nnunet", ["FLARE22 measured", "BTCV measured"]].tolist() == [1, 1] and np.isnan(
        table.loc["nnunet", "FLARE22 published"]
    )
    assert table.loc["nnunet", "scores"] == "label maps from elsewhere" and table.index.tolist()[-1] == "nnunet"
    assert tgated_table5(scores).set_index("method").loc["nnunet", "AMOS22 MRI measured"] == 1
