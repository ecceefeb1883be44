"""The command line: one file per verb, imported only when it is called."""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

VERBS = {
    "demo": "from nothing to a report on phantoms, in minutes: see that everything works",
    "phantom": "write a cohort of synthetic patients as BraTS files",
    "convert": "turn many DICOM examinations into a cohort of NIfTI files, by a table you can correct",
    "prepare": "turn a cohort of MRI files into a store to train from",
    "train": "train a teacher, a baseline or a student",
    "segment": "segment a patient or a cohort with the sequences at hand",
    "evaluate": "score a trained network on a cohort",
    "export": "make a trained network faster on CPUs, where that is measured to cost nothing",
    "calibrate": "measure a network on cases it did not learn from, so that masks come with expected Dice",
    "models": "the networks that come with mindgap, and what to expect of them",
    "bundle": "put several networks into one model folder that answers with the one for the sequences at hand",
    "advise": "what acquiring an absent sequence would bring a patient",
    "report": "make one HTML page about trained and scored runs",
    "study": "train what a table of the paper needs, and make the table beside the paper's numbers",
    "cite": "print the BibTeX of what a run used",
    "doctor": "what is installed, which processor and precision will be used, what is missing",
}

_USAGE = """mindgap - brain-tumour segmentation when MRI sequences are missing

usage: mindgap VERB [options]          mindgap VERB --help   explains a verb

{verbs}

first steps
  mindgap segment PATIENT -o seg.nii.gz                    a mask from whatever sequences there are
  mindgap demo                                             train and compare on synthetic patients, in minutes
  mindgap prepare BRATS -o store --spacing-mm 2            a cohort of your own
  mindgap train teacher --data store --out runs/teacher    the aligned teacher
  mindgap train pmkl --data store --out runs/t1ce --subset T1ce --teacher runs/teacher
  mindgap segment PATIENT --model runs/t1ce -o seg.nii.gz  a mask from T1ce alone

Research use only, not a medical device. --debug shows the traceback of an error.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns:
        0 when all went well, 1 when part of a cohort failed, 2 for any error, 129, 130 and 143 when
        interrupted, 141 when nobody reads what is only printed.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show is no reason to stop
            stream.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        verbs = "\n".join(f"  {name:<9} {text}" for name, text in VERBS.items())
        print(_USAGE.format(verbs=verbs), end="")
        return 0
    if words[0] == "--version":
        import importlib.metadata

        print(f"mindgap {importlib.metadata.version('mindgap')}")
        return 0
    return _run(words[0], words[1:], debug=debug)


def _run(verb: str, words: list[str], *, debug: bool) -> int:
    from mindgap.errors import Interrupted, MindgapError
    from mindgap.processor import calm_threads

    if verb not in VERBS:
        from difflib import get_close_matches

        near = get_close_matches(verb, VERBS, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        print(f"mindgap: there is no verb {verb!r}.{hint} Verbs: {', '.join(VERBS)}.", file=sys.stderr)
        return 2
    calm_threads(os.environ)
    try:
        with _ends_in_order():
            code: int = importlib.import_module(f"mindgap.cli.{verb}").run(words)
    except MindgapError as error:
        if debug:
            raise
        _complain(f"mindgap {verb}: {error}")
        return 143 if isinstance(error, Interrupted) else 2
    except KeyboardInterrupt as interrupt:
        if debug:
            raise
        _complain(f"mindgap {verb}: interrupted.")
        return 128 + (interrupt.signal if isinstance(interrupt, _Terminated) else signal.SIGINT)
    except BrokenPipeError:  # nobody reads what this verb only prints
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except OSError as error:
        if debug:
            raise
        place = f"{error.filename}: " if error.filename else ""
        reason = f"{place}{error.strerror or error}. Check that it exists and may be read or written."
        _complain(f"mindgap {verb}: {reason}")
        return 2
    except Exception as error:
        if debug:
            raise
        kind, text = type(error).__name__, " ".join(str(error).split())
        _complain(f"mindgap {verb}: unexpected {kind}{': ' if text else ''}{text}; --debug shows where")
        return 2
    return code


def _complain(line: str) -> None:
    with suppress(OSError):  # a closed pipe, a terminal that has hung up
        print(line, file=sys.stderr)


class _Terminated(KeyboardInterrupt):
    """SIGTERM came, or SIGHUP: a lost connection."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = number


@contextmanager
def _ends_in_order() -> Iterator[None]:
    """SIGTERM and SIGHUP as exceptions, so that unpacked images of patients and children are gone at the end.

    Trainings and studies have a handler of their own while they run, which saves; what `nohup` ignores stays ignored.
    """

    def end(number: int, frame: object) -> None:
        raise _Terminated(number)

    kinds = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ours = [kind for kind in kinds if signal.getsignal(kind) == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        ours = []
    for kind in ours:
        signal.signal(kind, end)
    try:
        yield
    finally:
        for kind in ours:
            signal.signal(kind, signal.SIG_DFL)
