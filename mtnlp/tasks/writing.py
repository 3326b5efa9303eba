"""Write more than a label: solutions of word problems, sentences from given words."""

from __future__ import annotations

from mtnlp.tasks.spec import TaskSpec

_CUT = {"train": "train[:90%]", "validation": "train[90%:]", "test": "test"}
_CUT_NOTE = "The source has no validation split; the last 10 % of train are used."

TASKS = {
    spec.name: spec
    for spec in (
        TaskSpec(
            name="writing/gsm8k",
            kind="generate",
            source="hub:openai/gsm8k/main@740312add88f781978c0658806c59bc2815b9866",
            splits=_CUT,
            fields={"text": "question", "target": "answer"},
            instruction="Solve the problem step by step.",
            metrics=("rouge_l",),
            licence="MIT",
            citation="Cobbe et al. 2021, arXiv:2110.14168",
            notes=f"{_CUT_NOTE} The official score, of the number after ####, cannot be expressed.",
        ),
        TaskSpec(
            name="writing/gsm8k-answer",
            kind="generate",
            source="hub:openai/gsm8k/main@740312add88f781978c0658806c59bc2815b9866",
            splits=_CUT,
            fields={"text": "question", "target": "{{ (answer | split('#### ')) | last | trim }}"},
            instruction="Give the number that answers the problem.",
            metrics=("exact_match",),
            licence="MIT",
            citation="Cobbe et al. 2021, arXiv:2110.14168",
            notes=_CUT_NOTE,
        ),
        TaskSpec(
            name="writing/common-gen",
            kind="generate",
            source="hub:allenai/common_gen@main",
            splits={"train": "train", "validation": "validation"},
            fields={"text": "{{ concepts | join(', ') }}"},
            instruction="Write an everyday sentence that uses all the given words.",
            metrics=("bleu", "rouge_l"),
            licence="MIT",
            citation="Lin et al. 2020, CommonGen, arXiv:1911.03705",
            notes="The references of the test split are hidden; each row has one reference. "
            "Branch main is not a fixed revision.",
        ),
    )
}
