"""lib.datasets.export: splits as nnU-Net raw data sets, which our own reader takes back, and nnU-Net's rules for dataset.json."""

import json
from pathlib import Path

import numpy as np
import pytest

from lib.datasets import cases_of, find_cases
from lib.datasets.export import export, label_names, main
from lib.paths import InputError
from lib.profiles import settings_of
from lib.volumes import read_labels, read_scan
from proof.trees import write_trees


@pytest.fixture(autouse=True)
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_ROOT", str(tmp_path / "cache"))
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setenv("PROFILE", "smoke")


def by_nnunet_s_rules(out: Path) -> dict:
    """dataset.json, after the checks that nnU-Net v2 makes of a raw data set before it plans."""
    value = json.loads((out / "dataset.json").read_text())
    labels = list(value["labels"].values())
    assert value["labels"]["background"] == 0 and sorted(labels) == list(range(len(labels))), "consecutive from 0"
    assert list(value["channel_names"]) == ["0"] and value["file_ending"] == ".nii.gz"
    images, truths = ({path.name for path in (out / f"{kind}Tr").glob("*")} for kind in ("images", "labels"))
    assert images == {name.replace(".nii.gz", "_0000.nii.gz") for name in truths} and value["numTraining"] == len(truths)
    return value


def test_a_whole_split_goes_out_and_comes_back(tmp_path: Path) -> None:
    out, settings = tmp_path / "nnUNet_raw" / "Dataset022_FLARE22", settings_of("baseline", "smoke")
    export("FLARE22", ["training", "validation", "test"], out)
    value = by_nnunet_s_rules(out)
    assert value["numTraining"] == 3 and value["channel_names"] == {"0": "CT"} and len(value["labels"]) == 14
    parts = {part: cases_of(settings, part) for part in ("training", "validation", "FLARE22")}
    ids = {part: [case.id for case in cases] for part, cases in parts.items()}
    assert json.loads((out / "splits_final.json").read_text()) == [{"train": ids["training"], "val": ids["validation"]}]
    assert [path.name for path in (out / "imagesTs").iterdir()] == [f"{ids['FLARE22'][0]}_0000.nii.gz"]
    back = {case.id[-4:]: case for case in find_cases("FLARE22", out)}
    for case in parts["training"] + parts["validation"]:
        twin = back[case.id[-4:]]
        assert twin.label_map == "FLARE22" and twin.image.is_symlink() and twin.labels is not None and case.labels is not None
        (voxels, grid), (others, _) = read_scan(case.image), read_scan(twin.image)
        np.testing.assert_array_equal(voxels, others)
        np.testing.assert_array_equal(read_labels(case.labels, case.label_map, grid), read_labels(twin.labels, twin.label_map, grid))


def test_parts_add_to_each_other_and_another_data_set_does_not(tmp_path: Path) -> None:
    out = tmp_path / "Dataset022_FLARE22"
    assert export("FLARE22", ["training"], out)["numTraining"] == 2
    assert not (out / "splits_final.json").exists()
    assert export("FLARE22", ["validation"], out)["numTraining"] == 3
    assert export("FLARE22", ["test"], out)["numTraining"] == 3
    by_nnunet_s_rules(out)
    with pytest.raises(InputError, match="describes another data set"):
        export("BTCV", ["test"], out)


def test_every_data_set_names_all_its_ids(tmp_path: Path) -> None:
    for number, (dataset, channel, count) in enumerate((("BTCV", "CT", 14), ("AMOS22 CT", "CT", 16), ("AMOS22 MRI", "MRI", 16)), 100):
        value = export(dataset, ["test"], tmp_path / f"Dataset{number}_X")
        assert value["channel_names"] == {"0": channel} and sorted(value["labels"].values()) == list(range(count))
    assert label_names("BTCV")["portal vein and splenic vein"] == 10 and "duodenum" not in label_names("BTCV")
    assert export("BTCV", ["training", "validation"], tmp_path / "Dataset017_BTCV")["numTraining"] == 3, "Med-VLM's split"


def test_uncompressed_scans_are_compressed(tmp_path: Path) -> None:
    write_trees(tmp_path / "data", 16, 4, {"BTCV": range(1, 11)}, suffix=".nii")
    out = tmp_path / "Dataset017_BTCV"
    assert len(export("BTCV", ["test"], out, "full")["labels"]) == 14
    image = out / "imagesTs/BTCV_0007_0000.nii.gz"
    assert not image.is_symlink() and image.read_bytes()[:2] == b"\x1f\x8b"
    np.testing.assert_array_equal(read_scan(image)[0], read_scan(tmp_path / "data/BTCV/RawData/Training/img/img0007.nii")[0])


@pytest.mark.parametrize(
    ("dataset", "part", "out", "why"),
    [
        ("FLARE22", "train", "Dataset022_FLARE22", "'train' is no part of a split: choose from training, validation, test"),
        ("AMOS22 CT", "training", "Dataset022_AMOS", "trains no model here"),
        ("FLARE22", "training", "FLARE22", "let OUT end in DatasetNNN_NAME"),
        ("Synapse", "test", "Dataset022_Synapse", "is no data set"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(
    dataset: str, part: str, out: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["export", dataset, part, str(tmp_path / "raw" / out)])
    with pytest.raises(SystemExit, match=why) as ended:
        main()
    assert "\n" not in str(ended.value.code) and str(ended.value.code).endswith(".") and not (tmp_path / "raw").exists()
