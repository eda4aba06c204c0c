"""Texts that a model was not calibrated on, each as an exam of its own: what benchmarks measure plans on."""

from collections.abc import Sequence
from pathlib import Path

from planner.compile.exam import exam, read
from planner.compile.prepare import Prepared
from planner.errors import InputError
from planner.goal import Workload
from planner.request import Verification
from planner.verify import Exam
from profiles.documents import CALIBRATION_TEXT


def exams(
    prepared: Prepared, texts: Sequence[Path], documents: int, workload: Workload, recall: int = 0
) -> dict[str, Exam]:
    """So many documents of each text by its name, of the shipped one where none is given; `recall` as in a request.

    Raises InputError where the model has no weights, texts have one name, or a text was calibrated on.
    """
    if prepared.profile is None:
        raise InputError(f"{prepared.request.name}: has no weights to run")
    names = [text.stem for text in texts]
    if len(set(names)) < len(names):
        raise InputError(f"--texts: found {', '.join(names)}; give each a name of its own")
    learnt, _ = read(prepared.request.calibration.text, CALIBRATION_TEXT)
    told = dict(zip(names, texts, strict=True)) or {"shipped": None}
    return {
        name: exam(
            prepared.weights.tokenizer,
            workload,
            Verification(text, documents, recall),
            prepared.profile.documents,
            learnt,
        )
        for name, text in told.items()
    }
