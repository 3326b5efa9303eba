"""Every metric against the library or the formula that defines it."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics as sk

from mtnlp import metrics
from mtnlp.errors import MtnlpError
from mtnlp.metrics.classification import per_label

LABELS = tuple("abcde")
BIO = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B", "I")


def draw(seed: int, *, labels: int = 5, n: int = 200) -> tuple[list[int], list[int]]:
    """Predictions and references that agree about half of the time; the last label is never true."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, max(labels - 1, 2), n)
    predicted = np.where(rng.random(n) < 0.5, true, rng.integers(0, labels, n))
    return predicted.tolist(), true.tolist()


def sequences(seed: int, *, labels: int) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    rng = np.random.default_rng(seed)
    rows = [draw(seed + i, labels=labels, n=int(rng.integers(1, 12))) for i in range(60)]
    return [tuple(p) for p, _ in rows], [tuple(t) for _, t in rows]


def sets(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = rng.random((120, 5)) < 0.2
    return np.where(rng.random(true.shape) < 0.6, true, rng.random(true.shape) < 0.2), true


def as_tuples(table: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(np.flatnonzero(row).tolist()) for row in table]


SKLEARN = {
    "accuracy": sk.accuracy_score,
    "balanced_accuracy": sk.balanced_accuracy_score,
    "matthews": sk.matthews_corrcoef,
    "macro_f1": lambda t, p: sk.f1_score(t, p, average="macro"),
    "micro_f1": lambda t, p: sk.f1_score(t, p, average="micro"),
    "weighted_f1": lambda t, p: sk.f1_score(t, p, average="weighted"),
    "quadratic_kappa": lambda t, p: sk.cohen_kappa_score(t, p, weights="quadratic"),
    "mse": sk.mean_squared_error,
    "mae": sk.mean_absolute_error,
}


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
@pytest.mark.parametrize("labels", [2, 5])
@pytest.mark.parametrize("name", SKLEARN)
def test_scores_of_single_labels_equal_scikit_learn(name, labels):
    predicted, true = draw(labels, labels=labels)

    ours = metrics.get(name, "ordinal")(predicted, true, LABELS[:labels])

    assert ours == pytest.approx(SKLEARN[name](true, predicted), abs=1e-9)


def test_binary_f1_is_that_of_the_last_label():
    predicted, true = draw(0, labels=2)

    assert metrics.get("f1")(predicted, true, ("no", "yes")) == pytest.approx(
        sk.f1_score(true, predicted), abs=1e-9
    )
    assert metrics.get("f1")([0, 0], [0, 0]) == 0.0
    with pytest.raises(MtnlpError, match=r"5 labels.*macro_f1"):
        metrics.get("f1")(*draw(0), LABELS)


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
def test_scores_of_tags_equal_scikit_learn_on_all_tokens(average):
    predicted, true = sequences(1, labels=5)

    ours = metrics.get(f"{average}_f1", "tag")(predicted, true, LABELS)

    theirs = sk.f1_score(sum(true, ()), sum(predicted, ()), average=average)
    assert ours == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
def test_scores_of_label_sets_equal_scikit_learn(average):
    predicted, true = sets(2)

    ours = metrics.get(f"{average}_f1", "multilabel")(as_tuples(predicted), as_tuples(true), LABELS)

    assert ours == pytest.approx(sk.f1_score(true, predicted, average=average), abs=1e-9)
    subset = metrics.get("subset_accuracy")(as_tuples(predicted), as_tuples(true), LABELS)
    assert subset == pytest.approx(sk.accuracy_score(true, predicted), abs=1e-9)


@pytest.mark.parametrize(("kind", "given"), [("classify", draw(6)), ("tag", sequences(6, labels=5))])
def test_scores_of_each_label_equal_scikit_learn(kind, given):
    predicted, true = given
    stats = metrics.get("macro_f1", kind).stats(predicted, true, LABELS)

    ours = per_label(stats, LABELS)

    flat = [sum(side, ()) if kind == "tag" else side for side in (true, predicted)]
    theirs = sk.precision_recall_fscore_support(*flat, labels=range(5), zero_division=0)
    assert list(ours) == list(LABELS)
    np.testing.assert_allclose([[*row.values()] for row in ours.values()], np.transpose(theirs), atol=1e-12)


def test_scores_of_each_label_ask_for_the_statistics_of_an_f1():
    with pytest.raises(MtnlpError, match="5 labels have 15 statistics per example, but there are 2"):
        per_label(np.ones((3, 2)), LABELS)


@pytest.mark.parametrize("seed", range(5))
def test_entities_equal_seqeval_also_when_tags_are_not_well_formed(seed):
    seqeval = pytest.importorskip("seqeval.metrics")
    predicted, true = sequences(seed, labels=len(BIO))

    ours = metrics.get("span_micro_f1")(predicted, true, BIO)

    named = [[[BIO[tag] for tag in row] for row in side] for side in (true, predicted)]
    assert ours == pytest.approx(seqeval.f1_score(*named), abs=1e-9)
    accuracy = metrics.get("token_accuracy")(predicted, true, BIO)
    assert accuracy == pytest.approx(seqeval.accuracy_score(*named), abs=1e-9)


@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (1e-150, 0), (1e6, 1e9)])
def test_correlations_equal_scipy(scale, shift):
    rng = np.random.default_rng(3)
    true = rng.integers(0, 6, 100) * scale + shift  # with ties
    predicted = true + rng.normal(size=100) * scale

    assert metrics.get("pearson")(predicted, true) == pytest.approx(
        scipy.stats.pearsonr(predicted, true).statistic, abs=1e-9
    )
    assert metrics.get("spearman")(predicted, true) == pytest.approx(
        scipy.stats.spearmanr(predicted, true).statistic, abs=1e-9
    )


