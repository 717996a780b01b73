"""proof: the hub's stand-ins load offline by the hub's names, a command's memory and end are measured, and what is done is kept."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import proof.__main__ as full_proof
from lib.datasets import find_cases
from lib.paths import ROOT, InputError
from proof.__main__ import Failed, Proof, count, report
from proof.hub import CLIP_WORDS, NARROW, SIZES, write_hub
from proof.trees import NNUNET, write_trees

LOAD = """
import json
from lib.profiles import settings_of
from lib.runs import build_model
clipseg, medvlm = (build_model(settings_of(run, "proof")) for run in ("adapter", "med-vlm large"))
texts = clipseg.encode_text(["liver", "spleen"])
print(json.dumps({
    "ids": clipseg.tokenizer(["liver", "spleen"])["input_ids"],
    "differ": float((texts[0] - texts[1]).abs().max()),
    "words": [medvlm.tokenizer.tokenize(text) for text in ("Liver", "liver")],
    "grid": list(clipseg.base_model.clip.vision_model.embeddings.position_embedding.weight.shape),
    "marks": float(clipseg.base_model.decoder.transposed_convolution[-1].bias),
}))
"""


@pytest.mark.slow
def test_random_weights_load_offline_by_the_hub_s_names(tmp_path: Path) -> None:
    """In a process of its own, for the hub's library reads where its cache lies once."""
    write_hub(tmp_path / "hub", NARROW)
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", LOAD], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert all(ids[0] == CLIP_WORDS - 2 and ids[-1] == CLIP_WORDS - 1 for ids in said["ids"]), "start and end of a text are CLIP's"
    assert said["differ"] > 0 and said["grid"] == [197, 48] and said["marks"] == -3
    assert said["words"][1] == ["liver"] and said["words"][0] != said["words"][1], "BioBERT's words know capitals"


def test_the_sizes_are_those_of_the_hub_s_models() -> None:
    clipseg, vit, bert = SIZES.values()
    vision = clipseg.vision_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.patch_size, vision.image_size) == (768, 12, 16, 224)
    assert (clipseg.text_config.hidden_size, clipseg.text_config.vocab_size, clipseg.reduce_dim) == (512, CLIP_WORDS, 64)
    assert (vit.hidden_size, vit.image_size, bert.hidden_size, bert.vocab_size) == (768, 224, 768, 28_996)


def test_a_part_of_a_body_and_a_smaller_one(tmp_path: Path) -> None:
    """Of 36 slices the middle 9, each 5 mm; and 8 pixels across 200 mm."""
    few = {"FLARE22": (1,)}
    whole = find_cases("FLARE22", write_trees(tmp_path / "whole", 8, 36, few) / "FLARE22")[0]
    part = find_cases("FLARE22", write_trees(tmp_path / "part", 8, 9, few, share=0.25, width_mm=200) / "FLARE22")[0]
    assert nib.load(part.image).header.get_zooms() == (25, 25, 5)
    every, middle = (np.asarray(nib.load(case.labels).dataobj) for case in (whole, part))
    assert np.array_equal(every[:, :, 13:22], middle) and middle.any()


def test_phantoms_never_take_the_place_of_scans_nor_random_weights_of_weights(tmp_path: Path) -> None:
    scan = tmp_path / "FLARE22" / "images" / "FLARE22_Tr_0002_0000.nii.gz"
    scan.parent.mkdir(parents=True)
    scan.write_text("a patient")
    with pytest.raises(InputError, match=f"{scan} exists and is left as it is"):
        write_trees(tmp_path, 8, 4, {"FLARE22": (1, 2)})
    description = tmp_path / "Dataset017_BTCV" / "dataset.json"
    description.parent.mkdir()
    description.symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match=f"{description} exists and is left as it is"):
        write_trees(tmp_path, 8, 4, {"BTCV": (1,)}, NNUNET)
    weights = tmp_path / "hub" / "models--google--vit-base-patch16-224" / "refs" / "main"
    weights.parent.mkdir(parents=True)
    weights.write_text("a commit")
    with pytest.raises(InputError, match="models--google--vit-base-patch16-224 exists and is left as it is"):
        write_hub(tmp_path / "hub", NARROW)
    files = [path for path in tmp_path.rglob("*") if path.is_symlink() or path.is_file()]
    assert sorted(files) == sorted([scan, description, weights]) and scan.read_text() == "a patient" and weights.read_text() == "a commit"


@pytest.fixture
def begun(tmp_path: Path) -> Proof:
    return Proof(tmp_path / "home", narrow=True)


def test_a_killed_command_and_one_that_fails(begun: Proof, tmp_path: Path) -> None:
    mark = tmp_path / "there"
    holds = f"import pathlib, time; memory = b'x' * 1_000_000_000; pathlib.Path({str(mark)!r}).touch(); time.sleep(60)"
    killed = begun.call("killed", "-c", holds, kill=mark.exists)
    parent = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # a child counts it, too, until it is another program
    assert killed.status == -signal.SIGKILL and 1 < killed.gigabytes < max(1.0, parent) + 0.5
    assert begun.call("said", "-c", "import os; print(os.environ['WORD'])", WORD="heard").output == "heard\n"
    with pytest.raises(Failed, match=r"^wrong ended with status 3 \(of no use\); see .*wrong.txt$"):
        begun.need("wrong", "-c", "import sys; print('of no use'); sys.exit(3)")


def test_what_is_done_is_not_done_again_unless_the_code_has_changed(begun: Proof, monkeypatch: pytest.MonkeyPatch) -> None:
    found = begun.part("a part", lambda: {"peak GB": 1.5})
    again = Proof(begun.home, narrow=True)
    assert again.part("a part", lambda: pytest.fail("done again")) == found and found["seconds"] >= 0
    monkeypatch.setattr(full_proof, "value_hash", lambda _: "other code")
    assert Proof(begun.home, narrow=True).state["done"] == {} and not (begun.home / "state.json").exists()


@pytest.mark.parametrize(("estimated", "holds"), [(1.09e12, True), (1.2e12, False), (0.8e12, False)])
def test_estimated_work_may_be_off_by_a_tenth(begun: Proof, monkeypatch: pytest.MonkeyPatch, estimated: float, holds: bool) -> None:
    said = json.dumps({"adapter": {"estimated": estimated, "counted": 1e12}})
    monkeypatch.setattr(Proof, "need", lambda *_: full_proof.Ended(0, f"a warning\n{said}\n", 1.0))
    if holds:
        assert count(begun)["adapter"]["estimated"] == estimated
    else:
        with pytest.raises(Failed, match=r"^adapter: the estimated work is"):
            count(begun)


def test_the_report_by_hand(tmp_path: Path) -> None:
    took = {"seconds": 60.0, "CPU seconds": 105.0}
    work = {run: {"estimated": 2.1e12, "counted": 2e12} for run in full_proof.COUNTED}
    run = {"seconds a step": 12.5, "peak GB": 6.1, "estimated GB": 5.9, "TFLOP a step": 2.1, "pieces": 1}
    report({"adapter": run | took, "work of a step": work | took}, ("adapter",), tmp_path)
    text = (tmp_path / "full_proof.txt").read_text()
    assert "adapter, half a step: 2.100 TFLOP estimated, 2.000 counted, a ratio of 1.050\n" in text
    assert text.endswith("All parts: 2.0 minutes by the clock, 3.5 of the processor's cores\n")
    assert json.loads((tmp_path / "full_proof.json").read_text())["parts"]["adapter"]["peak GB"] == 6.1
