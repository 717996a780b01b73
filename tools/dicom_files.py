"""Which files are one DICOM series, and what its images lack, where that can be known."""

import os
import re
from pathlib import Path

import highdicom as hd
import numpy as np
from pydicom import Dataset, dcmread, uid
from pydicom.datadict import dictionary_VR

from lib.files import InputError

FRAMES = "PerFrameFunctionalGroupsSequence"  # which a multi-frame image has
CLASSES = {"CT": uid.CTImageStorage, "MR": uid.MRImageStorage}
DRAWN = uid.SegmentationStorage, "1.2.840.10008.5.1.4.1.1.66.7", uid.RTDoseStorage  # over images
UIDS = "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"
ALIKE = {"Rows": 1, "Columns": 1, "PixelSpacing": 2, "ImageOrientationPatient": 6}  # how many numbers
NEEDED = ALIKE | {"ImagePositionPatient": 3}
NUMBERS = NEEDED | {"SliceThickness": 1, "RescaleSlope": 1, "RescaleIntercept": 1}


def text_of(header: Dataset, name: str) -> str:
    """An attribute as text, empty where it is missing or cannot be read."""
    try:
        return "" if (value := header.get(name)) is None else str(value).strip()
    except Exception:  # pydicom raises many kinds for a damaged value
        return ""


def _header(file: Path) -> Dataset:
    """A file's header, also without DICOM's preamble; empty for another format. InputError: it is damaged."""
    try:
        with open(file, "rb") as opened:
            start = opened.read(132)
        whole = start[128:] == b"DICM"
        if whole or start[:2] in (b"\2\0", b"\x08\0", b"\0\x08"):  # an image's first element
            header = dcmread(file, stop_before_pixels=True, force=True)
            kind = text_of(header, "SOPClassUID") or text_of(header.file_meta, "MediaStorageSOPClassUID")
            report = "Modality" in header and kind not in CLASSES.values()
            if "Rows" in header or report or kind == uid.MediaStorageDirectoryStorage:
                modality = text_of(header, "Modality").upper()
                header.Modality = modality or "".join(name for name in CLASSES if CLASSES[name] == kind)
                known = uid.UID(kind).type == "SOP Class"
                header.SOPClassUID = kind if known else CLASSES.get(modality, kind)
                return header
            if whole or len(header):
                raise ValueError("it is cut short")
        named = r"[^.].*\.(dcm|dicom|ima)(\.gz|\.zip)?"
        if not start.strip(b"\0DICM"):  # a copy that failed, also of IM0001 and 1.3.12
            named += r"|[^.]+|[^.].*\.\d+"
        if re.fullmatch(named, file.name, re.IGNORECASE):
            raise ValueError("it is empty, packed or of another format")
        return Dataset()
    except Exception as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
        advice = "fetch it again, or take it out of the folder."
        raise InputError(f"{file} cannot be read as DICOM ({why}): {advice}") from error