@pytest.mark.parametrize("name", ["pearson", "spearman", "matthews", "quadratic_kappa"])
def test_a_constant_prediction_correlates_with_nothing(name):
    constant = [0.1] * 7 if name in ("pearson", "spearman") else [1] * 7

    assert metrics.get(name)(constant, [0, 1, 2, 3, 2, 1, 0]) == 0.0


TEXTS = [
    ("The cat sat on the mat.", ("A cat sat on a mat.", "the mat, the cat")),
    ('It costs 1,000.50 - or "more" (see p.3)!', ("It cost 1,000.50, or &quot;more&quot; (see p. 3).",)),
    ("", ("something", "else")),
    ("don't re-use the well-known 3-4 items...", ("do not reuse the well-known 3-4 items",)),
    ("naïve café über straße", ("Naive café, über Straße",)),
    ("a b c d e f g", ("a b c d e f g", "g f e d c b a")),
    ("x", ("x",)),
    ("!", ("?",)),
]
PREDICTED, REFERENCES = [p for p, _ in TEXTS], [r for _, r in TEXTS]


@pytest.mark.parametrize("rows", [range(8), range(6), [0], [2], [6], [1, 3], [7]])
def test_bleu_chrf_and_ter_equal_sacrebleu(rows):
    sacrebleu = pytest.importorskip("sacrebleu")
    predicted, references = [PREDICTED[i] for i in rows], [REFERENCES[i] for i in rows]
    streams = [[r[k] if k < len(r) else None for r in references] for k in range(2)]

    bleu, chrf, ter = (metrics.get(name)(predicted, references) for name in ("bleu", "chrf", "ter"))

    assert 100 * bleu == pytest.approx(sacrebleu.corpus_bleu(predicted, streams).score, abs=1e-9)
    assert 100 * chrf == pytest.approx(sacrebleu.corpus_chrf(predicted, streams).score, abs=1e-9)
    assert 100 * ter == pytest.approx(sacrebleu.corpus_ter(predicted, streams).score, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "theirs"), [("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")]
)
def test_rouge_equals_its_reference_implementation(name, theirs):
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer([theirs])
    rng = np.random.default_rng(4)
    texts = [
        (" ".join(rng.choice(list("abcd"), 20)), (" ".join(rng.choice(list("abcd"), 15)),)) for _ in range(20)
    ]
    texts += TEXTS

    ours = metrics.get(name)([p for p, _ in texts], [r for _, r in texts])

    expected = np.mean([scorer.score_multi(list(r), p)[theirs].fmeasure for p, r in texts])
    assert ours == pytest.approx(expected, abs=1e-9)


