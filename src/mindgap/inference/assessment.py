"""How well estimates hold on cases they were not fitted to: errors of expected Dice, coverage of intervals, ECE."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mindgap.data.cohort import Cohort
from mindgap.data.history import history_of
from mindgap.data.patients import by_patient, of_same_patients
from mindgap.errors import SettingError
from mindgap.evaluation.calibration import calibration_error, reliability_bins, scale_regions
from mindgap.evaluation.conformal import exact_binomial
from mindgap.evaluation.statistics import Interval, bootstrap_mean
from mindgap.files import write_text
from mindgap.inference.calibration import View, brain_voxels, reference_volumes_ml, region_dice, segmented
from mindgap.inference.confidence import Confidence, estimate
from mindgap.inference.estimate import Estimate
from mindgap.inference.predictor import Predictor
from mindgap.progress import Progress, silent
from mindgap.regions import REGIONS, Region, region_mask
from mindgap.sequences import Subset, format_subset

Bins = NDArray[np.float64]


@dataclass(frozen=True)
class Trial:
    """One region of a test case: what was estimated, and what was so.

    Attributes:
        case: Its name.
        subset: What the network looked at.
        region: WT, TC or ET.
        expected_dice: As estimated, NaN where it could not be told.
        dice: Reached.
        predicted_ml: Volume of the mask.
        low_ml: Lower end of the volume interval, NaN where the level was not available.
        high_ml: Upper end.
        reference_ml: Volume of the reference.
        review: Whether the mask was flagged.
        strange: Whether the case was called unlike those known.
    """

    case: str
    subset: str
    region: str
    expected_dice: float
    dice: float
    predicted_ml: float
    low_ml: float
    high_ml: float
    reference_ml: float
    review: bool
    strange: bool

    @property
    def is_covered(self) -> bool:
        """Whether the interval holds the volume of the reference."""
        return self.low_ml <= self.reference_ml <= self.high_ml


@dataclass(frozen=True)
class Verdict:
    """A row of the table: one subset and region over the test cases.

    Attributes:
        subset: What the network looked at.
        region: WT, TC or ET.
        n: Number of cases.
        dice: Mean Dice that was reached.
        error: Mean absolute error of expected Dice, with its bootstrap interval over cases.
        constant_error: The same for the mean Dice of the calibration cases, whatever the case: what a look at the case
            has to beat.
        rank_correlation: Spearman's, of expected with reached Dice; NaN where one of them does not vary.
        covered: Patients whose interval held the reference; of several scans of one the first by name counts.
        intervals: Patients who had an interval.
        ece_before: Expected calibration error at temperature 1.
        ece_after: At the fitted temperature.
    """

    subset: str
    region: str
    n: int
    dice: float
    error: Interval
    constant_error: float
    rank_correlation: float
    covered: int
    intervals: int
    ece_before: float
    ece_after: float

    @property
    def coverage(self) -> tuple[float, float, float]:
        """Share of intervals that held, with its exact 95 % interval; NaN where there was none."""
        if not self.intervals:
            return math.nan, math.nan, math.nan
        return self.covered / self.intervals, *exact_binomial(self.covered, self.intervals)


@dataclass(frozen=True)
class Assessment:
    """What came out.

    Attributes:
        trials: A row per case, subset and region.
        verdicts: A row per subset and region.
        bins: (subset, region) -> sums for reliability curves (3 B) before and after temperature scaling.
        left_out: Cases that cannot judge: the network has learnt from, was chosen by or calibrated on their patients.
    """

    trials: list[Trial]
    verdicts: list[Verdict]
    bins: dict[tuple[str, str], tuple[Bins, Bins]]
    left_out: Sequence[str] = ()


def assess(
    predictor: Predictor,
    confidence: Confidence,
    cohort: Cohort,
    *,
    subsets: Sequence[Subset] | None = None,
    progress: Progress = silent,
) -> Assessment:
    """Estimate every case of a cohort as `mindgap segment` does, and hold it against the references.

    Args:
        predictor: The network.
        confidence: What is known of it, from other cases.
        cohort: Test cases with labels; patients it has learnt from, was chosen by or calibrated on are left out.
        subsets: What to look at; all the network was calibrated on when None.
        progress: Called after each subset of each case.

    Raises:
        SettingError: None is left, or none has the sequences.
        InputError: A case cannot be used.
    """
    known = {row.case for row in confidence.observed} | history_of(predictor.folder).known
    left_out = of_same_patients((files.case_id for files in cohort.cases), known)
    cases = [files for files in cohort.cases if files.case_id not in left_out]
    if not cases:
        raise SettingError(
            f"the network in {predictor.folder} knows all {len(left_out)} cases of {cohort.root}: name others to test."
        )
    calibrated = {row.subset for row in confidence.observed}
    wanted = subsets or [subset for subset in predictor.subsets if format_subset(subset) in calibrated]
    trials: list[Trial] = []
    bins: dict[tuple[str, str], tuple[Bins, Bins]] = {}
    for view in segmented(predictor, cases, cohort, wanted, progress=progress):
        found = estimate(confidence, view.segmentation, view.case, coverage=view.segmentation.coverage)
        trials.extend(_trials(view, found))
        for region, pair in _bins(view, found.temperature).items():
            before, after = bins.get((found.subset, region), (0.0, 0.0))
            bins[found.subset, region] = before + pair[0], after + pair[1]
    if not trials:
        names = ", ".join(map(format_subset, wanted))
        raise SettingError(f"none of the {len(cases)} cases left in {cohort.root} has all of {names}: name others.")
    verdicts = [_verdict(trials, confidence, *key, pair) for key, pair in bins.items()]
    return Assessment(trials, verdicts, bins, left_out)


def write_trials(path: Path, trials: Iterable[Trial]) -> None:
    """Write one row per case, subset and region."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(column.name for column in fields(Trial))
    for trial in trials:
        writer.writerow(_cell(value) for value in asdict(trial).values())
    write_text(path, buffer.getvalue())


