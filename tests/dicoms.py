"""DICOM series out of an array and its affine, written with pydicom alone, in any transfer syntax."""

from pathlib import Path
from typing import Any

import gdcm
import numpy as np
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGLosslessSV1, MRImageStorage, generate_uid

AXIAL = np.diag([-2.0, -3.0, 5.0, 1.0])  # columns to the left, rows to the back, slices to the head
ABOUT = np.cos(0.3), np.sin(0.3)
OBLIQUE = (
    np.array([[ABOUT[0], -ABOUT[1], 0, 4], [ABOUT[1], ABOUT[0], 0, -9], [0, 0, 1, 2], [0, 0, 0, 1]]) @ AXIAL
)
TILTED = AXIAL + np.array(
    [[0, 0, 0, 0], [0, 0, 1.6, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
)  # each slice further to the front: 18 degrees
AFFINES = {
    "axial": AXIAL,
    "feet first": np.array([[2.0, 0, 0, 7], [0, -3, 0, 1], [0, 0, -5, 0], [0, 0, 0, 1]]),
    "coronal": np.array([[-2.0, 0, 0, 7], [0, 0, 5, 1], [0, -3, 0, 0], [0, 0, 0, 1]]),
    "sagittal": np.array([[0, 0, 5.0, 7], [-2, 0, 0, 1], [0, -3, 0, 0], [0, 0, 0, 1]]),
    "oblique": OBLIQUE,
}
LPS_OF_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
EMPTY = (
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)


def voxels_of(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1500, shape).astype(np.int16)


def _common(shape: tuple[int, int], series: dict[str, Any]) -> Dataset:
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for name in EMPTY:
        setattr(image, name, "")
    image.PatientName, image.PatientID, image.Manufacturer, image.PositionReferenceIndicator = (
        "Phantom^One",
        "1",
        "nobody",
        "",
    )
    image.ImageType, image.SeriesNumber, image.Modality, image.SeriesDescription = (
        ["ORIGINAL", "PRIMARY", "AXIAL"],
        1,
        "CT",
        "abdomen",
    )
    image.Rows, image.Columns, image.SamplesPerPixel, image.PhotometricInterpretation = (
        *shape,
        1,
        "MONOCHROME2",
    )
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
    for name, value in series.items():
        setattr(image, name, value)
    image.SOPClassUID = CTImageStorage if image.Modality == "CT" else MRImageStorage
    return image


def compressed(file: Path, syntax: str) -> None:
    """Encodes a file anew: JPEG lossless by GDCM, all others by pydicom's encoders."""
    if syntax != JPEGLosslessSV1:
        image = dcmread(file)
        image.compress(syntax, generate_instance_uid=False)
        image.save_as(file)
        return
    reader = gdcm.ImageReader()
    reader.SetFileName(str(file))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(file))
    assert writer.Write()


def write_series(
    folder: Path,
    voxels: np.ndarray,
    affine: np.ndarray,
    syntax: str = ExplicitVRLittleEndian,
    slope: float = 1,
    intercept: float = 0,
    **series: Any,
) -> list[Path]:
    """Writes native (A, B, C) voxels on a NIfTI affine, stored as int16: columns, rows and slices.

    series: attributes of every image ("SeriesNumber"). The files' order is not that of the slices.
    """
    folder.mkdir(parents=True, exist_ok=True)
    turned = LPS_OF_RAS @ affine
    spacing = np.linalg.norm(turned[:3, :3], axis=0)
    uids = {name: generate_uid() for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    stored, files = np.rint((voxels - intercept) / slope).astype(np.int16), []
    for z in range(voxels.shape[2]):
        image = _common(
            (voxels.shape[1], voxels.shape[0]),
            uids | {"RescaleSlope": slope, "RescaleIntercept": intercept} | series,
        )
        image.SOPInstanceUID, image.InstanceNumber = generate_uid(), z + 1
        image.file_meta.MediaStorageSOPClassUID, image.file_meta.MediaStorageSOPInstanceUID = (
            image.SOPClassUID,
            image.SOPInstanceUID,
        )
        image.ImageOrientationPatient = [
            round(float(c), 9) for axis in (0, 1) for c in turned[:3, axis] / spacing[axis]
        ]
        image.ImagePositionPatient = [round(float(c), 6) for c in (turned @ (0, 0, z, 1))[:3]]
        image.PixelSpacing, image.SliceThickness = (
            [round(float(s), 6) for s in spacing[[1, 0]]],
            round(float(spacing[2]), 6),
        )
        image.PixelData = np.ascontiguousarray(stored[:, :, z].T).tobytes()
        files.append(folder / f"{z * 7919 % 10007:05d}.dcm")
        image.save_as(files[-1], enforce_file_format=True)
        if syntax != ExplicitVRLittleEndian:
            compressed(files[-1], syntax)
    return files


def changed(file: Path, **attributes: Any) -> None:
    """Writes the file anew with other attributes; one that is None goes."""
    image = dcmread(file)
    for name, value in attributes.items():
        if value is None:
            delattr(image, name)
        else:
            setattr(image, name, value)
    image.save_as(file)


def enhanced(folder: Path, voxels: np.ndarray, affine: np.ndarray) -> Path:
    """One multi-frame file out of a series, by highdicom."""
    headers = [dcmread(file) for file in write_series(folder / "single", voxels, affine, intercept=-1024)]
    uids = {
        "series_instance_uid": generate_uid(),
        "sop_instance_uid": generate_uid(),
        "series_number": 2,
        "instance_number": 1,
    }
    LegacyConvertedEnhancedCTImage(headers, **uids).save_as(folder / "enhanced.dcm")
    return folder / "enhanced.dcm"