LINES = [
    ("a b c\n d e\n\nf", ("a c b\ne d f", "f\n")),
    ("the police killed the gunman\nit ended", ("police ended the gunman\nthe gunman was killed",)),
    ("a a b\nb a", ("a b\na b a b",)),
    ("", ("x",)),
    ("!\n?", ("x",)),
    ("x\ny", ("\n",)),
]


def test_rouge_of_summaries_is_that_of_a_worked_example():
    # Lin 2004, 3.2: w1 w2 and w1 w3 w5 of the reference sentence are found, 4 of its 5 words.
    predicted, reference = "w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5", "w1 w2 w3 w4 w5"

    assert metrics.get("rouge_lsum")([predicted], [(reference,)]) == pytest.approx(
        2 * 4 / (10 + 5), abs=1e-12
    )


def test_rouge_of_summaries_equals_its_reference_implementation():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeLsum"])
    rng = np.random.default_rng(7)

    def lines():
        return "\n".join(" ".join(rng.choice(list("abcdef"), rng.integers(0, 9))) for _ in range(4))

    texts = [(lines(), (lines(), lines())) for _ in range(150)] + TEXTS + LINES
    ours = metrics.get("rouge_lsum").stats([p for p, _ in texts], [r for _, r in texts], None)

    expected = [scorer.score_multi(list(r), p)["rougeLsum"].fmeasure for p, r in texts]
    assert ours[:, 0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("predicted", "reference", "exact", "f1"),
    [
        ("the Eiffel Tower!", (("Eiffel tower", 3),), 1.0, 1.0),
        ("in Paris, France", (("Paris", 0), ("Paris, Texas", 9)), 0.0, 0.5),  # 2 * 1 / (3 + 1)
        ("a b b c", (("b b d", 0),), 0.0, 2 * 2 / (3 + 3)),  # the article goes
        ("", (), 1.0, 1.0),
        ("Paris", (), 0.0, 0.0),
        ("", (("Paris", 0),), 0.0, 0.0),
        ("SELECT  a", ("SELECT a", "b"), 1.0, 2 / 3 + 1 / 3),  # generated texts are compared as they are
        ("select a", ("SELECT a",), 0.0, 1.0),
    ],
)
def test_answers_score_as_in_squad(predicted, reference, exact, f1):
    assert metrics.get("exact_match")([predicted], [reference]) == exact
    assert metrics.get("squad_f1")([predicted], [reference]) == pytest.approx(f1, abs=1e-9)


def inputs_of(name: str, kind: str):
    """Predictions, references and labels that any metric of this kind can score."""
    if metrics.get(name, kind).reads == "scores":
        scores = np.random.default_rng(5).dirichlet(np.ones(5), 120).tolist()
        return scores, as_tuples(sets(5)[1]) if kind == "multilabel" else draw(5, n=120)[1], LABELS
    if kind == "tag":
        return *sequences(5, labels=len(BIO)), BIO
    if kind == "multilabel":
        return *map(as_tuples, sets(5)), LABELS
    if kind in ("span", "generate"):
        return PREDICTED, REFERENCES, None
    if kind == "text":
        return [(-4.5 * n, 3 * n, n, 12 * n) for n in range(1, 9)], [None] * 8, None
    if kind == "retrieve":
        return [("a", "b", "c", "d")[i % 3 :] for i in range(8)], [{"b": 1, "c": 3}, {"a": 1}] * 4, None
    predicted, true = draw(5, labels=2 if name == "f1" else 5)
    return predicted, true, LABELS[:2] if name == "f1" else LABELS


