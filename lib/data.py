"""Which scans a run uses, where they lie, and each scan prepared once: uint8 slices, memory-mapped."""

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

from lib.config import VARIANTS, Settings, settings_of
from lib.files import (
    ROOT,
    InputError,
    cache_root,
    data_root,
    discard,
    file_hash,
    locked,
    merge_csv,
    replacing,
    results_root,
    value_hash,
    write_json,
)
from lib.organs import LABEL_MAPS, ORGANS, label_ids
from lib.phantoms import site_of, write_cohort
from lib.volumes import Grid, foreground, read_labels, read_scan, readable, resize, to_slices, to_uint8

STORE_VERSION = 2  # raise it whenever the same scan and settings would give other arrays


@dataclass(frozen=True)
class Case:
    """One scan on disk and, where it is known, its ground truth."""

    id: str
    image: Path
    labels: Path | None = None
    label_map: str = "FLARE22"  # a key of LABEL_MAPS, or the path of an nnU-Net dataset.json
    modality: str = "CT"  # or "MR"


@dataclass(frozen=True, eq=False)
class Store:
    """One prepared case: Z slices of S x S pixels on disk, read slice by slice.

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
    donor: np.ndarray | None = None  # (Z', S, S) of another patient: rows Z, Z + 1, ... of a window

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
    name: str  # of an image's file: group 1 is in its labels' name, too, group 2 is its number
    labels: str  # labels' file without its ending, from the folder of the images; {} takes group 1
    case: str  # a case's id; {} takes its number
    label_map: str
    nnunet: str  # how NAME in nnU-Net's Dataset###_NAME begins
    cases: int  # how many it has
    example: str
    numbers: tuple[range, ...] = (range(1, 10**6),)  # that belong to it
    modality: str = "CT"


_AMOS = Layout(
    "AMOS22", ("imagesTr", "imagesVa"), r"(amos_(\d+))\.nii(\.gz)?", "../{folder}/{}", "amos_{:04d}",
    "AMOS22", "amos", 300, "imagesTr/amos_0001.nii.gz and labelsTr/amos_0001.nii.gz", (range(1, 501),),
)  # fmt: skip
LAYOUTS = {
    "FLARE22": Layout(
        "FLARE22", ("images",), r"(FLARE22_Tr_(\d+))_0000\.nii(\.gz)?", "../labels/{}", "FLARE22_Tr_{:04d}",
        "FLARE22", "flare", 50, "images/FLARE22_Tr_0001_0000.nii.gz and labels/FLARE22_Tr_0001.nii.gz",
    ),
    "BTCV": Layout(
        "BTCV", ("RawData/Training/img",), r"img((\d+))\.nii(\.gz)?", "../label/label{}", "BTCV_{:04d}",
        "BTCV", "btcv", 30, "RawData/Training/img/img0001.nii.gz and RawData/Training/label/label0001.nii.gz",
        (range(1, 11), range(21, 41)),
    ),
    "AMOS22 CT": _AMOS,
    "AMOS22 MRI": _AMOS._replace(
        example=_AMOS.example.replace("0001", "0507"), cases=60, numbers=(range(501, 10**6),), modality="MR"
    ),
}  # fmt: skip
IN_NNUNET: dict[str, Any] = {
    "images": ("imagesTr",), "name": r"(.*?(\d+))_0000\.nii(\.gz)?", "labels": "../labelsTr/{}",
}  # fmt: skip


def _case_of(layout: Layout, root: Path, image: Path, match: re.Match[str]) -> Case:
    """The case of an image. Labels are found by name alone, for the folder of the images may be a link."""
    labels = layout.labels.format(match[1], folder=image.parent.name.replace("images", "labels"))
    stem = os.path.normpath(image.parent / labels)
    files = [Path(f"{stem}{suffix}") for suffix in (".nii.gz", ".nii")]
    if (there := next((file for file in files if file.exists()), None)) is None:
        advice = "complete the data set, or take the image out."
        raise InputError(f"{image} has no labels ({files[0]} does not exist): {advice}")
    label_map = layout.label_map
    if layout.name == IN_NNUNET["name"]:  # its ids are those of its dataset.json
        ids = label_ids(path := str(root / "dataset.json"))
        label_map = next((name for name in (label_map, *LABEL_MAPS) if LABEL_MAPS[name] == ids), path)
    return Case(layout.case.format(int(match[2])), image, there, label_map, layout.modality)


def survey(dataset: str, root: Path) -> tuple[list[Case], list[InputError]]:
    """Labelled cases of a data set below `root`, sorted by id, and an error for each image that is none.

    Its own layout goes before nnU-Net's raw one (imagesTr, labelsTr, dataset.json).

    Raises:
        InputError: the data set has no layout here.
    """
    if dataset not in LAYOUTS:
        raise InputError(f"{dataset} is no data set of this profile: choose one of {', '.join(LAYOUTS)}.")
    cases, errors = dict[str, Case](), list[InputError]()
    for layout in (LAYOUTS[dataset], LAYOUTS[dataset]._replace(**IN_NNUNET)):
        images = [path for folder in layout.images for path in (root / folder).glob("*.nii*")]
        for image in sorted(images, key=lambda path: (path.name, path)):
            match = re.fullmatch(layout.name, image.name)
            if not match or image.name.startswith(".") or not any(int(match[2]) in r for r in layout.numbers):
                continue
            try:
                case = _case_of(layout, root, image, match)
                if (twin := cases.setdefault(case.id, case)) is not case:
                    both = f"are both case {case.id}: keep one of the two."
                    raise InputError(f"{image} and {twin.image} {both}")
            except InputError as error:
                errors.append(error)
        if cases or errors:
            break
    return sorted(cases.values(), key=lambda case: case.id), errors


def find_cases(dataset: str, root: Path) -> list[Case]:
    """All labelled cases of a data set below `root`, in its own layout or nnU-Net's, sorted by id.

    Raises:
        InputError: there is no such data set, no image, an image without labels, two images of one case, or
            nnU-Net's dataset.json is missing or names what is unknown.
    """
    cases, errors = survey(dataset, root)
    if errors:
        raise errors[0]
    if not cases:
        advice = f"put {LAYOUTS[dataset].example} and so on there, or name another by DATA_ROOT."
        raise InputError(f"{root} holds no case of {dataset}: {advice}")
    return cases


def home_of(dataset: str) -> Path:
    """A data set's folder: DATA_ROOT/<name>, else nnU-Net's Dataset###_NAME there or in nnUNet_raw."""
    layout, root = LAYOUTS.get(dataset, LAYOUTS["FLARE22"]), data_root()
    named = re.compile(rf"(Dataset|Task)\d{{3}}_{layout.nnunet}.*", re.IGNORECASE)
    places = ("*", "nnUNet_raw/*", f"{layout.folder}/*")
    below = [path for place in places for path in sorted(root.glob(place)) if named.fullmatch(path.name)]
    homes = [root / layout.folder, *below]
    return next((home for home in homes if dataset in LAYOUTS and any(survey(dataset, home))), homes[0])


