"""One self-contained HTML page about runs: tables, pictures, settings; it loads nothing from anywhere."""

from __future__ import annotations

import base64
import math
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2

from mindgap.evaluation.metrics import dice
from mindgap.evaluation.presets import DEFINITIONS, ETPP, ETPP_TEXT
from mindgap.evaluation.scores import TABLE_REGIONS, Score, values_of
from mindgap.evaluation.statistics import Interval, attainable, holm
from mindgap.evaluation.summary import SummaryRow, average_subsets, summarise
from mindgap.regions import REGIONS, region_mask
from mindgap.report.figures import (
    ANCHOR_PREFIX,
    Picture,
    draw_learning,
    draw_overlay,
    draw_scores,
    to_png,
)
from mindgap.report.overlay import unseen_for_reader

_FEW_CASES = 20
_LISTED = 8
_CHART_DPI = 130
_SENTENCE_SUBSETS = 3


@dataclass(frozen=True)
class RunSection:
    """What a run folder says about itself.

    Attributes:
        name: Name of the folder.
        settings: experiment.json.
        facts: manifest.json.
        terms: Lines of terms.jsonl.
        validations: Lines of validations.jsonl.
        reliability: Picture of `mindgap calibrate --test`, PNG; empty where there was none.
    """

    name: str
    settings: Mapping[str, Any]
    facts: Mapping[str, Any]
    terms: Sequence[Mapping[str, Any]]
    validations: Sequence[Mapping[str, Any]]
    reliability: bytes = b""


@dataclass(frozen=True)
class Comparison:
    """A paired difference between two models on the same cases.

    Attributes:
        text: What was subtracted from what, such as "pmkl minus unimodal on T1".
        region: WT, TC, ET or "mean".
        difference: Mean difference in Dice with its 95 % interval over cases.
        p: Of a Wilcoxon signed-rank test over the same cases, not adjusted; NaN where there was none.
    """

    text: str
    region: str
    difference: Interval
    p: float = math.nan


def build_page(
    *,
    title: str,
    runs: Sequence[RunSection],
    scores: Sequence[Score],
    comparisons: Sequence[Comparison],
    pictures: Sequence[Picture],
    notes: Sequence[str],
) -> str:
    """Build the page; any of the sequences may be empty.

    Args:
        title: Heading of the page.
        runs: One section of curves and settings each.
        scores: Rows of scores.csv.
        comparisons: Paired differences to list.
        pictures: Overlays, in the order they are shown; those of one model and subset share a heading.
        notes: Warnings and remarks, as plain text.

    Returns:
        HTML in which pictures are data URIs; whatever comes from files is escaped.
    """
    rows = summarise(scores)
    adjusted = holm([comparison.p for comparison in comparisons])
    template = resources.files("mindgap.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        score=format_score, interval=Interval.text, signed=format_signed, mm=format_mm, p=format_p
    )
    return environment.from_string(template).render(
        title=title,
        result=result_sentence(rows),
        **_describe_scores(scores, rows),
        **_describe_intervals(rows),
        verdicts=[(c, verdict_of(c.difference), p) for c, p in zip(comparisons, adjusted, strict=True)],
        attainable=attainable_sentence(comparisons),
        score_chart=_data_uri(to_png(draw_scores(scores), dpi=_CHART_DPI)) if rows else None,
        galleries=_galleries(pictures, scores),
        runs=[_describe_run(run) for run in runs],
        notes=notes,
    )


def result_sentence(rows: Sequence[SummaryRow]) -> str:
    """The page in one sentence: the best network of each subset (of the best three), and the threshold there."""
    networks = [row for row in rows if not row.is_baseline and math.isfinite(row.mean.mean)]
    if not networks:
        return "No network has been scored."
    best = {row.subset: row for row in sorted(networks, key=lambda row: row.mean.mean)}  # the last one stays
    shown = sorted(best.values(), key=lambda row: -row.mean.mean)[:_SENTENCE_SUBSETS]
    thresholds = {row.subset: row.mean.mean for row in rows if row.is_baseline}
    words = []
    for row in shown:
        cases = "1 case" if row.mean.n == 1 else f"{row.mean.n} cases"
        threshold = thresholds.get(row.subset, math.nan)
        beside = f", best single threshold {format_score(threshold)}" if math.isfinite(threshold) else ""
        words.append(f"{row.mean.text()} for {row.model} seeing {row.subset} ({cases}{beside})")
    among = f" (the {len(shown)} best of {len(best)} subsets)" if len(shown) < len(best) else ""
    return f"Mean Dice over WT, TC and ET{among}: {'; '.join(words)}."


