"""LexGLUE, in part: unfair terms of service and the holdings of cases (Chalkidis et al. 2022,
arXiv:2110.00976)."""

from __future__ import annotations

from mtnlp.tasks.spec import TaskSpec

REVISION = "c23fdff1a6bf74e0e1a71cb86f1e781d37da888c"
_CITATION = "Chalkidis et al. 2022, LexGLUE, arXiv:2110.00976"

TASKS = {
    spec.name: spec
    for spec in (
        TaskSpec(
            name="legal/unfair-tos",
            kind="multilabel",
            source=f"hub:coastalcph/lex_glue/unfair_tos@{REVISION}",
            labels=(
                "Limitation of liability",
                "Unilateral termination",
                "Unilateral change",
                "Content removal",
                "Contract by using",
                "Choice of law",
                "Jurisdiction",
                "Arbitration",
            ),
            instruction="In which ways are these terms of service unfair?",
            metrics=("micro_f1", "macro_f1"),
            licence="CC BY 4.0",
            citation=_CITATION,
            notes="Most rows have no label at all.",
        ),
        TaskSpec(
            name="legal/case-hold",
            kind="choose",
            source=f"hub:coastalcph/lex_glue/case_hold@{REVISION}",
            fields={
                "question": "{{ 'Which holding belongs in the place of <HOLDING>?' }}",
                "choices": "endings",
                "answer": "label",
            },
            instruction="Choose the holding that the passage cites.",
            licence="CC BY 4.0",
            citation=_CITATION,
        ),
    )
}