# Cases: phantoms, samples, and splits


def phantom_cases(name: str, numbers: list[int], settings: Settings, variant: str = "") -> list[Case]:
    """Cases of a procedural cohort, written first if they are not in the cache."""
    site = site_of(name, settings, variant)
    folder = cache_root() / "phantoms" / f"{name.replace(' ', '_')}-{value_hash([asdict(site), numbers])}"
    with locked(str(folder)):  # two notebooks that start at once would draw the same phantoms
        cases = find_cases("FLARE22", write_cohort(site, numbers, folder))
    prefix, kind, modality = name.replace("site ", ""), site.label_map, site.modality
    return [replace(c, id=f"{prefix}_{c.id[-4:]}", label_map=kind, modality=modality) for c in cases]


def degraded_slices(case: Case) -> set[int]:
    """Slices of a phantom, counted from the feet, that were degraded on purpose; empty for a real scan."""
    index = case.image.parents[1] / "cohort.json"
    if not index.exists():
        return set()
    return set(json.loads(index.read_text())["degraded_slices"][str(int(case.id[-4:]))])


SAMPLES = [f"{modality}_{kind}.nii.gz" for modality in ("ct", "mr") for kind in ("image", "labels")]


def sample_folders() -> list[Path]:
    """Where the sample scans may be, a download's place first; $SAMPLES alone if it is set."""
    if chosen := os.environ.get("SAMPLES"):
        return [ROOT / Path(chosen).expanduser()]
    return [data_root() / "samples", ROOT.parent / "shared" / "samples"]


