"""The model card of the network in the box, from its files and from the tables of its scores."""

from __future__ import annotations

from pathlib import Path

from mindgap.evaluation.scores import read_scores
from mindgap.files import write_text
from mindgap.inference.exported import read_exported
from mindgap.inference.shipped import CARD, Shipped
from mindgap.study.trial_tables import subsets_markdown, targets_markdown

_TEXT = """# {name}: any of T1, T1ce, T2, FLAIR in, a mask of the tumour out

**Research use only. Not a medical device.** No output may guide the care of a patient.

- **Intended use**: research on glioma before treatment: segmenting WT, TC and ET of adults from whatever sequences
  there are, skull-stripped and co-registered (or `--raw`), one patient or a cohort. Not meant: after surgery, children,
  metastases, other diseases, any use on patients.
- **What it is**: {members} networks of {parameters:,} parameters each (`{architecture}`), the members of a
  cross-validation, averaged; {spacing:g} mm grid; one pass over the brain; each region is the mask of
  highest expected Dice, which is larger than the most probable class where a sequence shows a region poorly.
- **Data**: {cases} cases of BraTS 2018 (training and validation cases of the ProtoKD split), used under its terms for
  research (https://www.med.upenn.edu/cbica/brats2018; Menze et al., IEEE TMI 2015; Bakas et al., Scientific Data 2017).
  The package holds weights, scores and summary features of these cases, no images. The nine test cases of the split
  taught nothing, but were scored six times (docs/model.md); what changed in between was chosen on other cases by
  somebody who knew these scores, so that they may flatter it a little.
- **Reliability**: expected Dice, calibration and `mindgap advise` come from predictions for the {cases} cases by the
  member that had not seen them. The average of the members is a little better than that, and less sure of itself.
- **Ways to compute**, cross-validated on the same cases: {ways}.
- **Weights**: {megabytes:.1f} MB, float16 (averages of normalisations float32), sha256 {sha256}
- **Made by** `mindgap study box` (docs/model.md: recipe, what was tried, comparisons).

## Known failures

- **T1 alone, and T1 with little else**: much of the oedema is missed, and healthy tissue taken for tumour.
- **T2 or FLAIR without T1ce**: where the tumour enhances is a guess from its place within the lesion; volumes of ET are
  not to be used.
- **T1ce alone**: oedema is drawn around the core by habit, and of some tumours nothing is found.
- **Tumours that do not enhance** (low grade), of which it has seen few: core and ET are overdrawn.
- **Other scanners, sites and protocols**: {cases} patients of a few centres are not the world. The warning about images
  unlike the known ones sees brightness and size only.
- **A brain without tumour**: every patient it learnt from has one, and where little is seen healthy tissue is drawn.
  On three phantoms whose diseased half was replaced by the mirror image of the other it found 0 to 8 mL with all four
  sequences, 0 to 39 with T2, 1 to 17 with T1ce, 11 to 33 with FLAIR and 77 to 157 with T1; all were flagged for review.
  Expected Dice and volume intervals are those of patients with a tumour.
- **Skull left by the stripping**: a rim of two voxels around the lower half of the brain took 4 to 5 Dice on average
  of all sequences and each alone, 11 to 15 with T1ce alone (14 cross-validated cases).
- **Small lesions** of less than about 1 mL vanish on the {spacing:g} mm grid.
"""
_TRIED = """
For T1ce alone were tried: statistics of the case itself in normalisation (kept), every sequence normalised by itself
(kept: +8 ET), more steps (kept, three times), fewer training crops at tumours with more single sequences (kept), the
mask of highest expected Dice (kept), Dice of regions in place of classes (kept), stronger augmentation, distillation
from what is said of all sequences, larger crops, single sequences in half of the rows, phantoms among the patients,
tumours laid into other brains (docs/model.md has the numbers). T1 beside T1ce mends most of it: what is bright before
contrast cannot be told from what enhances otherwise.
"""


def write_card(network: Shipped, kept: Path) -> Path:
    """Write card.md into a model folder.

    Args:
        network: What it is about.
        kept: Folder with ``scores-test.csv`` and ``scores-phantoms.csv``, as far as they are there.
    """
    assert network.confidence is not None
    exported = read_exported(network.folder, network.sha256)
    gates = [] if exported is None else [gate for gate in (exported.whole, exported.int8) if gate is not None]
    arguments = network.card.arguments
    text = _TEXT.format(
        name=network.name,
        members=arguments["count"],
        architecture=arguments["architecture"],
        parameters=network.parameters // arguments["count"],
        spacing=network.card.preparation["spacing_mm"],
        cases=len({row.case for row in network.confidence.observed}),
        ways="; ".join(f"{gate.reason} ({'kept' if gate.passed else 'left out'})" for gate in gates) or "not measured",
        megabytes=network.bytes / 1e6,
        sha256=network.sha256,
    )
    titles = {
        "test": "Nine real cases no member has seen (Dice in percent, native grid, 95 % intervals over cases)",
        "phantoms": "Synthetic patients, which taught nothing either",
    }
    for name, title in titles.items():
        if (kept / f"scores-{name}.csv").is_file():
            scores = read_scores(kept / f"scores-{name}.csv")
            text += f"\n## {title}\n\n{subsets_markdown(scores)}"
            if name == "test":
                text += f"\n## What it was asked for\n\n{targets_markdown(scores)}{_TRIED}"
    write_text(network.folder / CARD, text)
    return network.folder / CARD
