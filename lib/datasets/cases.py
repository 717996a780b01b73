"""Which scans a profile uses, and in which split."""

import random
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise

import nibabel as nib
import numpy as np

from lib.datasets.layouts import find_cases, home_of
from lib.datasets.parallel import in_processes
from lib.datasets.stores import Case, Store, prepare_all
from lib.paths import InputError, cache_root, locked, replacing, samples_folder, value_hash
from lib.phantoms import SITES, Site, degraded_in, write_cohort
from lib.profiles import ABSENT, EVERY_CASE, HELD_OUT, Settings, settings_of
from lib.volumes import read_labels, read_scan


def site_of(dataset: str, settings: Settings) -> Site:
    """The site of a cohort: one of SITES, or a variant of FLARE22's ("FLARE22, 60% degraded", "FLARE22, slices x2").

    Raises:
        InputError: there is no such site.
    """
    name, _, change = dataset.partition(", ")
    if name not in SITES:
        raise InputError(f"{dataset!r} is no data set of phantoms: choose one of {', '.join(SITES)}.")
    site, spaced, share = SITES[name], re.fullmatch(r"slices x([\d.]+)", change), re.fullmatch(r"(\d+)% degraded", change)
    if change and not (spaced or share or dataset == ABSENT):
        raise InputError(f"{dataset!r} is no data set of phantoms: choose '{name}, 60% degraded', '{name}, slices x2' or {ABSENT!r}.")
    coarser = np.array([1, 1, float(spaced[1]) if spaced else 1]) * settings.phantom_voxels
    return replace(
        site,
        name=dataset,
        shape=tuple(np.rint(np.divide(site.shape, coarser)).astype(int).tolist()),
        spacing_mm=tuple(np.multiply(site.spacing_mm, coarser).tolist()),
        degraded=int(share[1]) / 100 if share else settings.degraded if site.degraded else 0.0,
        without=("gallbladder", "spleen", "left kidney") if dataset == ABSENT else site.without,
    )


def phantom_cases(dataset: str, numbers: Sequence[int], settings: Settings) -> list[Case]:
    """Cases of a procedural cohort, written first if they are not in the cache."""
    site = site_of(dataset, settings)
    folder = cache_root() / "phantoms" / f"{re.sub(r'[^A-Za-z0-9.]+', '_', dataset)}-{value_hash([asdict(site), list(numbers)])}"
    jobs = 0 if len(numbers) >= 20 else 1  # to start another process takes as long as ten phantoms
    cases = find_cases("FLARE22", write_cohort(site, numbers, folder, partial(in_processes, jobs=jobs)))
    prefix = dataset.partition(",")[0].replace(" ", "_")
    return [replace(c, id=f"{prefix}_{c.id[-4:]}", label_map=site.label_map, modality=site.modality) for c in cases]


def degraded_slices(case: Case) -> set[int]:
    """Slices of a phantom, counted from the feet, that were spoiled on purpose; empty for a real scan."""
    return degraded_in(case.image.parents[1], case.id[-4:])


def sample_cases() -> dict[str, list[Case]]:
    """The real sample scans: the CT in eight slabs that all show organs (four to train, one to validate, three to test), and the MRI."""
    source, folder = samples_folder(), cache_root() / "samples"
    scans = {kind: nib.Nifti1Image.from_filename(source / f"ct_{kind}.nii.gz") for kind in ("image", "labels")}
    truth = read_labels(source / "ct_labels.nii.gz", "TotalSegmentator", read_scan(source / "ct_image.nii.gz")[1])
    shown = np.flatnonzero(truth.any((0, 1)))  # the stored axis runs to the head, as the canonical one does
    edges = [0, *np.linspace(shown[0], shown[-1] + 1, 9).astype(int)[1:-1], truth.shape[2]]
    slabs = []
    for kind, scan in scans.items():
        for number, (start, stop) in enumerate(pairwise(edges)):
            path = folder / f"ct_{kind}_slab{number}_{start}_{stop}.nii.gz"
            if not path.exists():
                with replacing(path) as part:
                    nib.save(scan.slicer[:, :, start:stop], part)
    for number, (start, stop) in enumerate(pairwise(edges)):
        image, labels = (folder / f"ct_{kind}_slab{number}_{start}_{stop}.nii.gz" for kind in scans)
        slabs.append(Case(f"ct_slab{number}", image, labels, "TotalSegmentator"))
    mri = Case("mr", source / "mr_image.nii.gz", source / "mr_labels.nii.gz", "TotalSegmentatorMR", "MR")
    return {"training": slabs[::2], "validation": [slabs[5]], "sample CT": [slabs[1], slabs[3], slabs[7]], "sample MRI": [mri]}


