"""SuperGLUE: eight harder tasks (Wang et al. 2019, arXiv:1905.00537), said with columns and texts.

The labels of the test splits are hidden, so only train and validation are listed.
"""

from __future__ import annotations

from typing import Any

from mtnlp.tasks.spec import TaskSpec

REVISION = "3de24cf8022e94f4ee4b9d55a6f539891524d646"
HIDDEN = "The labels of the test split are hidden."


def _task(
    name: str, kind: str, fields: dict[str, Any], instruction: str, config: str = "", **more: Any
) -> TaskSpec:
    more = {"metrics": ("accuracy",), **more, "notes": f"{HIDDEN} {more.get('notes', '')}".strip()}
    return TaskSpec(
        name=f"superglue/{name}",
        kind=kind,
        source=f"hub:aps/super_glue/{config or name}@{REVISION}",
        fields=fields,
        splits={"train": "train", "validation": "validation"},
        instruction=instruction,
        licence="research use; see the licence of each part of SuperGLUE",
        citation="Wang et al. 2019, SuperGLUE, arXiv:1905.00537",
        **more,
    )


_YES_NO = {"labels": ("False", "True"), "words": ("no", "yes")}
_ENTAILS = {"text": "premise", "text_pair": "hypothesis"}
# the pronoun between asterisks: its place is counted in words
_MARKED = (
    "{{ (text | split)[:span2_index] | join(' ') }} *{{ span2_text }}* "
    "{{ (text | split)[span2_index + (span2_text | split | length):] | join(' ') }}"
)

TASKS = {
    spec.name: spec
    for spec in (
        _task(
            "boolq",
            "pair",
            {"text": "question", "text_pair": "passage"},
            "Answer the question (text 1) with the passage (text 2).",
            **_YES_NO,
        ),
        _task(
            "cb",
            "pair",
            _ENTAILS,
            "Does text 1 entail text 2, contradict it, or neither?",
            labels=("entailment", "contradiction", "neutral"),
            metrics=("accuracy", "macro_f1"),
        ),
        _task(
            "copa",
            "choose",
            {
                "question": "{{ premise }} What was the {{ question }} of this?",
                "choices": ("choice1", "choice2"),
                "answer": "label",
            },
            "Which event is the more likely cause or effect?",
        ),
        _task(
            "multirc",
            "pair",
            {"text": "paragraph", "text_pair": "{{ question }} {{ answer }}"},
            "Is the answer after the question (text 2) right, given the paragraph (text 1)?",
            **_YES_NO,
            metrics=("f1", "accuracy"),
            notes="f1 is the official F1a, over all answers; the official exact match of all answers to one "
            "question needs groups of rows and cannot be expressed.",
        ),
        _task(
            "record",
            "choose",
            {
                "question": "Which name fits in the place of @placeholder? {{ query }}",
                "context": "passage",
                "choices": "entities",
                "answer": "{{ answers[0] }}",
            },
            "Choose the name that completes the sentence about the passage.",
            notes="Several names can be right and the first one counts here, so accuracy is below the "
            "official exact match, which takes the best of all answers; the official token F1 cannot be "
            "expressed.",
        ),
        _task(
            "rte",
            "pair",
            _ENTAILS,
            "Does text 1 entail text 2?",
            labels=("entailment", "not_entailment"),
            words=("yes", "no"),
        ),
        _task(
            "wic",
            "pair",
            {
                "text": "{{ sentence1[:start1] }}*{{ sentence1[start1:end1] }}*{{ sentence1[end1:] }}",
                "text_pair": "{{ sentence2[:start2] }}*{{ sentence2[start2:end2] }}*{{ sentence2[end2:] }}",
            },
            "Does the word between asterisks mean the same in both texts?",
            **_YES_NO,
        ),
        _task(
            "wsc",
            "pair",
            {"text": _MARKED, "text_pair": "{{ span2_text }} means {{ span1_text }}"},
            "Is it true what text 2 says about the word between asterisks?",
            config="wsc.fixed",
            **_YES_NO,
        ),
    )
}
