"""From folders and tables to cases, by name alone: no image is opened here.

Known layouts: BraTS 2017-2021 and 2023+ trees, any other tree with one folder per case, BIDS, MSD Task01, nnU-Net
raw, and a CSV manifest. What label numbers mean is taken from a layout only where that is beyond doubt.
"""

from __future__ import annotations

from collections import Counter, abc
from dataclasses import dataclass, replace
from pathlib import Path

from mindgap.data.bids import case_from_bids, is_bids, read_bids
from mindgap.data.case import CaseFiles, Source
from mindgap.data.channels import channel_folder, read_channels
from mindgap.data.folders import (
    MAX_DEPTH,
    closed_error,
    is_label,
    is_lost,
    lost_links,
    nifti_files,
    overlooked,
    reason_of,
    refuse_lost,
    refuse_unclear,
    sort_files,
    visible,
    walk,
)
from mindgap.data.manifest import read_manifest
from mindgap.data.naming import refuse_mixed
from mindgap.data.nifti import NIFTI_SUFFIXES, is_nifti, stem_of
from mindgap.errors import InputError, SettingError
from mindgap.regions import LabelConvention, find_convention
from mindgap.sequences import Sequence, read_filenames, sequence_from_alias, split_filename

_WORDS_OF_LAYOUT = {"brats2017": {"t1", "t1ce", "t2", "flair"}, "brats2023": {"t1n", "t1c", "t2w", "t2f"}}
_LOOKED_FOR = (
    "*_{t1,t1ce,t2,flair}.nii.gz or *-{t1n,t1c,t2w,t2f}.nii.gz in one folder per case (up to "
    f"{MAX_DEPTH} levels down), sub-*/[ses-*/]anat (BIDS), imagesTr/*.nii.gz (MSD, nnU-Net), or a .csv manifest"
)


@dataclass(frozen=True)
class Cohort:
    """The cases of one data set.

    Attributes:
        root: Where they were found.
        layout: "brats2017", "brats2023", "folders" (case folders named otherwise), "bids", "msd", "nnunet"
            or "manifest".
        cases: Sorted by case_id; a case may lack sequences or its label.
        rejected: Case or folder -> why it cannot be used.
        convention: What the numbers of the labels mean; None when it has to be asked for.
    """

    root: Path
    layout: str
    cases: tuple[CaseFiles, ...]
    rejected: abc.Mapping[str, str]
    convention: LabelConvention | None


def discover(root: Path, *, labels: str | None = None, label: bool = True) -> Cohort:
    """Find the cases of a data set.

    Args:
        root: A BraTS tree (HGG/LGG or flat), a BIDS data set (or a subject or session of one), an MSD or nnU-Net
            folder (the one that holds imagesTr; without labels imagesTs, or the folder of images itself), one case
            folder, or a .csv manifest. Reference labels of BIDS are not looked for: a manifest names them.
        labels: Name of the label convention; overrides what the layout says.
        label: Whether reference labels are wanted. Where they are not, several in one folder, none, or names of
            several data sets side by side are no fault.

    Raises:
        InputError: Nothing is found, layouts are mixed, or the manifest is wrong.
        SettingError: The label convention is unknown.

    Example:
        >>> cohort = discover(Path("MICCAI_BraTS_2018_Data_Training"))  # doctest: +SKIP
        >>> len(cohort.cases), cohort.layout  # doctest: +SKIP
        (285, 'brats2017')
    """
    convention = None if labels is None else find_convention(labels)
    try:
        cohort = _find(root, label=label)
    except PermissionError as error:
        raise closed_error(str(error.filename or root)) from error
    if not cohort.cases:
        reasons = "; ".join(f"{case}: {reason}" for case, reason in list(cohort.rejected.items())[:3])
        raise InputError(
            case=str(root),
            expected=_LOOKED_FOR,
            found=f"no usable case ({reasons})" if reasons else "none of these",
            mend="name the folder that holds the cases, or write a manifest: case,t1,t2,t1ce,flair,label",
        )
    return cohort if convention is None else replace(cohort, convention=convention)


def discover_labelled(data: Path, labels: str | None = None) -> tuple[Cohort, LabelConvention]:
    """The cases of a data set with what their labels mean; also by the store that was made from it.

    Args:
        data: As :func:`discover`, or the folder of a store.
        labels: Label convention, where the layout does not tell.

    Raises:
        SettingError: The label convention is not clear.
    """
    from mindgap.data.store import INDEX, open_store  # torch: not for who only looks for cases

    if (data / INDEX).is_file():
        store = open_store(data)
        data, labels = Path(store.source), labels or store.convention
    cohort = discover(data, labels=labels)
    if cohort.convention is None:
        raise SettingError(f"the label convention of {data} is not clear from its files: name it with --labels.")
    return cohort, cohort.convention


