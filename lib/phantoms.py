"""Procedural abdomens with 13 organs as NIfTI files in FLARE22's layout: no patient, no download, no claim.

Coordinates are millimetres in LPS axes (x to the patient's left, y to the back, z to the head), with the
origin on the body's axis at the height of the lowest slice.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
from joblib import Parallel, delayed
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from numpy.random import Generator
from scipy.ndimage import gaussian_filter, map_coordinates
from tqdm import tqdm

from lib.config import VARIANTS, Settings
from lib.files import InputError, replacing, write_json
from lib.organs import BY_KEY, LABEL_MAPS

VERSION = 1  # raise it, and config.CODE, when the same seed would give another phantom


@dataclass(frozen=True)
class Site:
    """One scanner and its habits. `degraded` is the share of slices that only their neighbours explain."""

    name: str
    shape: tuple[int, int, int] = (96, 96, 36)
    spacing_mm: tuple[float, float, float] = (3.4, 3.4, 5.0)
    noise_hu: float = 14.0
    contrast: float = 1.0  # stretches the organs' HU about fat and muscle's mean
    axes: str = "LPS"  # orientation of the stored array
    modality: str = "CT"
    degraded: float = 0.4
    label_map: str = "FLARE22"  # whose ids the label files hold
    first_seed: int = 0
    without: tuple[str, ...] = ()  # organs that nobody at this site has

    def places_mm(self) -> list[np.ndarray]:
        """Coordinates of the voxels along x, y and z."""
        middle = ((self.shape[0] - 1) / 2, (self.shape[1] - 1) / 2, 0)
        return [(np.arange(self.shape[k]) - middle[k]) * self.spacing_mm[k] for k in range(3)]


# A, B, C and M play FLARE22, BTCV, AMOS22 CT and AMOS22 MRI; P is what a pretrained model saw before
SITES = {
    "site P": Site("site P", degraded=0.0, first_seed=9_000),
    "site A": Site("site A", axes="RAS"),
    "site B": Site("site B", (104, 104, 44), (3.2, 3.2, 4.0), 20.0, 0.85, "LAS", label_map="BTCV",
                   first_seed=3_000),
    "site C": Site("site C", (88, 88, 36), (3.9, 3.9, 5.0), 26.0, 0.75, label_map="AMOS22", first_seed=5_000),
    "site M": Site("site M", (92, 92, 30), (3.6, 3.6, 6.0), axes="PIR", modality="MR", label_map="AMOS22",
                   first_seed=7_000),
}
# signal of air, fat, muscle, lung and bone, in HU or MRI's arbitrary units
TISSUES = {"CT": (-1000.0, -95.0, 55.0, -780.0, 420.0), "MR": (0.0, 0.85, 0.25, 0.02, 0.3)}
# organ: HU, MRI signal, ellipsoids (centre, semi-axes), tube (points, radii); later ones lie over earlier
ANATOMY: dict[str, tuple[float, float, list, list]] = {
    "liver": (105, 0.42, [((-72, -8, 128), (66, 66, 52)), ((-12, -46, 134), (50, 30, 34))], []),
    "spleen": (112, 0.62, [((98, 28, 130), (24, 36, 36))], []),
    "stomach": (45, 0.34, [((58, -34, 132), (36, 32, 36))],
                [((48, -48, 112), 20), ((10, -56, 98), 16), ((-14, -48, 96), 13)]),
    "right kidney": (150, 0.72, [((-66, 46, 72), (25, 23, 44))], []),
    "left kidney": (150, 0.72, [((68, 46, 82), (25, 23, 44))], []),
    "gallbladder": (12, 0.95, [((-50, -52, 86), (17, 19, 24))], []),
    "duodenum": (58, 0.38, [], [((-24, -40, 92), 12), ((-44, -14, 84), 13), ((-44, -4, 62), 13),
                                ((-20, 0, 48), 12), ((14, 2, 52), 12)]),
    "pancreas": (88, 0.55, [], [((-20, -16, 72), 15), ((0, -20, 86), 13), ((28, -12, 98), 12),
                                ((62, 4, 108), 11)]),
    "inferior vena cava": (122, 0.18, [], [((-18, 26, -20), 12), ((-18, 26, 90), 12), ((-22, 18, 160), 12)]),
    "aorta": (165, 0.10, [], [((10, 32, -20), 11), ((12, 32, 100), 11.5), ((10, 36, 220), 12)]),
    "esophagus": (42, 0.36, [], [((8, 12, 220), 11), ((10, 8, 165), 11), ((30, -8, 148), 12)]),
    "right adrenal gland": (72, 0.48, [], [((-38, 34, 114), 9), ((-42, 38, 136), 10), ((-48, 28, 128), 9)]),
    "left adrenal gland": (72, 0.48, [], [((38, 30, 118), 9), ((42, 36, 140), 10), ((50, 26, 132), 9)]),
}


def _coordinates(site: Site, rng: Generator) -> np.ndarray:
    """(3, X, Y, Z) mm: the site's grid, bent at random, for a patient of random size, place and turn."""
    points = np.stack(np.meshgrid(*site.places_mm(), indexing="ij")).astype(np.float32)
    turn = np.deg2rad(rng.normal(0, 3))
    x, y = points[:2]
    points[0], points[1] = np.cos(turn) * x - np.sin(turn) * y, np.sin(turn) * x + np.cos(turn) * y
    points *= rng.uniform(0.92, 1.08, 3)[:, None, None, None].astype(np.float32)
    points += rng.normal(0, (4, 4, 5))[:, None, None, None].astype(np.float32)
    return points + _between(rng.normal(0, 5.0, (3, 5, 5, 5)).astype(np.float32), site.shape)


