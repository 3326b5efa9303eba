"""From hidden states to a loss and a prediction: one file per head. `heads.get("tag")` is a class."""

from mtnlp.errors import MtnlpError
from mtnlp.registry import Registry

_registry = Registry(__name__, "head")
names, get, register, summary = _registry.names, _registry.get, _registry.register, _registry.summary


def for_kind(kind: str) -> type:
    """The head class that learns tasks of `kind` on an encoder.

    Raises:
        MtnlpError: nothing but text can be the answer of this kind (generate), or no such kind.
    """
    if kind == "generate":
        raise MtnlpError(
            "A generate task has no head: its answer is text. Use a backbone that writes text "
            "(model.family encoder-decoder or decoder), or leave the task out."
        )
    return get("classify" if kind == "pair" else kind)
