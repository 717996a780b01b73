"""Which scans a run uses, where they lie, and each scan prepared once: uint8 slices, memory-mapped."""

import glob
import io
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from tqdm import tqdm

from lib import files
from lib.config import VARIANTS, Settings, settings_of
from lib.files import InputError
from lib.organs import KEYS, LABEL_MAPS, ORGANS, label_ids, labelled
from lib.phantoms import site_of, write_cohort
from lib.volumes import (
    Grid,
    foreground,
    read_labels,
    read_nifti,
    read_scan,
    readable,
    resize,
    to_slices,
    to_uint8,
)

STORE_VERSION = 4  # raise it whenever the same scan and settings would give other arrays
RECIPE = ("size", "slice_mm", "crop", "ct_window_hu", "mr_percentiles",
          "orientation", "resampling", "presence")  # settings that slices depend on
SAMPLES = [f"{modality}_{kind}.nii.gz" for modality in ("ct", "mr") for kind in ("image", "labels")]
SPLIT_COLUMNS = ["fold", "trained_on", "dataset", "variant", "part", "case", "image_sha256", "labels_sha256"]


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
    """One prepared case: Z slices of S x S pixels on disk, read slice by slice."""

    id: str
    folder: Path
    image: np.ndarray  # (Z, S, S) uint8, rows first
    labels: np.ndarray | None  # (Z, S, S) uint8, our label ids; None: no ground truth
    grid: Grid
    modality: str
    presence: np.ndarray | None  # (Z, 14) pixels of each label id 0..13 in every slice
    label_map: str
    source: Case
    box: tuple[slice, ...] | None = None  # canonical voxels that the slices fill; None: all, slice by slice
    donor: np.ndarray | None = None  # (Z', S, S) of another patient: rows Z, Z + 1, ... of a window

    def slices(self, rows: np.ndarray) -> np.ndarray:
        """(K,) rows of windows -> (K, S, S) uint8."""
        own = len(self.image)
        out = np.asarray(self.image[np.minimum(rows, own - 1)])
        if self.donor is not None and (theirs := rows >= own).any():
            out[theirs] = self.donor[rows[theirs] - own]
        return out


class Layout(NamedTuple):
    """Where a data set keeps its labelled scans, below DATA_ROOT/<folder>, and what they are."""

    folder: str  # also the name of its label map
    images: tuple[str, ...]  # folders of the images; beside "images" lies "labels", beside "img" "label"
    name: str  # of an image without .nii.gz: group 1 is in its labels' name, too, group 2 is its number
    labels: str  # the labels' name; {} takes group 1
    case: str  # a case's id; {} takes its number
    cases: int  # how many there are
    unpacked: str  # names of the folders that people and the data set's archives put it into, as a pattern
    numbers: tuple[range, ...] = (range(1, 10**6),)  # that belong to it
    modality: str = "CT"


_AMOS = Layout("AMOS22", ("imagesTr", "imagesVa"), r"(amos_(\d+))", "{}", "amos_{:04d}", 300, r"AMOS(22)?",
               (range(1, 501),))
LAYOUTS = {
    "FLARE22": Layout("FLARE22", ("images",), r"(FLARE22_Tr_(\d+))_0000", "{}", "FLARE22_Tr_{:04d}", 50,
                      r"FLARE(22)?(Train)?"),
    "BTCV": Layout("BTCV", ("RawData/Training/img", "Training/img"), r"img((\d+))", "label{}", "BTCV_{:04d}",
                   30, r"BTCV|Abdomen|RawData", (range(1, 11), range(21, 41))),
    "AMOS22 CT": _AMOS,
    "AMOS22 MRI": _AMOS._replace(cases=60, numbers=(range(501, 10**6),), modality="MR"),
}
SUFFIX = r"(?i:\.nii(\.gz)?)"  # of a file's name, from whatever system it comes
IN_NNUNET: dict[str, Any] = {"images": ("imagesTr",), "name": r"(.*?(\d+))_0000", "labels": "{}"}


