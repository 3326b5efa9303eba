"""TweetEval: short noisy texts (Barbieri et al. 2020, arXiv:2010.12421)."""

from __future__ import annotations

from mtnlp.tasks.spec import TaskSpec

REVISION = "b3a375baf0f409c77e6bc7aa35102b7b3534f8be"
SUBJECTS = {
    "abortion": "legal abortion",
    "atheism": "atheism",
    "climate": "climate change as a real concern",
    "feminist": "the feminist movement",
    "hillary": "Hillary Clinton",
}


def _task(name: str, instruction: str, labels: tuple[str, ...], config: str = "") -> TaskSpec:
    return TaskSpec(
        name=f"tweets/{name}",
        kind="classify",
        source=f"hub:cardiffnlp/tweet_eval/{config or name}@{REVISION}",
        labels=labels,
        words=tuple(label.replace("_", " ") for label in labels),
        instruction=instruction,
        metrics=("macro_f1", "accuracy"),
        citation="Barbieri et al. 2020, TweetEval, arXiv:2010.12421",
        licence="the terms of each original set; platform terms apply",
    )


TASKS = {
    spec.name: spec
    for spec in (
        _task("emotion", "Which emotion does this tweet express?", ("anger", "joy", "optimism", "sadness")),
        _task("hate", "Does this tweet contain hate speech?", ("non-hate", "hate")),
        _task("irony", "Is this tweet ironic?", ("non_irony", "irony")),
        _task("offensive", "Is this tweet offensive?", ("non-offensive", "offensive")),
        _task("sentiment", "What is the sentiment of this tweet?", ("negative", "neutral", "positive")),
        *(
            _task(
                f"stance-{name}",
                f"What stance does this tweet take on {subject}?",
                ("none", "against", "favor"),
                f"stance_{name}",
            )
            for name, subject in SUBJECTS.items()
        ),
    )
}
