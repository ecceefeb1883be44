"""Table V: unimodal networks looked at with every sequence, which chooses k."""

from __future__ import annotations

from dataclasses import replace

from mindgap.errors import MindgapError
from mindgap.evaluation.presets import find_preset
from mindgap.evaluation.rules import Rules
from mindgap.evaluation.scores import Score, write_scores
from mindgap.evaluation.summary import BASELINE
from mindgap.progress import Progress
from mindgap.sequences import SEQUENCES
from mindgap.study import grid
from mindgap.study.cohort import test_cases
from mindgap.study.grid import SINGLES, Choice, Run
from mindgap.study.keep import CROSS
from mindgap.study.results import AVERAGE, Results, by_seed
from mindgap.study.scale import Place
from mindgap.study.tables import THRESHOLD, Table, between_seeds, cell, compared_text, counted_cell, p_text, paper


def score_across(place: Place, run: Run, *, progress: Progress) -> None:
    """Show a unimodal network every single sequence of the test cases, as if it were its own.

    Raises:
        MindgapError: The network takes more than one sequence.
    """
    from mindgap.inference.predictor import Predictor  # torch: not for who only wants the tables
    from mindgap.inference.scoring import score_cohort
    from mindgap.networks.weights import load_network

    model = load_network(place.run(run.name))
    if len(model.card.sequences) != 1:
        raise MindgapError(f"{run.name} takes more than one sequence: Table V asks about unimodal networks.")
    cases, convention = test_cases(place, run)
    rules = Rules(find_preset("hd95"), "strict", "native", False)
    scores: list[Score] = []
    for shown in SEQUENCES:
        predictor = Predictor(replace(model, card=replace(model.card, sequences=(shown,))), device=place.device)
        scores += score_cohort(predictor, cases, convention, model=run.name, rules=rules, progress=progress).scores
    write_scores(place.run(run.name) / CROSS, scores)


def table5(results: Results, choice: Choice) -> Table:
    """The matrix: rows are what a network was trained on, columns what it is shown; the largest row mean chooses k."""
    printed = paper()["table5_rows_train_cols_T1_T2_T1ce_Flair"]
    table = Table(
        "table5",
        "Table V: unimodal networks shown every sequence (mean Dice of WT, TC, ET in %); k is the row of the best mean",
        ["trained on", "source", *SINGLES, "row mean", "between seeds"],
    )
    across = Results(*results.folders, scores=CROSS)
    means: dict[str, float] = {}
    for trained in SINGLES:
        numbers = printed["Flair" if trained == "FLAIR" else trained]
        table.rows.append([trained, "paper", *("" if v is None else f"{v:.2f}" for v in numbers), ""])
        seeds = by_seed(grid.unimodal(trained, 0), choice.seeds)
        row = [counted_cell(across.measure(seeds, AVERAGE, subset=shown), choice.seeds) for shown in SINGLES]
        whole = across.measure_over([(seeds, shown) for shown in SINGLES], AVERAGE)
        if whole is not None:
            means[trained] = whole.interval.mean
        table.rows.append([trained, "ours", *row, cell(whole), between_seeds(whole, choice.seeds)])
    simple = [results.measure(by_seed(grid.unimodal(s, 0), choice.seeds), AVERAGE, model=BASELINE) for s in SINGLES]
    table.rows.append(["", THRESHOLD, *(cell(measured) for measured in simple), "", ""])
    if len(means) == len(SINGLES):
        first, second, *_ = sorted(means, key=lambda name: -means[name])
        table.notes.append(f"Our largest row mean is that of {first}; the paper's is T1ce.")
        rows = [[(by_seed(grid.unimodal(n, 0), choice.seeds), s) for s in SINGLES] for n in (first, second)]
        compared = across.compare_over(rows[0], rows[1], AVERAGE)
        if compared is not None:
            table.notes.append(
                f"Row mean of {first} minus that of {second}, the next: {compared_text(compared)}, p "
                f"{p_text(compared.p)} (Wilcoxon across cases, one test)."
            )
    table.notes.append(
        "Ours: mean over test cases with the 95 % bootstrap interval over cases, seeds averaged per case first; row "
        "mean: over the four in each case, then over cases; between seeds: standard deviation of the row mean."
    )
    table.notes.append("k is read from the test cases, as in the paper; one seed says little about close rows.")
    table.notes.append("Rows of the paper are the sequence trained on, as its averages show; lost cells are empty.")
    return table
