"""Methods by name. A new method is a new file here and a line in this table."""

from __future__ import annotations

from mindgap.methods.base import AbstractRecipe
from mindgap.methods.pmkl import PmklRecipe
from mindgap.methods.teacher import TeacherRecipe
from mindgap.methods.unimodal import UnimodalRecipe

METHODS: dict[str, type[AbstractRecipe]] = {
    "teacher": TeacherRecipe,
    "unimodal": UnimodalRecipe,
    "pmkl": PmklRecipe,
}
