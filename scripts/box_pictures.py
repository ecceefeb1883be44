"""Draw what a network finds in synthetic patients with fewer and fewer sequences, and its errors.

    python scripts/box_pictures.py PHANTOMS box docs/images/box.png --cases 2

PHANTOMS is a cohort of `mindgap phantom`; pictures of real patients are never published.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mindgap.data.cohort import discover_labelled
from mindgap.evaluation.metrics import dice
from mindgap.inference.predictor import Predictor
from mindgap.inference.shipped import model_folder
from mindgap.regions import REGIONS, region_mask
from mindgap.report.figures import save_png
from mindgap.report.gallery import draw_masks
from mindgap.report.scene import Picture
from mindgap.sequences import format_subset, parse_subset

SHOWN = ("all", "T1ce", "FLAIR", "T2", "T1")


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", type=int, default=2, help="how many, from the first on")
    words = parser.parse_args()
    cohort, convention = discover_labelled(words.cohort, None)
    predictor = Predictor.load(model_folder(words.model), coverage="auto", engine="auto")
    rows: dict[str, dict[str, Picture | None]] = {}
    for files in cohort.cases[: words.cases]:
        case = files.load(convention=convention)
        assert case.target is not None
        images = {str(sequence): volume.array for sequence, volume in case.images.items()}
        row: dict[str, Picture | None] = {}
        for subset in map(parse_subset, SHOWN):
            found = predictor.segment(case, subset)
            scores = [dice(region_mask(found.target, r), region_mask(case.target, r)) for r in REGIONS]
            said = "  ".join(f"{region} {score:.2f}" for region, score in zip(REGIONS, scores, strict=True))
            seen = tuple(map(str, subset))
            name = "all four" if len(subset) == len(images) else f"{format_subset(subset)} alone"
            row[name] = Picture(case.case_id, said, predictor.folder.name, seen, images, case.target, found.target,
                                case.reference.affine)  # fmt: skip
        rows[case.case_id] = row
    caption = "Synthetic patients on FLAIR; colours: the mask, lines: the reference; below: Dice and errors."
    save_png(draw_masks(rows, background="FLAIR", caption=caption), words.out)


if __name__ == "__main__":
    main()
