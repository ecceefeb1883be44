import math

import numpy as np
import pytest

from mindgap.errors import SettingError
from mindgap.evaluation.presets import DEFINITIONS, PRESETS, find_preset
from mindgap.evaluation.rules import DEFAULT_RULES, Rules
from mindgap.evaluation.scores import COLUMNS, score_case


def test_every_metric_column_is_defined_with_version_and_empty_policy():
    metrics = {"dice", "hd95_mm", "hd95_pooled_mm", "surface_dice", "lesionwise_dice"}
    assert set(DEFINITIONS) == metrics <= set(COLUMNS)
    for definition in DEFINITIONS.values():
        assert f" v{definition.version}: " in definition.text
        assert "Empty: " in definition.text
    assert "1 mm" in DEFINITIONS["surface_dice"].text
    assert "50 mm^3" in DEFINITIONS["lesionwise_dice"].text


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_computes_its_columns_and_no_others(name):
    target = np.zeros((8, 8, 8), np.uint8)
    target[1:7, 1:7, 1:7] = 1
    rows = score_case(target, target, (2.0, 2.0, 2.0), model="m", case="c", subset="T1", metrics=PRESETS[name])
    assert [row.region for row in rows] == ["WT", "TC", "ET", "ETpp"]
    for row in rows:
        assert {c for c in DEFINITIONS if not math.isnan(getattr(row, c))} == set(PRESETS[name].columns)


def test_presets_by_name():
    assert [preset.name for preset in PRESETS.values()] == list(PRESETS)
    assert PRESETS["hd95"].columns == ("dice", "hd95_mm")
    assert "lesionwise_dice" in find_preset("lesions").columns
    assert all(preset.columns[0] == "dice" for preset in PRESETS.values())
    with pytest.raises(SettingError, match=r"'brats1999' are unknown: choose one of default, hd95"):
        find_preset("brats1999")


def test_rules_describe_themselves():
    text = "\n".join(DEFAULT_RULES.describe([(1.0, 1.0, 1.0), (1.0000001, 1.0, 1.0)]))
    assert "grid native" in text
    assert "(1 x 1 x 1 mm)" in text
    assert "protocol strict" in text
    assert "below 500 mm^3" in text
    assert "ProtoKD" not in text
    for definition in DEFAULT_RULES.metrics.definitions:
        assert definition.text in text
    rules = Rules(PRESETS["hd95"], "leaky", "model", protokd_crop=True)
    text = "\n".join(rules.describe([(1.0, 1.0, 1.0), (2.0, 2.0, 2.0)]))
    assert "protocol leaky" in text
    assert "all four files" in text
    assert "(2 spacings)" in text
    assert "ProtoKD crop" in text
    assert rules.to_plain() == {
        "metrics": "hd95",
        "columns": {"dice": 1, "hd95_mm": 1},
        "protocol": "leaky",
        "grid": "model",
        "protokd_crop": True,
    }
