"""Runs of the full profile on phantoms in the data sets' layouts and random weights in the hub's format.

By default narrow models take seconds; `make full-proof` runs the same tests with models of the papers' sizes.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from tiny import fixed_site

from lib.clipseg import load_weights
from lib.config import SliceSettings, run_folder, settings_of
from lib.med_vlm import MedVLM, build_med_vlm, med_vlm_losses
from lib.organs import BY_KEY, LABEL_MAPS, ORGANS
from lib.phantoms import draw
from lib.training import evaluate, run
from lib.volumes import Grid, write_nifti
from lib.windows import SliceSampler
from tools.gpu_proof import write_weights

CASES = {  # data set: site of its phantoms, image and labels below DATA_ROOT, numbers of the cases
    "FLARE22": ("site A", "FLARE22/images/FLARE22_Tr_{}_0000", "FLARE22/labels/FLARE22_Tr_{}", (1, 2, 3, 4)),
    "BTCV": ("site B", "BTCV/RawData/Training/img/img{}", "BTCV/RawData/Training/label/label{}", (1, 2, 21)),
    "AMOS22 CT": ("site C", "AMOS22/imagesTr/amos_{}", "AMOS22/labelsTr/amos_{}", (1,)),
    "AMOS22 MRI": ("site M", "AMOS22/imagesTr/amos_{}", "AMOS22/labelsTr/amos_{}", (507,)),
}


def build_marking(settings: SliceSettings) -> MedVLM:
    """Med-VLM whose first masks are not empty, so that there is something to score."""
    model = build_med_vlm(settings)
    last: Any = model.decoder.ask[-1]
    last.bias.data[-1] += 1
    return model


PARTS = {name: tiny.PARTS[name] for name in ("baseline", "adapter", "dynunet")}
PARTS["adapter: slab"] = PARTS["adapter"]
PARTS["med-vlm small"] = (build_marking, SliceSampler, med_vlm_losses)
SMALL_ADAPTER = {"size": 48, "adapter_width": 32, "adapter_depth": 1, "adapter_heads": 2}
NARROW: dict[str, dict[str, Any]] = {  # what a narrow model changes
    "baseline": {"size": 48},
    "adapter": SMALL_ADAPTER,
    "adapter: slab": SMALL_ADAPTER | {"sampler": "slab"},  # the fast way; the profile's own is the paper's
    "dynunet": {"voxel_mm": (12.0, 12.0, 15.0), "patch_voxels": (16, 16, 8), "filters": (4, 8, 8)},
    "med-vlm small": {"size": 48, "slice_mm": 12.0, "mask_width": 32},
}
FULL: dict[str, Any] = {  # 8 windows of their own need more memory
    "baseline": {"batch": 4}, "adapter": {"batch": 4}, "adapter: slab": {"sampler": "slab"}}


class World(NamedTuple):
    """What the tests stand on."""

    full: bool
    weights: Path  # folders of the hub's models
    truth: dict[str, dict[str, np.ndarray]]  # {data set: {case's number: voxels of our labels 0 to 13}}


def write_data(root: Path, full: bool) -> dict[str, dict[str, np.ndarray]]:
    """Writes the cases below `root`; returns the voxels of each label.

    At full size a scan is 6 slices of 512 x 512 pixels from a body's middle: a whole one would take hours.
    """
    (edge, drawn), finer = ((64, 30), 8) if full else ((32, 12), 1)
    spacing = 410 / edge, 410 / edge, 210 / drawn
    middle = slice(12, 18) if full else slice(None)
    pixel_mm = 200 / 512 if full else spacing[0]  # a small patient: DynUNet takes its time
    counts: dict[str, dict[str, np.ndarray]] = {}
    for dataset, (name, image, labels, numbers) in CASES.items():
        site = fixed_site(name, edge, drawn)
        theirs = {ours: number for number, ours in LABEL_MAPS[site.label_map].items() if ours}
        ids = np.array([theirs.get(label, 0) for label in range(14)], np.uint8)
        for number in numbers:
            signal, truth = (v[..., middle].repeat(finer, 0).repeat(finer, 1) for v in draw(site, number)[:2])
            grid = Grid(truth.shape, np.diag([-pixel_mm, -pixel_mm, spacing[2], 1.0]))
            for path, array in ((image, signal.astype(np.int16)), (labels, ids[truth])):
                write_nifti(array, grid, root / f"{path.format(f'{number:04d}')}.nii.gz")
            counts.setdefault(dataset, {})[f"{number:04d}"] = np.bincount(truth.ravel(), minlength=14)
    return counts


@pytest.fixture(scope="module", params=["narrow", pytest.param("full", marks=pytest.mark.full)])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Data and weights, and an environment that names them."""
    home, full, threads = tmp_path_factory.mktemp("world"), request.param == "full", torch.get_num_threads()
    write_weights(home / "weights", "small" if full else "narrow", narrow=not full)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("data", "results", "figures", "cache"):
            patch.setenv(f"{name.upper()}_ROOT", str(home / name))
        patch.setenv("WEIGHTS", str(home / "weights" / "clipseg"))
        patch.setenv("CPU", "1")
        torch.set_num_threads(os.cpu_count() or 1 if full else 1)
        yield World(full, home / "weights", write_data(home / "data", full))
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", PARTS)
def test_a_run_trains_and_is_scored(world: World, name: str, tmp_path: Path) -> None:
    own, parts = name.split(":")[0], PARTS[name]
    encoders = {part: str(world.weights / part) for part in ("vit", "bert") if own == "med-vlm small"}
    settings = settings_of(own, "proof", **encoders, **(FULL if world.full else NARROW).get(name, {}))
    scores = run(name, settings, *parts)

    folder = run_folder(name, settings)
    log = pd.read_csv(folder / "log.csv")
    assert log["step"].tolist() == [1, 2] and np.isfinite(log["loss"]).all()
    kept = {"best.safetensors", "config.json", "log.csv", "predictions"}
    assert {path.name for path in folder.iterdir()} == kept

    assert {*scores["dataset"]} == ({*CASES} if own != "med-vlm small" else {"BTCV"})
    shown = {name: {organ.key for organ in ORGANS if sum(case[organ.label] for case in cases.values())}
             for name, cases in world.truth.items()}
    for dataset, organs in scores.groupby("dataset")["organ"]:
        unlabelled = {"duodenum"} if dataset == "BTCV" else set()
        assert {*organs} == {*settings.organs} & shown[dataset] & shown[settings.train_on] - unlabelled
    counts = [world.truth[row.dataset][row.case[-4:]][BY_KEY[row.organ].label] for row in scores.itertuples()]
    assert scores["truth_voxels"].tolist() == counts, "ids are the file's"
    assert scores["truth_voxels"].gt(0).mean() > 0.5
    assert len(run(name, settings, *parts, train=False)) == len(scores), "they are in scores.csv"
    if not world.full:
        load_weights(model := parts[0](settings), folder / "best.safetensors")
        tests = [(dataset, settings.test_variant, "") for dataset in settings.test_on]
        anew = pd.concat([evaluate(model, settings, test, tmp_path) for test in tests], ignore_index=True)
        pd.testing.assert_frame_equal(anew, scores[[*anew]])
        assert anew["predicted_voxels"].sum() > 0, "there is something to compare"
