"""tools.nnunet: splits as nnU-Net's raw data sets, its commands (fakes stand in for them), and scores of
label maps that another tool has drawn."""

import gzip
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from unittest.mock import Mock

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from trees import NNUNET, dataset_json, touch, touch_cases, write_trees

from lib.config import settings_of
from lib.data import Case, cases_of, find_cases
from lib.files import ROOT, InputError, merge_csv
from lib.metrics import KEY
from lib.organs import BY_KEY, LABEL_MAPS, ORGANS, labelled
from lib.volumes import read_labels, read_scan
from tools import nnunet
from tools.nnunet import export, label_map_of, label_names, main, score
from tools.score import OPTIONS as SCORED
from tools.segment import OPTIONS


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def roots(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_ROOT", str(cache))
    for name in ("DATA_ROOT", "RESULTS_ROOT"):
        monkeypatch.setenv(name, str(tmp_path / name[:-5].lower()))
    monkeypatch.setenv("PROFILE", "smoke")


# Export


def by_nnunet_s_rules(out: Path) -> dict:
    """dataset.json, after the checks that nnU-Net v2 makes of a raw data set before it plans."""
    value = json.loads((out / "dataset.json").read_text())
    labels = list(value["labels"].values())
    assert value["labels"]["background"] == 0
    assert sorted(labels) == list(range(len(labels))), "consecutive from 0"
    assert list(value["channel_names"]) == ["0"] and value["file_ending"] == ".nii.gz"
    assert value["overwrite_image_reader_writer"] == "NibabelIOWithReorient"
    images, truths = ({path.name for path in (out / f"{kind}Tr").glob("*")} for kind in ("images", "labels"))
    assert images == {name.replace(".nii.gz", "_0000.nii.gz") for name in truths}
    assert value["numTraining"] == len(truths)
    return value


def test_a_whole_split_goes_out_and_comes_back(tmp_path: Path) -> None:
    out, settings = tmp_path / "nnUNet_raw" / "Dataset022_FLARE22", settings_of("baseline", "smoke")
    export("site A", ["training", "validation", "test"], out, "smoke")
    value = by_nnunet_s_rules(out)
    assert value["numTraining"] == 3 and value["channel_names"] == {"0": "CT"} and len(value["labels"]) == 14
    parts = {part: cases_of(settings, part) for part in ("training", "validation", "site A")}
    ids = {part: [case.id for case in cases] for part, cases in parts.items()}
    folds = [{"train": ids["training"], "val": ids["validation"]}]
    assert json.loads((out / "splits_final.json").read_text()) == folds
    assert [path.name for path in (out / "imagesTs").iterdir()] == [f"{ids['site A'][0]}_0000.nii.gz"]
    back = {case.id[-4:]: case for case in find_cases("FLARE22", out)}
    for case in parts["training"] + parts["validation"]:
        twin = back[case.id[-4:]]
        assert twin.label_map == "FLARE22" and twin.image.is_symlink() and twin.labels and case.labels
        (voxels, grid), (others, _) = read_scan(case.image), read_scan(twin.image)
        np.testing.assert_array_equal(voxels, others)
        truths = [read_labels(one.labels, one.label_map, grid) for one in (case, twin)]
        np.testing.assert_array_equal(*truths)


def test_every_data_set_names_all_its_ids(tmp_path: Path) -> None:
    for site, channel, count in (("B", "CT", 14), ("C", "CT", 16), ("M", "MRI", 16)):
        value = export(f"site {site}", ["test"], tmp_path / f"Dataset100_{site}", "smoke")
        assert value["channel_names"] == {"0": channel}
        assert sorted(value["labels"].values()) == list(range(count))
    assert label_names("BTCV")["portal vein and splenic vein"] == 10 and "duodenum" not in label_names("BTCV")
    value = export("site B", ["training", "validation"], tmp_path / "Dataset017_BTCV", "smoke")
    assert value["numTraining"] == 3, "Med-VLM's split"


def test_uncompressed_scans_are_compressed(tmp_path: Path) -> None:
    write_trees(tmp_path / "data", 16, 4, {"BTCV": range(1, 11)}, suffix=".nii")
    out = tmp_path / "Dataset017_BTCV"
    assert len(export("BTCV", ["test"], out, "full")["labels"]) == 14
    image = out / "imagesTs/BTCV_0007_0000.nii.gz"
    assert not image.is_symlink() and image.read_bytes()[:2] == b"\x1f\x8b"
    source = tmp_path / "data/BTCV/RawData/Training/img/img0007.nii"
    np.testing.assert_array_equal(read_scan(image)[0], read_scan(source)[0])


def test_what_is_there_stays(tmp_path: Path) -> None:
    """An earlier export, a file, a link to nowhere, and the data set itself."""
    out, parts = tmp_path / "Dataset022_FLARE22", ["training"]
    export("site A", parts, out, "smoke")
    (tmp_path / "Dataset001_File").write_text("theirs")
    (tmp_path / "Dataset002_Gone").symlink_to(tmp_path / "gone")
    before = [(path, path.stat().st_mtime_ns) for path in out.rglob("*")]
    for name in (out.name, "Dataset001_File", "Dataset002_Gone"):
        with pytest.raises(InputError, match=rf"{name} is there already, and is left as it is: .* by OUT\.$"):
            export("site A", parts, tmp_path / name, "smoke")
    assert [(path, path.stat().st_mtime_ns) for path in out.rglob("*")] == before
    assert (tmp_path / "Dataset001_File").read_text() == "theirs"


@pytest.mark.parametrize("links", [True, False])
def test_a_killed_export_leaves_nothing_by_its_name_and_is_made_anew(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:
        monkeypatch.setattr(Path, "symlink_to", Mock(side_effect=OSError("no links here")))
    out, parts, place = tmp_path / "Dataset022_FLARE22", ["training", "validation"], nnunet._place
    for count in range(1, 4):
        full = Mock(side_effect=[*[None] * count, OSError(28, "No space left")])
        monkeypatch.setattr(nnunet, "_place", full)
        with pytest.raises(InputError, match="No space left"):
            export("site A", parts, out, "smoke")
        assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(nnunet, "_place", place)
    (tmp_path / f".{out.name}.part" / "imagesTr").mkdir(parents=True)  # of a process that was killed
    (tmp_path / f".{out.name}.part" / "imagesTr" / "half.nii.gz").write_text("half")
    export("site A", parts, out, "smoke")
    assert by_nnunet_s_rules(out)["numTraining"] == 3 and [*tmp_path.iterdir()] == [out]
    assert {path.is_symlink() for path in out.glob("*Tr/*")} == {links}


def test_an_export_beside_the_data_sets_is_found_as_one_of_them(tmp_path: Path) -> None:
    touch_cases(tmp_path / "data", "FLARE22", range(1, 51))
    out = tmp_path / "data" / "nnUNet_raw" / "Dataset022_FLARE22"
    assert export("FLARE22", ["training", "validation"], out, "full")["numTraining"] == 40
    assert len(find_cases("FLARE22", out)) == 40


@pytest.mark.parametrize(
    ("dataset", "part", "out", "why"),
    [
        ("site A", "train", "Dataset022_A", "'site A' has no part 'train': choose test, or training"),
        ("site C", "training", "Dataset022_C", "'site C' has no part 'training'"),
        ("site A", "training", "FLARE22", "let OUT end in DatasetNNN_NAME"),
        ("Synapse", "test", "Dataset022_Synapse", "is no site of phantoms"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(
    dataset: str, part: str, out: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["nnunet", "export", dataset, part, str(tmp_path / "raw" / out)])
    with pytest.raises(SystemExit, match=why) as ended:
        main()
    assert "\n" not in str(ended.value.code) and str(ended.value.code).endswith(".")
    assert not (tmp_path / "raw").exists()


def test_what_macos_and_a_killed_export_leave_is_no_case_and_capitals_are_no_fault(tmp_path: Path) -> None:
    """In nnU-Net's layout; some files have other capitals, and one is not compressed as its name says."""
    home = tmp_path / "data" / "Dataset022_FLARE22"
    write_trees(tmp_path / "data", 16, 4, {"FLARE22": range(1, 51)}, layout=NNUNET)
    for folder in ("imagesTr", "labelsTr"):
        for path in sorted((home / folder).iterdir())[:2]:
            path.rename(path.with_name(path.name.replace(".nii.gz", ".NII.GZ")))
    mac = "imagesTr/._FLARE22_Tr_0001_0000.nii.gz", "labelsTr/._FLARE22_Tr_0001.nii.gz", "imagesTr/.DS_Store"
    leftover = "imagesTr/.FLARE22_Tr_0002_0000.nii.gz.part.nii.gz"
    touch(home, *mac, leftover, leftover.replace("/.", "/").removesuffix(".nii.gz"))
    plain = home / "imagesTr" / "FLARE22_Tr_0003_0000.nii.gz"
    plain.write_bytes(gzip.decompress(plain.read_bytes()))
    assert len(find_cases("FLARE22", home)) == 50
    value = export("FLARE22", ["training", "validation", "test"], out := tmp_path / "Dataset023_A", "full")
    assert value["numTraining"] == 40 and len([*(out / "imagesTr").iterdir()]) == 40
    for path in out.glob("*/*.nii.gz"):
        assert path.read_bytes()[:2] == b"\x1f\x8b" and read_scan(path)[0].ndim == 3


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    export("site A", ["test"], Path("~/Dataset022_A"), "smoke")
    (tmp_path / "home" / "maps").mkdir()
    theirs("site A", tmp_path / "home" / "maps", "FLARE22")
    dataset_json(tmp_path / "home", label_names("FLARE22"))
    score("tool", "site A", Path("~/maps"), "smoke", "~/dataset.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "results"]


AWKWARD = """a $HOME $(x) `x` "y" 'z' #1; \u00e9"""


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
@pytest.mark.parametrize("how", ["word", "environment"])
def test_make_hands_on_any_text_as_it_is(how: str, tmp_path: Path) -> None:
    """To `segment` in the environment, to the others as words, too; and folders, which a ~ may begin."""
    export, score = ("DATASET", "PART", "OUT"), ("NAME", "DATASET", "LABELS", "IDS")
    nnunet = "DATASET", "CONFIGURATIONS", "TRAINER"
    every = {*OPTIONS, *SCORED, *export, *score, *nnunet} - {"PROFILE"}
    given = {name: f"{name} {AWKWARD}" for name in every}
    given |= {"DATA_ROOT": f"~/{AWKWARD}", "CACHE_ROOT": f"/{AWKWARD}"}
    (spy := tmp_path / "python").write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -c '
        '"import json, os, sys; print(json.dumps([sys.argv[2:], dict(os.environ)]))" "$@"\n')
    spy.chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if name not in (*given, "MAKEFLAGS")}
    tools = {"segment": ["tools.segment"], "score": ["tools.score"], "export": ["tools.nnunet", "export"]}
    tools["nnunet"] = ["tools.nnunet", "nnunet"]
    for target, start in (*tools.items(), ("score", ["tools.nnunet", "score"])):
        asked = {"export": export, "score": score, "nnunet": nnunet}.get(start[-1], ())
        if asked == score:
            del given["IMAGES"]  # label maps, and no run
        command = ["make", "--no-print-directory", f"PY={spy}", target]
        command += [f"{name}={value}" for name, value in given.items()] if how == "word" else []
        environment = clean | (given if how == "environment" else {})
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=True)
        arguments, variables = json.loads(done.stdout)
        assert arguments == [*start, *(given[name] for name in asked)] and given.items() <= variables.items()


# nnU-Net's own commands

FAKE = """#!{python}
import json, os, pathlib, shutil, sys
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
ours = {{key: value for key, value in os.environ.items() if key.startswith("nnUNet_")}}
with open("{log}", "a") as log:
    print(json.dumps([name, words, ours]), file=log)
if name in os.environ.get("BROKEN", ""):
    sys.exit(3)
if name == "nnUNetv2_plan_and_preprocess":
    assert [path.name for path in pathlib.Path(ours["nnUNet_raw"]).iterdir()][0].startswith("Dataset001_")
if name == "nnUNetv2_predict":  # the truth, which lies beside the images
    images, out = (pathlib.Path(words[words.index(option) + 1]) for option in ("-i", "-o"))
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(images.parent / "dataset.json", out)
    for image in images.iterdir():
        truth = image.name.replace("_0000", "")
        shutil.copy(images.parent / "labelsTs" / truth, out / truth)
"""


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[tuple[str, list[str], dict]]]:
    """Puts fakes of nnU-Net's commands on the PATH; returns what gives their calls since it was asked."""
    (folder := tmp_path / "bin").mkdir()
    log = tmp_path / "said.jsonl"
    for name in nnunet.COMMANDS:
        (folder / name).write_text(FAKE.format(python=sys.executable, log=log))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def calls() -> list[tuple[str, list[str], dict]]:
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [tuple(json.loads(line)) for line in lines]

    return calls


def by_make(
    monkeypatch: pytest.MonkeyPatch, dataset: str = "", names: str = "", trainer: str = ""
) -> None:
    monkeypatch.setattr("sys.argv", ["nnunet", "nnunet", dataset, names, trainer])
    main()


def test_from_plan_to_scores_and_again(
    said: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_make(monkeypatch)
    calls, work = said(), tmp_path / "results/smoke/runs/nnunet/site_A"
    sites, trained = [f"site {letter}" for letter in "ABCM"], ["nnUNetv2_train", *["nnUNetv2_predict"] * 4]
    assert [name for name, _, _ in calls] == ["nnUNetv2_plan_and_preprocess", *trained, *trained]
    plan, train, predict, *_, last = (words for _, words, _ in calls)
    assert plan[:5] == ["-d", "1", "-c", "2d", "3d_fullres"] and "-gpu_memory_target" in plan
    own = ["-tr", "nnUNetTrainerBrief", "-device", "cpu"]
    assert train == ["1", "2d", "0", *own, "--c"]
    images = work / "tests" / "Dataset001_site_A" / "imagesTs"
    out = work / "predictions" / "nnUNetTrainerBrief 2d" / "site A"
    assert predict == ["-i", str(images), "-o", str(out), "-d", "1", "-c", "2d", "-f", "0", *own]
    assert last[3].endswith("nnUNetTrainerBrief 3d_fullres/site M") and last[6:8] == ["-c", "3d_fullres"]
    for name, _, variables in calls:
        assert variables["nnUNet_raw"] == str(work / "raw")
        assert variables["nnUNet_preprocessed"] == str(work / "preprocessed")
        assert variables["nnUNet_results"] == str(work / "results")
        assert variables["nnUNet_n_proc_DA"] == ("1" if "plan" in name else "0")
    by_nnunet_s_rules(work / "raw" / "Dataset001_site_A")
    assert (work / "raw/Dataset001_site_A/splits_final.json").is_file(), "its planning takes it from there"
    stored = pd.read_csv(tmp_path / "results/smoke/scores.csv", keep_default_na=False)
    runs = {(f"nnU-Net {name}", site, "") for name in ("2d", "3d_fullres") for site in sites}
    assert {*stored[["run", "dataset", "variant"]].itertuples(index=False, name=None)} == runs
    assert {*stored["dice"]} == {"", "1"}, "of an organ that is absent there is none"
    (tmp_path / "results/smoke/scores.csv").unlink()
    by_make(monkeypatch)
    assert said() == [] and len(pd.read_csv(tmp_path / "results/smoke/scores.csv")) == len(stored)
    by_make(monkeypatch, "site A", "2d", "nnUNetTrainer_5epochs")
    plan, train, *_, predict = (words for _, words, _ in said())
    assert plan[:4] == ["-d", "1", "-c", "2d"] and plan[4].startswith("-"), "of the configurations asked for"
    assert "nnUNetTrainer_5epochs" in train and "nnUNetTrainer_5epochs 2d" in predict[3]


def test_med_vlm_s_scans_train_and_what_is_held_out_of_them_tests(
    said: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_make(monkeypatch, "site B", "2d")
    assert len(said()) == 3
    stored = pd.read_csv(tmp_path / "results/smoke/scores.csv")
    assert {*stored["run"]} == {"nnU-Net 2d on BTCV"} and {*stored["variant"]} == {"held out"}
    held_out = [case.id for case in cases_of(settings_of("unet", "smoke"), "validation")]
    assert stored["case"].unique().tolist() == held_out
    with pytest.raises(SystemExit, match=r"^nnunet: 'site C' has no part 'training': choose"):
        by_make(monkeypatch, "site C", "2d")


def test_a_full_size_profile_leaves_plan_trainer_and_processes_to_nnunet(
    said: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_trees(tmp_path / "data", 16, 4, {"FLARE22": range(1, 51)})
    monkeypatch.setenv("PROFILE", "full")
    monkeypatch.setenv("TEST_ON", "FLARE22")
    by_make(monkeypatch, names="3d_fullres")
    (_, plan, variables), (_, train, _), (_, predict, _) = said()
    assert plan == ["-d", "1", "-c", "3d_fullres"] and train[1:4] == ["3d_fullres", "0", "-tr"]
    assert train[4] == "nnUNetTrainer"
    assert "nnUNetTrainer" in predict and not {*variables} & {*nnunet.ALONE}
    assert {*pd.read_csv(tmp_path / "results/full/scores.csv")["dataset"]} == {"FLARE22"}


def test_after_a_failure_it_goes_on_where_it_was(
    said: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKEN", "nnUNetv2_train")
    with pytest.raises(SystemExit, match=r"^nnunet: `nnUNetv2_train 1 2d .*` ended with status 3:") as ended:
        by_make(monkeypatch, names="2d")
    assert "\n" not in str(ended.value.code) and str(ended.value.code).endswith(".")
    assert [name for name, _, _ in said()] == ["nnUNetv2_plan_and_preprocess", "nnUNetv2_train"]
    assert not (tmp_path / "results/smoke/scores.csv").exists()
    monkeypatch.delenv("BROKEN")
    by_make(monkeypatch, names="2d")
    assert [name for name, _, _ in said()] == ["nnUNetv2_train", *["nnUNetv2_predict"] * 4]


def test_without_nnunet_one_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(SystemExit, match=r"^nnunet: nnUNetv2_plan\w+ is neither .*`\.$") as ended:
        by_make(monkeypatch)
    _, command, _ = str(ended.value.code).split("`")
    assert all((ROOT / name).is_file() for name in command.split() if name.endswith(".txt"))
    assert command.startswith(str(tmp_path)) and "\n" not in str(ended.value.code)
    assert list(tmp_path.iterdir()) == []


def test_the_brief_trainer_halves_the_network_and_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """On stand-ins for the classes of nnU-Net's that it is made from."""
    keep = {"__init__": lambda self, *given: setattr(self, "given", given)}
    variants, trainers = "nnunetv2.training.nnUNetTrainer.variants", {
        "data_augmentation.nnUNetTrainerNoMirroring": type("nnUNetTrainerNoMirroring", (), {}),
        "optimizer.nnUNetTrainerAdam": type("nnUNetTrainerVanillaAdam1en3", (), keep)}
    for name, trainer in trainers.items():
        parts = f"{variants}.{name}".split(".")
        for end in range(1, len(parts) + 1):
            monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(parts[end - 1]))
        setattr(sys.modules[f"{variants}.{name}"], trainer.__name__, trainer)
    source = ROOT / "tools" / "nnunet_trainer" / "brief.py"
    spec = importlib.util.spec_from_file_location("brief", source)
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    network = {"features_per_stage": [32, 64, 320]}
    plans = {"configurations": {"2d": {"architecture": {"arch_kwargs": network}}}}
    trainer = module.nnUNetTrainerBrief(plans, "2d", 0, {}, "cpu")
    assert trainer.given[0] is plans and network == {"features_per_stage": [16, 32, 160]}
    assert trainer.num_epochs * trainer.num_iterations_per_epoch == 1200 and "1,200 steps" in trainer.__doc__


# Scores


def case_of(dataset: str) -> Case:
    return cases_of(settings_of("baseline", "smoke"), dataset)[0]


def theirs(dataset: str, folder: Path, ids: str, change: dict[int, int] | None = None) -> Path:
    """A folder with a tool's label map of the test case: the truth in other ids, with some labels changed."""
    case = case_of(dataset)
    truth = nib.load(case.labels)
    ours = np.vectorize(LABEL_MAPS[case.label_map].get)(np.asanyarray(truth.dataobj)).astype(np.uint8)
    for old, new in (change or {}).items():
        ours[ours == old] = new
    back = {label: i for i, label in LABEL_MAPS[ids].items() if label} | {0: 0}
    folder.mkdir(exist_ok=True)
    ids_there = np.vectorize(back.get)(ours).astype(np.uint8)
    nib.save(nib.Nifti1Image(ids_there, truth.affine), folder / f"{case.id}.nii.gz")
    return folder


@pytest.mark.parametrize(
    ("dataset", "ids"),
    [("site A", "TotalSegmentator v1"), ("site A", "TotalSegmentator v2"), ("site B", "BTCV"),
     ("site M", "FLARE22"), ("site C", "AMOS22")],
)
def test_a_perfect_label_map_scores_one_in_any_ids(dataset: str, ids: str, tmp_path: Path) -> None:
    table = score("tool", dataset, theirs(dataset, tmp_path / "maps", ids), "smoke", ids)
    assert set(table["organ"]) == set(labelled(case_of(dataset).label_map)) & set(labelled(ids))
    assert (table.loc[table["truth_voxels"] > 0, "dice"] == 1).all()
    stored = pd.read_csv(tmp_path / "results/smoke/scores.csv")
    assert len(stored) == len(table) and {*stored["run"]} == {"tool"}
    assert stored["case"].unique().tolist() == [case_of(dataset).id]


def test_totalsegmentator_s_two_numberings_are_told_apart(tmp_path: Path) -> None:
    """All ids of version 1 are ids of version 2, for other organs; those over 104 are of 2 alone."""
    folder = theirs("site A", tmp_path / "maps", "TotalSegmentator v1")
    with pytest.warns(UserWarning, match="ids of TotalSegmentator v2: say IDS='TotalSegmentator v1' if"):
        table = score("tool", "site A", folder, "smoke", "TotalSegmentator").set_index("organ")
    assert table.loc["liver", "dice"] == 1 and table.loc["pancreas", "dice"] < 0.1, "7 is the aorta in v1"
    path = folder / f"{case_of('site A').id}.nii.gz"
    ids = np.asanyarray(nib.load(path).dataobj).copy()
    ids[0, 0, 0] = 117
    nib.save(nib.Nifti1Image(ids, nib.load(path).affine), path)
    with pytest.raises(InputError, match=r"ids that TotalSegmentator v1 does not know \(117\)"):
        score("tool", "site A", folder, "smoke", "TotalSegmentator v1")


def test_a_lost_and_a_doubled_organ_score_as_they_must(tmp_path: Path) -> None:
    spleen, liver = BY_KEY["spleen"].label, BY_KEY["liver"].label
    folder = theirs("site A", tmp_path / "maps", "FLARE22", change={spleen: liver})
    rows = score("tool", "site A", folder, "smoke").set_index("organ")
    truth = rows["truth_voxels"]
    assert rows.loc["spleen", "dice"] == 0 and rows.loc["spleen", "predicted_voxels"] == 0
    expected = 2 * truth["liver"] / (2 * truth["liver"] + truth["spleen"])
    assert rows.loc["liver", "dice"] == pytest.approx(expected)
    assert (rows["dice"].drop(["spleen", "liver"]).dropna() == 1).all()


def test_the_names_in_nnunet_s_dataset_json_count_where_it_lies_beside_the_label_maps(tmp_path: Path) -> None:
    """nnU-Net writes it there; an nnU-Net of BTCV has no duodenum, so none is scored on FLARE22."""
    folder = theirs("site A", tmp_path / "maps", "BTCV", change={BY_KEY["duodenum"].label: 0})
    keys = {organ.label: organ.key for organ in ORGANS} | {0: "background"}
    dataset_json(folder, {keys[label]: i for i, label in LABEL_MAPS["BTCV"].items() if label or not i})
    table = score("nnunet", "site A", folder, "smoke")
    assert "duodenum" not in set(table["organ"]) and (table["dice"].dropna() == 1).all()


def test_a_label_map_is_found_by_the_names_that_tools_give_it(tmp_path: Path) -> None:
    case = Case("BTCV_0001", Path("img/img0001.nii.gz"), Path("label/label0001.nii.gz"), "BTCV")
    flare = Case("FLARE22_Tr_0001", Path("images/FLARE22_Tr_0001_0000.nii.gz"))
    names = {"BTCV_0001.nii.gz": case, "img0001.nii": case, "label0001.nii.gz": case}
    for name, owner in (names | {"FLARE22_Tr_0001_0000.nii.gz": flare, "FLARE22_Tr_0001.nii": flare}).items():
        touch(tmp_path / name, name)
        assert label_map_of(owner, tmp_path / name) == tmp_path / name / name
    with pytest.raises(InputError, match=r"has no label map of BTCV_0001: call it .*img0001\.nii\.gz"):
        label_map_of(case, tmp_path)


def test_bad_label_maps_are_one_sentence_and_change_no_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = theirs("site A", tmp_path / "maps", "FLARE22")
    path = good / f"{case_of('site A').id}.nii.gz"
    score("tool", "site A", good, "smoke")
    scores = tmp_path / "results/smoke/scores.csv"
    before, image = scores.read_bytes(), nib.load(path)
    voxels = np.asanyarray(image.dataobj)
    for array, affine, why in (
        (voxels[1:], image.affine, "resample the labels to the scan's grid"),
        (voxels, image.affine + np.eye(4, k=3) * 20, "voxels off its scan"),
        (voxels + 77, image.affine, "does not know"),
    ):
        nib.save(nib.Nifti1Image(array, affine), path)
        monkeypatch.setattr("sys.argv", ["nnunet", "score", "tool", "site A", str(good), ""])
        with pytest.raises(SystemExit, match=why) as ended:
            main()
        assert str(path) in str(ended.value.code) and "\n" not in str(ended.value.code)
    for name, dataset, folder, ids, why in (
        ("adapter", "site A", good, "", "or a run of our own"),
        ("", "site A", good, "", "names nothing"),
        ("tool", "site A", tmp_path / "nowhere", "", "has no label map of"),
        ("tool", "site A", good, "Synapse", "'Synapse' is no label map"),
        ("tool", "Synapse", good, "", "is no site of phantoms"),
    ):
        with pytest.raises(InputError, match=why):
            score(name, dataset, folder, "smoke", ids)
    assert scores.read_bytes() == before


def test_rows_take_the_place_of_their_own_alone_and_no_run_of_ours_gives_its_name(tmp_path: Path) -> None:
    """Beside them stand a run's own rows, also of an ablation that lib.config does not know."""
    maps = {site: theirs(site, tmp_path / site, "FLARE22") for site in ("site A", "site B")}
    first = score("tool", "site A", maps["site A"], "smoke")
    path = tmp_path / "results/smoke/scores.csv"
    merge_csv(path, first.assign(run="adapter: no gate", config="0123456789ab"), ["run", "seed"], KEY)
    score("tool", "site B", maps["site B"], "smoke")
    theirs("site A", maps["site A"], "FLARE22", change={BY_KEY["spleen"].label: 0})
    score("tool", "site A", maps["site A"], "smoke")
    stored = pd.read_csv(path, dtype={"config": str})
    assert list(stored) == [*KEY, "config", *list(first)[len(KEY) + 1 :]]
    expected = {("adapter: no gate", "site A"): 13, ("tool", "site A"): 13, ("tool", "site B"): 12}
    assert stored.groupby(["run", "dataset"]).size().to_dict() == expected
    spleen = stored[(stored["organ"] == "spleen") & (stored["dataset"] == "site A")].set_index("run")
    assert spleen["dice"].to_dict() == {"adapter: no gate": 1, "tool": 0}
    with pytest.raises(InputError, match="'adapter: no gate' names nothing, or a run of our own"):
        score("adapter: no gate", "site A", maps["site A"], "smoke")