def nifti_called(stem: str, folder: Path) -> Path | None:
    """STEM.nii.gz or STEM.nii in a folder, its suffix in letters of either case; None: there is none."""
    there = sorted(folder.glob(f"{glob.escape(stem)}.[nN]*"), reverse=True)
    fitting = (path for path in there if re.fullmatch(SUFFIX, path.name[len(stem) :]) and path.is_file())
    return next(fitting, None)


def _case_of(layout: Layout, root: Path, image: Path, match: re.Match[str]) -> Case:
    """The case of an image. InputError: it has no labels, or nnU-Net's dataset.json cannot be read."""
    folder = image.parent.parent / image.parent.name.replace("images", "labels").replace("img", "label")
    stem = layout.labels.format(match[1])
    if (labels := nifti_called(stem, folder)) is None:
        missing = f"{folder / stem}.nii.gz does not exist"
        raise InputError(f"{image} has no labels ({missing}): complete the data set.")
    label_map = layout.folder
    if layout.name == IN_NNUNET["name"]:  # its ids are those of its dataset.json
        ids = label_ids(path := str(root / "dataset.json"))
        label_map = next((name for name in (label_map, *LABEL_MAPS) if LABEL_MAPS[name] == ids), path)
    return Case(layout.case.format(int(match[2])), image, labels, label_map, layout.modality)


def survey(dataset: str, root: Path) -> tuple[list[Case], list[InputError]]:
    """Labelled cases of a data set below `root`, sorted by id, and an error for each image that is none.

    In the data set's own layout or, without any such image, in nnU-Net's raw one.
    """
    if dataset not in LAYOUTS:
        raise InputError(f"{dataset} is no data set of this profile: choose one of {', '.join(LAYOUTS)}.")
    cases: dict[str, Case] = {}
    errors: list[InputError] = []
    for layout in (LAYOUTS[dataset], LAYOUTS[dataset]._replace(**IN_NNUNET)):
        images = [path for folder in layout.images for path in (root / folder).glob("[!.]*.[nN]*")]
        for image in sorted(images, key=lambda path: (path.name, path)):
            match = re.fullmatch(layout.name + SUFFIX, image.name)
            if not match or not any(int(match[2]) in numbers for numbers in layout.numbers):
                continue
            try:
                case = _case_of(layout, root, image, match)
                if (twin := cases.setdefault(case.id, case)) is not case:
                    raise InputError(f"{image} and {twin.image} are both case {case.id}: keep one of them.")
            except InputError as error:
                errors.append(error)
        if cases or errors:
            break
    return sorted(cases.values(), key=lambda case: case.id), errors


def find_cases(dataset: str, root: Path) -> list[Case]:
    """All cases that `survey` finds. InputError: it finds none, or one that is not in order."""
    cases, errors = survey(dataset, root)
    if not cases and not errors:
        advice = f"put its images into {LAYOUTS[dataset].images[0]} there, or name another by DATA_ROOT."
        raise InputError(f"{root} holds no case of {dataset}: {advice}")
    if errors:
        raise errors[0]
    return cases


def home_of(dataset: str, root: Path | None = None) -> Path:
    """A data set's folder below `root` (DATA_ROOT): the first that holds a case, else root/<name>.

    It may be called as its archive unpacks it (FLARE22Train, amos22/amos22, RawData), in letters of either
    case, or be nnU-Net's Dataset###_NAME there, in nnUNet_raw or in any of these.
    """
    root = root or files.data_root()
    if dataset not in LAYOUTS:
        return root / dataset
    name, unpacked = LAYOUTS[dataset].folder, LAYOUTS[dataset].unpacked
    begins = rf"(Dataset|Task)\d{{3}}_{name.rstrip('2')}.*"  # also AMOS, AMOS2022
    called = re.compile(f"{unpacked}|{begins}", re.IGNORECASE)
    outer = [path for path in sorted(root.glob("*")) if called.fullmatch(path.name)]
    inner = [path for parent in (root / "nnUNet_raw", *outer) for path in sorted(parent.glob("*"))]
    homes = [root / name, *outer, *(path for path in inner if called.fullmatch(path.name))]
    return next((home for home in homes if any(survey(dataset, home))), homes[0])