def sample_cases() -> dict[str, list[Case]]:
    """Real scans: a CT in eight slabs that all show organs, and an MRI. InputError: they are not there."""
    folders = sample_folders()
    source = next((folder for folder in folders if all((folder / name).is_file() for name in SAMPLES)), None)
    if source is None:
        looked = f"The four sample scans are not in {' nor in '.join(map(str, folders))}"
        raise InputError(f"{looked}: run `make samples`, or name their folder by SAMPLES.")
    files = {kind: source / f"ct_{kind}.nii.gz" for kind in ("image", "labels")}
    scans = {kind: nib.Nifti1Image.from_filename(file) for kind, file in files.items()}
    grid = read_scan(files["image"])[1]
    shown = np.flatnonzero(read_labels(files["labels"], "TotalSegmentator", grid).any((0, 1)))
    edges = [0, *np.linspace(shown[0], shown[-1] + 1, 9).astype(int)[1:-1], grid.canonical_shape[2]]
    slabs = []
    for number, (start, stop) in enumerate(pairwise(edges)):
        name = f"slab{number}_{start}_{stop}.nii.gz"
        image, labels = paths = [cache_root() / "samples" / f"ct_{kind}_{name}" for kind in scans]
        for scan, path in zip(scans.values(), paths, strict=True):
            if not path.exists():
                with replacing(path) as part:
                    nib.save(scan.slicer[:, :, start:stop], part)
        slabs.append(Case(f"ct_slab{number}", image, labels, "TotalSegmentator"))
    mri = Case("mr", source / "mr_image.nii.gz", source / "mr_labels.nii.gz", "TotalSegmentatorMR", "MR")
    tested = [slabs[1], slabs[3], slabs[7]]
    return {"training": slabs[::2], "validation": [slabs[5]], "sample CT": tested, "sample MRI": [mri]}


def split(cases: list[Case], counts: tuple[int, int, int]) -> dict[str, list[Case]]:
    """Training, validation and test cases, drawn as T-Gated's released code does: the papers give no lists.

    InputError: there are fewer cases than the split asks for.
    """
    if len(cases) < sum(counts):
        have = f"holds {len(cases)} cases where {sum(counts)} are split {counts}"
        raise InputError(f"{cases[0].image.parent} {have}: complete the data set.")
    shuffled = sorted(cases, key=lambda case: case.image.name)
    random.Random(42).shuffle(shuffled)
    training, validation = counts[0], counts[0] + counts[1]
    parts = {"training": shuffled[:training], "validation": shuffled[training:validation]}
    return parts | {"test": shuffled[validation : sum(counts)]}


