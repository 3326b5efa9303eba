"""Questions about a passage: answers that stand in it, and yes or no."""

from __future__ import annotations

from mtnlp.tasks.spec import TaskSpec

_SPLITS = {"train": "train", "validation": "validation"}
_ASK = "Answer the question with words of the passage."

TASKS = {
    spec.name: spec
    for spec in (
        TaskSpec(
            name="reading/squad",
            kind="span",
            source="hub:rajpurkar/squad@7b6d24c440a36b6815f21b70d25016731768db1f",
            splits=_SPLITS,
            instruction=_ASK,
            licence="CC BY-SA 4.0",
            citation="Rajpurkar et al. 2016, SQuAD, arXiv:1606.05250",
            notes="The test split is not published.",
        ),
        TaskSpec(
            name="reading/squad-v2",
            kind="span",
            source="hub:rajpurkar/squad_v2@3ffb306f725f7d2ce8394bc1873b24868140c412",
            splits=_SPLITS,
            instruction=f"{_ASK[:-1]}, or say that it is unanswerable.",
            licence="CC BY-SA 4.0",
            citation="Rajpurkar et al. 2018, arXiv:1806.03822",
            notes="The test split is not published.",
        ),
        TaskSpec(
            name="reading/adversarial-qa",
            kind="span",
            source="hub:UCLNLP/adversarial_qa/adversarialQA@c2d5f738db1ad21a4126a144dfbb00cb51e0a4a9",
            splits=_SPLITS,
            instruction=_ASK,
            licence="CC BY-SA",
            citation="Bartolo et al. 2020, arXiv:2002.00293",
            notes="The answers of the test split are hidden.",
        ),
        TaskSpec(
            name="reading/boolq",
            kind="pair",
            source="hub:google/boolq@35b264d03638db9f4ce671b711558bf7ff0f80d5",
            splits=_SPLITS,
            fields={"text": "question", "text_pair": "passage", "label": "answer"},
            labels=("False", "True"),
            words=("no", "yes"),
            metrics=("accuracy", "f1"),
            licence="CC BY-SA 3.0",
            instruction="Answer the question (text 1) with the passage (text 2).",
            citation="Clark et al. 2019, BoolQ, arXiv:1905.10044",
            notes="The test split is not published.",
        ),
    )
}