def true_coverage(patients: int) -> float:
    r"""How often a 95 % percentile bootstrap of so few, normally distributed values holds their true mean.

    Its ends lie about $1.96\,\hat\sigma/\sqrt n$ away, where $\hat\sigma$ divides by n and the normal quantile stands
    in for Student's: $P(|t_{n-1}| < 1.96\sqrt{(n-1)/n})$. Of two values they are the values themselves: one half.

    Args:
        patients: At least 2.
    """
    from scipy import stats

    reach = 1.96 * math.sqrt((patients - 1) / patients)
    return 0.5 if patients == 2 else float(2 * stats.t.cdf(reach, patients - 1) - 1)


def verdict_of(difference: Interval) -> tuple[str, str]:
    """A word for a style ("up", "down", "open") and the sentence that says the same."""
    if difference.n == 0:
        return "open", "no case in common"
    if not (math.isfinite(difference.low) and math.isfinite(difference.high)):
        return "open", "no interval: too few cases"
    if difference.low > 0:
        return "up", "higher; interval lies above 0"
    if difference.high < 0:
        return "down", "lower; interval lies below 0"
    return "open", "undecided; interval contains 0"


def attainable_sentence(comparisons: Sequence[Comparison]) -> str:
    """How small the adjusted p values of a table can get at all; empty without tests."""
    tested = [comparison for comparison in comparisons if math.isfinite(comparison.p)]
    if not tested:
        return ""
    reach = attainable([comparison.difference for comparison in tested])
    said = f"with {reach.counted} and {len(tested)} tests the smallest adjusted p within reach is {format_p(reach.p)}"
    return f"{said}{reach.verdict}."


def format_p(value: float) -> str:
    """A p value to two digits, a dash where there is none."""
    return "–" if not math.isfinite(value) else f"{value:.2g}" if value >= 1e-4 else "< 0.0001"


def format_score(value: float) -> str:
    """Dice to three decimals, a dash where there is none."""
    return f"{value:.3f}" if math.isfinite(value) else "–"


def format_signed(value: float) -> str:
    """A difference to three decimals with its sign."""
    return f"{value:+.3f}".replace("-", "−") if math.isfinite(value) else "–"


