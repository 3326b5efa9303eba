"""Which option a model prefers, when options of different length are to be compared fairly.

sum     log p(option | prompt)
token   the same per token of the option
byte    the same per UTF-8 byte of its text (independent of the tokenizer)
pmi     log p(option | prompt) - log p(option): how much the prompt speaks for it (Holtzman et al. 2021,
        arXiv:2104.08315)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Answer = dict[str, Any]


def scores(answer: Answer, how: str, texts: Sequence[str], alone: Answer | None = None) -> list[float]:
    """One number per option, the largest for the preferred one.

    Args:
        answer: has "logprobs" and "tokens" of every option.
        how: "sum", "token", "byte" or "pmi".
        texts: the options.
        alone: the answer to an empty prompt, for "pmi".
    """
    sums = np.asarray(answer["logprobs"], np.float64)
    if how == "token":
        sums = sums / np.maximum(answer["tokens"], 1)
    elif how == "byte":
        sums = sums / np.maximum([len(text.encode("utf-8", "surrogatepass")) for text in texts], 1)
    elif how == "pmi":
        sums = sums - np.asarray(alone["logprobs"], np.float64)
    return sums.tolist()


def preferred(answer: Answer, how: str, texts: Sequence[str], alone: Answer | None = None) -> Answer:
    """The answer with "value" and "scores" by this way of comparing."""
    found = scores(answer, how, texts, alone)
    return {**answer, "value": int(np.argmax(found)), "scores": found}
