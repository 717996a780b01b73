"""gallery.npz: the slices that figures 1, 3 and 4 show, cut out around what is marked in them."""

import json
from typing import Any

import numpy as np
import pandas as pd

from lib.organs import KEYS
from lib.paths import replacing
from lib.profiles import HEADLINE, run_folder, settings_of

from .extracts import scans, spread, stored
from .pages import COLOURS, LARGEST, SLICES

MRI_SLICES = 6


def median_case(profile: str, organ: str) -> tuple[str, pd.DataFrame]:
    """Id and (Z, runs) pixels of `organ` of one case: the (lower) median by the baseline's false slices in the first data set."""
    presence = pd.read_csv(stored(profile, "presence.csv"), dtype={"case": str})
    first = presence[presence["dataset"] == presence["dataset"].iat[0]]
    pixels = first.pivot(index=["case", "z"], columns="run", values=organ)
    pixels = pixels[[name for name in COLOURS if name in pixels]]
    judge = pixels.columns[:2][-1]  # the baseline, where it has run
    false = ((pixels[judge] > 0) & (pixels["truth"] == 0)).groupby("case").sum().sort_values(kind="stable")
    case = false.index[(len(false) - 1) // 2]
    return str(case), pixels.loc[case]


def cut(grey: np.ndarray, masks: dict[str, np.ndarray], slices: list[int]) -> dict[str, np.ndarray]:
    """picture (n, rows, columns) uint8 and masks (runs, n, rows, columns) bool of some slices, cut to a square around all masks.

    The square is at least half of the picture wide; of a large one each k-th pixel is kept.
    """
    pictures, marks = grey[:, :, slices].T, np.array([mask[:, :, slices].T for mask in masks.values()])
    marked, shape = np.argwhere(marks.any((0, 1))), np.array(pictures.shape[1:])
    low, high = (marked.min(0), marked.max(0) + 1) if len(marked) else (0 * shape, shape)
    edge = np.minimum(max(int((high - low).max() * 1.3), shape.max() // 2), shape)
    start, step = np.clip((low + high - edge) // 2, 0, shape - edge), -(-edge.max() // LARGEST)
    rows, columns = (slice(*ends, step) for ends in zip(start, start + edge, strict=True))
    return {"picture": pictures[:, rows, columns], "masks": marks[:, :, rows, columns]}


def slice_dice(masks: dict[str, np.ndarray]) -> pd.DataFrame:
    """(Z, runs): Dice of (X, Y, Z) masks with masks["truth"] in each slice, 0 where both are empty."""
    area, truth = masks["truth"].sum((0, 1)), masks["truth"]
    return pd.DataFrame({run: 2 * (mask & truth).sum((0, 1)) / np.maximum(mask.sum((0, 1)) + area, 1) for run, mask in masks.items()})


def opened(profile: str, store: Any, claims: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, Any]]:
    """(X, Y, Z) uint8 picture of a scan, and what its gallery entries have in common."""
    from lib.volumes import read_scan, to_uint8

    about = {"case": store.id, "runs": list(claims), "aspect": store.grid.spacing_mm[1] / store.grid.spacing_mm[0]}
    return to_uint8(read_scan(store.source.image)[0], store.modality, settings_of("baseline", profile)), about


def _first_set(profile: str, organ: str) -> dict[str, dict[str, Any]]:
    """Out of the first data set: by organ the slice with the adapter's highest Dice, and "case", slices of figure 1's case.

    The highest Dice is looked for among the slices that show at least half of the organ's largest area in their scan.
    """
    first, (case, pixels) = settings_of("baseline", profile).test_on[:1], median_case(profile, organ)
    seen, best, entries = pixels.index[(pixels > 0).any(axis=1)], dict[str, float](), dict[str, dict[str, Any]]()
    for _, store, claims in scans(profile, first):
        grey, about = opened(profile, store, claims)
        for place, key in enumerate(KEYS):
            masks = {run: volume & 1 << place > 0 for run, volume in claims.items()}
            area, dice = masks["truth"].sum((0, 1)), slice_dice(masks)
            score = dice.reindex(columns=["adapter"])["adapter"].where((area > 0) & (2 * area >= area.max()), -1.0)
            if score.max() > best.get(key, -1.0):
                best[key], z = score.max(), int(score.argmax())
                entries[key] = about | {"z": [z], "dice": dice.loc[z].round(4).to_dict()} | cut(grey, masks, [z])
            if (store.id, key) == (case, organ) and len(seen):
                chosen = np.unique(np.linspace(seen.min(), seen.max(), SLICES).round().astype(int)).tolist()
                entries["case"] = about | {"z": chosen, "organ": organ} | cut(grey, masks, chosen)
    return entries


def _mri(profile: str, organ: str) -> dict[str, dict[str, Any]]:
    """ "mri", slices of one scan for figure 4: the (lower) median by the adapter's Dice among the MRI scans that show the organ.

    Where there is no MRI set, the last test set takes its place; where the adapter has not run, the first run there is.
    """
    from lib.datasets import stores_of

    settings, bit, cases = settings_of("baseline", profile), 1 << KEYS.index(organ), dict[str, float]()
    there = [name for name in settings.test_on if any((run_folder(run, profile) / "predictions" / name).is_dir() for run in HEADLINE)]
    there = there or [*settings.test_on]  # a test set that no run was scored on may not be on this machine
    sets = [name for name in there if stores_of(settings, name)[0].modality == "MR"] or there
    for _, store, claims in scans(profile, sets[-1:]):
        masks = {run: volume & bit > 0 for run, volume in claims.items()}
        judge, truth = masks["adapter" if "adapter" in masks else list(masks)[:2][-1]], masks["truth"]
        cases |= {store.id: 2 * (judge & truth).sum() / (judge.sum() + truth.sum())} if truth.any() else {}
    if not cases:
        return {}
    case = sorted(cases, key=lambda name: cases[name])[(len(cases) - 1) // 2]
    _, store, claims = next(scan for scan in scans(profile, sets[-1:]) if scan[1].id == case)
    grey, about = opened(profile, store, claims)
    masks = {run: volume & bit > 0 for run, volume in claims.items()}
    chosen = spread(np.flatnonzero(masks["truth"].any((0, 1))), MRI_SLICES).tolist()
    dice = {run: values.round(4).tolist() for run, values in slice_dice(masks).loc[chosen].items()}
    about |= {"dataset": sets[-1], "modality": store.modality, "organ": organ, "z": chosen, "dice": dice, "cases": len(cases)}
    return {"mri": about | cut(grey, masks, chosen)}


def extract_gallery(profile: str, organ: str = "pancreas", mri_organ: str = "right kidney") -> None:
    """gallery.npz: the best slice of each organ, slices of figure 1's case, and slices of figure 4's; needs presence.csv."""
    entries = _first_set(profile, organ) | _mri(profile, mri_organ)
    arrays = {f"{key}.{part}": entry.pop(part) for key, entry in entries.items() for part in ("picture", "masks")}
    with replacing(stored(profile, "gallery.npz", needed=False)) as part, open(part, "wb") as file:
        np.savez_compressed(file, about=np.array(json.dumps(entries)), **arrays)


def gallery(profile: str) -> dict[str, dict[str, Any]]:
    """The entries of gallery.npz by organ, "case" for figure 1 and "mri" for figure 4."""
    with np.load(stored(profile, "gallery.npz")) as file:
        entries = json.loads(str(file["about"]))
        return {key: entry | {part: file[f"{key}.{part}"] for part in ("picture", "masks")} for key, entry in entries.items()}
