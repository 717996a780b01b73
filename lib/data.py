"""Which scans a run uses, where the data sets keep them, and each scan prepared once: uint8 slices, memory-mapped."""

import io
import json
import os
import random
import re
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from tqdm import tqdm

from lib.config import Settings, settings_of
from lib.files import (
    ROOT,
    InputError,
    cache_root,
    data_root,
    file_hash,
    locked,
    merge_csv,
    remove,
    replacing,
    results_root,
    value_hash,
    write_json,
)
from lib.organs import LABEL_MAPS, ORGANS, label_ids
from lib.phantoms import degraded_in, site_of, write_cohort
from lib.volumes import Grid, foreground, read_labels, read_scan, readable, resize, to_slices, to_uint8

STORE_VERSION = 2  # raise it whenever the same scan and settings would give other arrays


@dataclass(frozen=True)
class Case:
    """One scan on disk and, where it is known, its ground truth. `modality`: "CT" or "MR"; `label_map`: a key of LABEL_MAPS."""

    id: str
    image: Path
    labels: Path | None = None
    label_map: str = "FLARE22"
    modality: str = "CT"


@dataclass(frozen=True, eq=False)
class Store:
    """One prepared case. Arrays stay on disk and are read slice by slice; Z is the number of slices, S the model's size.

    Prepared with `slice_mm` or `crop`, the slices fill the `box` of the scan, and Z is what fits there.
    """

    id: str
    folder: Path
    image: np.ndarray  # (Z, S, S) uint8, rows first
    labels: np.ndarray | None  # (Z, S, S) uint8, our label ids; None: no ground truth
    grid: Grid
    modality: str
    presence: np.ndarray | None  # (Z, 14) pixels of each label id 0..13 in every slice
    label_map: str
    source: Case
    box: tuple[slice, ...] | None = None  # of canonical voxels; None: the whole scan, slice by slice
    donor: np.ndarray | None = (
        None  # (Z', S, S) of another patient, whose slices are rows Z, Z + 1, ... of a window
    )

    @property
    def spacing_mm(self) -> float:
        """Distance of neighbouring slices."""
        return self.grid.spacing_mm[2]

    def slices(self, rows: np.ndarray) -> np.ndarray:
        """(K,) rows of windows -> (K, S, S) uint8."""
        own = len(self.image)
        out = np.asarray(self.image[np.minimum(rows, own - 1)])
        if self.donor is not None and (theirs := rows >= own).any():
            out[theirs] = self.donor[rows[theirs] - own]
        return out


# The data sets' own layouts, and nnU-Net's raw one


class Layout(NamedTuple):
    """Where a data set keeps its labelled scans, below DATA_ROOT/<folder>, and what they are."""

    folder: str
    images: tuple[str, ...]  # folders of the images
    name: str  # regular expression of an image's file name; group 1 is in its labels' name, too, group 2 is its number
    labels: str  # labels' file without its ending, from the folder of the images; {} takes group 1
    case: str  # a case's id; {} takes its number
    label_map: str
    nnunet: str  # how NAME in nnU-Net's Dataset###_NAME begins
    cases: int  # how many it has
    example: str
    numbers: tuple[range, ...] = (range(1, 10**6),)  # that belong to it
    modality: str = "CT"


def _amos(numbers: range, modality: str, cases: int, example: str) -> Layout:
    images, files = ("imagesTr", "imagesVa"), f"imagesTr/{example}.nii.gz and labelsTr/{example}.nii.gz"
    name, labels, case = r"(amos_(\d+))\.nii(\.gz)?", "../{folder}/{}", "amos_{:04d}"
    return Layout("AMOS22", images, name, labels, case, "AMOS22", "amos", cases, files, (numbers,), modality)


LAYOUTS = {
    "FLARE22": Layout(
        "FLARE22", ("images",), r"(FLARE22_Tr_(\d+))_0000\.nii(\.gz)?", "../labels/{}", "FLARE22_Tr_{:04d}", "FLARE22",
        "flare", 50, "images/FLARE22_Tr_0001_0000.nii.gz and labels/FLARE22_Tr_0001.nii.gz",
    ),
    "BTCV": Layout(
        "BTCV", ("RawData/Training/img",), r"img((\d+))\.nii(\.gz)?", "../label/label{}", "BTCV_{:04d}", "BTCV", "btcv", 30,
        "RawData/Training/img/img0001.nii.gz and RawData/Training/label/label0001.nii.gz", (range(1, 11), range(21, 41)),
    ),
    "AMOS22 CT": _amos(range(1, 501), "CT", 300, "amos_0001"),
    "AMOS22 MRI": _amos(range(501, 10**6), "MR", 60, "amos_0507"),
}  # fmt: skip
IN_NNUNET = r"(.*?(\d+))_0000\.nii(\.gz)?"


