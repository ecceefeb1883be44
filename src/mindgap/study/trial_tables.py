"""Tables of the network in the box: what was tried, and every subset of what is shipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mindgap.evaluation.scores import Score, read_scores, values_of
from mindgap.evaluation.statistics import Interval, bootstrap_mean, paired_difference
from mindgap.evaluation.summary import ALL_SUBSETS, BASELINE, average_subsets, mean_dice_of_cases
from mindgap.regions import REGIONS
from mindgap.sequences import SEQUENCES, SUBSETS, format_subset
from mindgap.study.keep import DECIDED
from mindgap.study.scale import Place
from mindgap.study.trials import TRIALS, Trial

PLAIN = " (most probable class)"
"""Behind the name of a run in its scores: decided by the most probable class, not by the highest expected Dice."""
LOWERED = (0.0, 0.5, 1.0, 1.5)
"""By how much the log-odds of tumour against none are lowered, to see what drawing less of it brings."""


def rule_of(lowered: float) -> str:
    """Behind the name of a run in its scores: decided by the highest expected Dice with lowered odds of tumour."""
    return f" (log-odds of tumour -{lowered:g})" if lowered else ""


def scores_of(trial: Trial, place: Place, *, rule: str = "") -> list[Score]:
    """Scores of every case by the network that did not see it, of the folds that ran; the trial is the model.

    Args:
        trial: It.
        place: Of the study.
        rule: "" for the highest expected Dice, :data:`PLAIN`, or what :func:`rule_of` says.
    """
    rows: list[Score] = []
    for run in trial.runs:
        paths = (folder / run.name / DECIDED for folder in place.score_folders)
        path = next((path for path in paths if path.is_file()), None)
        scores = [] if path is None else read_scores(path)
        rows += [replace(row, model=trial.name) for row in scores if row.model == run.name + rule]
    return rows


@dataclass(frozen=True)
class TrialRow:
    """A trial in numbers, over cases.

    Attributes:
        trial: It.
        cases: How many were scored.
        complete: Region -> mean Dice with all four sequences.
        average: Region -> mean Dice over the fifteen subsets.
        plain: The same, decided by the most probable class.
        difference: Region, or "mean" -> average minus that of the trial it is held against, paired by case.
        plain_difference: The same, both decided by the most probable class.
    """

    trial: Trial
    cases: int
    complete: dict[str, Interval]
    average: dict[str, Interval]
    plain: dict[str, Interval]
    difference: dict[str, Interval]
    plain_difference: dict[str, Interval]


def compare(place: Place) -> list[TrialRow]:
    """Every trial that was run, with its difference to the one it is held against."""
    scores = {trial.name: scores_of(trial, place) for trial in TRIALS.values()}
    rows = []
    for trial in (trial for trial in TRIALS.values() if scores[trial.name]):
        mine = scores[trial.name]
        averaged = average_subsets(mine)
        complete = {str(r): bootstrap_mean(_values(mine, trial, str(r), format_subset(SEQUENCES))) for r in REGIONS}
        average = {str(r): bootstrap_mean(_values(averaged, trial, str(r), ALL_SUBSETS)) for r in REGIONS}
        alone = average_subsets(scores_of(trial, place, rule=PLAIN))
        plain = {str(r): bootstrap_mean(_values(alone, trial, str(r), ALL_SUBSETS)) for r in REGIONS}
        differences: list[dict[str, Interval]] = [{}, {}]
        other = TRIALS[trial.against] if trial.against and scores[trial.against] else None
        if other is not None:
            theirs, plainly = average_subsets(scores[other.name]), average_subsets(scores_of(other, place, rule=PLAIN))
            names = (*map(str, REGIONS), "mean")
            differences = [
                {
                    n: paired_difference(_values(a, trial, n, ALL_SUBSETS), _values(b, other, n, ALL_SUBSETS))
                    for n in names
                }
                for a, b in ((averaged, theirs), (alone, plainly))
            ]
        cases = len({row.case for row in mine})
        rows.append(TrialRow(trial, cases, complete, average, plain, *differences))
    return rows


def odds_markdown(place: Place, trial: Trial) -> str:
    """Dice of the mean of fifteen subsets and of all four sequences, with the odds of tumour lowered by and by.

    Nothing where the scores of the trial's folds are not there.
    """
    lines = [
        f"| {trial.name}, log-odds of tumour lowered by | n | four sequences WT / TC / ET | mean of 15 WT / TC / ET |"
        " difference of the mean of 15 WT / TC / ET | of all three |",
        "|---|---|---|---|---|---|",
    ]
    tables = []
    for lowered in LOWERED:
        scores = [replace(row, model=trial.name) for row in scores_of(trial, place, rule=rule_of(lowered))]
        if not scores:
            return ""
        averaged = average_subsets(scores)
        names = [*map(str, REGIONS), "mean"]
        tables.append({region: _values(averaged, trial, region, ALL_SUBSETS) for region in names})
        complete = [bootstrap_mean(_values(scores, trial, r, format_subset(SEQUENCES))) for r in names[:-1]]
        average = [bootstrap_mean(tables[-1][r]) for r in names[:-1]]
        parts = [_signed(paired_difference(tables[-1][r], tables[0][r])) if lowered else "" for r in names]
        cells = [f"{lowered:g}", str(len(tables[-1]["mean"])), " / ".join(map(_percent, complete)),
                 " / ".join(map(_percent, average)), " / ".join(filter(None, parts[:-1])), parts[-1]]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _values(scores: Sequence[Score], trial: Trial, region: str, subset: str) -> dict[str, float]:
    if region == "mean":
        return mean_dice_of_cases(scores, model=trial.name, subset=subset)
    return dict(values_of(scores, model=trial.name, subset=subset, region=region))


def trials_markdown(rows: Sequence[TrialRow]) -> str:
    """The table of what was tried."""
    lines = [
        "| trial | what it is | n | steps | four sequences WT / TC / ET | mean of 15 WT / TC / ET |"
        " by the most probable class | against | difference of the mean of 15 WT / TC / ET | of all three |"
        " by the most probable class |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        tables = (row.complete, row.average, row.plain)
        complete, average, plain = (" / ".join(_percent(table[str(r)]) for r in REGIONS) for table in tables)
        parts, plainly = (
            " / ".join(_signed(table[str(r)]) for r in REGIONS if table)
            for table in (row.difference, row.plain_difference)
        )
        mean = _signed(row.difference["mean"]) if row.difference else ""
        against = row.trial.against or ""
        against += ", not run" if against and not row.difference else ""
        cells = [row.trial.name, row.trial.says, str(row.cases), f"{row.trial.steps:,}", complete, average, plain,
                 against, parts, mean, plainly]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def subsets_markdown(scores: Sequence[Score]) -> str:
    """Dice of every subset and of their mean in percent, with 95 % bootstrap intervals, beside the best threshold.

    Args:
        scores: Of one network and of the baseline, as ``mindgap evaluate`` writes them.
    """
    model = next(row.model for row in scores if row.model != BASELINE)
    rows = [*scores, *average_subsets(scores)]
    lines = [
        f"| sequences | n | {' | '.join(map(str, REGIONS))} | best threshold {' / '.join(map(str, REGIONS))} |",
        f"|---|---|{'---|' * len(REGIONS)}---|",
    ]
    for subset in (*map(format_subset, SUBSETS), ALL_SUBSETS):
        values = [values_of(rows, model=model, subset=subset, region=str(region)) for region in REGIONS]
        if values[0]:
            means = [bootstrap_mean(column) for column in values]
            base = [bootstrap_mean(values_of(rows, model=BASELINE, subset=subset, region=str(r))) for r in REGIONS]
            beside = " / ".join(_percent(b) for b in base) if base[0].n else "not run"
            lines.append(f"| {' | '.join([subset, str(means[0].n), *map(_bracketed, means), beside])} |")
    return "\n".join(lines) + "\n"


TARGETS = (
    ("all four sequences", format_subset(SEQUENCES), {"WT": 82.0, "TC": 65.0, "ET": 62.0}),
    ("mean of the fifteen subsets", ALL_SUBSETS, {"WT": 70.0, "TC": 58.0, "ET": 42.0}),
    ("FLAIR alone", "FLAIR", {"WT": 75.0}),
    ("T1ce alone", "T1ce", {"ET": 55.0}),
)
"""Mean Dice in percent, on the test cases in their own grid, that the network in the box was made to reach."""


def targets_markdown(scores: Sequence[Score]) -> str:
    """Each target with what was reached; single sequences against their best threshold in the last row.

    Args:
        scores: Of one network and of the baseline on the test cases.
    """
    model = next(row.model for row in scores if row.model != BASELINE)
    rows = [*scores, *average_subsets(scores)]

    def mean_of(name: str, subset: str, region: str) -> float:
        return 100 * bootstrap_mean(values_of(rows, model=name, subset=subset, region=region)).mean

    lines = ["| | asked for | found | |", "|---|---|---|---|"]
    for title, subset, asked in TARGETS:
        found = {region: mean_of(model, subset, region) for region in asked}
        missed = [region for region in asked if not found[region] >= asked[region]]
        names = " / ".join(asked)
        verdict = f"**missed: {', '.join(missed)}**" if missed else "reached"
        numbers = (" / ".join(f"{values[region]:.{digits}f}" for region in asked) for values, digits in
                   ((asked, 0), (found, 1)))  # fmt: skip
        lines.append(f"| {title}, {names} | {' | '.join(numbers)} | {verdict} |")
    below = [
        f"{sequence} {region}"
        for sequence in map(str, SEQUENCES)
        for region in map(str, REGIONS)
        if not mean_of(model, sequence, region) >= mean_of(BASELINE, sequence, region)
    ]
    verdict = f"**missed: {', '.join(below)}**" if below else "reached"
    lines.append(f"| every single sequence, WT / TC / ET | its best threshold | | {verdict} |")
    return "\n".join(lines) + "\n"


def _bracketed(value: Interval) -> str:
    return value.text(1, scale=100.0)


def _percent(value: Interval) -> str:
    return f"{100 * value.mean:.1f}"


def _signed(value: Interval) -> str:
    return value.text(1, signed=True, scale=100.0)
