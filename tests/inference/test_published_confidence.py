"""The table in docs/confidence.md is that of the rows that are published with it."""

import csv
import math
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "docs" / "results" / "confidence-phantom" / "anysubset.csv"


def test_the_published_table_follows_from_the_published_rows():
    found = defaultdict(list)
    with ROWS.open(newline="") as handle:
        for row in csv.DictReader(handle):
            found[row["subset"], row["region"]].append(
                {k: float(v or "nan") for k, v in row.items() if "_" in k or k == "dice"}
            )
    printed = re.findall(
        r"^\| ([\w+]+) \| (WT|TC|ET) \| ([\d.]+) \| (?:([\d.]+) \[.*?\]|-) \| \S+ \| (-|[-−\d.]+) \| (\d+)/(\d+) ",
        (ROOT / "docs" / "confidence.md").read_text(),
        re.MULTILINE,
    )
    assert {(subset, region) for subset, region, *_ in printed} == set(found)
    for subset, region, dice, error, rank, covered, n in printed:
        rows = found[subset, region]
        assert len(rows) == int(n) >= 40
        assert float(dice) == pytest.approx(np.mean([row["dice"] for row in rows]), abs=6e-4)
        assert int(covered) == sum(row["low_ml"] <= row["reference_ml"] <= row["high_ml"] for row in rows)
        told = [(row["expected_dice"], row["dice"]) for row in rows if math.isfinite(row["expected_dice"])]
        assert bool(told) == bool(error)
        if told:
            expected, reached = np.array(told).T
            assert float(error) == pytest.approx(np.abs(expected - reached).mean(), abs=6e-4)
            assert float(rank) == pytest.approx(stats.spearmanr(expected, reached).statistic, abs=6e-3)