def _case_of(layout: Layout, root: Path, image: Path, match: re.Match[str]) -> Case:
    """The case of an image. Labels are found by name alone, for the folder of the images may be a link."""
    labels = layout.labels.format(match[1], folder=image.parent.name.replace("images", "labels"))
    stem = os.path.normpath(image.parent / labels)
    files = [Path(f"{stem}{suffix}") for suffix in (".nii.gz", ".nii")]
    if (there := next((file for file in files if file.exists()), None)) is None:
        raise InputError(
            f"{image} has no labels ({files[0]} does not exist): complete the data set, or take the image out."
        )
    label_map = layout.label_map
    if layout.name == IN_NNUNET:  # whose ids are those of its dataset.json
        ids = label_ids(path := str(root / "dataset.json"))
        label_map = next((name for name in (label_map, *LABEL_MAPS) if LABEL_MAPS[name] == ids), path)
    return Case(layout.case.format(int(match[2])), image, there, label_map, layout.modality)


def survey(dataset: str, root: Path) -> tuple[list[Case], list[InputError]]:
    """Labelled cases of a data set below `root`, sorted by id, and what is in the way of others: one error for each image.

    Its own layout goes before nnU-Net's raw one (imagesTr, labelsTr, dataset.json).

    Raises:
        InputError: the data set has no layout here.
    """
    if dataset not in LAYOUTS:
        raise InputError(f"{dataset} is no data set of this profile: choose one of {', '.join(LAYOUTS)}.")
    own = LAYOUTS[dataset]
    for layout in (own, own._replace(images=("imagesTr",), name=IN_NNUNET, labels="../labelsTr/{}")):
        cases, errors = dict[str, Case](), list[InputError]()
        images = [path for folder in layout.images for path in (root / folder).glob("*.nii*")]
        for image in sorted(images, key=lambda path: (path.name, path)):
            match = re.fullmatch(layout.name, image.name)
            if not match or image.name.startswith(".") or not any(int(match[2]) in r for r in layout.numbers):
                continue
            try:
                case = _case_of(layout, root, image, match)
                if case.id in cases:
                    raise InputError(
                        f"{image} and {cases[case.id].image} are both case {case.id}: keep one of the two."
                    )
                cases[case.id] = case
            except InputError as error:
                errors.append(error)
        if cases or errors:
            break
    return sorted(cases.values(), key=lambda case: case.id), errors


def find_cases(dataset: str, root: Path) -> list[Case]:
    """All labelled cases of a data set below `root`, in its own layout or nnU-Net's, sorted by id.

    Raises:
        InputError: the data set has no layout here, there is no image in the folder, an image has no labels, two images are
            one case, or nnU-Net's dataset.json is missing or names what is unknown.
    """
    cases, errors = survey(dataset, root)
    if errors:
        raise errors[0]
    if not cases:
        example = LAYOUTS[dataset].example
        raise InputError(
            f"{root} holds no case of {dataset}: put {example} and so on there, or name another by DATA_ROOT."
        )
    return cases


def home_of(dataset: str) -> Path:
    """Folder of a data set: DATA_ROOT/<its name>, else nnU-Net's Dataset###_NAME there or in nnUNet_raw; else the first."""
    layout, root = LAYOUTS.get(dataset, LAYOUTS["FLARE22"]), data_root()
    named = re.compile(rf"(Dataset|Task)\d{{3}}_{layout.nnunet}.*", re.IGNORECASE)
    below = [
        path for pattern in ("*", "nnUNet_raw/*", f"{layout.folder}/*") for path in sorted(root.glob(pattern))
    ]
    homes = [root / layout.folder, *(path for path in below if named.fullmatch(path.name))]
    return next((home for home in homes if dataset in LAYOUTS and any(survey(dataset, home))), homes[0])


# Cases: phantoms, samples, and splits


