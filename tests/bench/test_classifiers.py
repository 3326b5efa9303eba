"""Networks with heads of their own, against plain calls of transformers, one text at a time."""

import numpy as np
import pytest
import torch
import transformers as tr
from tiny_hub import stand_in

from mtnlp.bench.labels import columns, head_of
from mtnlp.bench.questions import Questions
from mtnlp.errors import MtnlpError
from mtnlp.runs import plain
from mtnlp.tasks.spec import Example, TaskSpec

TEXTS = ["city river", "answer music light stone winter market", "doctor", "letter garden window paper " * 5]


def saved(folder, kind, names, **more):
    """A random BERT with a head, saved with a tokenizer."""
    base = stand_in("minilm", folder / "base")
    config = tr.AutoConfig.from_pretrained(
        base, id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}, **more
    )
    torch.manual_seed(0)
    net = kind(config)
    with torch.no_grad():
        for parameter in net.classifier.parameters():
            parameter.normal_()
    net.save_pretrained(folder / "net")
    tr.AutoTokenizer.from_pretrained(base).save_pretrained(folder / "net")
    return str(folder / "net"), net.config.to_dict() | {"id2label": {str(i): n for i, n in enumerate(names)}}


def answers(place, config, spec, inputs):
    config = config | {"architectures": tr.AutoConfig.from_pretrained(place).architectures}
    examples = [Example(spec.name, i, one, None) for i, one in enumerate(inputs)]
    asks, found = plain.build_classifier(place, [config]), {}
    for batch in asks.batches({0: Questions(spec, examples)}):
        found |= {row: answer for _, row, answer in batch}
    return [found[row] for row in range(len(inputs))]


def logits(place, kind, *args, **more):
    net, tokenizer = kind.from_pretrained(place).eval(), tr.AutoTokenizer.from_pretrained(place)
    with torch.no_grad():
        return net(**tokenizer(*args, return_tensors="pt", **more)).logits[0]


def test_labels_are_matched_by_name_and_scored_as_transformers_does(tmp_path):
    kind = tr.BertForSequenceClassification
    place, config = saved(tmp_path, kind, ["Neutral", "NEGATIVE", "positive", "other"])
    spec = TaskSpec("t", "pair", None, labels=("negative", "neutral", "positive"))
    pairs = list(zip(TEXTS, TEXTS[::-1], strict=True))

    found = answers(place, config, spec, [{"text": a, "text_pair": b} for a, b in pairs])

    for answer, (a, b) in zip(found, pairs, strict=True):
        expected = logits(place, kind, a, b)[[1, 0, 2]].softmax(-1)
        np.testing.assert_allclose(answer["scores"], expected, atol=1e-6)
        assert answer["value"] == int(expected.argmax()) and "cut" not in answer


def test_tags_are_those_of_the_first_piece_of_each_word(tmp_path):
    kind = tr.BertForTokenClassification
    place, config = saved(tmp_path, kind, ["O", "B-loc", "I-loc"])
    spec = TaskSpec("t", "tag", None, labels=("B-loc", "I-loc", "O"))

    found = answers(place, config, spec, [{"tokens": text.split()} for text in TEXTS])

    for answer, text in zip(found, TEXTS, strict=True):
        places = tr.AutoTokenizer.from_pretrained(place)(text, return_offsets_mapping=True).offset_mapping
        starts = [len(" ".join(text.split()[:i])) + (i > 0) for i in range(len(text.split()))]
        first = [next(j for j, (_, end) in enumerate(places) if end > start) for start in starts]
        expected = logits(place, kind, text)[first][:, [1, 2, 0]].argmax(-1)
        assert answer["value"] == tuple(expected.tolist())


def test_a_head_that_does_not_fit_the_task_is_refused_with_what_it_knows():
    config = {"architectures": ["XForSequenceClassification"], "id2label": {"0": "a", "1": "b"}}
    named = TaskSpec("t", "classify", None, labels=("a", "c"))
    unnamed = config | {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}

    assert columns(unnamed, named) == [0, 1] and head_of({"architectures": ["XForMaskedLM"]}) is None
    for spec, message in [
        (named, "its head has no 'c'. It knows a, b"),
        (TaskSpec("t", "tag", None, labels=("a", "b")), "a tag task cannot be answered"),
        (TaskSpec("t", "regress", None), "one output, and it has 2"),
    ]:
        with pytest.raises(MtnlpError, match=message):
            columns(config, spec)