def _find(root: Path, *, label: bool) -> Cohort:
    if root.suffix.lower() == ".csv":
        found_cases, rejected = read_manifest(root, label=label)
        return Cohort(root, "manifest", _sorted(found_cases), rejected, None)
    if not root.is_dir():
        found = "one NIfTI file" if is_nifti(root) and root.is_file() else "no such folder"
        raise InputError(
            case=str(root),
            expected="a folder of cases or a .csv manifest",
            found=found,
            mend="correct the path, or name the folder the file lies in",
        )
    if is_bids(root):
        found_cases, rejected = read_bids(root)
        return Cohort(root, "bids", _sorted(found_cases), rejected, None)
    if not label and (images := channel_folder(root)) is not None:
        return _from_channels(root, images, label=label)
    cohort = _from_folders(root, label=label)
    if (root / "imagesTr").is_dir():
        if cohort.cases:
            raise _mixed(root, f"imagesTr (MSD or nnU-Net) and case folders ({cohort.layout})")
        return _from_channels(root, root / "imagesTr", label=label)
    _refuse_folders_of_sequences(cohort.cases)
    return cohort


def _refuse_folders_of_sequences(cases: abc.Iterable[CaseFiles]) -> None:
    """Refuse a patient with a folder for each sequence, which would be as many patients with one sequence each.

    Raises:
        InputError: The case folders within some folder are all named as different sequences.
    """
    folders: dict[Path, set[str]] = {}
    for files in cases:
        place = next(iter(files.images.values())).path.parent
        folders.setdefault(place.parent, set()).add(place.name)
    for place, names in folders.items():
        found = {sequence_from_alias(name) for name in names}
        if len(names) > 1 and None not in found and len(found) == len(names):
            raise InputError(
                case=str(place),
                expected="a folder for each case",
                found=f"folders named as sequences ({', '.join(sorted(names))}), as of one patient",
                mend="put the files of the patient into one folder, or name each by its sequence (--t1, --t1ce, --t2, "
                "--flair, or a manifest)",
            )


def case_from_folder(folder: Path, *, label: bool = True) -> CaseFiles:
    """The case in one folder, whatever the style of its names; sub-folders are not searched.

    A file whose name, without the folder's own, has a word such as "seg" is the label and never an image. Files that
    name no sequence are left alone. The case is called as the folder is, whatever this is a link to.

    Args:
        folder: Of one case.
        label: Whether the label is wanted; where it is not, several are no fault.

    Raises:
        InputError: No image, two files claim to be the same thing, a name leaves T1 and T1ce open, names speak of two
            patients, a link points nowhere, or the folder may not be read.
    """
    if not folder.is_dir():
        one_file = is_nifti(folder) and folder.is_file()
        raise InputError(
            case=str(folder),
            expected="the folder of one case",
            found="one NIfTI file" if one_file else "no such folder",
            mend="name the file by its sequence: --t1, --t1ce, --t2 or --flair" if one_file else "correct the path",
        )
    if is_bids(folder):
        return case_from_bids(folder)
    case_id = visible(folder).name
    try:
        files, lost = nifti_files(folder), lost_links(folder)
    except PermissionError as error:
        raise closed_error(case_id) from error
    images, labels = sort_files(case_id, sorted((*files, *lost)), label=label)
    refuse_lost(case_id, (path for paths in (*images.values(), labels) for path in paths if path in lost))
    refuse_unclear(case_id, images.get(None, ()))
    known = {sequence: paths for sequence, paths in images.items() if sequence is not None}
    if not known:
        raise InputError(
            case=case_id,
            expected="images whose names end in a sequence (_t1, _t1ce, _t2, _flair, -t1n, ...)",
            found=", ".join(path.name for path in files[:6]) or "no NIfTI file",
            mend="rename the files, or name each one by its sequence (a manifest does that for many cases)",
        )
    for name, paths in [
        *((str(sequence), paths) for sequence, paths in known.items()),
        ("the label", labels),
    ]:
        if len(paths) > 1:
            raise InputError(
                case=case_id,
                expected=f"one file for {name}",
                found=", ".join(path.name for path in paths),
                mend="keep one case per folder, one file per sequence, or list the right ones in a manifest",
            )
    used = [path for paths in known.values() for path in paths]
    refuse_mixed(case_id, _parts_of(used, case_id))
    return CaseFiles(
        case_id,
        {sequence: Source(paths[0]) for sequence, paths in known.items()},
        Source(labels[0]) if labels else None,
        tuple(path.name for path in files if path not in used and not is_label(path, case_id)),
    )


def _parts_of(paths: abc.Iterable[Path], case_id: str) -> dict[str, str]:
    """File -> what stands in its name before the sequence."""
    stems = {stem_of(path): path.name for path in paths}
    return {stems[stem]: name.case for stem, name in read_filenames(stems, case_id).items()}


def case_from_files(files: abc.Mapping[Sequence, Path], case_id: str | None = None) -> CaseFiles:
    """A case from files named one by one.

    Args:
        files: Sequence -> NIfTI file.
        case_id: Name; by default what the file names have in common, or else the name of their folder.

    Raises:
        InputError: No file, a file that is missing or no NIfTI, or one file named twice.
    """
    for sequence, path in files.items():
        refuse_lost(case_id or str(path), [path] if is_lost(path) else [])
        if not path.is_file() or not is_nifti(path):
            raise InputError(
                case=case_id or str(path),
                expected=f"a {' or '.join(NIFTI_SUFFIXES)} file for {sequence}",
                found=f"{path.name}" if path.exists() else f"nothing at {path}",
                mend="correct the path, or leave the absent sequence out",
            )
    if case_id is None and files:
        parts = [split_filename(stem_of(path)) for path in files.values()]
        names = {part[0] if part else "" for part in parts}
        case_id = names.pop() if len(names) == 1 else ""
        case_id = case_id or visible(next(iter(files.values()))).parent.name
    return CaseFiles(case_id or "case", {sequence: Source(path) for sequence, path in files.items()})