def format_mm(value: float) -> str:
    """A distance to one decimal, a dash where it is undefined."""
    return f"{value:.1f}" if math.isfinite(value) else "–"


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _galleries(pictures: Sequence[Picture], scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Pictures by model and sequences seen, in order of first appearance."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for picture in pictures:
        seen = ", ".join(picture.seen)
        dices = _dice_of(picture, scores)
        unseen = unseen_for_reader(picture)
        groups.setdefault((picture.model, seen), []).append(
            {
                "case": picture.case_id,
                "caption": picture.caption,
                "dice": [(region, dices[region]) for region in dices],
                "unseen": unseen,
                "has_reference": picture.reference is not None,
                "uri": _data_uri(to_png(draw_overlay(picture))),
                "alt": _alternative_text(picture, dices),
            }
        )
    return [{"model": model, "seen": seen, "pictures": group} for (model, seen), group in groups.items()]


def _dice_of(picture: Picture, scores: Sequence[Score]) -> dict[str, float]:
    """What scores.csv says about this case, else the Dice of the arrays shown."""
    subset = "+".join(picture.seen)
    found = {}
    for region in REGIONS:
        known = values_of(scores, model=picture.model, subset=subset, region=str(region))
        if picture.case_id in known:
            found[str(region)] = known[picture.case_id]
        elif picture.reference is not None:
            found[str(region)] = dice(region_mask(picture.predicted, region), region_mask(picture.reference, region))
    return found


def _alternative_text(picture: Picture, dices: Mapping[str, float]) -> str:
    values = ", ".join(f"{region} {format_score(value)}" for region, value in dices.items())
    seen = ", ".join(picture.seen)
    said = f"Case {picture.case_id}, predicted by {picture.model} from {seen}: axial, coronal and sagittal planes"
    if picture.reference is None:
        return f"{said} with the prediction as outline; there is no reference."
    return f"{said} with the prediction as fill, the reference as outline, and the errors; Dice {values}."


def _describe_scores(scores: Sequence[Score], rows: Sequence[SummaryRow]) -> dict[str, Any]:
    """What the tables show: ETpp and the optional columns only where a run has them."""
    regions = [region for region in TABLE_REGIONS if region != ETPP or any(row.dice[region].n for row in rows)]
    columns = ["dice", *(column for column in DEFINITIONS if any(column in row.means for row in rows))]
    averaged = average_subsets(scores)
    counts = Counter(
        (score.model, score.subset, score.region, column)
        for score in (*scores, *averaged)
        for column in columns
        if math.isfinite(getattr(score, column))
    )
    return {
        "rows": [*rows, *summarise(averaged)],
        "counts": counts,
        "regions": regions,
        "others": [DEFINITIONS[column] for column in columns if column != "dice"],
        "definitions": [DEFINITIONS[column].text for column in columns] + [ETPP_TEXT] * (ETPP in regions),
    }


def _describe_intervals(rows: Sequence[SummaryRow]) -> dict[str, Any]:
    """Whether there are any, and how much too narrow those over the fewest patients are."""
    intervals = [row.mean for row in rows if math.isfinite(row.mean.low)]
    few = min(intervals, key=lambda interval: interval.patients, default=None)
    narrow = None
    if few is not None and few.patients < _FEW_CASES:
        narrow = {"counted": few.counted, "percent": round(100 * true_coverage(few.patients))}
    return {"has_intervals": bool(intervals), "narrow": narrow}


def _describe_run(run: RunSection) -> dict[str, Any]:
    last = run.validations[-1] if run.validations else None
    steps = run.terms[-1].get("step") if run.terms else None
    said = [f"{region} {format_score(float(last[region]))}" for region in map(str, REGIONS) if last and region in last]
    chart = to_png(draw_learning(run.terms, run.validations), dpi=_CHART_DPI) if run.terms or run.validations else None
    return {
        "name": run.name,
        "unfinished": run.facts.get("finished") is False,
        "steps": steps,
        "chart": None if chart is None else _data_uri(chart),
        "alt": f"Learning curves of {run.name} over {steps} steps"
        + (f"; last validation Dice {', '.join(said)}." if said else "; no validation was logged."),
        "anchors": any(key.startswith(ANCHOR_PREFIX) for line in (*run.validations, *run.terms) for key in line),
        "reliability": _data_uri(run.reliability) if run.reliability else None,
        "settings": list(_flatten(run.settings)),
        "facts": list(_flatten({key: value for key, value in run.facts.items() if key != "citations"})),
        "cite": f"mindgap cite {shlex.quote(run.name)}" if run.facts.get("citations") else "",
    }


def _flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Name with dots, short text, and the whole text where the short one leaves something out."""
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping) and item:
            yield from _flatten(item, f"{name}.")
        elif isinstance(item, (list, tuple)):
            words = [str(word) for word in item]
            if len(words) > _LISTED:
                yield name, f"{len(words)} entries", ", ".join(words)
            else:
                yield name, f"{len(words)}: {', '.join(words)}" if prefix == "cases." else " ".join(words), ""
        else:
            yield name, _plain_word(item), ""


def _plain_word(item: Any) -> str:
    if isinstance(item, bool):
        return "yes" if item else "no"
    if item is None or item == {}:
        return "–"
    return f"{item:g}" if isinstance(item, float) else str(item)
