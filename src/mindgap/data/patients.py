"""Whose scan a case is: time points of one patient are several cases, but one patient."""

from __future__ import annotations

import re
from collections.abc import Iterable

_TIME_POINTS = (
    re.compile(r"(sub-[^_]+)_ses-.+"),  # BIDS
    re.compile(r"(BraTS-[A-Za-z]+-\d+)-\d{3}"),  # BraTS from 2023 on
    re.compile(r"(UCSF-PDGM-\d+)_FU\w+"),  # UCSF-PDGM: follow-ups beside UCSF-PDGM-0429
)
"""Names of cases that hold a time point, after the name of the patient."""


def patient_of(case_id: str) -> str:
    """The patient a case is a scan of, where its name tells: the case itself where it does not.

    Known are BIDS (``sub-01_ses-2``), BraTS from 2023 on (``BraTS-GLI-02062-101``) and follow-ups of UCSF-PDGM.

    Example:
        >>> patient_of("BraTS-GLI-02062-101"), patient_of("sub-01_ses-2"), patient_of("Brats18_TCIA01_131_1")
        ('BraTS-GLI-02062', 'sub-01', 'Brats18_TCIA01_131_1')
    """
    for pattern in _TIME_POINTS:
        found = pattern.fullmatch(case_id)
        if found is not None:
            return found[1]
    return case_id


def by_patient(case_ids: Iterable[str]) -> list[tuple[str, ...]]:
    """The sorted cases of each patient, patients in the order of their first case."""
    patients: dict[str, list[str]] = {}
    for case_id in sorted(set(case_ids)):
        patients.setdefault(patient_of(case_id), []).append(case_id)
    return [tuple(cases) for cases in patients.values()]


def of_same_patients(case_ids: Iterable[str], others: Iterable[str]) -> list[str]:
    """Which of the cases are scans of a patient who is among the others, too; sorted."""
    patients = {patient_of(case_id) for case_id in others}
    return sorted(case_id for case_id in set(case_ids) if patient_of(case_id) in patients)
