"""Multiple choice: science, common sense, stories, world knowledge.

Answer keys that are letters (or, in part of ARC, numbers from 1) are turned into the text of the right
choice.
"""

from __future__ import annotations

from typing import Any

from mtnlp.tasks.spec import TaskSpec

HIDDEN = "The answers of the test split are hidden."
TRAIN = {"train": "train", "validation": "validation"}
_KEYED = {
    "choices": "choices.text",
    "answer": "{% for key in choices.label %}{% if key == answerKey %}{{ choices.text[loop.index0] }}"
    "{% endif %}{% endfor %}",
}


def _task(name: str, source: str, fields: dict[str, Any], citation: str, **more: Any) -> TaskSpec:
    more = {"instruction": "Choose the right answer.", "licence": "not stated", **more}
    return TaskSpec(
        name=f"choice/{name}", kind="choose", source=f"hub:{source}", fields=fields, citation=citation, **more
    )


_ARC = "allenai/ai2_arc/ARC-{}@210d026faf9955653af8916fad021475a3f00453"

TASKS = {
    spec.name: spec
    for spec in (
        *(
            _task(
                f"arc-{part.lower()}",
                _ARC.format(part),
                _KEYED,
                "Clark et al. 2018, arXiv:1803.05457",
                licence="CC BY-SA 4.0",
            )
            for part in ("Easy", "Challenge")
        ),
        _task(
            "openbookqa",
            "allenai/openbookqa/main@388097ea7776314e93a529163e0fea805b8a6454",
            {"question": "question_stem", **_KEYED},
            "Mihaylov et al. 2018, arXiv:1809.02789",
            licence="Apache-2.0",
        ),
        _task(
            "commonsense-qa",
            "tau/commonsense_qa@94630fe30dad47192a8546eb75f094926d47e155",
            _KEYED,
            "Talmor et al. 2019, arXiv:1811.00937",
            licence="MIT",
            splits=TRAIN,
            notes=HIDDEN,
        ),
        _task(
            "qasc",
            "allenai/qasc@a34ba204eb9a33b919c10cc08f4f1c8dae5ec070",
            _KEYED,
            "Khot et al. 2020, arXiv:1910.11473",
            licence="CC BY 4.0",
            splits=TRAIN,
            notes=f"{HIDDEN} The two supporting facts are not shown.",
        ),
        _task(
            "hellaswag",
            "Rowan/hellaswag@218ec52e09a7e7462a5400043bb9a69a41d06b76",
            {"question": "{{ activity_label }}: {{ ctx }}", "choices": "endings", "answer": "label"},
            "Zellers et al. 2019, arXiv:1905.07830",
            splits=TRAIN,
            notes=HIDDEN,
            licence="MIT",
            instruction="Which ending is the most plausible?",
        ),
        _task(
            "winogrande",
            "allenai/winogrande/winogrande_xl@01e74176c63542e6b0bcb004dcdea22d94fb67b5",
            {
                "question": "sentence",
                "choices": ("option1", "option2"),
                "answer": "{% if answer == '1' %}{{ option1 }}"
                "{% elif answer == '2' %}{{ option2 }}{% endif %}",
            },
            "Sakaguchi et al. 2020, arXiv:1907.10641",
            splits=TRAIN,
            notes=HIDDEN,
            licence="Apache-2.0",
            instruction="Which words fill the blank (_)?",
        ),
        _task(
            "piqa",
            "baber/piqa@142f6d7367fd9877f0fb3b5734ea6a545f54cdd1",
            {"question": "goal", "choices": ("sol1", "sol2"), "answer": "label"},
            "Bisk et al. 2020, arXiv:1911.11641",
            splits=TRAIN,
            notes=HIDDEN,
            instruction="Which of the two ways reaches the goal?",
            licence="AFL-3.0",
        ),
        _task(
            "race",
            "ehovy/race/all@2fec9fd81f1dc971569a9b729c43f2f0e6436637",
            {"context": "article", "choices": "options"},
            "Lai et al. 2017, arXiv:1704.04683",
            licence="non-commercial research",
            instruction="Answer the question about the article.",
        ),
        _task(
            "mmlu",
            "cais/mmlu/all@c30699e8356da336a370243923dbaf21066bb9fe",
            {"question": "{{ subject | replace('_', ' ') }}: {{ question }}"},
            "Hendrycks et al. 2021, arXiv:2009.03300",
            splits={"train": "auxiliary_train", "validation": "validation", "test": "test"},
            licence="MIT",
        ),
    )
}
