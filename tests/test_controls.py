"""lib.controls on claims small enough to work out by hand."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from tiny import fake_store, tiny_settings

from lib import controls
from lib.controls import atlas_of, from_atlas, largest_piece, mean_over_slices, truth_of, without_false_slices
from lib.data import Case, Store
from lib.inference import mask_of
from lib.organs import KEYS
from lib.volumes import Grid

LIVER, SPLEEN, LEFT_KIDNEY = KEYS.index("liver"), KEYS.index("spleen"), KEYS.index("left kidney")


def store_of(labels: np.ndarray, size: tuple[int, int] | None = None) -> Store:
    """A store whose slices are `labels` (Z, S, S), of a scan with `size` = (X, Y) voxels a slice."""
    grid = Grid((*(size or labels.shape[:0:-1]), len(labels)), np.diag([-1.0, -1.0, 1.0, 1.0]))
    return replace(fake_store(len(labels)), image=np.zeros_like(labels), labels=labels, grid=grid)


def smoothed(monkeypatch: pytest.MonkeyPatch, series: list[float], width: int, chunk: int = 2) -> list[bool]:
    """Where the liver is claimed when its probability in slice z is series[z] in the upper left pixel."""
    probabilities = np.zeros((13, len(series), 2, 2), np.float32)
    probabilities[LIVER, :, 0, 0] = series

    def in_chunks(*_: Any) -> Iterator[torch.Tensor]:
        yield from (torch.from_numpy(probabilities[:, z : z + chunk]) for z in range(0, len(series), chunk))

    monkeypatch.setattr(controls, "slice_probabilities", in_chunks)
    store = store_of(np.zeros((len(series), 2, 2), np.uint8))
    claims = mean_over_slices(None, store, tiny_settings(), width)  # type: ignore[arg-type]
    assert claims.shape == (2, 2, len(series)) and claims.dtype == np.uint16
    assert not claims[1:].any() and not claims[:, 1:].any() and not (claims & ~np.uint16(1 << LIVER)).any()
    return mask_of(claims, LIVER)[0, 0].tolist()


def test_the_mean_over_slices_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Means of three: (0, 0, 0.9), (0, 0.9, 0.9), (0.9, 0.9, 0.6), (0.9, 0.6, 0), (0.6, 0, 0)."""
    series = [0.0, 0.0, 0.9, 0.9, 0.6, 0.0, 0.0]
    assert smoothed(monkeypatch, series, 3) == [False, False, True, True, False, False, False]
    assert smoothed(monkeypatch, series, 1) == [False, False, True, True, True, False, False]
    assert smoothed(monkeypatch, series, 3, chunk=7) == smoothed(monkeypatch, series, 3)
    # the ends are replicated: of five at the first slice, 0.9 three times and 0 twice; at the second, twice
    assert smoothed(monkeypatch, [0.9, 0.0, 0.0, 0.0, 0.0], 5) == [True, False, False, False, False]
    assert smoothed(monkeypatch, [0.9], 5) == [True]


def claimed(shape: tuple[int, int, int], **voxels: list[tuple[int, int, int]]) -> np.ndarray:
    """Claims (X, Y, Z) of some voxels by organ."""
    claims = np.zeros(shape, np.uint16)
    for key, places in voxels.items():
        for place in places:
            claims[place] |= 1 << KEYS.index(key.replace("_", " "))
    return claims


def test_each_organ_keeps_its_largest_piece() -> None:
    """Pieces touch at corners; where both organs claim a voxel, each is looked at by itself."""
    large, small = [(0, 0, 0), (1, 1, 1), (2, 2, 2)], [(4, 4, 4), (4, 4, 3)]
    claims = claimed((6, 6, 6), liver=[*large, *small], left_kidney=[*small, (0, 0, 0)])
    expected = claimed((6, 6, 6), liver=large, left_kidney=small)
    assert np.array_equal(largest_piece(claims), expected)
    assert not largest_piece(claims * 0).any() and largest_piece(claims).dtype == np.uint16


def test_the_oracle_takes_false_slices_alone() -> None:
    """The liver is in slice 1: claims in slice 0 go, those beside it in slice 1 stay."""
    truth = np.zeros((3, 3, 3), np.uint8)
    truth[0, 0, 1], truth[2, 2, 2] = LIVER + 1, SPLEEN + 1
    spleen, liver = [(1, 1, 1), (1, 1, 2)], [(0, 0, 0), (2, 2, 1)]
    claims = claimed((3, 3, 3), liver=liver, spleen=spleen, aorta=[(0, 0, 1)])
    expected = claimed((3, 3, 3), liver=liver[1:], spleen=spleen[1:])
    assert np.array_equal(without_false_slices(claims, truth), expected)


def test_an_atlas_is_the_share_of_scans_at_each_relative_height() -> None:
    low, high = np.zeros((4, 2, 2), np.uint8), np.zeros((8, 2, 2), np.uint8)
    low[:2, 0, 0] = high[:4, 0, 0] = LIVER + 1  # the lower half of both scans
    high[4:, 1, 1] = LEFT_KIDNEY + 1  # the upper half of one
    atlas = atlas_of([store_of(low), store_of(high)])
    assert atlas.shape == (13, 32, 2, 2) and atlas.sum() == 16 + 8
    assert atlas[LIVER, :, 0, 0].tolist() == [1.0] * 16 + [0.0] * 16
    assert atlas[LEFT_KIDNEY, :, 1, 1].tolist() == [0.0] * 16 + [0.5] * 16


def test_an_atlas_claims_what_is_over_its_threshold_on_the_scan_s_own_grid() -> None:
    atlas = np.zeros((13, 32, 2, 2), np.float32)
    atlas[LIVER, :16, 0, 0], atlas[LEFT_KIDNEY, :, 1, 0] = 1.0, 0.5
    store = store_of(np.zeros((4, 2, 2), np.uint8), size=(4, 2))  # 4 columns, 2 rows
    claims = from_atlas(atlas, store)
    assert claims.shape == (4, 2, 4) and claims.dtype == np.uint16
    # columns: 1, 0.75, 0.25, 0 of the share; the patient's right is on the left
    expected = claimed((4, 2, 4), liver=[(x, 0, z) for x in (0, 1) for z in (0, 1)])
    assert np.array_equal(claims, expected), "a half is not over a half"
    loose = from_atlas(atlas, store, threshold=0.4)
    assert mask_of(loose, LEFT_KIDNEY)[0, 1].all() and mask_of(loose, LEFT_KIDNEY).sum() == 4
    flat = from_atlas(atlas.mean(1, keepdims=True), store, threshold=0.4)  # half of the heights: 0.5 in all
    assert np.argwhere(mask_of(flat, LIVER)).tolist() == [[0, 0, z] for z in range(4)], "column 1 has 0.375"


def test_the_ground_truth_is_read_in_canonical_axes_and_our_ids(tmp_path: Path) -> None:
    ids = np.zeros((3, 4, 5), np.uint8)
    ids[2, 3, 4] = 6  # the liver in BTCV
    affine = np.eye(4)  # RAS
    nib.save(nib.Nifti1Image(ids, affine), tmp_path / "labels.nii.gz")
    source = Case("a", tmp_path / "gone.nii.gz", tmp_path / "labels.nii.gz", "BTCV")
    store = replace(fake_store(5), source=source, label_map="BTCV", grid=Grid((3, 4, 5), affine))
    assert np.argwhere(truth_of(store)).tolist() == [[0, 0, 4]] and truth_of(store).max() == LIVER + 1