def _trials(view: View, found: Estimate) -> list[Trial]:
    reached, volumes = region_dice(view), reference_volumes_ml(view)

    def trial(region: Region) -> Trial:
        interval = found.volumes[region]
        return Trial(
            case=view.case.case_id,
            subset=found.subset,
            region=str(region),
            expected_dice=found.dice[region],
            dice=reached[str(region)],
            predicted_ml=view.segmentation.volumes_ml[region],
            low_ml=math.nan if interval is None else interval.low_ml,
            high_ml=math.nan if interval is None else interval.high_ml,
            reference_ml=volumes[str(region)],
            review=bool(found.review),
            strange=found.strangeness is not None and found.strangeness.is_strange,
        )

    return [trial(region) for region in REGIONS]


def _bins(view: View, temperature: float) -> dict[str, tuple[Bins, Bins]]:
    places = brain_voxels(view)
    plain = view.segmentation.probabilities.reshape(len(REGIONS), -1)[:, places].clip(0, 1)
    scaled = scale_regions(plain, temperature)
    truth = view.reference.ravel()[places]
    return {
        str(region): tuple(reliability_bins(maps[n], region_mask(truth, region)) for maps in (plain, scaled))  # type: ignore[misc]
        for n, region in enumerate(REGIONS)
    }


def _verdict(
    trials: Sequence[Trial], confidence: Confidence, subset: str, region: str, pair: tuple[Bins, Bins]
) -> Verdict:
    rows = [trial for trial in trials if trial.subset == subset and trial.region == region]
    told = [row for row in rows if math.isfinite(row.expected_dice)]
    errors = {row.case: abs(row.expected_dice - row.dice) for row in told}
    usual = float(np.mean(list(confidence.dice(subset)[region].values()) or [math.nan]))
    all_given = {row.case: row for row in rows if math.isfinite(row.high_ml)}
    given = [all_given[first] for first, *_ in by_patient(all_given)]  # an exact interval counts what is independent
    return Verdict(
        subset=subset,
        region=region,
        n=len(rows),
        dice=float(np.mean([row.dice for row in rows])),
        error=bootstrap_mean(errors),
        constant_error=float(np.mean([abs(usual - row.dice) for row in told])) if told else math.nan,
        rank_correlation=_spearman([row.expected_dice for row in told], [row.dice for row in told]),
        covered=sum(row.is_covered for row in given),
        intervals=len(given),
        ece_before=calibration_error(pair[0]),
        ece_after=calibration_error(pair[1]),
    )


def _spearman(first: Sequence[float], second: Sequence[float]) -> float:
    if len(set(first)) < 2 or len(set(second)) < 2:
        return math.nan
    from scipy import stats

    return float(stats.spearmanr(first, second).statistic)


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return int(value)
    return ("" if math.isnan(value) else f"{value:.4f}") if isinstance(value, float) else value
