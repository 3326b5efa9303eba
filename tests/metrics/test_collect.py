"""The interface of evaluate.Metric, and metrics of that library, against the library itself."""

from __future__ import annotations

import numpy as np
import pytest

from mtnlp import metrics
from mtnlp.errors import MtnlpError
from mtnlp.metrics.collect import Scores, combine

SCRIPT = """
import datasets
import evaluate

class Shares(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features={features})

    def _compute(self, predictions, references):
        assert predictions != ["fail"], "told to\\nfail"
        same = [p == r or (isinstance(r, list) and p in r) for p, r in zip(predictions, references)]
        return {{"right": sum(same) / len(same), "all": [1, 2], "wrong": 1 - sum(same) / len(same)}}
"""
NUMBERS = 'datasets.Features({k: datasets.Value("int32") for k in ("predictions", "references")})'
TEXTS = 'datasets.Features({k: datasets.Value("string") for k in ("predictions", "references")})'
TAGS = TEXTS.replace('datasets.Value("string")', 'datasets.Sequence(datasets.Value("string"))')
MANY = (
    'datasets.Features({"predictions": datasets.Value("string"), '
    '"references": datasets.Sequence(datasets.Value("string"))})'
)


@pytest.fixture
def script(tmp_path):
    """Writes a metric's script and gives its name in this project."""
    pytest.importorskip("evaluate")

    def write(features: str, name: str) -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{name}.py").write_text(SCRIPT.format(features=features), "utf-8")
        return f"evaluate:{folder}"

    return write


def test_one_by_one_in_batches_and_at_once_are_the_same():
    said, true = [0, 1, 2, 2, 1], [0, 2, 2, 1, 1]
    expected = {"macro_f1": metrics.get("macro_f1")(said, true)}
    scores = Scores("macro_f1")

    for prediction, reference in zip(said, true):
        scores.add(prediction=prediction, reference=reference)
    assert scores.compute() == expected

    scores.add_batch(predictions=said[:2], references=true[:2])
    scores.add_batch(predictions=np.array(said[2:]), references=np.array(true[2:]))
    assert scores.compute() == expected
    assert scores.compute(predictions=said, references=true) == expected

    scores.add(prediction=said[0], reference=true[0])
    assert scores.compute(predictions=said[1:], references=true[1:]) == expected
    with pytest.raises(MtnlpError, match="0 predictions for 0 references"):
        scores.compute()  # what was computed is forgotten


def test_labels_kinds_texts_and_texts_without_references():
    tags = Scores("span_micro_f1", kind="tag", labels=("O", "B-x", "I-x"))
    tags.add(prediction=(0, 1, 2), reference=(0, 1, 0))

    assert tags.compute() == {"span_micro_f1": 0.0}
    assert Scores("bleu").compute(predictions=["a b c d"], references=["a b c d"]) == {"bleu": 1.0}
    assert Scores("rouge_l").compute(predictions=["a"], references=[["b", "a"]]) == {"rouge_l": 1.0}
    assert Scores("perplexity").compute(predictions=[(0.0, 1, 1, 1)]) == {"perplexity": 1.0}


def test_mistakes_are_named_and_leave_what_was_kept():
    scores = Scores("accuracy")
    scores.add(prediction=1, reference=1)

    with pytest.raises(MtnlpError, match="accuracy: 2 predictions for 1 references"):
        scores.add_batch(predictions=[1, 0], references=[1])
    with pytest.raises(MtnlpError, match="accuracy: 1 predictions for no references"):
        scores.add(prediction=0)
    with pytest.raises(MtnlpError, match="Did you mean 'accuracy'"):
        combine(["acuracy"])

    assert scores.compute() == {"accuracy": 1.0}


