"""How toxic a comment is, as the share of readers who said so."""

from __future__ import annotations

from mtnlp.tasks.spec import TaskSpec

REVISION = "f2970eb3a55777454c94069077cc8d9b5866312d"
ASPECTS = {"toxicity": "toxic", "insult": "insulting", "threat": "threatening", "obscene": "obscene"}

TASKS = {
    spec.name: spec
    for spec in (
        TaskSpec(
            name=f"toxicity/civil-comments-{column}",
            kind="regress",
            source=f"hub:google/civil_comments@{REVISION}",
            fields={"score": column},
            score_range=(0.0, 1.0),
            metrics=("spearman", "pearson", "mse"),
            instruction=f"How {word} is this comment, from 0 (not at all) to 1 (every reader finds it so)?",
            licence="CC0",
            citation="Borkan et al. 2019, arXiv:1903.04561",
        )
        for column, word in ASPECTS.items()
    )
}
