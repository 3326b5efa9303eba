"""How alike two sentences are: paraphrase or not, or a score."""

from __future__ import annotations

from mtnlp.tasks.spec import TaskSpec

_FIELDS = {"text": "sentence1", "text_pair": "sentence2"}

TASKS = {
    spec.name: spec
    for spec in (
        TaskSpec(
            name="similarity/paws",
            kind="pair",
            source="hub:google-research-datasets/paws/labeled_final@161ece9501cf0a11f3e48bd356eaa82de46d6a09",
            fields=_FIELDS,
            labels=("not paraphrase", "paraphrase"),
            metrics=("accuracy", "f1"),
            instruction="Do the two sentences have the same meaning?",
            licence="free use with acknowledgement of Google",
            citation="Zhang et al. 2019, PAWS, arXiv:1904.01130",
        ),
        TaskSpec(
            name="similarity/stsb",
            kind="regress",
            source="hub:sentence-transformers/stsb@ab7a5ac0e35aa22088bdcf23e7fd99b220e53308",
            fields=_FIELDS,
            score_range=(0.0, 1.0),
            metrics=("spearman", "pearson", "mse"),
            instruction="How similar in meaning are the two sentences, from 0 (unrelated) to 1 (the same)?",
            licence="not stated",
            citation="Cer et al. 2017, SemEval-2017 task 1, arXiv:1708.00055",
            notes="Unlike glue/stsb the test scores are given; scores are divided by 5.",
        ),
    )
}