def phantom_cases(name: str, numbers: list[int], settings: Settings, variant: str = "") -> list[Case]:
    """Cases of a procedural cohort, written first if they are not in the cache."""
    site = site_of(name, settings, variant)
    folder = cache_root() / "phantoms" / f"{name.replace(' ', '_')}-{value_hash([asdict(site), numbers])}"
    with locked(str(folder)):  # two notebooks that start at once would draw the same phantoms
        cases = find_cases("FLARE22", write_cohort(site, numbers, folder))
    prefix = name.replace("site ", "")
    return [
        replace(c, id=f"{prefix}_{c.id[-4:]}", label_map=site.label_map, modality=site.modality)
        for c in cases
    ]


def degraded_slices(case: Case) -> set[int]:
    """Slices of a phantom, counted from the feet, that were degraded on purpose; empty for a real scan."""
    return degraded_in(case.image.parents[1], case.id[-4:])


SAMPLES = [f"{modality}_{kind}.nii.gz" for modality in ("ct", "mr") for kind in ("image", "labels")]


def sample_folders() -> list[Path]:
    """Where the sample scans may be, the first being where a download goes: $SAMPLES alone if set, from the repository if relative."""
    if chosen := os.environ.get("SAMPLES"):
        return [ROOT / Path(chosen).expanduser()]
    return [data_root() / "samples", ROOT.parent / "shared" / "samples"]


def sample_cases() -> dict[str, list[Case]]:
    """The real sample scans: the CT in eight slabs that all show organs (four train, one validates, three test), and the MRI.

    Raises:
        InputError: they are not there.
    """
    folders = sample_folders()
    source = next((folder for folder in folders if all((folder / name).is_file() for name in SAMPLES)), None)
    if source is None:
        looked = " nor in ".join(str(folder) for folder in folders)
        raise InputError(
            f"The four sample scans are not in {looked}: run `make samples`, or name their folder by SAMPLES."
        )
    scans = {
        kind: nib.Nifti1Image.from_filename(source / f"ct_{kind}.nii.gz") for kind in ("image", "labels")
    }
    grid = read_scan(source / "ct_image.nii.gz")[1]
    shown = np.flatnonzero(read_labels(source / "ct_labels.nii.gz", "TotalSegmentator", grid).any((0, 1)))
    edges = [0, *np.linspace(shown[0], shown[-1] + 1, 9).astype(int)[1:-1], grid.canonical_shape[2]]
    slabs = []
    for number, (start, stop) in enumerate(pairwise(edges)):
        paths = {
            kind: cache_root() / "samples" / f"ct_{kind}_slab{number}_{start}_{stop}.nii.gz" for kind in scans
        }
        for kind, path in paths.items():
            if not path.exists():
                with replacing(path) as part:
                    nib.save(scans[kind].slicer[:, :, start:stop], part)
        slabs.append(Case(f"ct_slab{number}", paths["image"], paths["labels"], "TotalSegmentator"))
    mri = Case("mr", source / "mr_image.nii.gz", source / "mr_labels.nii.gz", "TotalSegmentatorMR", "MR")
    tested = [slabs[1], slabs[3], slabs[7]]
    return {"training": slabs[::2], "validation": [slabs[5]], "sample CT": tested, "sample MRI": [mri]}


def split(cases: list[Case], counts: tuple[int, int, int]) -> dict[str, list[Case]]:
    """Training, validation and test cases, drawn as the released code of T-Gated draws them (the paper gives no lists).

    Raises:
        InputError: there are fewer cases than the split asks for.
    """
    if len(cases) < sum(counts):
        where = cases[0].image.parent
        raise InputError(
            f"{where} holds {len(cases)} cases where {sum(counts)} are split {counts}: complete the data set."
        )
    shuffled = sorted(cases, key=lambda case: case.image.name)
    random.Random(42).shuffle(shuffled)
    edges = np.cumsum([0, *counts])
    names = ("training", "validation", "test")
    return {name: shuffled[start:stop] for name, (start, stop) in zip(names, pairwise(edges), strict=True)}