def test_several_metrics_are_one():
    both = combine(["accuracy", Scores("f1", labels=("no", "yes"))])

    both.add(prediction=0, reference=1)
    both.add_batch(predictions=[1, 0, 0], references=[1, 0, 1])

    assert both.compute() == {"accuracy": 0.5, "f1": 0.5}
    prefixed = combine(["accuracy"], force_prefix=True)
    assert prefixed.compute(predictions=[1], references=[1]) == {"accuracy_accuracy": 1.0}


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("named", [{}, {"first": 0, "second": 1}, {"one": 0, "other": 2}])
def test_names_of_combined_values_are_those_of_evaluate(named, force):
    theirs = pytest.importorskip("evaluate")
    names = ["accuracy", "macro_f1", "accuracy"]

    def module(name):
        """A stand-in with what evaluate.combine asks of a metric."""
        compute = lambda self, **_: {name: 1.0}  # noqa: E731
        return type("Module", (), {"name": name, "compute": compute})()

    def given(make):
        return {key: make(names[i]) for key, i in named.items()} or [make(name) for name in names]

    ours = combine(given(Scores), force_prefix=force).compute(predictions=[1], references=[1])

    assert ours == theirs.combine(given(module), force_prefix=force).compute()


def test_a_metric_of_evaluate_scores_classes_and_texts(script):
    numbers, texts = script(NUMBERS, "numbers"), script(TEXTS, "texts")
    said, true = [0, 1, 1, 0], [0, 1, 0, 0]

    assert metrics.get(f"{numbers}#right", "classify")(said, true) == 0.75
    assert metrics.get(f"{numbers}#wrong", "pair")(said, true) == 0.25
    assert metrics.get(f"{texts}#right", "classify")(said, true, ("no", "yes")) == 0.75
    assert metrics.get(f"{texts}#right", "generate")(["a", "b"], [("a",), ("x",)]) == 0.5
    assert metrics.get(f"{texts}#right", "span")(["", "b"], [(), (("b", 7),)]) == 1.0
    assert metrics.get(f"{script(TAGS, 'tags')}#right", "tag")([(0, 1)], [(0, 1)], ("O", "B")) == 1.0
    many = metrics.get(f"{script(MANY, 'many')}/many.py#right", "generate")
    assert many(["a", "b"], [("b", "a"), ("x",)]) == 0.5


def test_rows_of_a_metric_of_evaluate_may_be_drawn_again(script):
    metric = metrics.get(f"{script(NUMBERS, 'drawn')}#right", "classify")
    first, second = metric.stats([0, 1, 1], [0, 1, 0], None), metric.stats([1, 1, 1], [0, 1, 0], None)

    assert metrics.get(metric.name) is metric
    assert metric.reduce(first) == pytest.approx(2 / 3)
    assert metric.reduce(second) == pytest.approx(1 / 3)
    assert metric.reduce(first[[0, 0, 2, 1]]) == 0.75
    assert first[1] == second[1]  # equal examples are one


def test_a_metric_of_evaluate_fails_in_one_line(script):
    several, texts = script(NUMBERS, "several"), script(TEXTS, "failing")
    broken = script(NUMBERS.replace("datasets", "datasetz"), "broken")
    cases = [
        ("evaluate:./nowhere", r"there is no file \./nowhere/nowhere\.py\. Give the folder or file"),
        ("evaluate:no_such_metric_here", r"cannot be loaded: .*Without a network, give a path"),
        (several, r"its values are right, wrong; say which, as in .*several#right"),
        (f"{several}#left", "its values are right, wrong; say which"),
        (broken, "cannot be loaded: name 'datasetz' is not defined"),
    ]

    for name, message in cases:
        with pytest.raises(MtnlpError, match=message) as caught:
            metrics.get(name, "classify")([1, 0], [1, 1])
        assert "\n" not in str(caught.value)
    with pytest.raises(MtnlpError, match="failing#right failed: told to fail"):
        metrics.get(f"{texts}#right")(["fail"], [("a",)])
    with pytest.raises(MtnlpError, match="failing#right reads one reference per example; found 2"):
        metrics.get(f"{texts}#right")(["a"], [("a", "b")])


def test_a_metric_of_evaluate_says_when_the_library_is_missing(monkeypatch, tmp_path):
    (tmp_path / "alone.py").write_text("", "utf-8")
    monkeypatch.setitem(__import__("sys").modules, "evaluate", None)

    with pytest.raises(MtnlpError, match="needs the library evaluate: pip install evaluate"):
        metrics.get(f"evaluate:{tmp_path}/alone.py")


def test_errors_of_well_known_names_are_better_when_smaller(script):
    assert not metrics.get(script(TEXTS, "wer")).greater_is_better
    assert metrics.get(f"{script(TEXTS, 'other')}#right").greater_is_better
