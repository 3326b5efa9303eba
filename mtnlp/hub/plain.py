"""A task's head in the form of a class of transformers, where there is one that computes the same.

    kind                                pooling   class
    tag                                 any       AutoModelForTokenClassification
    span                                any       AutoModelForQuestionAnswering
    classify, pair, multilabel, regress first     AutoModelForSequenceClassification
    choose                              first     AutoModelForMultipleChoice

The latter two put a dense layer and a tanh before the scores. tanh(e x) / e is x to float32's last digit for
small e, so the dense layer becomes e times the identity and the scores are divided by e, a power of two.
No class pools by the mean or has thresholds; nor do the classes of most architectures fit.

Shapes: D width, C scores.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from mtnlp.heads.base import Head
    from mtnlp.tasks.spec import TaskSpec

SMALL = 2.0**-20  # (SMALL x)^2 / 3 is below float32's precision for every hidden state
CLASSES = {
    "tag": ("AutoModelForTokenClassification", "TOKEN_CLS"),
    "span": ("AutoModelForQuestionAnswering", "QUESTION_ANS"),
    "classify": ("AutoModelForSequenceClassification", "SEQ_CLS"),
    "pair": ("AutoModelForSequenceClassification", "SEQ_CLS"),
    "multilabel": ("AutoModelForSequenceClassification", "SEQ_CLS"),
    "regress": ("AutoModelForSequenceClassification", "SEQ_CLS"),
    "choose": ("AutoModelForMultipleChoice", None),  # peft has no name for it
}
PROBLEMS = {"multilabel": "multi_label_classification", "regress": "regression"}
# Dense layer before a tanh, and the layer of scores behind it, by the type of a network.
DENSE = {
    "bert": ("bert.pooler.dense", "classifier"),
    "roberta": ("classifier.dense", "classifier.out_proj"),
    "xlm-roberta": ("classifier.dense", "classifier.out_proj"),
    "camembert": ("classifier.dense", "classifier.out_proj"),
}


@dataclass(frozen=True)
class Plain:
    """A head as modules of a class of transformers.

    Args:
        auto: the class, as transformers calls it; task_type: as peft calls it, None = it has no name for it.
        prefix: where the network of AutoModel is in it.
        tensors: name in the class -> values, of all that is not that network.
        changes: keys of the configuration: number and names of the labels.
    """

    auto: str
    task_type: str | None
    prefix: str
    tensors: Mapping[str, Tensor]
    changes: Mapping[str, Any]

    @property
    def modules(self) -> list[str]:
        """Names of the modules that hold the tensors, as peft's modules_to_save wants them."""
        outer = [name.removeprefix(f"{self.prefix}.").partition(".")[0] for name in self.tensors]
        return list(dict.fromkeys(outer))


def plain(config: PretrainedConfig, names: Collection[str], spec: TaskSpec, head: Head) -> Plain | None:
    """The head of a task on an encoder in the form of a class of transformers; None = there is none.

    Args:
        config: of the encoder; names: of its parameters, before a strategy edited it.
    """
    pools = spec.kind not in ("tag", "span")
    if spec.kind not in CLASSES or (pools and head.pooling != "first"):
        return None
    auto, task_type = CLASSES[spec.kind]
    changes = _changes(spec, len(head.out.weight))
    made = _empty(config, auto, changes)
    if made is None:
        return None
    prefix = made.base_model_prefix
    found = _pooled(made, config, head, spec) if pools else _linear(made, prefix, head)
    if found is None:
        return None
    rest = {name for name, _ in made.named_parameters()} - set(found)
    if rest != {f"{prefix}.{name}" for name in names} - set(found):
        return None  # it has layers that nobody gave values to, or names of its own
    return Plain(auto, task_type, prefix, found, changes)


def whole(net: PreTrainedModel, form: Plain) -> PreTrainedModel:
    """The network and the head as one model of that class."""
    import transformers

    config = copy.deepcopy(net.config)
    config.update(dict(form.changes))
    made = getattr(transformers, form.auto).from_config(config)
    state = {f"{form.prefix}.{name}": value for name, value in net.state_dict().items()}
    missing, extra = made.load_state_dict({**state, **form.tensors}, strict=False)
    assert not extra, extra
    assert not set(missing) & {name for name, _ in made.named_parameters()}, missing
    return made.eval()


def _changes(spec: TaskSpec, scores: int) -> dict[str, Any]:
    if spec.kind in ("span", "choose"):
        return {}
    names = dict(enumerate(spec.labels or ["score"]))
    problem = {"problem_type": PROBLEMS[spec.kind]} if spec.kind in PROBLEMS else {}
    assert len(names) == scores, f"{spec.name}: {scores} scores for {len(names)} labels"
    return {"id2label": names, "label2id": {name: i for i, name in names.items()}, **problem}


def _empty(config: PretrainedConfig, auto: str, changes: Mapping[str, Any]) -> PreTrainedModel | None:
    """A model of the class without values, for its names; None if this architecture has none."""
    import transformers

    config = copy.deepcopy(config)
    config.update(dict(changes))
    try:
        with torch.device("meta"):
            return getattr(transformers, auto).from_config(config)
    except ValueError:
        return None


def _linear(made: PreTrainedModel, prefix: str, head: Head) -> dict[str, Tensor] | None:
    """One linear layer over the states of tokens, and nothing else that has weights."""
    found = [
        (name, module)
        for name, module in made.named_children()
        if name != prefix and any(True for _ in module.parameters())
    ]
    if len(found) != 1 or not isinstance(found[0][1], nn.Linear):
        return None
    name, layer = found[0]
    if layer.weight.shape != head.out.weight.shape or layer.bias is None:
        return None
    bias = torch.zeros(len(head.out.weight)) if head.out.bias is None else head.out.bias
    return {f"{name}.weight": _kept(head.out.weight), f"{name}.bias": _kept(bias)}


def _pooled(
    made: PreTrainedModel, config: PretrainedConfig, head: Head, spec: TaskSpec
) -> dict[str, Tensor] | None:
    """Scores over the first token, behind a dense layer and a tanh that change nothing."""
    names = DENSE.get(config.model_type)
    if names is None or names[0] not in dict(made.named_modules()):
        return None
    dense, scores = names
    weight, bias = head.out.weight, head.out.bias
    bias = torch.zeros(len(weight)) if bias is None else bias
    if spec.kind == "regress":  # in the task's own unit
        weight, bias = weight * head.scale, bias * head.scale + head.centre
    width = weight.shape[1]
    return {
        f"{dense}.weight": torch.eye(width) * SMALL,
        f"{dense}.bias": torch.zeros(width),
        f"{scores}.weight": _kept(weight) / SMALL,
        f"{scores}.bias": _kept(bias),
    }


def _kept(tensor: Tensor) -> Tensor:
    return tensor.detach().float().clone()
