"""Procedural abdomens with 13 organs as NIfTI files in FLARE22's layout: no patient, no download, no claim.

Version 2: sizes, places and Hounsfield units from textbooks of anatomy and radiology, fields of view as
scanners take them; frozen before any run was compared on it. Coordinates are millimetres in LPS axes (x to
the patient's left, y to the back, z to the head), with the origin on the body's axis at the iliac crest.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from joblib import Parallel, delayed
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from numpy.random import Generator
from scipy.ndimage import gaussian_filter
from torch.nn.functional import interpolate
from tqdm import tqdm

from lib.config import VARIANTS, Settings
from lib.files import InputError, replacing, write_json
from lib.organs import BY_KEY, LABEL_MAPS

VERSION = 2  # raise it, and config.CODE, when the same seed would give another phantom


@dataclass(frozen=True)
class Site:
    """One scanner and its habits. A scan begins near one of two heights and ends near one of two."""

    name: str
    pixels: int = 128
    pixel_mm: float = 3.2
    slice_mm: tuple[float, float] = (4.5, 5.5)  # range of the scans' slice thickness
    bottom_mm: tuple[float, float] = (-190.0, 45.0)  # at the hips, or above the crest
    top_mm: tuple[float, float] = (180.0, 335.0)  # in the liver's dome, or above the heart
    ends_mm: float = 35.0  # by which both vary
    noise: float = 12.0  # HU
    kernel_px: float = 0.7  # blur of the reconstruction
    phases: tuple[str, ...] = ("portal",)  # of the contrast medium
    axes: str = "LPS"  # orientation of the stored array
    modality: str = "CT"
    degraded: float = 0.1  # share of slices that motion and streaks spoil
    label_map: str = "FLARE22"  # whose ids the label files hold
    first_seed: int = 0
    without: tuple[str, ...] = ()  # organs that nobody at this site has


# A, B, C and M play FLARE22, BTCV, AMOS22 CT and AMOS22 MRI; S is A's scanner with other patients
SITES = {
    "site A": Site("site A", axes="RAS"),
    "site S": Site("site S", axes="RAS", first_seed=9_000),
    "site B": Site("site B", 144, 3.0, (4.0, 5.0), (-165.0, -90.0), (190.0, 235.0), 22.0, 0.4, axes="LAS",
                   label_map="BTCV", first_seed=3_000),
    "site C": Site("site C", 120, 3.6, (2.5, 6.0), noise=16.0, kernel_px=1.0, label_map="AMOS22",
                   phases=("non-contrast", "arterial", "portal", "delayed"), first_seed=5_000),
    "site M": Site("site M", 128, 3.1, (6.0, 8.0), (-60.0, 30.0), (170.0, 215.0), axes="PIR", modality="MR",
                   label_map="AMOS22", first_seed=7_000),
}
# signal of tissues: HU without contrast medium and in its three phases; MRI's, 0 to 1
PHASES = ("non-contrast", "arterial", "portal", "delayed", "MR")
TISSUES: dict[str, tuple[float, float, float, float, float]] = {
    "liver": (58, 70, 108, 90, 0.42), "spleen": (48, 110, 118, 95, 0.62), "kidney": (33, 130, 170, 150, 0.72),
    "pancreas": (42, 98, 92, 76, 0.55), "artery": (42, 290, 150, 112, 0.10), "vein": (42, 75, 138, 108, 0.18),
    "adrenal": (25, 72, 75, 60, 0.48), "bile": (8, 8, 10, 12, 0.95), "gullet": (38, 52, 62, 56, 0.36),
    "gut": (36, 62, 75, 66, 0.38), "muscle": (52, 56, 62, 60, 0.25), "fat": (-100, -100, -98, -98, 0.85),
    "air": (-1000, -1000, -1000, -1000, 0.0), "lung": (-830, -825, -820, -820, 0.03),
    "bone": (230, 230, 235, 235, 0.45), "water": (6, 6, 8, 8, 1.0), "stool": (10, 10, 15, 15, 0.5),
}
# tissue, ellipsoids (centre, semi-axes) and a tube (points, radii) of each organ and of what may be taken for
# one and is not labelled; later ones lie over earlier ones
Part = tuple[str, list, list]
ANATOMY: dict[str, Part] = {
    "heart": ("vein", [((14, -36, 268), (56, 42, 50))], []),
    "bladder": ("water", [((0, -32, -138), (42, 34, 32))], []),
    "right psoas": ("muscle", [], [((-28, 52, 105), 8), ((-42, 42, 10), 20), ((-72, -12, -120), 17)]),
    "left psoas": ("muscle", [], [((28, 52, 105), 8), ((42, 42, 10), 20), ((72, -12, -120), 17)]),
    "right iliac artery": ("artery", [], [((9, 32, 8), 7), ((-38, 26, -60), 6), ((-66, -34, -150), 5)]),
    "left iliac artery": ("artery", [], [((9, 32, 8), 7), ((46, 26, -60), 6), ((66, -34, -150), 5)]),
    "right colon": ("stool", [], [((-96, 16, -48), 25), ((-102, 22, 52), 21), ((-30, -66, 44), 18)]),
    "left colon": ("stool", [], [((-30, -66, 44), 18), ((48, -62, 60), 18), ((98, -4, 112), 17),
                                 ((104, 30, 62), 16), ((98, 24, -50), 14), ((20, 20, -95), 15)]),
    "liver": ("liver", [((-74, -4, 142), (66, 82, 74)), ((-8, -46, 156), (66, 36, 34))], []),
    "spleen": ("spleen", [((94, 32, 146), (31, 44, 52))], []),
    "stomach": ("gut", [((58, 4, 180), (34, 36, 34))],
                [((60, -8, 172), 30), ((64, -40, 132), 27), ((36, -58, 98), 22), ((-12, -46, 98), 14)]),
    "right kidney": ("kidney", [((-60, 46, 72), (29, 26, 55))], []),
    "left kidney": ("kidney", [((60, 46, 84), (29, 26, 56))], []),
    "gallbladder": ("bile", [], [((-44, -42, 104), 12), ((-54, -64, 80), 16)]),
    "portal vein": ("vein", [], [((-44, -14, 124), 7), ((-4, -16, 88), 7), ((76, 20, 136), 5)]),
    "duodenum": ("gut", [], [((-18, -46, 98), 13), ((-40, -22, 96), 13), ((-46, 0, 62), 13),
                             ((-34, 8, 38), 12), ((14, 4, 34), 11), ((32, -14, 58), 11)]),
    "pancreas": ("pancreas", [], [((-26, -10, 60), 17), ((-8, -24, 84), 13), ((30, -18, 100), 12.5),
                                  ((80, 10, 130), 13)]),
    "mesenteric vessels": ("vein", [], [((0, -24, 84), 6), ((-8, -34, 10), 5)]),
    "inferior vena cava": ("vein", [], [((-14, 32, 0), 11), ((-18, 30, 100), 12), ((-21, 6, 216), 13)]),
    "aorta": ("artery", [], [((9, 32, 8), 9), ((9, 32, 110), 10), ((18, 36, 220), 12), ((22, 34, 350), 12)]),
    "esophagus": ("gullet", [], [((4, 14, 350), 9), ((8, 12, 250), 9), ((14, 8, 214), 9), ((36, 0, 192), 9)]),
    "right adrenal gland": ("adrenal", [], [((-28, 42, 112), 5), ((-29, 24, 132), 5), ((-44, 38, 116), 4)]),
    "left adrenal gland": ("adrenal", [], [((24, 38, 112), 5), ((30, 20, 134), 5), ((44, 36, 116), 4)]),
}
CAVITY_MM = (126.0, 92.0)  # semi-axes of the space inside the abdominal wall
LACKING = {"gallbladder": 0.12, "spleen": 0.04, "right kidney": 0.03, "left kidney": 0.03}  # by surgery


Phantom = tuple[np.ndarray, np.ndarray, np.ndarray, tuple[float, float, float]]


class Space:
    """Where the voxels of a scan are in a patient of random size, place, turn and bend, in half slices."""

    def __init__(self, site: Site, patient: Generator) -> None:
        ends = patient.choice(site.bottom_mm), patient.uniform(-1, 1), patient.choice(site.top_mm)
        bottom, top = ends[0] + site.ends_mm * ends[1], ends[2] + site.ends_mm * patient.uniform(-1, 1)
        self.slice_mm, bottom = patient.uniform(*site.slice_mm), min(bottom, top - 150)
        self.slices = round((top - bottom) / self.slice_mm)
        across = (torch.arange(site.pixels) - (site.pixels - 1) / 2) * site.pixel_mm
        along = bottom + torch.arange(2 * self.slices + 1) * self.slice_mm / 2
        x, y, z = torch.meshgrid(across, across, along, indexing="ij")
        girth, length = patient.uniform(0.85, 1.2), patient.uniform(0.93, 1.07)
        (left, back), turn = patient.uniform(-15, 15, 2), np.deg2rad(patient.uniform(-8, 8))
        x, y, cos, sin = (x - left) / girth, (y - back) / girth, np.cos(turn), np.sin(turn)
        points = torch.stack([cos * x - sin * y, sin * x + cos * y, z / length])
        knots = torch.from_numpy(patient.normal(0, 5, (1, 3, 5, 5, 5))).float()
        points += interpolate(knots, points.shape[1:], mode="trilinear", align_corners=True)[0]
        self.points = points.numpy()  # (3, X, Y, 2 Z + 1): slice z is at 2 z + 1
        axes = list(zip(self.points, ((1, 2), (0, 2), (0, 1)), strict=True))  # by column, row and slice:
        self.least, self.most = [p.min(others) for p, others in axes], [p.max(others) for p, others in axes]

    def solids(self, part: Part, shift: np.ndarray, size: float) -> Iterator[tuple[tuple, np.ndarray]]:
        """Each ellipsoid and round cone of a part, as a box of voxels and the mask of those in it."""
        _, ellipsoids, tube = part
        cones = [(a, b, r_a * size, r_b * size, np.ones(3)) for (a, r_a), (b, r_b) in pairwise(tube)]
        cones += [(centre, centre, 1.0, 1.0, np.multiply(axes, size)) for centre, axes in ellipsoids]
        for a, b, r_a, r_b, axes in cones:
            middle, reach = (np.add(a, b) / 2 + shift, abs(np.subtract(a, b)) / 2 + max(r_a, r_b) * axes)
            low, high = middle - reach, middle + reach
            near = [np.flatnonzero((self.most[k] >= low[k]) & (self.least[k] <= high[k])) for k in range(3)]
            box = tuple(slice(place[0], place[-1] + 1) if len(place) else slice(0) for place in near)
            along, scaled = np.subtract(b, a) / axes, self.points[:, *box].reshape(3, -1) / axes[:, None]
            offset = (scaled - ((a + shift) / axes)[:, None]).astype(np.float32)
            t = (along / max(along @ along, 1e-9) @ offset).clip(0, 1)  # nearest point of the axis
            apart = ((offset - along[:, None] * t) ** 2).sum(0)
            yield box, (apart < (r_a + t * (r_b - r_a)) ** 2).reshape([len(place) for place in near])


def _body(space: Space, level: dict[str, float], patient: Generator) -> tuple[np.ndarray, ...]:
    """(X, Y, Z) signal of a patient without organs on a table, cavity of the trunk, and lungs in it."""
    x, y, z = space.points
    side, radius = abs(x), np.hypot(x / CAVITY_MM[0], y / CAVITY_MM[1])
    outer = 1.1 + patient.uniform(6, 45) / np.mean(CAVITY_MM)  # muscle, then fat
    signal = np.where(radius < outer, np.float32(level["fat"]), np.float32(level["air"]))
    back = np.flatnonzero((radius < outer).any((0, 2)))[-1]
    signal[4:-4, back + 2 : back + 4] = min(level["fat"], 0)  # the table, which MRI does not show
    lungs = (radius < 0.98) & (side > 26)
    lungs &= z > 208 + 8 * (x < 0) - 90 * (((side - 60) / 72) ** 2 + (y / 92) ** 2)
    signal[lungs] = level["lung"]
    signal[(radius < 1.1) & (radius > 1)] = level["muscle"]
    spine = np.hypot(x, y - 66)
    signal[((side - 38) / 24) ** 2 + ((y - 88) / 18) ** 2 < 1] = level["muscle"]  # beside it
    bones = (spine < 20) | ((abs(radius - 1.05) < 0.02) & (z > 60) & (np.cos((z + 0.35 * y) / 4.5) > 0.35))
    bones |= (abs(np.hypot((side - 62) / 52, (y - 20) / 62) - 1) < 0.13) & (abs(z + 60) < 60) & (side > 40)
    if patient.random() < 0.3:  # arms beside the body
        away = np.hypot((side - CAVITY_MM[0] * outer - 42) / 38, (y - 10) / 42)
        signal[away < 1] = level["muscle"]
        bones |= away < 0.3
    signal[bones] = level["bone"] * (0.75 + 0.25 * np.cos(z[bones] / 5))  # discs are softer
    return signal, (radius < 1) & (spine > 22) & ~bones, lungs


def _patient(site: Site, space: Space, level: dict[str, float], patient: Generator,
             bowel: Generator) -> tuple[np.ndarray, np.ndarray]:
    """(X, Y, Z) signal and labels of a patient, in half slices."""
    signal, cavity, lungs = _body(space, level, patient)
    abdomen, labels = cavity & ~lungs, np.zeros(signal.shape, np.uint8)
    for _ in range(bowel.integers(30, 46)):  # loops of two to six slices that an organ may be taken for
        point, radius = bowel.uniform((-85, -70, -135), (85, 25, 95)), bowel.uniform(8, 14)
        ways = bowel.normal(0, (26, 20, 12), (bowel.integers(1, 4), 3)).cumsum(0)
        tissue = str(bowel.choice(["gut", "gut", "gut", "water", "stool", "muscle", "air"]))
        tube = [(point, radius), *((point + way, radius) for way in ways)]
        for box, mask in space.solids((tissue, [], tube), np.zeros(3), 1.0):
            signal[box][mask & abdomen[box]] = level[tissue]
    gas = patient.uniform(-75, -35)  # in the stomach, above its fluid
    for key, part in ANATOMY.items():
        shift, size, lacks = patient.normal(0, (6, 6, 8)), patient.uniform(0.88, 1.1), patient.random()
        if lacks < LACKING.get(key, 0) or key in site.without:
            continue
        room = cavity if key in ("heart", "aorta", "esophagus") else abdomen
        for box, mask in space.solids(part, shift, size):
            mask &= room[box]
            signal[box][mask] = level[part[0]]
            labels[box][mask] = BY_KEY[key].label if key in BY_KEY else 0
            if key == "stomach":
                signal[box][mask & (space.points[1][box] < gas)] = level["air"]
    for _ in range(patient.poisson(0.6)):  # cysts, which count as the organ
        label = BY_KEY[str(patient.choice(["liver", "right kidney", "left kidney"]))].label
        where, place, radius = np.flatnonzero(labels == label), patient.random(), patient.uniform(5, 20)
        if len(where):
            centre = space.points.reshape(3, -1)[:, where[int(place * len(where))]]
            for box, mask in space.solids(("water", [(centre, (1, 1, 1))], []), np.zeros(3), radius):
                signal[box][mask & (labels[box] == label)] = level["water"]
    return signal, labels


def draw(site: Site, seed: int) -> Phantom:
    """One phantom in LPS axes: (X, Y, Z) HU or MRI signal, (X, Y, Z) uint8 labels, (Z,) degraded slices, and
    spacing in mm. Its patient, its bowel and its scan have random numbers of their own.
    """
    patient, bowel, scan = np.random.default_rng([VERSION, site.first_seed + seed]).spawn(3)
    space, mri, level = Space(site, patient), site.modality == "MR", {}
    phase = PHASES.index("MR" if mri else str(patient.choice(site.phases)))
    for name, signals in TISSUES.items():
        own = patient.normal(0, 0.06 * signals[4] if mri else 9)
        level[name] = signals[phase] + (0 if name in ("air", "lung", "fat") else own)
    fatty, unit = (patient.random() < 0.2) * patient.uniform(10, 50), 0.0016 if mri else 1.0  # what a HU is
    level["liver"] += fatty * (unit if mri else -1)
    signal, labels = _patient(site, space, level, patient, bowel)
    signal = (signal[..., :-2:2] + 2 * signal[..., 1::2] + signal[..., 2::2]) / 4  # a slice has a thickness
    kernel = (site.kernel_px, site.kernel_px, 0)
    signal, degraded = gaussian_filter(signal, kernel), scan.random(space.slices) < site.degraded
    grain = gaussian_filter(scan.standard_normal(signal.shape, np.float32), kernel)
    for z in np.flatnonzero(degraded):  # motion, streaks and heavy noise
        signal[..., z] = gaussian_filter(signal[..., z], scan.uniform(1, 2.5, 2))
        streaks = gaussian_filter(scan.standard_normal(signal.shape[:2], np.float32), 2.5)
        signal[..., z] += 200 * unit * streaks + 30 * unit * scan.standard_normal(streaks.shape, np.float32)
    if mri:  # a coil sees what is near it
        x, y = np.meshgrid(*2 * [np.linspace(-1, 1, site.pixels)], indexing="ij")
        a, b, c = scan.normal(0, 0.2, 3)
        field = np.exp(a * x + b * y - (0.2 + abs(c)) * (1 - x**2 - y**2))
        signal *= field[..., None].astype(np.float32)
    signal += np.float32(site.noise * unit) * grain / grain.std()
    spacing_mm = (site.pixel_mm, site.pixel_mm, space.slice_mm)
    return abs(signal) * 600 if mri else signal, labels[..., 1::2].copy(), degraded, spacing_mm


def _write_case(site: Site, folder: Path, number: int) -> list[int]:
    """Writes one phantom's image and label files; returns its degraded slices, counted from the feet."""
    signal, labels, degraded, spacing_mm = draw(site, number)
    theirs = {ours: their for their, ours in LABEL_MAPS[site.label_map].items() if ours}
    ids = np.array([theirs.get(label, 0) for label in range(14)], np.uint8)
    spacing = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.diag([*spacing_mm, 1.0])  # NIfTI's world is RAS
    turn = ornt_transform(axcodes2ornt("LPS"), axcodes2ornt(site.axes))
    affine, name = spacing @ inv_ornt_aff(turn, labels.shape), f"FLARE22_Tr_{number:04d}"
    image, truth = folder / "images" / f"{name}_0000.nii.gz", folder / "labels" / f"{name}.nii.gz"
    for path, array in ((image, signal.round().astype(np.int16)), (truth, ids[labels])):
        with replacing(path) as part:
            nib.save(nib.Nifti1Image(apply_orientation(array, turn), affine), part)
    return np.flatnonzero(degraded).tolist()


def site_of(name: str, settings: Settings, variant: str = "") -> Site:
    """A site as the settings draw it, or a variant of it (`VARIANTS`). InputError: there is no such site."""
    if name not in SITES:
        raise InputError(f"{name!r} is no site of phantoms: choose one of {', '.join(SITES)}.")
    site, change, coarser = SITES[name], VARIANTS[variant], settings.phantom_voxels
    slice_mm = [mm * coarser * change.get("slice_distance", 1.0) for mm in site.slice_mm]
    return replace(
        site, pixels=round(site.pixels / coarser), pixel_mm=site.pixel_mm * coarser,
        slice_mm=(slice_mm[0], slice_mm[1]), degraded=change.get("degraded", settings.degraded),
        without=change.get("without", site.without))


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