def split(cases: list[Case], counts: tuple[int, int, int]) -> dict[str, list[Case]]:
    """Training, validation and test cases, drawn as the released code of T-Gated draws them (the paper gives no lists).

    Raises:
        InputError: there are fewer cases than the split asks for.
    """
    if len(cases) < sum(counts):
        raise InputError(f"{cases[0].image.parent} holds {len(cases)} cases where {sum(counts)} are split {counts}: complete the data set.")
    shuffled = sorted(cases, key=lambda case: case.image.name)
    random.Random(42).shuffle(shuffled)
    edges = np.cumsum([0, *counts])
    names = ("training", "validation", "test")
    return {name: shuffled[start:stop] for name, (start, stop) in zip(names, pairwise(edges), strict=True)}


def _owner(settings: Settings, part: str) -> tuple[Settings, str]:
    """The settings that draw a part, and its name there: what is held out of BTCV validates Med-VLM's runs."""
    return (settings_of("unet", settings.profile), "validation") if part == HELD_OUT else (settings, part)


def source_of(settings: Settings, part: str) -> str:
    """Name of the data set that a part of the profile is drawn from, without its variant."""
    settings, part = _owner(settings, part)
    return settings.train_on if settings.train_on == "samples" or part in ("training", "validation") else part.partition(", ")[0]


def cases_of(settings: Settings, part: str) -> list[Case]:
    """The cases of a part of the profile: "training", "validation", or the name of a data set to test on."""
    settings, part = _owner(settings, part)
    if settings.train_on == "samples":
        return sample_cases()[part]
    dataset = settings.train_on if part in ("training", "validation") else part
    total, tested = sum(settings.cases), settings.cases[2]
    if settings.phantoms:
        base, _, variant = dataset.partition(", ")
        if base != settings.train_on:
            return phantom_cases(dataset, range(1, tested + 1), settings)
        parts = split(phantom_cases(base, range(1, total + 1), settings), settings.cases)
        parts["training"] = parts["training"][: settings.training_cases or None]
        if variant:  # the test patients' seeds
            return phantom_cases(dataset, sorted(int(case.id[-4:]) for case in parts["test"]), settings)
    else:
        every = dataset.endswith(f", {EVERY_CASE}")
        dataset = dataset.removesuffix(f", {EVERY_CASE}")
        cases = find_cases(dataset, home_of(dataset))
        if every:
            return cases
        if dataset != settings.train_on:  # the papers give no lists: drawn by a fixed seed
            return sorted(split(cases, (0, 0, tested))["test"], key=lambda case: case.id)
        parts = split(cases, settings.cases)
        parts["training"] = parts["training"][: settings.training_cases or None]
    return parts["test" if part == dataset else part]


def check_disjoint(settings: Settings, *datasets: str) -> None:
    """Raises InputError where a scan of these test sets was trained on, or chose the weights, by its content, whatever its name is."""
    parts = ("training", "validation") if settings.keep == "best" else ("training",)
    seen = {store.content: store for part in parts for store in stores_of(settings, part)}
    for dataset, store in ((name, store) for name in datasets for store in stores_of(settings, name)):
        if (twin := seen.get(store.content)) is not None:
            raise InputError(
                f"{store.source.image} of the test set {dataset} holds the same scan as {twin.source.image}, which the model learned from: "
                "take it out of one of the two."
            )


def stores_of(settings: Settings, part: str) -> list[Store]:
    """Prepared stores of `cases_of`, in the cache, in a folder of the settings that they were made with."""
    more = [settings.slice_mm, settings.crop] if settings.slice_mm or settings.crop else []
    made_with = value_hash([settings.size, settings.ct_window_hu, settings.mr_percentiles, *more])
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    with locked(root / f"drawing {source_of(settings, part)}.lock"):  # two runs that start at once would make the same phantoms
        cases = cases_of(settings, part)
    # variants of a cohort hold the same ids, so each has a folder of its own
    stores = prepare_all(cases, settings, root / "stores" / f"{settings.size}px-{made_with}" / _folder(cases))
    if settings.neighbours != "another patient":
        return stores
    donors = stores if part == "training" else stores_of(settings, "training")
    return [replace(store, donor=donors[(place + 1) % len(donors)].image) for place, store in enumerate(stores)]


def _folder(cases: list[Case]) -> str:
    """Name of the data set's folder, for the stores beside it."""
    return cases[0].image.parents[1].name