def _files(path: Path) -> list[Path]:
    """Every file below a folder, through links, and what cannot be followed, which `_header` then refuses."""
    found: list[Path] = []
    seen: set[str] = set()
    errors: list[OSError] = []
    for folder, below, names in os.walk(path, onerror=errors.append, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # by a link to a folder above
            below.clear()
            continue
        seen.add(real)
        files = [Path(folder, name) for name in names]
        found += [file for file in files if file.is_file() or not file.exists()]
    return sorted([*found, *(Path(error.filename) for error in errors)])


def _placed(header: Dataset) -> bool:
    items = [header.get_item(f"Image{what}Patient") for what in ("Position", "Orientation")]
    return FRAMES in header or all(item is not None and item.value for item in items)


def _series(files: list[Path]) -> dict[str, list[Dataset]]:
    """Headers of images by their series' UID, or by its other names where an anonymiser took the UID."""
    found: dict[str, list[Dataset]] = {}
    for header in map(_header, files):
        kind = header.get("SOPClassUID")
        image = kind in CLASSES.values() or ("Rows" in header and _placed(header))
        if image and kind not in DRAWN and "LOCALIZER" not in text_of(header, "ImageType"):
            other = " ".join(text_of(header, f"Series{name}") for name in ("Number", "Description"))
            found.setdefault(text_of(header, "SeriesInstanceUID") or f"none, {other}", []).append(header)
    return found


def choose(path: Path, asked: str) -> list[Dataset]:
    """Headers of the only CT or MRI series in a folder, of that with the number, description or UID `asked`,
    or of a file's series. InputError: there is none, or several."""
    if not path.exists():
        raise InputError(f"{path} does not exist: name a .nii or .nii.gz file, or a folder of DICOM files.")
    every = _series(_files(path) if path.is_dir() else [path])
    if path.is_file() and every and not any(FRAMES in image for [image] in every.values()):
        beside = _series(sorted(file for file in path.parent.iterdir() if file.is_file()))
        every = {series: beside[series] for series in every}
    if not every:
        advice = "name the folder, unpacked, of a CT or MRI series, or a NIfTI file."
        raise InputError(f"{path} holds no DICOM image of a slice through a patient: {advice}")
    worth, told = {}, {}
    for series, images in every.items():  # a dose report has no place, a screenshot has colours
        grey = any(text_of(image, "SamplesPerPixel") in ("", "1") for image in images)
        worth[series] = any(map(_placed, images)) * (1 + grey)
        told[series] = [text_of(images[0], f"Series{name}") or "-" for name in ("Number", "Description")]
    wanted = asked.strip().casefold()
    names = {series: ("", series.casefold(), *map(str.casefold, told[series])) for series in every}
    named = [series for series in every if wanted in names[series]]
    fitting = [series for series in named if worth[series] == max(worth[name] for name in named)]
    if len(fitting) == 1:
        return every[fitting[0]]
    listed = "; ".join(
        f"number {number}, {about!r}, {every[series][0].Modality}, images: {len(every[series])}, UID {series}"
        for series, (number, about) in told.items() if worth[series])
    which = f"{len(fitting) or 'no'} series{f' {asked!r}' * bool(asked)}"
    advice = 'say SERIES=... (series="..."), its number, its description or its UID'
    raise InputError(f"{path} holds {which}: {advice}. There are: {listed}.")


def _check_numbers(image: Dataset, first: Dataset) -> None:
    """Puts numbers right that are stored as text or rounded. ValueError: they are missing, impossible, or not
    those of the series' first image."""
    file = Path(image.filename).name
    for name, count in NUMBERS.items():
        try:
            value = image.get(name)
            values = np.array([] if value in (None, "") else value, float).ravel()
        except Exception:  # pydicom raises many kinds for a damaged value
            values = np.array([np.nan])
        if name not in NEEDED and not len(values):
            image.pop(name, None)
            continue
        if len(values) != count or not (np.abs(values) < 1e6).all():
            raise ValueError(f"{name} of {file} is missing, or no plain number ({count} needed)")
        if (kind := dictionary_VR(name)) != image[name].VR:
            image.add_new(name, kind, int(values[0]) if kind == "US" else [f"{v:.10g}" for v in values])
        if name in ALIKE and not np.allclose(first[name].value, values, atol=0.005):
            raise ValueError(f"{name} of {Path(first.filename).name} and {file} differ")
        if name in ALIKE:
            image[name].value = first[name].value
    left, lengths, right = np.linalg.svd(np.reshape(image.ImageOrientationPatient, (2, 3)).astype(float))
    last = image.get("BitsStored", 16) - 1
    wrong = {
        "ImageOrientationPatient": np.abs(lengths - 1).max() > 0.01,
        "PixelSpacing": min(image.PixelSpacing) < 1e-3,
        "HighBit": image.get("HighBit", last) != last,
        "Modality": image.Modality != first.Modality,
        "NumberOfFrames": text_of(image, "NumberOfFrames") not in ("", "0", "1"),
        "RescaleSlope": image.get("RescaleSlope") == 0,
        "RescaleIntercept": ("RescaleIntercept" in image) != ("RescaleIntercept" in first),
    }
    if any(wrong.values()):
        name = max(wrong, key=wrong.__getitem__)
        raise ValueError(f"{name} of {file} cannot be {text_of(image, name) or 'missing'}")
    image.ImageOrientationPatient = (left @ right[:2]).ravel().round(9).tolist()  # highdicom 0.28 allows 1e-4


def mend(images: list[Dataset]) -> list[Dataset]:
    """Images with pixels and with what an anonymiser or an old tool took, where it can be known; copies once.

    ValueError: see _check_numbers; or pixels cannot be decoded.
    """
    for name in UIDS:  # one for all
        said = [value for image in images if uid.UID(value := text_of(image, name)).is_valid] or [hd.UID()]
        for image in images:
            if text_of(image, name) not in (said if name == "FrameOfReferenceUID" else said[:1]):
                setattr(image, name, said[0])
    found: dict[tuple, list[Dataset]] = {}
    for image in images:
        implicit, little = image.original_encoding  # where a file does not name its syntax
        syntax = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
        image.file_meta.setdefault("TransferSyntaxUID", syntax if little else uid.ExplicitVRBigEndian)
        image.setdefault("SamplesPerPixel", 1)
        image.setdefault("PhotometricInterpretation", "MONOCHROME2")
        if not (pixels := dcmread(image.filename, force=True).get_item("PixelData")):
            raise ValueError(f"{Path(image.filename).name} holds no pixels")
        image["PixelData"] = pixels
        if FRAMES in image:
            return images
        _check_numbers(image, images[0])
        try:
            decoded = image.pixel_array
        except Exception as error:  # each decoder raises its own kinds
            raise ValueError(f"{Path(image.filename).name}: {error}") from error
        values = *image.ImagePositionPatient, image.get("RescaleSlope", 1), image.get("RescaleIntercept", 0)
        same = found.setdefault(tuple(map(float, values)), [])
        if not any(np.array_equal(decoded, other.pixel_array) for other in same):
            same.append(image)
    once = [image for same in found.values() for image in same]
    known = {own for image in once if uid.UID(own := text_of(image, "SOPInstanceUID")).is_valid}
    for image in once if len(known) < len(once) else []:  # one for all would name none
        image.SOPInstanceUID = image.file_meta.get("MediaStorageSOPInstanceUID") or hd.UID()
    return once
