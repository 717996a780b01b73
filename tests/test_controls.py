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
from transformers import SamConfig, SamModel

from lib import controls
from lib.clipseg import MEAN, STD, pretrained
from lib.controls import (
    atlas_of,
    from_atlas,
    from_boxes,
    largest_piece,
    mean_over_slices,
    truth_of,
    without_false_slices,
)
from lib.data import Case, Store
from lib.files import InputError
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


@pytest.fixture(scope="module")
def sam_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SAM of random weights for pictures of 48 pixels, in the hub's format."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "mlp_dim": 32}
    vision = {"output_channels": 24, "num_pos_feats": 12, "num_hidden_layers": 2, "window_size": 3}
    sides = {"image_size": 48, "patch_size": 4}
    prompts, masks = {"hidden_size": 24, **sides}, sizes | {"hidden_size": 24, "iou_head_hidden_dim": 16}
    config = SamConfig(
        vision_config=sizes | vision | sides | {"global_attn_indexes": [1]}, prompt_encoder_config=prompts,
        mask_decoder_config=masks)
    SamModel(config).save_pretrained(folder := tmp_path_factory.mktemp("sam"))
    return folder


class Watched:
    """A SAM that keeps what it is given; drawn=True: each mask is its box, edges included."""

    def __init__(self, folder: Path, drawn: bool = False) -> None:
        self.sam = pretrained(SamModel, str(folder), "SAM").eval()
        self.config, self.device, self.drawn = self.sam.config, self.sam.device, drawn
        self.pictures, self.boxes = list[torch.Tensor](), list[torch.Tensor]()

    def get_image_embeddings(self, picture: torch.Tensor) -> torch.Tensor:
        self.pictures.append(picture)
        return self.sam.get_image_embeddings(picture)

    def __call__(self, **given: Any) -> Any:
        self.boxes.append(given["input_boxes"][0])
        found = self.sam(**given)
        if self.drawn:
            y, x = torch.meshgrid(torch.arange(48), torch.arange(48), indexing="ij")
            inside = [(x >= a) & (y >= b) & (x <= c) & (y <= d) for a, b, c, d in self.boxes[-1]]
            found.pred_masks = 20.0 * torch.stack(inside)[None, :, None] - 10
        return found


def boxed() -> Store:
    """Three slices of 24 pixels: two pieces of a spleen in one, a liver besides; nothing in the second."""
    labels = np.zeros((3, 24, 24), np.uint8)
    labels[0, 2:5, 7:9] = labels[0, 10, 8] = SPLEEN + 1
    labels[0, 20:24, 0:3] = labels[2, 5, 6] = LIVER + 1
    image = np.full_like(labels, 51)
    image[:, :, 8:] = 204
    return replace(store_of(labels), image=image)


def test_sam_is_given_each_organ_s_box_and_sees_a_slice_once(sam_folder: Path) -> None:
    sam, store = Watched(sam_folder, drawn=True), boxed()
    claims = from_boxes(sam, store, medical=False)
    assert len(sam.pictures) == len(sam.boxes) == 2, "the second slice shows nothing"
    # x0, y0, x1, y1 in pictures of 48: the first and the last pixel; the liver is the first organ
    given = [boxes.tolist() for boxes in sam.boxes]
    assert given == [[[0, 40, 5, 47], [14, 4, 17, 21]], [[12, 10, 13, 11]]]
    expected = np.zeros((24, 24, 3), np.uint16)
    expected[0:3, 20:24, 0] = expected[6, 5, 2] = 1 << LIVER
    expected[7:9, 2:11, 0] = 1 << SPLEEN
    assert np.array_equal(claims, expected), "x before y, and of the slices that show it alone"


def test_sam_s_masks_are_the_hub_s_and_grey_values_are_its_own_or_medsam_s(sam_folder: Path) -> None:
    sam, store = Watched(sam_folder), boxed()
    claims, _ = (from_boxes(sam, store, medical) for medical in (False, True))
    plain, _, spread, _ = sam.pictures
    grey = plain * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    for picture, least, most in ((grey, 0.2, 0.8), (spread, 0.0, 1.0)):
        assert picture.shape == (1, 3, 48, 48) and (picture[:, 0] - picture[:, 2]).abs().max() < 1e-6
        assert (picture[..., :15] - least).abs().max() < 1e-6 > (picture[..., 17:] - most).abs().max()
    with torch.inference_mode():
        given = {"input_boxes": sam.boxes[0][None], "multimask_output": False}
        whole = sam.sam(pixel_values=plain, **given).pred_masks[0, :, 0]  # (2, 48, 48)
    halved = torch.nn.functional.interpolate(whole.sigmoid()[None], (24, 24), mode="bilinear", antialias=True)
    for place, organ in enumerate((LIVER, SPLEEN)):
        assert np.array_equal(mask_of(claims, organ)[:, :, 0].T, halved[0, place] > 0.5)
    assert 0 < (claims[:, :, 0] > 0).mean() < 1


def test_a_part_of_a_sam_is_refused_and_the_whole_has_its_size(sam_folder: Path, tmp_path: Path) -> None:
    SamModel.from_pretrained(sam_folder).vision_encoder.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((sam_folder / "config.json").read_text())
    with pytest.raises(InputError, match="SAM lacks"):
        pretrained(SamModel, str(tmp_path), "SAM")
    with torch.device("meta"):  # which has shapes and no numbers
        sam = SamModel(SamConfig())
        seen = sam.get_image_embeddings(torch.empty(1, 3, 1024, 1024))
        found = sam(image_embeddings=seen, input_boxes=torch.empty(1, 5, 4), multimask_output=False)
    assert found.pred_masks.shape == (1, 5, 1, 256, 256)
    assert sum(parameter.numel() for parameter in sam.parameters()) == 93_735_728  # SAM's ViT-B has 93.7 M


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
