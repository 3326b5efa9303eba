"""GLUE: nine tasks of sentence and sentence-pair understanding (Wang et al. 2019, arXiv:1804.07461).

The labels of the test splits are hidden, so only train and validation are listed; mnli has a second
validation split, `validation_mismatched`. The T5 templates follow Raffel et al. 2020, appendix D.
"""

from __future__ import annotations

from typing import Any

from mtnlp.tasks.spec import TaskSpec, Template

REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
SPLITS = {"train": "train", "validation": "validation"}
HIDDEN = "The labels of the test split are hidden."


def _task(name: str, kind: str, fields: dict[str, str], instruction: str, t5: str, **more: Any) -> TaskSpec:
    body = (
        "Sentence 1: {{ text }}\nSentence 2: {{ text_pair }}"
        if "text_pair" in fields
        else "Sentence: {{ text }}"
    )
    listed = "" if kind == "regress" else " Answer {{ options | join(' or ') }}."
    more = {"splits": SPLITS, "notes": HIDDEN, "citation": "Wang et al. 2019, GLUE, arXiv:1804.07461", **more}
    return TaskSpec(
        name=f"glue/{name}",
        kind=kind,
        source=f"hub:nyu-mll/glue/{name}@{REVISION}",
        fields=fields,
        instruction=instruction,
        licence="see the licence of each part of GLUE",
        templates={
            "question": Template(f"{body}\n{{{{ instruction }}}}{listed}"),
            "instruction-first": Template(f"{{{{ instruction }}}}{listed}\n{body}\nAnswer:"),
            "t5": Template(t5),
        },
        **more,
    )


_PAIR = {"text": "sentence1", "text_pair": "sentence2"}

TASKS = {
    spec.name: spec
    for spec in (
        _task(
            "cola",
            "classify",
            {"text": "sentence"},
            "Is this sentence of acceptable English?",
            "cola sentence: {{ text }}",
            labels=("unacceptable", "acceptable"),
            metrics=("matthews", "accuracy"),
        ),
        _task(
            "sst2",
            "classify",
            {"text": "sentence"},
            "Is the sentiment of this sentence from a film review good or bad?",
            "sst2 sentence: {{ text }}",
            labels=("negative", "positive"),
            metrics=("accuracy", "f1"),
        ),
        _task(
            "mrpc",
            "pair",
            _PAIR,
            "Do the two sentences say the same?",
            "mrpc sentence1: {{ text }} sentence2: {{ text_pair }}",
            labels=("not_equivalent", "equivalent"),
            words=("not equivalent", "equivalent"),
            metrics=("f1", "accuracy"),
            splits={**SPLITS, "test": "test"},
            notes="The labels of the test split are given.",
        ),
        _task(
            "qqp",
            "pair",
            {"text": "question1", "text_pair": "question2"},
            "Do the two questions ask the same?",
            "qqp question1: {{ text }} question2: {{ text_pair }}",
            labels=("not_duplicate", "duplicate"),
            words=("not duplicate", "duplicate"),
            metrics=("f1", "accuracy"),
        ),
        _task(
            "stsb",
            "regress",
            {**_PAIR, "score": "label"},
            "How similar in meaning are the two sentences, from 0 (unrelated) to 5 (the same)?",
            "stsb sentence1: {{ text }} sentence2: {{ text_pair }}",
            score_range=(0.0, 5.0),
            metrics=("pearson", "spearman"),
        ),
        _task(
            "mnli",
            "pair",
            {"text": "premise", "text_pair": "hypothesis"},
            "Does sentence 1 entail sentence 2, contradict it, or neither?",
            "mnli hypothesis: {{ text_pair }} premise: {{ text }}",
            labels=("entailment", "neutral", "contradiction"),
            metrics=("accuracy", "macro_f1"),
            splits={
                "train": "train",
                "validation": "validation_matched",
                "validation_mismatched": "validation_mismatched",
            },
        ),
        _task(
            "qnli",
            "pair",
            {"text": "question", "text_pair": "sentence"},
            "Does sentence 2 answer the question?",
            "qnli question: {{ text }} sentence: {{ text_pair }}",
            labels=("entailment", "not_entailment"),
            words=("yes", "no"),
            metrics=("accuracy",),
        ),
        _task(
            "rte",
            "pair",
            _PAIR,
            "Does sentence 1 entail sentence 2?",
            "rte sentence1: {{ text }} sentence2: {{ text_pair }}",
            labels=("entailment", "not_entailment"),
            words=("yes", "no"),
            metrics=("accuracy",),
        ),
        _task(
            "wnli",
            "pair",
            _PAIR,
            "Does sentence 2 follow when the pronoun of sentence 1 is replaced like this?",
            "wnli sentence1: {{ text }} sentence2: {{ text_pair }}",
            labels=("not_entailment", "entailment"),
            words=("no", "yes"),
            metrics=("accuracy",),
            notes="Validation sentences stand in train with the other label, so overfitting is below chance.",
        ),
    )
}
