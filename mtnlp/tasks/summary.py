"""Shorten a text: news articles and dialogues."""

from __future__ import annotations

from mtnlp.tasks.spec import TaskSpec

_METRICS = ("rouge_l", "rouge_1", "rouge_2")

TASKS = {
    spec.name: spec
    for spec in (
        TaskSpec(
            name="summary/xsum",
            kind="generate",
            source="hub:EdinburghNLP/xsum@7d4d486c2f8ef850b1a11aead99b894ff3dd7da9",
            fields={"text": "document", "target": "summary"},
            instruction="Summarise the article in one sentence.",
            metrics=_METRICS,
            licence="not stated; BBC articles",
            citation="Narayan et al. 2018, arXiv:1808.08745",
        ),
        TaskSpec(
            name="summary/cnn-dailymail",
            kind="generate",
            source="hub:abisee/cnn_dailymail/3.0.0@96df5e686bee6baa90b8bee7c28b81fa3fa6223d",
            fields={"text": "article", "target": "highlights"},
            instruction="Give the highlights of the article.",
            metrics=_METRICS,
            licence="Apache-2.0 (the code that made it)",
            citation="See et al. 2017, arXiv:1704.04368",
        ),
        TaskSpec(
            name="summary/samsum",
            kind="generate",
            source="hub:knkarthick/samsum@main",
            fields={"text": "dialogue", "target": "summary"},
            instruction="Summarise the dialogue.",
            metrics=_METRICS,
            licence="CC BY-NC-ND 4.0",
            citation="Gliwa et al. 2019, arXiv:1911.12237",
            notes="A copy without loading script; its branch main is not a fixed revision.",
        ),
    )
}
