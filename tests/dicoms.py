"""DICOM series out of an array and its affine, written with pydicom alone, in any transfer syntax."""

import warnings
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGLosslessSV1, MRImageStorage, generate_uid

AXIAL = np.diag([-2.0, -3.0, 5.0, 1.0])  # columns to the left, rows to the back, slices to the head
COS, SIN = np.cos(0.3), np.sin(0.3)
OBLIQUE = np.array([[COS, -SIN, 0, 4], [SIN, COS, 0, -9], [0, 0, 1, 2], [0, 0, 0, 1]]) @ AXIAL
TILTED = AXIAL + np.array([[0, 0, 0, 0], [0, 0, 1.6, 0], [0, 0, 0, 0], [0, 0, 0, 0]])  # sheared: 18 degrees
AFFINES = {
    "axial": AXIAL,
    "feet first": np.array([[2.0, 0, 0, 7], [0, -3, 0, 1], [0, 0, -5, 0], [0, 0, 0, 1]]),
    "coronal": np.array([[-2.0, 0, 0, 7], [0, 0, 5, 1], [0, -3, 0, 0], [0, 0, 0, 1]]),
    "sagittal": np.array([[0, 0, 5.0, 7], [-2, 0, 0, 1], [0, -3, 0, 0], [0, 0, 0, 1]]),
    "oblique": OBLIQUE,
}
LPS_OF_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
ABOUT: dict[str, Any] = {
    "PatientBirthDate": "", "PatientSex": "", "AccessionNumber": "", "StudyID": "", "StudyDate": "",
    "StudyTime": "", "ReferringPhysicianName": "", "PatientName": "Phantom^One", "PatientID": "1",
    "Manufacturer": "nobody", "PositionReferenceIndicator": "", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
    "SeriesNumber": 1, "Modality": "CT", "SeriesDescription": "abdomen", "SamplesPerPixel": 1,
    "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1,
    "PhotometricInterpretation": "MONOCHROME2",
}


def voxels_of(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1500, shape).astype(np.int16)


def compressed(file: Path, syntax: str) -> None:
    """Encodes a file anew: JPEG lossless by GDCM, all others by pydicom's encoders."""
    if syntax != JPEGLosslessSV1:
        image = dcmread(file)
        image.compress(syntax, generate_instance_uid=False)
        image.save_as(file)
        return
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(file))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(file))
    assert writer.Write()


def write_series(
    folder: Path, voxels: np.ndarray, affine: np.ndarray, syntax: str = ExplicitVRLittleEndian,
    slope: float = 1, intercept: float = 0, **series: Any,
) -> list[Path]:
    """Writes native (A, B, C) voxels on a NIfTI affine, stored as int16: columns, rows and slices.

    series: attributes of every image ("SeriesNumber"). The files' order is not that of the slices.
    """
    folder.mkdir(parents=True, exist_ok=True)
    turned = LPS_OF_RAS @ affine
    spacing = np.linalg.norm(turned[:3, :3], axis=0)
    uids = {name: generate_uid() for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    about = ABOUT | uids | {"RescaleSlope": slope, "RescaleIntercept": intercept} | series
    about |= {"Rows": voxels.shape[1], "Columns": voxels.shape[0], "SliceThickness": round(spacing[2], 6)}
    about["PixelSpacing"] = [round(float(s), 6) for s in spacing[[1, 0]]]
    about["ImageOrientationPatient"] = np.round(turned[:3, :2] / spacing[:2], 9).T.ravel().tolist()
    about["SOPClassUID"] = CTImageStorage if about["Modality"] == "CT" else MRImageStorage
    stored, files = np.rint((voxels - intercept) / slope).astype(np.int16), []
    for z in range(voxels.shape[2]):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        for name, value in about.items():
            setattr(image, name, value)
        image.SOPInstanceUID, image.InstanceNumber = generate_uid(), z + 1
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.ImagePositionPatient = [round(float(c), 6) for c in (turned @ (0, 0, z, 1))[:3]]
        image.PixelData = np.ascontiguousarray(stored[:, :, z].T).tobytes()
        files.append(folder / f"{z * 7919 % 10007:05d}.dcm")
        image.save_as(files[-1], enforce_file_format=True)
        if syntax != ExplicitVRLittleEndian:
            compressed(files[-1], syntax)
    return files


def changed(file: Path, **attributes: Any) -> None:
    """Writes the file anew with other attributes: None goes, a pair is a VR and the bytes that are stored."""
    image = dcmread(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of values against the standard
        for name, value in attributes.items():
            if value is None:
                delattr(image, name)
            elif isinstance(value, tuple):
                tag, (kind, raw) = Tag(name), value
                image._dict[tag] = RawDataElement(tag, kind, len(raw), raw, 0, False, True)
            else:
                setattr(image, name, value)
        image.save_as(file)


def enhanced(folder: Path, voxels: np.ndarray, affine: np.ndarray) -> Path:
    """One multi-frame file out of a series, by highdicom."""
    headers = [dcmread(file) for file in write_series(folder / "single", voxels, affine, intercept=-1024)]
    image = LegacyConvertedEnhancedCTImage(headers, generate_uid(), 2, generate_uid(), 1)
    image.save_as(folder / "enhanced.dcm")
    return folder / "enhanced.dcm"
