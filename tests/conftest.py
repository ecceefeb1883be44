"""Options, the folder of real cases, DICOM series made from arrays, and types checked at run time."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import install_import_hook


def pytest_addoption(parser):
    parser.addoption("--brats", type=Path, default=None, help="BraTS 2018 training folder, for tests marked real")


def pytest_configure(config):
    # Before torch is loaded: threads that spin make every other program on the machine, and each other, wait.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    # Files that can be made again go there, in this process and in those it starts; it is left for the next run.
    os.environ["XDG_CACHE_HOME"] = str(Path(tempfile.gettempdir()) / "mindgap-tests-cache")
    # Before anything imports mindgap: shapes and types of every call are then checked.
    install_import_hook("mindgap", "beartype.beartype")


@pytest.fixture
def brats(request) -> Path:
    """The BraTS 2018 training folder; the test is skipped where it is not named."""
    folder = request.config.getoption("--brats")
    if folder is None:
        pytest.skip("needs --brats FOLDER")
    return folder


EXAMINATION = {
    "PatientID": "P1",
    "PatientName": "Phantom^One",
    "PatientBirthDate": "19700101",
    "PatientSex": "O",
    "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.1",
    "StudyID": "1",
    "StudyDate": "20200102",
    "StudyTime": "101112",
    "AccessionNumber": "",
    "ReferringPhysicianName": "",
    "FrameOfReferenceUID": "1.2.826.0.1.3680043.8.498.2",
}
IMAGE = {
    "Modality": "MR",
    "Manufacturer": "SIEMENS",
    "ImageType": ["ORIGINAL", "PRIMARY", "M"],
    "MRAcquisitionType": "2D",
    "SequenceVariant": "SK",
    "SamplesPerPixel": 1,
    "PixelRepresentation": 0,
    "PhotometricInterpretation": "MONOCHROME2",
    "BitsAllocated": 16,
    "BitsStored": 16,
    "HighBit": 15,
}
HEADERS = {
    "T1": {"SeriesDescription": "AX T1 SE", "ScanningSequence": "SE", "EchoTime": 9, "RepetitionTime": 500},
    "T1ce": {
        "SeriesDescription": "AX T1 SE",
        "ScanningSequence": "SE",
        "EchoTime": 9,
        "RepetitionTime": 500,
        "ContrastBolusAgent": "Gadobutrol",
    },
    "T2": {"SeriesDescription": "AX T2 TSE", "ScanningSequence": "SE", "EchoTime": 95, "RepetitionTime": 4500},
    "FLAIR": {
        "SeriesDescription": "AX FLAIR",
        "ScanningSequence": ["SE", "IR"],
        "EchoTime": 120,
        "RepetitionTime": 9000,
        "InversionTime": 2500,
    },
}


@pytest.fixture(scope="session")
def write_dicom():
    """Write voxels (column, row, slice) as one MR series with shuffled file names; gives its files in slice order.

    The affine leads from these indices to mm in DICOM's own axes (LPS+); further words are header entries, None
    leaves one out. ``kind`` takes the usual headers of a sequence.
    """
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    def write(folder: Path, array: np.ndarray, affine_lps: np.ndarray, *, kind: str = "T1", **entries) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        spacing = np.linalg.norm(affine_lps[:3, :3], axis=0)
        row, column = (affine_lps[:3, axis] / spacing[axis] for axis in (0, 1))
        common = {
            **EXAMINATION,
            **IMAGE,
            "SeriesInstanceUID": generate_uid(),
            "SeriesNumber": 1,
            "SOPClassUID": MRImageStorage,
            "SliceThickness": float(spacing[2]),
            "PixelSpacing": [float(spacing[1]), float(spacing[0])],
            "ImageOrientationPatient": [float(f"{value:.10f}") for value in (*row, *column)],
            "Rows": array.shape[1],
            "Columns": array.shape[0],
            **HEADERS[kind],
            **entries,
        }
        names = np.random.default_rng(array.shape[2]).permutation(array.shape[2])
        files = []
        for index in range(array.shape[2]):
            image = Dataset()
            for key, value in common.items():
                if value is not None:
                    setattr(image, key, value)
            image.SOPInstanceUID = generate_uid()
            image.InstanceNumber = int(names[index]) + 1
            image.ImagePositionPatient = [
                float(f"{value:.6f}") for value in affine_lps[:3, 3] + index * affine_lps[:3, 2]
            ]
            image.PixelData = np.ascontiguousarray(array[:, :, index].T).astype("<u2").tobytes()
            image.file_meta = FileMetaDataset()
            image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            path = folder / f"IM{names[index]:04d}"
            pydicom.dcmwrite(path, image, enforce_file_format=True)
            files.append(path)
        return files

    return write


@pytest.fixture(scope="session")
def write_enhanced():
    """Put the images of a classic MR series into one enhanced object, in the order given; further words as above."""
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.sequence import Sequence
    from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, generate_uid

    def group(**entries) -> Sequence:
        item = Dataset()
        for key, value in entries.items():
            setattr(item, key, value)
        return Sequence([item])

    def write(path: Path, files: list[Path], **entries) -> Path:
        images = [pydicom.dcmread(file) for file in files]
        first, made = images[0], Dataset()
        same = (*EXAMINATION, "Modality", "Manufacturer", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription")
        pixels = ("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PixelRepresentation")
        for key in (*same, *pixels, "BitsAllocated", "BitsStored", "HighBit"):
            if key in first:
                setattr(made, key, first[key].value)
        scanning = first.get("ScanningSequence", "SE")
        made.SOPClassUID, made.SOPInstanceUID = EnhancedMRImageStorage, generate_uid()
        made.ImageType, made.InstanceNumber, made.NumberOfFrames = ["ORIGINAL", "PRIMARY", "T", "NONE"], 1, len(images)
        made.EchoPulseSequence = "GRADIENT" if scanning == "GR" else "SPIN"
        if "ContrastBolusAgent" in first:
            made.ContrastBolusAgentSequence = group(CodeMeaning=first.ContrastBolusAgent, CodeValue="1")
        shared = Dataset()
        shared.MRTimingAndRelatedParametersSequence = group(RepetitionTime=first.RepetitionTime)
        shared.PixelMeasuresSequence = group(PixelSpacing=first.PixelSpacing, SliceThickness=first.SliceThickness)
        shared.PlaneOrientationSequence = group(ImageOrientationPatient=first.ImageOrientationPatient)
        shared.MRModifierSequence = group(InversionRecovery="YES" if "InversionTime" in first else "NO")
        if "InversionTime" in first:
            shared.MRModifierSequence[0].InversionTimes = first.InversionTime
        made.SharedFunctionalGroupsSequence = Sequence([shared])
        made.PerFrameFunctionalGroupsSequence = Sequence([])
        for image in images:
            frame = Dataset()
            frame.PlanePositionSequence = group(ImagePositionPatient=image.ImagePositionPatient)
            frame.MREchoSequence = group(EffectiveEchoTime=float(image.EchoTime))
            frame.MRImageFrameTypeSequence = group(FrameType=["ORIGINAL", "PRIMARY", "M", "NONE"])
            frame.PixelValueTransformationSequence = group(RescaleSlope=1, RescaleIntercept=0, RescaleType="US")
            frame.FrameContentSequence = group(StackID="1", InStackPositionNumber=len(images))
            made.PerFrameFunctionalGroupsSequence.append(frame)
        made.PixelData = b"".join(image.PixelData for image in images)
        made.file_meta = FileMetaDataset()
        made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        for key, value in entries.items():
            setattr(made, key, value)
        path.parent.mkdir(parents=True, exist_ok=True)
        pydicom.dcmwrite(path, made, enforce_file_format=True)
        return path

    return write
