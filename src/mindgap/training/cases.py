"""Which cases of a store a method learns from and is chosen by."""

from __future__ import annotations

import torch

from mindgap.data.store import Store
from mindgap.errors import SettingError
from mindgap.methods.base import AbstractMethod
from mindgap.progress import Say
from mindgap.sequences import format_subset


def choose_cases(store: Store, method: AbstractMethod, *, say: Say) -> tuple[list[str], list[str]]:
    """The training and the validation cases that have what a method needs.

    Args:
        store: The prepared cohort.
        method: That asks for sequences.
        say: Takes a line on cases that are left out.

    Raises:
        SettingError: No training case is left, or none has one of the sequences. A network for any subset would answer
            to that one from weights that nothing has taught.
    """
    train, validation = (_usable(store, method, part, say) for part in ("train", "validation"))
    if not train:
        raise SettingError(
            f"no training case in {store.folder} has the sequences {[str(s) for s in method.subset]}: choose another "
            "--subset or prepare other data."
        )
    seen = {sequence for case in train for sequence in store.cases[case].sequences}
    unseen = [sequence for sequence in method.subset if sequence not in seen]
    if unseen:
        raise SettingError(
            f"no training case in {store.folder} has {format_subset(unseen)}: choose --subset "
            f"{format_subset(s for s in method.subset if s in seen)}, or a split whose training cases have it."
        )
    return train, validation


def _usable(store: Store, method: AbstractMethod, part: str, say: Say) -> list[str]:
    case_ids, sequences = store.part(part), store.sequences
    if not case_ids:
        return []
    available = torch.tensor([[s in store.cases[case].sequences for s in sequences] for case in case_ids])
    keep = method.usable(available, sequences).tolist()
    if not all(keep):
        say(f"{keep.count(False)} {part} cases lack a sequence this method needs and are left out")
    return [case_id for case_id, kept in zip(case_ids, keep, strict=True) if kept]
