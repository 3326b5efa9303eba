"""Does one text follow from another: natural language inference beyond GLUE."""

from __future__ import annotations

from mtnlp.tasks.spec import TaskSpec

_FIELDS = {"text": "premise", "text_pair": "hypothesis"}
_LABELS = ("entailment", "neutral", "contradiction")
_ASK = "Does text 1 entail text 2, contradict it, or neither?"

TASKS = {
    spec.name: spec
    for spec in (
        TaskSpec(
            name="nli/multi-nli",
            kind="pair",
            source="hub:nyu-mll/multi_nli@da70db2af9d09693783c3320c4249840212ee221",
            splits={
                "train": "train",
                "validation": "validation_matched",
                "validation_mismatched": "validation_mismatched",
            },
            fields=_FIELDS,
            labels=_LABELS,
            instruction=_ASK,
            licence="OANC and other permissive terms",
            citation="Williams et al. 2018, arXiv:1704.05426",
            notes="The labels of the test split are not published.",
        ),
        *(
            TaskSpec(
                name=f"nli/anli-r{n}",
                kind="pair",
                source="hub:facebook/anli@8e4813d81f46d313dac7892e1c28076917cfcdf9",
                splits={"train": f"train_r{n}", "validation": f"dev_r{n}", "test": f"test_r{n}"},
                fields=_FIELDS,
                labels=_LABELS,
                instruction=_ASK,
                licence="CC BY-NC 4.0",
                citation="Nie et al. 2020, Adversarial NLI, arXiv:1910.14599",
            )
            for n in (1, 2, 3)
        ),
    )
}