def cases_of(settings: Settings, part: str, variant: str = "") -> list[Case]:
    """The cases of a part: "training", "validation", or a data set to test on, also in one of its VARIANTS.

    Raises:
        InputError: there is no such data set or variant, or the scans are not there.
    """
    known = [name for name, changes in VARIANTS.items() if settings.phantoms or not changes]
    if variant not in known:
        choice = f"choose one of {', '.join(filter(None, known))}, or none."
        raise InputError(f"{part} has no variant {variant!r} in this profile: {choice}")
    if settings.train_on == "samples":
        if part not in (parts := sample_cases()):
            raise InputError(f"{part} is no data set of this profile: choose sample CT or sample MRI.")
        return parts[part]
    if variant == "held out":  # what validates Med-VLM's runs is held out of BTCV
        settings, part, variant = settings_of("unet", settings.profile), "validation", ""
    own = part in ("training", "validation", settings.train_on)
    dataset = settings.train_on if own else part
    counts = settings.cases if own else (0, 0, settings.cases[2])
    if settings.phantoms:
        cases = phantom_cases(dataset, [*range(1, sum(counts) + 1)], settings, "" if own else variant)
    else:
        cases = find_cases(dataset, home_of(dataset))
    if variant == "every case" or (settings.phantoms and not own):
        return cases
    parts = split(cases, counts)
    chosen = parts["test" if part == dataset else part]
    if part == "training":
        return chosen[: settings.training_cases or None]
    if not own:
        return sorted(chosen, key=lambda case: case.id)
    if settings.phantoms and variant:  # the test patients' seeds, drawn otherwise
        return phantom_cases(dataset, sorted(int(case.id[-4:]) for case in chosen), settings, variant)
    return chosen


# Prepared stores


def stores_of(settings: Settings, part: str, variant: str = "") -> list[Store]:
    """Prepared stores of `cases_of`, in the cache, in a folder of the settings that they were made with."""
    cases = cases_of(settings, part, variant)
    home = cache_root() / "stores" / f"{settings.size}px-{value_hash(_recipe(settings))}"
    stores = prepare(cases, settings, home / cases[0].image.parents[1].name)  # a variant has its own
    if getattr(settings, "neighbours", "") != "another patient":
        return stores
    donors = stores if part == "training" else stores_of(settings, "training")
    return [replace(store, donor=donors[(at + 1) % len(donors)].image) for at, store in enumerate(stores)]


def _recipe(settings: Settings) -> dict[str, Any]:
    """What the settings say of how slices are prepared, as JSON holds it."""
    names = ("size", "slice_mm", "crop", "ct_window_hu", "mr_percentiles")
    return json.loads(json.dumps({name: getattr(settings, name) for name in names}))


def prepare(cases: list[Case], settings: Settings, folder: Path, jobs: int = 0) -> list[Store]:
    """The stores of all cases below `folder`, in order; makes what is missing or of other files or settings.

    jobs: processes, by default as many as there are cores if the work is worth it. InputError: bad input (see
    `read_scan`, `read_labels`), a folder that cannot be written, or two cases share an id.
    """
    if len({case.id for case in cases}) < len(cases):
        ids = ", ".join(case.id for case in cases)
        raise InputError(f"Two of the cases {ids} share an id: give every scan its own.")
    work = [(case, folder / case.id, _key(case, settings)) for case in cases]
    with locked(str(folder)):  # two notebooks that start at once would make the same stores
        todo = [(settings, *one) for one in work if not _open(*one)]
        worth = sum(os.path.getsize(one[1].image) for one in todo) > 1e8  # a process takes seconds to start
        parallel = Parallel(jobs or (-1 if worth else 1), return_as="generator")
        made = parallel(delayed(_write)(*one) for one in todo)
        list(tqdm(made, "preparing scans", len(todo), leave=False, disable=not todo))
    stores = [store for one in work if (store := _open(*one))]
    assert len(stores) == len(cases), f"{folder} was changed while it was read"
    return stores


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
        shapes = {array.shape for array in (image, labels) if array is not None}
        if shapes != {(record["slices"], key["size"], key["size"])} or not key.items() <= record.items():
            return None
    except (OSError, EOFError, ValueError, KeyError, TypeError):  # missing, cut short or damaged
        return None
    presence = None if labels is None else np.array(record["presence"])
    box = tuple(slice(*edges) for edges in record["box"]) if key["crop"] or key["slice_mm"] else None
    return Store(case.id, home, image, labels, grid, case.modality, presence, case.label_map, case, box)