def cases_of(settings: Settings, part: str, variant: str = "") -> list[Case]:
    """The cases of a part: "training", "validation", or a data set to test on, also in one of its VARIANTS."""
    if settings.train_on == "samples":
        return sample_cases()[part]
    if variant == "held out":  # what validates Med-VLM's runs is held out of BTCV
        settings, part, variant = settings_of("unet", settings.profile), "validation", ""
    own = part in ("training", "validation") or part == settings.train_on
    dataset, total = settings.train_on if own else part, sum(settings.cases)
    if settings.phantoms:
        first = settings.cases[2] if not own else total
        cases = phantom_cases(dataset, list(range(1, first + 1)), settings, "" if own else variant)
    else:
        cases = find_cases(dataset, home_of(dataset))
    if variant == "every case" or (settings.phantoms and not own):
        return cases
    counts = (
        settings.cases if own else (0, 0, settings.cases[2])
    )  # drawn by a fixed seed: the papers give no lists
    parts = split(cases, counts)
    parts["training"] = parts["training"][: settings.training_cases or None]
    chosen = parts["test" if part == dataset else part]
    if not own:
        return sorted(chosen, key=lambda case: case.id)
    if settings.phantoms and variant:  # the test patients' seeds, drawn otherwise
        return phantom_cases(dataset, sorted(int(case.id[-4:]) for case in chosen), settings, variant)
    return chosen


# Prepared stores


def stores_of(settings: Settings, part: str, variant: str = "") -> list[Store]:
    """Prepared stores of `cases_of`, in the cache, in a folder of the settings that they were made with."""
    cases = cases_of(settings, part, variant)
    made_with = value_hash(_recipe(settings))
    home = (
        cache_root() / "stores" / f"{settings.size}px-{made_with}" / cases[0].image.parents[1].name
    )  # a variant has its own
    stores = prepare(cases, settings, home)
    if getattr(settings, "neighbours", "") != "another patient":
        return stores
    donors = stores if part == "training" else stores_of(settings, "training")
    return [
        replace(store, donor=donors[(place + 1) % len(donors)].image) for place, store in enumerate(stores)
    ]


def _recipe(settings: Settings) -> dict[str, Any]:
    """What the settings say of how slices are prepared."""
    names = ("size", "slice_mm", "crop", "ct_window_hu", "mr_percentiles")
    return json.loads(json.dumps({name: getattr(settings, name) for name in names}))


def prepare(cases: list[Case], settings: Settings, folder: Path, jobs: int = 0) -> list[Store]:
    """The stores of all cases below `folder`, in order; those that are missing or of other files or settings are made.

    jobs: processes, by default as many as there are cores if the work is worth it.

    Raises:
        InputError: bad input (see `read_scan`, `read_labels`), the folder cannot be written, or two cases share an id.
    """
    if len({case.id for case in cases}) < len(cases):
        raise InputError(
            f"Two of the cases {', '.join(case.id for case in cases)} share an id: give every scan its own."
        )
    keys = [_key(case, settings) for case in cases]
    with locked(str(folder)):  # two notebooks that start at once would make the same stores
        todo = [
            (c, settings, folder / c.id, k)
            for c, k in zip(cases, keys, strict=True)
            if not _open(c, folder / c.id, k)
        ]
        worth = sum(os.path.getsize(job[0].image) for job in todo) > 1e8  # a process takes seconds to start
        work = Parallel(n_jobs=jobs or (-1 if worth else 1), return_as="generator")(
            delayed(_write)(*job) for job in todo
        )
        list(tqdm(work, "preparing scans", len(todo), leave=False, disable=not todo))
    opened = [_open(case, folder / case.id, key) for case, key in zip(cases, keys, strict=True)]
    assert all(opened), f"{folder} was changed while it was read"
    return [store for store in opened if store is not None]


def _key(case: Case, settings: Settings) -> dict[str, Any]:
    """Everything that a store depends on, as JSON holds it."""
    key = {"version": STORE_VERSION, "id": case.id, "modality": case.modality, "label_map": case.label_map}
    for name, path in (("image", case.image), ("labels", case.labels)):
        if path is not None:
            with readable(Path(path)):
                key[f"{name}_sha256"] = file_hash(path)
    ids = value_hash(list(label_ids(case.label_map).items()))
    return key | _recipe(settings) | {"label_ids": ids, "labelled": case.labels is not None}


def _open(case: Case, home: Path, key: dict[str, Any]) -> Store | None:
    """The store in `home` if it is complete and made with `key`; None where it must be made (again)."""
    try:
        record = json.loads((home / "case.json").read_text())
        grid = Grid(tuple(record["shape"]), np.array(record["affine"]))
        image = np.load(home / "image.npy", mmap_mode="r")
        labels = np.load(home / "labels.npy", mmap_mode="r") if case.labels else None
        shape = (record["slices"], key["size"], key["size"])
        if not key.items() <= record.items() or any(
            a.shape != shape for a in (image, labels) if a is not None
        ):
            return None
    except (OSError, EOFError, ValueError, KeyError, TypeError):  # missing, cut short or damaged
        return None
    presence = None if labels is None else np.array(record["presence"])
    box = tuple(slice(*edges) for edges in record["box"]) if key["crop"] or key["slice_mm"] else None
    return Store(case.id, home, image, labels, grid, case.modality, presence, case.label_map, case, box)