def _between(knots: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(3, K, K, K) -> (3, X, Y, Z): cubic splines through the knots, one axis after another."""
    weights, unit = [], np.eye(knots.shape[1])
    for n in shape:  # weights: (n, K)
        places = np.linspace(0, len(unit) - 1, n, dtype=np.float32)
        weights.append(np.stack([map_coordinates(k, [places], order=3, mode="nearest") for k in unit], 1))
    return np.einsum("xi,yj,zk,cijk->cxyz", *weights, knots, optimize=True).astype(np.float32)


def _organ_mask(points: np.ndarray, key: str, rng: Generator) -> np.ndarray:
    """(X, Y, Z) bool: a union of ellipsoids and of round cones between neighbouring points of a tube."""
    _, _, ellipsoids, tube = ANATOMY[key]
    shift, size = rng.normal(0, (3.5, 3.5, 5)), rng.uniform(0.9, 1.12)
    mask = np.zeros(points.shape[1:], bool)
    for centre, semi_axes in ellipsoids:
        offset = points - np.reshape(centre + shift, (3, 1, 1, 1))
        mask |= ((offset / np.reshape(np.multiply(semi_axes, size), (3, 1, 1, 1))) ** 2).sum(0) < 1
    for (a, r_a), (b, r_b) in pairwise(tube):
        start, along = a + shift, np.subtract(b, a)
        middle, reach = start + along / 2, abs(along) / 2 + size * max(r_a, r_b)
        near = np.all([abs(points[k] - middle[k]) <= reach[k] for k in range(3)], axis=0)
        offset = points[:, near] - start[:, None].astype(np.float32)
        t = np.clip(along / (along @ along) @ offset, 0, 1)
        distance2 = sum((offset[k] - t * along[k]) ** 2 for k in range(3))
        mask[near] |= distance2 < (size * (r_a + t * (r_b - r_a))) ** 2
    return mask


def _body(points: np.ndarray, modality: str) -> tuple[np.ndarray, np.ndarray]:
    """Signal of the patient without organs, and the mask of the space inside the abdominal wall."""
    air, fat, muscle, lung, bone = TISSUES[modality]
    radius = np.sqrt((points[0] / 150.0) ** 2 + (points[1] / 106.0) ** 2)
    signal = np.full(radius.shape, air, np.float32)
    signal[radius < 1] = fat
    signal[(radius < 0.9) & (radius > 0.83)] = muscle
    lungs = (radius < 0.8) & (points[2] > 150 + 45 * radius**2) & (abs(points[0]) > 25)
    signal[lungs] = lung
    psoas = np.hypot(abs(points[0]) - 36, points[1] - 62) < 17
    signal[psoas & (points[2] < 110)] = muscle
    spine = np.hypot(points[0], points[1] - 66.0)
    signal[spine < 21] = bone * (0.75 + 0.25 * np.cos(points[2][spine < 21] / 5))
    return signal, (radius < 0.8) & ~lungs & (spine > 23)


def _bowel(signal: np.ndarray, free: np.ndarray, levels: list[float], rng: Generator, site: Site) -> None:
    """Loops that look like an organ, most of them in a single slice: what a slice-wise model falls for."""
    x, y = np.meshgrid(*site.places_mm()[:2], indexing="ij")
    for z in range(site.shape[2]):
        for _ in range(rng.poisson(1.6)):
            centre = rng.uniform((-105, -80), (105, 55))
            radii = rng.uniform(8, 24, 2)
            loop = ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 < 1
            signal[:, :, z][loop & free[:, :, z]] = rng.choice(levels) * rng.uniform(0.9, 1.1)


def draw(site: Site, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One phantom in LPS axes: (X, Y, Z) HU or MRI signal, (X, Y, Z) uint8 labels, (Z,) degraded slices."""
    rng = np.random.default_rng([VERSION, site.first_seed + seed])
    points = _coordinates(site, rng)
    signal, free = _body(points, site.modality)
    mri = site.modality == "MR"
    level = {}
    for key, (hu, mr, _, _) in ANATOMY.items():
        if mri:
            level[key] = mr * rng.uniform(0.9, 1.1)
        else:
            level[key] = 60 + site.contrast * (hu - 60 + rng.normal(0, 9))
    _bowel(signal, free, list(level.values()), rng, site)
    labels, unit = np.zeros(site.shape, np.uint8), 0.0016 if mri else 1.0  # what a HU is
    for key in ANATOMY:
        mask = _organ_mask(points, key, rng) & (free | (key == "esophagus"))
        texture = rng.normal(0, 10 * unit, mask.sum())  # of an absent organ, too: all others stay as they are
        if key not in site.without:
            labels[mask] = BY_KEY[key].label
            signal[mask] = level[key] + texture
    signal = gaussian_filter(signal, (0.6, 0.6, 0.25))
    if mri:
        ramp = np.linspace(-1, 1, site.shape[0])[:, None, None] * rng.normal(0, 0.15)
        signal *= np.exp(ramp).astype(np.float32)
    degraded = rng.random(site.shape[2]) < site.degraded
    for z in range(site.shape[2]):
        picture = signal[:, :, z]
        if degraded[z]:  # motion blur, streaks and heavy noise
            picture[:] = gaussian_filter(picture, rng.uniform(1.5, 3.0, 2))
            streaks = gaussian_filter(rng.normal(0, 1, picture.shape), 2.5).astype(np.float32)
            picture += streaks * 9 * 55 * unit
            picture += rng.normal(0, 60 * unit, picture.shape).astype(np.float32)
        noise = rng.normal(0, site.noise_hu * unit, picture.shape).astype(np.float32)
        picture += noise + rng.normal(0, 4 * unit)
    return (signal * 600).clip(0).astype(np.float32) if mri else signal, labels, degraded


def _write_case(site: Site, folder: Path, number: int) -> list[int]:
    """Writes one phantom's image and label files; returns its degraded slices, counted from the feet."""
    signal, labels, degraded = draw(site, number)
    ids = np.zeros(14, np.uint8)
    for theirs, ours in LABEL_MAPS[site.label_map].items():
        if ours:
            ids[ours] = theirs
    spacing = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.diag([*site.spacing_mm, 1.0])  # NIfTI's world is RAS
    turn = ornt_transform(axcodes2ornt("LPS"), axcodes2ornt(site.axes))
    affine, name = spacing @ inv_ornt_aff(turn, site.shape), f"FLARE22_Tr_{number:04d}"
    image, truth = folder / "images" / f"{name}_0000.nii.gz", folder / "labels" / f"{name}.nii.gz"
    for path, array in ((image, signal.round().astype(np.int16)), (truth, ids[labels])):
        with replacing(path) as part:
            nib.save(nib.Nifti1Image(apply_orientation(array, turn), affine), part)
    return np.flatnonzero(degraded).tolist()


def site_of(name: str, settings: Settings, variant: str = "") -> Site:
    """A site as the settings draw it, or a variant of it (`VARIANTS`). InputError: there is no such site."""
    if name not in SITES:
        raise InputError(f"{name!r} is no site of phantoms: choose one of {', '.join(SITES)}.")
    site, change = SITES[name], VARIANTS[variant]
    coarser = np.array([1, 1, change.get("slice_distance", 1.0)]) * settings.phantom_voxels
    shape = tuple(np.rint(np.divide(site.shape, coarser)).astype(int).tolist())
    spacing_mm = tuple(np.multiply(site.spacing_mm, coarser).tolist())
    degraded = change.get("degraded", settings.degraded if site.degraded else 0.0)
    without = change.get("without", site.without)
    return replace(site, shape=shape, spacing_mm=spacing_mm, degraded=degraded, without=without)


def write_cohort(site: Site, numbers: Sequence[int], folder: Path) -> Path:
    """Writes a site's phantoms of these numbers as images/ and labels/ below `folder`, if they are not there.

    cohort.json, written last, holds the site's settings and each case's degraded slices. Returns `folder`.
    """
    index = folder / "cohort.json"
    wanted = json.loads(json.dumps({"version": VERSION, "numbers": list(numbers), "site": asdict(site)}))
    if index.exists() and wanted.items() <= json.loads(index.read_text()).items():
        return folder
    write_json(index, {})  # until the cohort is whole
    jobs = -1 if len(numbers) >= 20 else 1  # to start another process takes as long as ten phantoms
    work = Parallel(jobs, return_as="generator")(delayed(_write_case)(site, folder, n) for n in numbers)
    degraded = tqdm(work, f"phantoms of {site.name}", len(numbers), leave=False)
    write_json(index, wanted | {"degraded_slices": dict(zip(numbers, degraded, strict=True))})
    return folder