def remembered(key: Any, find: Callable[[], Any]) -> Any:
    """What `find` returns, a value that JSON holds; kept in the cache under the hash of `key`."""
    record = files.cache_root() / "checked" / f"{files.value_hash(key)}.json"
    with suppress(OSError, ValueError):
        return json.loads(record.read_text())
    found = find()
    with files.locked(str(record)):  # two scans may have the same content
        files.write_json(record, found)
    return found


def organs_of(case: Case, seen: list[str] | None = None) -> list[str]:
    """Keys of the organs in a case's label file, in the order of ORGANS. InputError: it cannot be read.

    seen: what a reader of the file has found. It is kept in the cache under the file's hash.
    """
    ids, path = label_ids(case.label_map), case.labels
    assert path is not None

    def find() -> list[str]:
        labels = {ids.get(int(i), 0) for i in np.rint(pd.unique(read_nifti(path).voxels.ravel("K")))}
        return [organ.key for organ in ORGANS if organ.label in labels]

    with readable(path):
        key = ["organs", list(ids.items()), files.file_hash(path)]
    return remembered(key, find if seen is None else lambda: seen)


def organs_in(cases: Sequence[Case]) -> tuple[str, ...]:
    """Keys of the organs that the label files of these cases show, in the order of ORGANS. Files are read
    until every organ that they can name was seen: of a complete data set one or two."""
    seen = set[str]()
    for case in tqdm(cases, "reading label files", leave=False, delay=2):
        if seen >= {*labelled(case.label_map)}:
            break
        seen.update(organs_of(case))
    return tuple(key for key in KEYS if key in seen)


def organs_shown(settings: Settings, dataset: str) -> tuple[str, ...]:
    """Keys of the organs that the label files of a data set show: all that are there, not a part's alone.

    An organ that no file shows may be in every scan, and is not labelled. Phantoms and samples label what a
    scan holds; so does, for all we know, a data set that is not here.
    """
    if settings.phantoms or dataset not in LAYOUTS:
        return KEYS
    cases, _ = survey(dataset, home_of(dataset))
    return organs_in(cases) if cases else labelled(LAYOUTS[dataset].folder)


def phantom_cases(name: str, numbers: list[int], settings: Settings, variant: str = "") -> list[Case]:
    """Cases of a procedural cohort, written first if they are not in the cache."""
    site = site_of(name, settings, variant)
    key = files.value_hash([asdict(site), numbers])
    folder = files.cache_root() / "phantoms" / f"{name.replace(' ', '_')}-{key}"
    with files.locked(str(folder)):  # two notebooks that start at once would draw the same phantoms
        cases = find_cases("FLARE22", write_cohort(site, numbers, folder))
    letter, ids, modality = name.replace("site ", ""), site.label_map, site.modality
    return [replace(c, id=f"{letter}_{c.id[-4:]}", label_map=ids, modality=modality) for c in cases]


def degraded_slices(case: Case) -> set[int]:
    """Slices of a phantom, counted from the feet, that were degraded on purpose; empty for a real scan."""
    index = case.image.parents[1] / "cohort.json"
    if not index.exists():
        return set()
    return set(json.loads(index.read_text())["degraded_slices"].get(str(int(case.id[-4:])), ()))


def sample_folders() -> list[Path]:
    """Where the sample scans may be, a download's place first; $SAMPLES alone if it is set."""
    if chosen := os.environ.get("SAMPLES"):
        return [files.ROOT / Path(chosen).expanduser()]
    return [files.data_root() / "samples", files.ROOT.parent / "shared" / "samples"]


