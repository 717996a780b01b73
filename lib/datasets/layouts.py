"""Where the data sets keep their scans: each in its own layout, or in nnU-Net's raw one."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lib.datasets.stores import Case
from lib.organs import LABEL_MAPS, label_ids
from lib.paths import InputError, data_root


class Layout(NamedTuple):
    """Where a data set keeps its labelled scans, below DATA_ROOT/<folder>, and what they are."""

    folder: str
    images: tuple[str, ...]  # folders of the images
    name: re.Pattern[str]  # an image's file name; group 1 is in its labels' name, too, and group 2 is its number
    labels: str  # labels' file without its ending, from the folder of the images; {} takes group 1
    case: str  # a case's id; {} takes its number
    label_map: str
    nnunet: str  # how NAME in nnU-Net's Dataset###_NAME begins
    cases: int  # how many it has
    modality: str = "CT"
    numbers: tuple[range, ...] = (range(1, 10**6),)  # that belong to it
    example: str = ""


def _amos22(numbers: range, modality: str, cases: int, example: int) -> Layout:
    return Layout(
        "AMOS22",
        ("imagesTr", "imagesVa"),
        re.compile(r"(amos_(\d+))\.nii(\.gz)?"),
        "../{folder}/{}",
        "amos_{:04d}",
        "AMOS22",
        "amos",
        cases,
        modality,
        (numbers,),
        f"imagesTr/amos_{example:04d}.nii.gz and labelsTr/amos_{example:04d}.nii.gz",
    )


LAYOUTS = {
    "FLARE22": Layout(
        "FLARE22",
        ("images",),
        re.compile(r"(FLARE22_Tr_(\d+))_0000\.nii(\.gz)?"),
        "../labels/{}",
        "FLARE22_Tr_{:04d}",
        "FLARE22",
        "flare",
        50,
        example="images/FLARE22_Tr_0001_0000.nii.gz and labels/FLARE22_Tr_0001.nii.gz",
    ),
    "BTCV": Layout(
        "BTCV",
        ("RawData/Training/img",),
        re.compile(r"img((\d+))\.nii(\.gz)?"),
        "../label/label{}",
        "BTCV_{:04d}",
        "BTCV",
        "btcv",
        30,
        numbers=(range(1, 11), range(21, 41)),
        example="RawData/Training/img/img0001.nii.gz and RawData/Training/label/label0001.nii.gz",
    ),
    "AMOS22 CT": _amos22(range(1, 501), "CT", 300, 1),
    "AMOS22 MRI": _amos22(range(501, 10**6), "MR", 60, 507),
}
_IN_NNUNET = re.compile(r"(.*?(\d+))_0000\.nii(\.gz)?")


def _labels_of(image: Path, labels: str, shared: str) -> Path:
    """The labels' file of an image, by name alone, for the folder of the images may be a link. InputError: there is none."""
    stem = os.path.normpath(image.parent / labels.format(shared, folder=image.parent.name.replace("images", "labels")))
    files = [Path(f"{stem}{suffix}") for suffix in (".nii.gz", ".nii")]
    if (there := next((file for file in files if file.exists()), None)) is None:
        raise InputError(f"{image} has no labels ({files[0]} does not exist): complete the data set, or take the image out of it.")
    return there


def _label_map(layout: Layout, root: Path) -> str:
    """Key of LABEL_MAPS with the ids of nnU-Net's dataset.json, else the path of that file."""
    path = root / "dataset.json"
    ids = label_ids(str(path))
    return next((name for name in (layout.label_map, *LABEL_MAPS) if LABEL_MAPS[name] == ids), str(path))


def _surveyed(layout: Layout, root: Path) -> Iterator[Case | InputError]:
    """A case or what is wrong with it, for each image of the layout, sorted by file name."""
    seen: dict[str, Path] = {}
    images = [path for folder in layout.images for path in (root / folder).glob("*.nii*")]
    for image in sorted(images, key=lambda path: (path.name, path)):
        match = layout.name.fullmatch(image.name)
        if not match or not any(int(match[2]) in numbers for numbers in layout.numbers):
            continue
        name = layout.case.format(int(match[2]))
        if name in seen:
            yield InputError(f"{image} and {seen[name]} are both case {name}: keep one of the two.")
            continue
        seen[name] = image
        try:
            labels = _labels_of(image, layout.labels, match[1])
            label_map = _label_map(layout, root) if layout.name is _IN_NNUNET else layout.label_map
            yield Case(name, image, labels, label_map, layout.modality)
        except InputError as error:
            yield error


def survey(dataset: str, root: Path) -> tuple[list[Case], list[InputError]]:
    """Labelled cases of a data set below `root`, sorted by id, and what is in the way of others: one error for each image.

    Its own layout goes before nnU-Net's raw one (imagesTr, labelsTr, dataset.json).

    Raises:
        InputError: the data set has no layout here.
    """
    if dataset not in LAYOUTS:
        raise InputError(f"{dataset} is no data set of this profile: choose one of {', '.join(LAYOUTS)}.")
    own = LAYOUTS[dataset]
    for layout in (own, own._replace(images=("imagesTr",), name=_IN_NNUNET, labels="../labelsTr/{}")):
        if found := list(_surveyed(layout, root)):
            break
    cases = sorted((case for case in found if isinstance(case, Case)), key=lambda case: case.id)
    return cases, [error for error in found if isinstance(error, InputError)]


def find_cases(dataset: str, root: Path) -> list[Case]:
    """All labelled cases of a data set below `root`, in its own layout or nnU-Net's, sorted by id.

    Raises:
        InputError: the data set has no layout here, there is no image in the folder, an image has no labels, two images are one case,
            or nnU-Net's dataset.json is missing or names what is unknown.
    """
    cases, errors = survey(dataset, root)
    if errors:
        raise errors[0]
    if not cases:
        example = LAYOUTS[dataset].example
        raise InputError(f"{root} holds no case of {dataset}: put {example} and so on there, or name another folder by DATA_ROOT.")
    return cases


def home_of(dataset: str) -> Path:
    """Folder of a data set: DATA_ROOT/<its name>, else nnU-Net's Dataset###_NAME there or in nnUNet_raw; the first where there is none."""
    layout, root = LAYOUTS.get(dataset, LAYOUTS["FLARE22"]), data_root()
    named = re.compile(rf"(Dataset|Task)\d{{3}}_{layout.nnunet}.*", re.IGNORECASE)
    below = sorted(
        path for pattern in ("*", "nnUNet_raw/*", f"{layout.folder}/*") for path in root.glob(pattern) if named.fullmatch(path.name)
    )
    homes = [root / layout.folder, *below]
    return next((home for home in homes if dataset in LAYOUTS and any(survey(dataset, home))), homes[0])