def _from_folders(root: Path, *, label: bool) -> Cohort:
    """Every folder that holds images is a case; layout and convention follow from all names together."""
    found: dict[Path, CaseFiles | str] = {}
    only_labels: dict[str, str] = {}
    closed: set[Path] = set()
    for folder in walk(root, closed):
        try:
            files = nifti_files(folder)
            lost = [path for path in lost_links(folder) if split_filename(stem_of(path)) is not None]
            if files or lost:
                found[folder] = case_from_folder(folder, label=label)
        except PermissionError:
            closed.add(folder)
        except InputError as error:
            # Folders of labels beside folders of images: where labels are not wanted, the two do not clash.
            name = visible(folder).name
            if not label and not lost and all(is_label(path, name) for path in files):
                only_labels[name] = reason_of(error)
            else:
                found[folder] = reason_of(error)
    found |= {folder: reason_of(closed_error(visible(folder).name)) for folder in sorted(closed)}
    names = {folder: visible(folder).name for folder in found} if label else _names_of(root, found)
    cases: dict[str, CaseFiles] = {}
    rejected: dict[str, str] = {}
    usable = Counter(names[folder] for folder, case in found.items() if isinstance(case, CaseFiles))
    for folder, case in found.items():
        name = names[folder]
        if isinstance(case, str):
            rejected[str(folder) if name in usable or name in rejected else name] = case
        elif usable[name] > 1:
            rejected[name] = f"two folders carry this name, one of them {folder}; rename one"
        else:
            cases[name] = case if name == case.case_id else replace(case, case_id=name)
    rejected = {name: only_labels[name] for name in only_labels if name not in cases} | rejected
    if not label and found and root not in found:
        rejected = overlooked(root, (*found, *(root / name for name in only_labels))) | rejected
    if len(cases) > 1 and visible(root).name in cases and nifti_files(root):
        raise _mixed(root, "images of one case and folders with other cases")
    layout, convention = _layout_of(root, list(cases.values())) if label else ("folders", None)
    return Cohort(root, layout, _sorted(cases), dict(sorted(rejected.items())), convention)


def _names_of(root: Path, folders: abc.Iterable[Path]) -> dict[Path, str]:
    """A name for each folder that is to be segmented: its own, or its path where another one is called the same.

    "P1/2020" and "P2/2020" become P1_2020 and P2_2020, and so does "P1/2019" beside them. Where labels are wanted no
    name is made up: splits know cases by the names of their folders.
    """
    own = {folder: visible(folder).name for folder in folders}
    count = Counter(own.values())
    twice = {folder.parent for folder, name in own.items() if count[name] > 1}
    return {
        folder: "_".join(folder.relative_to(root).parts) if folder.parent in twice and folder.parent != root else name
        for folder, name in own.items()
    }


def _layout_of(root: Path, cases: list[CaseFiles]) -> tuple[str, LabelConvention | None]:
    found: dict[str, str] = {}
    for case in cases:
        names = read_filenames([stem_of(source.path) for source in case.images.values()], case.case_id).values()
        words = {one.alias for one in names}
        # BIDS writes T2w: only names written as released are taken for BraTS 2023, which has no words of contrast.
        if any(sequence_from_alias(one.alias) is not one.sequence for one in names):
            name = "folders"
        elif words <= _WORDS_OF_LAYOUT["brats2023"]:
            name = "brats-ped" if case.case_id.startswith("BraTS-PED") else "brats2023"
        elif {word.lower() for word in words} <= _WORDS_OF_LAYOUT["brats2017"]:
            name = "brats2017"
        else:
            name = "folders"
        found.setdefault(name, case.case_id)
    if "folders" in found or not found:
        return "folders", None
    if len(found) > 1:
        raise _mixed(root, " and ".join(f"{name} ({case_id})" for name, case_id in found.items()))
    convention = next(iter(found))
    return "brats2017" if convention == "brats2017" else "brats2023", find_convention(convention)


def _from_channels(root: Path, images: Path, *, label: bool) -> Cohort:
    layout, cases, rejected = read_channels(root, images, label=label)
    return Cohort(root, layout, _sorted(cases), rejected, find_convention("msd") if layout == "msd" else None)


def _sorted(cases: abc.Mapping[str, CaseFiles]) -> tuple[CaseFiles, ...]:
    return tuple(cases[case_id] for case_id in sorted(cases))


def _mixed(root: Path, found: str) -> InputError:
    return InputError(
        case=str(root),
        expected="one layout, so that the labels mean the same in all cases",
        found=found,
        mend="name one of the folders, or list the cases in a manifest and give --labels",
    )
