"""lib.datasets.splits: which scan has which part, written out with its hashes; and every case where the papers draw ten."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from test_datasets import amos22, btcv, flare22

from lib.datasets import cases_of, splits
from lib.datasets.splits import COLUMNS, record_split, split_table
from lib.paths import InputError
from lib.profiles import Settings, evaluations, settings_of
from lib.report import read_scores


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All data sets, as empty files; results are somewhere else."""
    flare22(tmp_path / "data/FLARE22", range(1, 51))
    btcv(tmp_path / "data")
    amos22(tmp_path / "data/AMOS22", {"Tr": tuple(range(1, 13)), "Va": tuple(range(501, 512))})
    for name in ("DATA_ROOT", "RESULTS_ROOT", "CACHE_ROOT"):
        monkeypatch.setenv(name, str(tmp_path / name[:-5].lower()))
    monkeypatch.setenv("PROFILE", "full")
    return tmp_path / "data"


def test_every_part_of_both_papers_is_listed_once(root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["splits"])
    splits.main()
    path = root.parent / "results/full/splits.csv"
    assert capsys.readouterr().out == f"splits: {path}\n"
    table = pd.read_csv(path, dtype=str)
    assert list(table) == COLUMNS and not table.duplicated(COLUMNS[:4]).any()
    assert table.groupby(COLUMNS[:3]).size().to_dict() == {
        ("BTCV", "BTCV", "training"): 24,
        ("BTCV", "BTCV", "validation"): 6,
        ("BTCV", "BTCV held out", "test"): 6,
        ("FLARE22", "AMOS22 CT", "test"): 10,
        ("FLARE22", "AMOS22 MRI", "test"): 10,
        ("FLARE22", "BTCV", "test"): 10,
        ("FLARE22", "BTCV held out", "test"): 6,
        ("FLARE22", "FLARE22", "test"): 10,
        ("FLARE22", "FLARE22", "training"): 30,
        ("FLARE22", "FLARE22", "validation"): 10,
    }
    own = table[(table["trained_on"] == "FLARE22") & (table["dataset"] == "FLARE22")]
    assert own["case"].nunique() == 50 and set(own["image_sha256"]) == {hashlib.sha256(b"").hexdigest()}
    before = path.read_bytes()
    splits.main()
    assert path.read_bytes() == before, "a second run changes nothing"


def test_what_is_not_there_is_left_out_by_name(root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["splits"])
    (root / "AMOS22").rename(root / "elsewhere")
    splits.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[1] for line in lines[:-1]] == [" left out AMOS22 CT", " left out AMOS22 MRI"]
    monkeypatch.setenv("DATA_ROOT", str(root.parent / "nowhere"))
    with pytest.raises(SystemExit, match="none of the data sets"):
        splits.main()


def test_a_part_s_rows_take_the_place_of_its_older_ones(root: Path) -> None:
    record_split(Settings(), ["training", "BTCV"])
    image = root / "FLARE22/images/FLARE22_Tr_0026_0000.nii.gz"
    image.write_bytes(b"another scan")
    path = record_split(Settings(), ["training"])
    table = pd.read_csv(path, dtype=str).set_index("case")
    assert len(table) == 40 and table.loc["FLARE22_Tr_0026", "image_sha256"] == hashlib.sha256(b"another scan").hexdigest()
    fewer = split_table(replace(settings_of("unet", "full"), training_cases=3), ["training"])
    assert len(fewer) == 24, "runs with fewer training cases take the first of the same list"


def test_a_table_of_somebody_else_stays(root: Path) -> None:
    path = root.parent / "results/full/splits.csv"
    path.parent.mkdir(parents=True)
    path.write_text("case,fold\n1,0\n")
    with pytest.raises(InputError, match="is no table of splits"):
        record_split(settings_of("baseline"), ["training"])
    assert path.read_text() == "case,fold\n1,0\n"


def test_every_case_on_request(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = evaluations("adapter", "full")
    assert not any("every case" in dataset for dataset, _ in plain)
    monkeypatch.setenv("ALL_CASES", "1")
    more = [dataset for dataset, _ in evaluations("adapter", "full") if "every case" in dataset]
    assert more == ["BTCV, every case", "AMOS22 CT, every case", "AMOS22 MRI, every case"]
    assert [len(cases_of(Settings(), dataset)) for dataset in more] == [30, 12, 11]
    for dataset in more:
        drawn = {case.id for case in cases_of(Settings(), dataset.partition(",")[0])}
        assert len(drawn) == 10 and drawn < {case.id for case in cases_of(Settings(), dataset)}
    assert evaluations("adapter", "demo") == evaluations("adapter", "demo") and not any(
        "every" in d for d, _ in evaluations("adapter", "demo")
    )
    assert evaluations("unet", "full") == [("BTCV held out", "")]
    with_them = settings_of("adapter", "full").hash()
    monkeypatch.delenv("ALL_CASES")
    assert settings_of("adapter", "full").hash() == with_them, "the same weights"
    with pytest.raises(InputError, match="is no data set"):
        cases_of(Settings(), "Synapse, every case")


def test_rows_of_every_case_stand_in_the_tables_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path))
    (tmp_path / "full").mkdir()
    rows = [
        ("adapter", d, "", c, v)
        for d, cases in {"BTCV": {"a": 0.5}, "BTCV, every case": {"a": 0.5, "b": 0.7}, "FLARE22": {"c": 0.8}}.items()
        for c, v in cases.items()
    ]
    rows += [("dynunet", "BTCV", "", "a", 0.1), ("adapter", "BTCV", "blank", "a", 0.0)]
    frame = pd.DataFrame(rows, columns=["run", "dataset", "condition", "case", "dice"]).assign(config="1", organ="liver")
    frame.to_csv(tmp_path / "full/scores.csv", index=False)
    monkeypatch.delenv("ALL_CASES", raising=False)
    assert len(read_scores("full")) == 6
    monkeypatch.setenv("ALL_CASES", "1")
    table = read_scores("full")
    assert len(table) == 5 and not table["dataset"].str.contains("every").any()
    assert set(table[(table["run"] == "adapter") & (table["dataset"] == "BTCV") & (table["condition"] == "")]["case"]) == {"a", "b"}