EVERY = (
    [(name, kind) for name in metrics.names() for kind in metrics.get(name).kinds]
    + [(name, kind) for name in ("macro_f1", "micro_f1", "weighted_f1") for kind in ("tag", "multilabel")]
    + [("auroc", "multilabel")]
)


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_statistics_belong_to_examples(name, kind):
    metric = metrics.get(name, kind)
    predicted, true, labels = inputs_of(name, kind)

    stats = metric.stats(predicted, true, labels)

    assert stats.dtype == np.float64 and len(stats) == len(true)
    assert metric.reduce(stats) == metric(predicted, true, labels)
    some = slice(1, 7)
    np.testing.assert_array_equal(stats[some], metric.stats(predicted[some], true[some], labels))
    if metric.additive:
        assert metric.reduce(stats.sum(0, keepdims=True)) == pytest.approx(metric.reduce(stats), abs=1e-12)


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_perfect_answers_score_best(name, kind):
    metric = metrics.get(name, kind)
    _, true, labels = inputs_of(name, kind)
    if kind in ("span", "generate"):
        true = [("one sentence of five words",), ("Another one, which is longer.", "short")]
    predicted = {
        "text": [(0.0, 3, 2, 12)] * len(true),
        "retrieve": [sorted(gains, key=gains.get, reverse=True) for gains in true]
        if kind == "retrieve"
        else (),
    }.get(kind, [row[0] for row in true] if kind in ("span", "generate") else true)
    if metric.reads == "scores":
        predicted = [np.isin(range(5), answer).astype(float) for answer in true]

    best = 1.0 if metric.greater_is_better or "perplexity" in name else 0.0
    assert metric(predicted, true, labels) == pytest.approx(best)


def test_mistakes_are_named():
    with pytest.raises(MtnlpError, match="Did you mean 'macro_f1'"):
        metrics.get("makro_f1")
    with pytest.raises(MtnlpError, match=r"rouge_l does not score tag tasks.*span_micro_f1"):
        metrics.get("rouge_l", "tag")
    with pytest.raises(MtnlpError, match="1 predictions for 2"):
        metrics.get("accuracy")([1], [1, 0])
    with pytest.raises(MtnlpError, match="0 predictions for 0"):
        metrics.get("accuracy")([], [])
    with pytest.raises(MtnlpError, match=r"label id 2 is outside 0\.\.1"):
        metrics.get("macro_f1")([0, 2], [0, 1], ("no", "yes"))
    with pytest.raises(MtnlpError, match=r"metrics.get\('macro_f1', 'tag'\)"):
        metrics.get("macro_f1")([(0, 1)], [(0, 1)])
    with pytest.raises(MtnlpError, match="example 1 has 2 tags but 1"):
        metrics.get("token_accuracy")([(0,), (1,)], [(0,), (1, 1)])
    with pytest.raises(MtnlpError, match="got NOUN"):
        metrics.get("span_micro_f1")([(0,)], [(0,)], ("NOUN", "VERB"))
    with pytest.raises(MtnlpError, match="Example 1: predicted nan"):
        metrics.get("mse")([0.0, float("nan")], [0.0, 1.0])


def test_own_metrics_join_the_table(monkeypatch):
    monkeypatch.setattr(metrics, "_added", [])
    within = metrics.Metric(
        "within_one",
        lambda p, r, labels: np.abs(np.subtract(p, r))[:, None] <= 1.0,
        lambda stats: float(stats.mean()),
        ("ordinal",),
        additive=False,
    )

    metrics.register(within)

    assert metrics.get("within_one", "ordinal")([0, 3], [1, 1]) == 0.5
    with pytest.raises(MtnlpError, match="registered already"):
        metrics.register(within)