def sample_cases(uncut: bool = False) -> dict[str, list[Case]]:
    """Real scans: a CT, in eight slabs that all show organs or whole, and an MRI. InputError: not there."""
    folders = sample_folders()
    source = next((folder for folder in folders if all((folder / name).is_file() for name in SAMPLES)), None)
    if source is None:
        looked = " nor in ".join(map(str, folders))
        raise InputError(f"No sample scans in {looked}: run `make samples`, or set SAMPLES to their folder.")
    image, labels, mr_image, mr_labels = (source / name for name in SAMPLES)
    tests = {"sample CT": [Case("ct", image, labels, "TotalSegmentator")]}
    tests["sample MRI"] = [Case("mr", mr_image, mr_labels, "TotalSegmentatorMR", "MR")]
    if uncut:
        return tests
    grid = read_scan(image)[1]
    shown = np.flatnonzero(read_labels(labels, "TotalSegmentator", grid).any((0, 1)))
    edges = [0, *np.linspace(shown[0], shown[-1] + 1, 9).astype(int)[1:-1], grid.canonical_shape[2]]
    slabs = []
    for number, (start, stop) in enumerate(pairwise(edges)):
        parts = []
        for whole in (image, labels):
            folder = files.cache_root() / "samples" / files.file_hash(whole)[:12]
            parts.append(path := folder / f"{start}_{stop}_{whole.name}")
            if not path.exists():
                with files.replacing(path) as part:
                    nib.save(nib.Nifti1Image.from_filename(whole).slicer[:, :, start:stop], part)
        slabs.append(Case(f"ct_slab{number}", parts[0], parts[1], "TotalSegmentator"))
    tests["sample CT"] = [slabs[1], slabs[3], slabs[7]]
    return {"training": slabs[::2], "validation": [slabs[5]], **tests}


