"""Methods by name. A new method is a new file here and a line in this table."""

from __future__ import annotations

from mindgap.methods.anysubset import AnySubsetRecipe
from mindgap.methods.base import AbstractRecipe
from mindgap.methods.compact import CompactRecipe
from mindgap.methods.dropout import DropoutRecipe, DynUNetRecipe
from mindgap.methods.kdnet import KdNetRecipe
from mindgap.methods.pmkl import PmklRecipe
from mindgap.methods.protokd import ProtoKdRecipe
from mindgap.methods.smunet import SmuNetRecipe
from mindgap.methods.teacher import TeacherRecipe
from mindgap.methods.unimodal import UnimodalRecipe

METHODS: dict[str, type[AbstractRecipe]] = {
    "teacher": TeacherRecipe,
    "unimodal": UnimodalRecipe,
    "pmkl": PmklRecipe,
    "kdnet": KdNetRecipe,
    "protokd": ProtoKdRecipe,
    "smunet": SmuNetRecipe,
    "dropout": DropoutRecipe,
    "anysubset": AnySubsetRecipe,
    "dynunet": DynUNetRecipe,
    "compact": CompactRecipe,
}