def _write(case: Case, settings: Settings, home: Path, key: dict[str, Any]) -> None:
    """Makes the store in `home`. An older case.json goes first, the new one comes last: it marks the arrays as complete."""
    voxels, grid = read_scan(case.image)
    grey = to_uint8(voxels, case.modality, settings)
    box = foreground(grey) if settings.crop else tuple(slice(0, edge) for edge in grid.canonical_shape)
    arrays = {"image": _pictures(grey, box, grid.spacing_mm[2], settings, labels=False)}
    if case.labels:
        truth = read_labels(case.labels, case.label_map, grid)
        arrays["labels"] = _pictures(truth, box, grid.spacing_mm[2], settings, labels=True)
    presence = [np.bincount(s.ravel(), minlength=len(ORGANS) + 1).tolist() for s in arrays.get("labels", ())]
    remove(home / "case.json", home / "labels.npy")
    for name, array in arrays.items():
        write_array(home / f"{name}.npy", array)
    geometry = {"shape": grid.shape, "affine": grid.affine.tolist(), "spacing_mm": grid.spacing_mm}
    edges = {"box": [[e.start, e.stop] for e in box], "slices": len(arrays["image"])}
    write_json(home / "case.json", {**key, **geometry, **edges, "presence": presence})


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes a .npy file, whole or not at all."""
    np.save(
        buffer := io.BytesIO(), array
    )  # straight to a file, np.save overlooks a disk that fills in its last 4 kB
    with replacing(path) as part:
        part.write_bytes(buffer.getbuffer())


def _pictures(
    volume: np.ndarray, box: tuple[slice, ...], spacing_mm: float, settings: Settings, labels: bool
) -> np.ndarray:
    """(Z, S, S) slices of a canonical volume's box, resampled to `slice_mm` along z where the settings say so."""
    pictures = to_slices(volume[box], settings.size, labels)
    if not settings.slice_mm:
        return pictures
    count = max(1, round(len(pictures) * spacing_mm / settings.slice_mm))
    along = resize(pictures.transpose(1, 2, 0), settings.size, count, labels)  # (S, S, Z)
    return np.ascontiguousarray(along.transpose(2, 0, 1))


# What a run is scored on, and on what it was not


def check_disjoint(settings: Settings, tests: list[tuple[str, str]]) -> None:
    """Raises InputError where a scan of these (data set, variant) was trained on, or chose the weights, whatever its name is."""
    parts = ("training", "validation") if settings.keep == "best" else ("training",)
    seen = {
        file_hash(store.folder / "image.npy"): store for part in parts for store in stores_of(settings, part)
    }
    for name, variant in tests:
        for store in stores_of(settings, name, variant):
            if (twin := seen.get(file_hash(store.folder / "image.npy"))) is not None:
                raise InputError(
                    f"{store.source.image} of the test set {name} holds the same scan as {twin.source.image}, which the model "
                    "learned from: take it out of one of the two."
                )


SPLIT_COLUMNS = ["trained_on", "dataset", "variant", "part", "case", "image_sha256", "labels_sha256"]


def record_split(settings: Settings, tests: list[tuple[str, str]]) -> None:
    """Puts the scans that train, validate and test, with their hashes, into the profile's splits.csv, beside the scores."""
    rows, settings = [], replace(settings, training_cases=0)  # where fewer train, they are the first of these
    for part, variant in [("training", ""), ("validation", ""), *tests]:
        own = part in ("training", "validation")
        for case in sorted(cases_of(settings, part, variant), key=lambda case: case.id):
            hashes = (file_hash(case.image), file_hash(case.labels) if case.labels else "")
            dataset = settings.train_on if own else part
            rows.append((settings.train_on, dataset, variant, part if own else "test", case.id, *hashes))
    table = pd.DataFrame(rows, columns=SPLIT_COLUMNS)
    merge_csv(results_root(settings.profile) / "splits.csv", table, SPLIT_COLUMNS[:4], SPLIT_COLUMNS[:5])
