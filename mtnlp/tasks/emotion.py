"""Which emotions a text expresses: one, or several at once."""

from __future__ import annotations

from mtnlp.tasks.spec import TaskSpec

_GO = (
    "admiration", "amusement", "anger", "annoyance", "approval", "caring", "confusion", "curiosity", "desire",
    "disappointment", "disapproval", "disgust", "embarrassment", "excitement", "fear", "gratitude", "grief",
    "joy", "love", "nervousness", "optimism", "pride", "realization", "relief", "remorse", "sadness",
    "surprise", "neutral",
)  # fmt: skip

TASKS = {
    spec.name: spec
    for spec in (
        TaskSpec(
            name="emotion/go-emotions",
            kind="multilabel",
            source="hub:google-research-datasets/go_emotions/simplified@add492243ff905527e67aeb8b80c082af02207c3",
            labels=_GO,
            instruction="Which emotions does this comment express?",
            metrics=("macro_f1", "micro_f1"),
            licence="Apache-2.0",
            citation="Demszky et al. 2020, GoEmotions, arXiv:2005.00547",
        ),
        TaskSpec(
            name="emotion/emotion",
            kind="classify",
            source="hub:dair-ai/emotion/split@cab853a1dbdf4c42c2b3ef2173804746df8825fe",
            labels=("sadness", "joy", "love", "anger", "fear", "surprise"),
            instruction="Which emotion does this tweet express?",
            licence="education and research only",
            citation="Saravia et al. 2018, Contextualized Affect Representations for Emotion Recognition",
        ),
    )
}
