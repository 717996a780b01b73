"""tools.score, a trained run on any folder of scans; and runs on data sets that label some organs alone."""

import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from tiny import PARTS, tiny_settings
from trees import NNUNET, dataset_json, edit, touch, write_trees

from lib.config import settings_of
from lib.data import cases_of, organs_shown, stores_of
from lib.files import InputError
from lib.organs import KEYS, LABEL_MAPS, labelled
from lib.training import run, trained, volume_dice
from tools.score import main, paired


def test_a_run_on_one_organ_alone_asks_for_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The right kidney, which a flip would make the left one; one of two training scans lacks it, and the
    test scan, where it is scored all the same."""
    monkeypatch.setenv("DATA_ROOT", str(write_trees(tmp_path, 24, 8, {"BTCV": range(1, 5)})))
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path / "results"))
    changes = {"phantoms": False, "train_on": "BTCV", "test_on": ("BTCV",), "cases": (2, 1, 1), "flip": True}
    settings = tiny_settings("adapter", **changes)
    for path in (tmp_path / "BTCV/RawData/Training/label").iterdir():
        edit(path, lambda ids: np.where(ids == 2, 2, 0))
    for case in (cases_of(settings, "training")[1], *cases_of(settings, "BTCV")):
        edit(case.labels, np.zeros_like)
    scores = run("adapter", settings, *PARTS["adapter"])
    others = ", ".join(key for key in KEYS if key != "right kidney")
    told = f"adapter: No label file of BTCV shows {others}: neither asked for nor scored anywhere."
    assert told in capsys.readouterr().out.splitlines() and [*scores["organ"]] == ["right kidney"]
    assert (scores["truth_voxels"] == 0).all() and (scores["dice"] == 0).all()
    stores, model = stores_of(settings, "validation"), trained("adapter", settings, *PARTS["adapter"])
    alone = volume_dice(model, stores, replace(settings, organs=("right kidney",)))
    assert 0 < alone == volume_dice(model, stores, settings)


def test_names_in_dataset_json_and_label_files_decide_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_ROOT", str(write_trees(tmp_path, 16, 6, {"FLARE22": range(1, 3)}, NNUNET)))
    dataset_json(tmp_path / "Dataset022_FLARE22", {"background": 0, "liver": 1, "spleen": 2})
    for path in (tmp_path / "Dataset022_FLARE22/labelsTr").iterdir():
        edit(path, lambda ids: (ids == 1).astype(int))
    assert organs_shown(settings_of("baseline", "full"), "FLARE22") == ("liver",)
    assert organs_shown(settings_of("baseline", "full"), "BTCV") == labelled("BTCV"), "not here: all of them"
    assert organs_shown(settings_of("baseline", "smoke"), "site B") == KEYS


def test_a_trained_run_is_scored_on_a_folder_as_on_its_own_test_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two scans, named as nnU-Net does, with BTCV's ids, one has trained the run; none shows a spleen."""
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path / "results"))
    settings = tiny_settings("adapter", test_on=("site A",))
    given = {"RUN": "adapter", "PROFILE": "smoke", "IDS": "BTCV", "NAME": "clinic"}
    for name, value in (given | {key: str(tmp_path / key) for key in ("IMAGES", "LABELS")}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="holds no trained model: train it by `make paper PROFILE=smoke`"):
        main()
    expected = run("adapter", settings, *PARTS["adapter"]).set_index("organ")
    touch(tmp_path, "IMAGES/.DS_Store", "LABELS/._label3.nii.gz")
    theirs = np.zeros(14, int)
    ids, ours = zip(*((i, ours) for i, ours in LABEL_MAPS["BTCV"].items() if ours and i > 1), strict=True)
    theirs[[*ours]] = ids
    for number, part in ((3, "site A"), (12, "training")):
        case = cases_of(settings, part)[0]
        shutil.copy(case.image, tmp_path / f"IMAGES/img{number:04d}_0000.nii.gz")
        shutil.copy(case.labels, labels := tmp_path / f"LABELS/label{number}.nii.gz")
        edit(labels, lambda ids: theirs[ids])
    splits = pd.read_csv(path := tmp_path / "results/smoke/splits.csv")
    splits.drop(columns="fold").to_csv(path, index=False)
    with pytest.raises(SystemExit, match=r"splits\.csv is a table of other columns: move it away, and run"):
        main()
    # another fold learned from all
    pd.concat([splits, splits.assign(fold=1, part="training")]).to_csv(path, index=False)
    with monkeypatch.context() as other, pytest.raises(SystemExit, match="'site B' is a data set of"):
        other.setenv("NAME", "site B")
        main()
    main()
    scores = pd.read_csv(tmp_path / "results/smoke/scores.csv", dtype={"config": str})
    rows = scores[scores["dataset"] == "clinic"].set_index("organ")
    assert {*KEYS} - {*rows.index} == {"esophagus", "spleen", "duodenum"} and {*rows["case"]} == {"img0003"}
    for column in ("dice", "nsd", "predicted_voxels"):
        own = expected.loc[rows.index, column].to_numpy()
        assert rows[column].to_numpy() == pytest.approx(own, nan_ok=True, rel=1e-5)
    assert {*scores["config"]} == {settings.hash()} and "site A" in {*scores["dataset"]}
    first, *_, missing, result = capsys.readouterr().out.splitlines()
    assert first == "adapter learned from 1 of 2 scans, which are left out: img0012"
    assert missing.endswith("shows them: spleen, esophagus, duodenum")
    assert " 10 organs on 1 case of clinic" in result


@pytest.mark.parametrize(
    ("images", "labels", "why"),
    [(("a1", "b1"), ("s1",), "b1.nii has s1.nii in .* for its labels: give an image and its labels one name"),
     (("a1",), ("s1", "t01"), "has s1.nii, t01.nii in"), (("a",), ("b",), "has no file in"),
     ((), ("a",), "holds no .nii")],
)
def test_images_and_labels_that_do_not_pair_are_one_sentence(
    images: tuple[str, ...], labels: tuple[str, ...], why: str, tmp_path: Path
) -> None:
    touch(tmp_path, *(f"labels/{name}.nii" for name in labels), "images/notes.txt")
    air = nib.Nifti1Image(np.full((4, 4, 4), -1000, np.int16), np.eye(4))
    for name in images:
        nib.save(air, tmp_path / f"images/{name}.nii")
    with pytest.raises(InputError, match=why):
        paired(tmp_path / "images", tmp_path / "labels", "BTCV", "CT")