def split(cases: list[Case], counts: tuple[int, int, int], folds: int = 0,
          fold: int = 0) -> dict[str, list[Case]]:
    """Training, validation and test cases, drawn as in T-Gated's released code: the papers give no lists.

    folds: all cases, in the order of that draw, are divided into so many tests, of which this is `fold`. Of
    the others a seventh of all cases validates; where the counts have no test, the test's own do.
    """
    if folds:
        if len(cases) < folds:
            advice = "add cases, or give `folds` by settings_of(..., folds=...)."
            raise InputError(f"{cases[0].image.parent} holds {len(cases)} cases for {folds} folds: {advice}")
        tested = [len(part) for part in np.array_split(range(len(cases)), folds)]
        turn, test, seventh = sum(tested[:fold]), tested[fold], max(1, len(cases) // 7)
        validation, test = (seventh, test) if counts[2] else (test, 0)
        counts = len(cases) - validation - test, validation, test
    if len(cases) < sum(counts):
        have = f"holds {len(cases)} cases where {sum(counts)} are split {counts}"
        advice = "complete the data set, for the papers' numbers need the papers' split; or let fewer train "
        advice += "by settings_of(..., cases=...), or score a trained run on these by `make score RUN=...`."
        raise InputError(f"{cases[0].image.parent} {have}: {advice}")
    shuffled = sorted(cases, key=lambda case: case.image.name)
    random.Random(42).shuffle(shuffled)
    if folds:  # the fold's own stand last, where the test is
        at = len(cases) - turn
        shuffled = shuffled[at:] + shuffled[:at]
    parts = [shuffled[start:stop] for start, stop in pairwise((0, *np.cumsum(counts)))]
    return dict(zip(("training", "validation", "test"), parts, strict=True))


def cases_of(settings: Settings, part: str, variant: str = "") -> list[Case]:
    """The cases of a part ("training", "validation"), or of a test data set, also in one of its VARIANTS."""
    known = [name for name, changes in VARIANTS.items() if settings.phantoms or not changes]
    for name in (variant, *settings.training_variants):
        if name not in known:
            choice = f"choose one of {', '.join(filter(None, known))}, or none."
            raise InputError(f"{part} has no variant {name!r} in this profile: {choice}")
    if settings.train_on == "samples":
        if part not in (parts := sample_cases()):
            raise InputError(f"{part} is no data set of this profile: choose sample CT or sample MRI.")
        return parts[part]
    if part in ("sample CT", "sample MRI") and not settings.phantoms:
        return sample_cases(uncut=True)[part]
    if variant == "held out":  # what validates Med-VLM's runs is held out of BTCV
        if settings.train_on != part or settings.cases[2]:  # else perhaps with other cases
            settings = settings_of("unet", settings.profile, settings.seed)
        part, variant = "validation", ""
    own = part in ("training", "validation", settings.train_on)
    dataset = settings.train_on if own else part
    counts = settings.cases if own else (0, 0, settings.cases[2])
    if settings.phantoms:
        cases = phantom_cases(dataset, [*range(1, sum(counts) + 1)], settings, "" if own else variant)
    else:
        cases = find_cases(dataset, home_of(dataset))
    if variant == "every case" or (settings.phantoms and not own):
        return cases
    folds = (settings.folds, settings.fold) if own else ()
    chosen = split(cases, counts, *folds)["test" if part == dataset else part]
    if part == "training":
        chosen = chosen[: settings.training_cases or None]
        for turn, name in enumerate(settings.training_variants):
            mine = slice(turn, None, len(settings.training_variants))
            if name and (numbers := sorted(int(case.id[-4:]) for case in chosen[mine])):
                chosen[mine] = phantom_cases(dataset, numbers, settings, name)
        return chosen
    if not own:
        return sorted(chosen, key=lambda case: case.id)
    if settings.phantoms and variant:  # the test patients' seeds, drawn otherwise
        return phantom_cases(dataset, sorted(int(case.id[-4:]) for case in chosen), settings, variant)
    return chosen


def stores_of(settings: Settings, part: str, variant: str = "") -> list[Store]:
    """Prepared stores of `cases_of`, in the cache."""
    cases = cases_of(settings, part, variant)
    cohort = "+".join(dict.fromkeys(case.image.parents[1].name for case in cases))  # a variant has its own
    stores = prepare(cases, settings, files.cache_root() / "stores" / cohort)
    if getattr(settings, "neighbours", "") != "another patient":
        return stores
    donors = stores if part == "training" else stores_of(settings, "training")
    return [replace(store, donor=donors[(at + 1) % len(donors)].image) for at, store in enumerate(stores)]


def prepare(cases: list[Case], settings: Settings, folder: Path, jobs: int = 0) -> list[Store]:
    """The stores of all cases, in order, in folder/<settings>/<case's id>/<its files>; makes what is missing.

    jobs: processes; 0: all cores if the work is worth it. InputError: a bad scan, or two cases of one id.
    """
    ids = [case.id for case in cases]
    if len({*ids}) < len(ids):
        raise InputError(f"Two of the cases {', '.join(ids)} share an id: give every scan its own.")
    recipe = files.value_hash([getattr(settings, name) for name in RECIPE])
    folder, work = folder / f"{settings.size}px-{recipe}", []
    for case in cases:
        source = [STORE_VERSION, case.modality, list(label_ids(case.label_map).items())]
        for path in filter(None, (case.image, case.labels)):
            with readable(path):
                source.append(files.file_hash(path))
        work.append((case, folder / case.id / files.value_hash(source)))
    with files.locked(str(folder)):  # two notebooks that start at once would make the same stores
        todo = [one for one in work if not _open(*one)]
        if not jobs:  # a process takes seconds to start
            jobs = -1 if sum(os.path.getsize(case.image) for case, _ in todo) > 1e8 else 1
        made = Parallel(jobs, return_as="generator")(delayed(_write)(*one, settings) for one in todo)
        list(tqdm(made, "preparing scans", len(todo), leave=False, disable=not todo))
    stores = [store for one in work if (store := _open(*one))]
    assert len(stores) == len(cases), f"{folder} was changed while it was read"
    return stores


def _open(case: Case, home: Path) -> Store | None:
    """The store in `home`; None where it is not there, not whole or damaged."""
    try:
        record = json.loads((home / "case.json").read_text())
        image = np.load(home / "image.npy", mmap_mode="r")
        labels = np.load(home / "labels.npy", mmap_mode="r") if case.labels else None
        forms = tuple((np.array(form) if form else None, code) for form, code in record["forms"])
    except (OSError, EOFError, ValueError, KeyError):
        return None
    grid = Grid(tuple(record["shape"]), np.array(record["affine"]), forms, record["stored"])
    presence = None if labels is None else np.array(record["presence"])
    box = tuple(slice(*edges) for edges in record["box"]) or None
    return Store(case.id, home, image, labels, grid, case.modality, presence, case.label_map, case, box)


def _write(case: Case, home: Path, settings: Settings) -> None:
    """Makes the store in `home`: case.json, the last of its files, marks it as whole."""
    voxels, grid = read_scan(case.image, stored=settings.orientation == "stored")
    volumes = {"image": to_uint8(voxels, case.modality, settings)}
    if case.labels:
        volumes["labels"] = read_labels(case.labels, case.label_map, grid)
    box = foreground(volumes["image"]) if settings.crop else tuple(slice(0, n) for n in grid.canonical_shape)
    # a store of the same id is damaged or of older files; scores go by the age of case.json
    shutil.rmtree(home.parent, ignore_errors=True)
    presence = []
    for name, volume in volumes.items():
        nearest = name == "labels"
        slices = to_slices(volume[box], settings.size, nearest, settings.resampling == "lanczos")
        if settings.slice_mm:  # resampled along z
            count = max(1, round(len(slices) * grid.spacing_mm[2] / settings.slice_mm))
            along = resize(slices.transpose(1, 2, 0), settings.size, count, nearest)  # (S, S, Z)
            slices = np.ascontiguousarray(along.transpose(2, 0, 1))
        write_array(home / f"{name}.npy", slices)
        if nearest:
            counted = volume[box].T if settings.presence == "native" else slices
            presence = [np.bincount(s.ravel(), minlength=len(ORGANS) + 1).tolist() for s in counted]
    edges = [[edge.start, edge.stop] for edge in box] if settings.crop or settings.slice_mm else []
    forms = [(None if form is None else form.tolist(), code) for form, code in grid.forms]
    record = {"shape": grid.shape, "affine": grid.affine.tolist(), "forms": forms, "stored": grid.stored}
    files.write_json(home / "case.json", record | {"box": edges, "presence": presence})


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes a .npy file, whole or not at all."""
    np.save(buffer := io.BytesIO(), array)  # to a file, np.save overlooks a disk that fills in its last 4 kB
    with files.replacing(path) as part:
        part.write_bytes(buffer.getbuffer())


def check_disjoint(settings: Settings, tests: list[tuple[str, str]]) -> None:
    """InputError where a scan of these (data set, variant) was trained on or chose weights under any name."""
    parts = ("training", "validation") if settings.keep == "best" else ("training",)
    learned = [store for part in parts for store in stores_of(settings, part)]
    seen = {files.file_hash(store.folder / "image.npy"): store for store in learned}
    for name, variant in tests:
        for store in stores_of(settings, name, variant):
            if twin := seen.get(files.file_hash(store.folder / "image.npy")):
                why = f"is the scan {twin.source.image}, which the model learned from: take one of them out."
                raise InputError(f"{store.source.image} of the test set {name} {why}")


def record_split(settings: Settings, tests: list[tuple[str, str]]) -> None:
    """Puts the scans that train, validate and test, with their hashes, into the profile's splits.csv."""
    # where fewer train, they are the first of these; where in variants, they are the same patients
    rows, settings = [], replace(settings, training_cases=0, training_variants=("",))
    for part, variant in [("training", ""), ("validation", ""), *tests]:
        own = part in ("training", "validation")
        kind = settings.test_variant if own else variant  # on BTCV each paper's models learn from other scans
        place = (settings.train_on if own else part, kind, part if own else "test")
        for case in sorted(cases_of(settings, part, variant), key=lambda case: case.id):
            hashes = (files.file_hash(case.image), files.file_hash(case.labels) if case.labels else "")
            rows.append((settings.fold, settings.train_on, *place, case.id, *hashes))
    table = pd.DataFrame(rows, columns=SPLIT_COLUMNS)
    path = files.results_root(settings.profile) / "splits.csv"
    files.merge_csv(path, table, SPLIT_COLUMNS[:5], SPLIT_COLUMNS[:6])