def _write(settings: Settings, case: Case, home: Path, key: dict[str, Any]) -> None:
    """Makes the store in `home`. An old case.json goes first; the new one comes last, as its mark."""
    voxels, grid = read_scan(case.image)
    grey = to_uint8(voxels, case.modality, settings)
    box = foreground(grey) if settings.crop else tuple(slice(0, edge) for edge in grid.canonical_shape)
    arrays = {"image": _pictures(grey[box], grid.spacing_mm[2], settings, labels=False)}
    if case.labels:
        truth = read_labels(case.labels, case.label_map, grid)
        arrays["labels"] = _pictures(truth[box], grid.spacing_mm[2], settings, labels=True)
    presence = [np.bincount(s.ravel(), minlength=len(ORGANS) + 1).tolist() for s in arrays.get("labels", ())]
    for old in ("case.json", "labels.npy"):
        discard(home / old)
    for name, array in arrays.items():
        write_array(home / f"{name}.npy", array)
    geometry = {"shape": grid.shape, "affine": grid.affine.tolist(), "spacing_mm": grid.spacing_mm}
    edges = {"box": [[edge.start, edge.stop] for edge in box], "slices": len(arrays["image"])}
    write_json(home / "case.json", {**key, **geometry, **edges, "presence": presence})


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes a .npy file, whole or not at all."""
    np.save(buffer := io.BytesIO(), array)  # to a file, np.save overlooks a disk that fills in its last 4 kB
    with replacing(path) as part:
        part.write_bytes(buffer.getbuffer())


def _pictures(volume: np.ndarray, spacing_mm: float, settings: Settings, labels: bool) -> np.ndarray:
    """(Z, S, S) slices of a canonical volume, resampled to `slice_mm` along z where the settings say so."""
    pictures = to_slices(volume, settings.size, labels)
    if not settings.slice_mm:
        return pictures
    count = max(1, round(len(pictures) * spacing_mm / settings.slice_mm))
    along = resize(pictures.transpose(1, 2, 0), settings.size, count, labels)  # (S, S, Z)
    return np.ascontiguousarray(along.transpose(2, 0, 1))


# What a run is scored on, and on what it was not


def check_disjoint(settings: Settings, tests: list[tuple[str, str]]) -> None:
    """InputError where a scan of these (data set, variant) was trained on or chose weights under any name."""
    parts = ("training", "validation") if settings.keep == "best" else ("training",)
    seen = {file_hash(one.folder / "image.npy"): one for part in parts for one in stores_of(settings, part)}
    for name, store in ((test[0], store) for test in tests for store in stores_of(settings, *test)):
        if twin := seen.get(file_hash(store.folder / "image.npy")):
            same = f"holds the same scan as {twin.source.image}, which the model learned from"
            advice = "take it out of one of the two."
            raise InputError(f"{store.source.image} of the test set {name} {same}: {advice}")


SPLIT_COLUMNS = ["trained_on", "dataset", "variant", "part", "case", "image_sha256", "labels_sha256"]


def record_split(settings: Settings, tests: list[tuple[str, str]]) -> None:
    """Puts the scans that train, validate and test, with their hashes, into the profile's splits.csv."""
    rows, settings = [], replace(settings, training_cases=0)  # where fewer train, they are the first of these
    for part, variant in [("training", ""), ("validation", ""), *tests]:
        own = part in ("training", "validation")
        place = (settings.train_on, variant, part) if own else (part, variant, "test")
        for case in sorted(cases_of(settings, part, variant), key=lambda case: case.id):
            hashes = (file_hash(case.image), file_hash(case.labels) if case.labels else "")
            rows.append((settings.train_on, *place, case.id, *hashes))
    table = pd.DataFrame(rows, columns=SPLIT_COLUMNS)
    merge_csv(results_root(settings.profile) / "splits.csv", table, SPLIT_COLUMNS[:4], SPLIT_COLUMNS[:5])
