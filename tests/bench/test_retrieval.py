"""Ranking against sorting by hand, tasks read from every layout, and files with every kind of fault."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtnlp import metrics
from mtnlp.bench import retrieval
from mtnlp.bench.retrieval import RetrievalTask, rank, read, retrieve
from mtnlp.errors import DataError, MtnlpError

SHARED = Path(__file__).parents[3] / "shared" / "data" / "tasks"
CORPUS = {"d1": "Cats purr.", "d2": "Dogs bark at cats.", "d3": "", "d10": "Fish swim."}
QUERIES = {"q1": "Who purrs?", "q2": "Who barks?", "q3": "Who flies?", "q4": "Who swims?"}
QRELS = {"q1": {"d1": 2, "d2": 1}, "q2": {"d2": 1, "d10": 0}, "q3": {"d1": 0}}


def sorted_by_hand(queries, documents, k):
    """Rows of documents by falling cosine, then by row."""

    def cosine(a, b):
        size = math.sqrt(math.fsum(x * x for x in a)) * math.sqrt(math.fsum(x * x for x in b))
        return round(math.fsum(x * y for x, y in zip(a, b, strict=True)) / (size or 1) * 2**30) / 2**30

    table = [[cosine(q, d) for d in documents.tolist()] for q in queries.tolist()]
    order = [sorted(range(len(row)), key=lambda i: (-row[i], i))[:k] for row in table]
    return order, [[row[i] for i in own] for row, own in zip(table, order, strict=True)]


@pytest.mark.parametrize("blocks", [(512, 8192), (3, 5), (1, 1)])
@pytest.mark.parametrize("k", [1, 4, 100])
def test_ranks_are_those_of_sorting_by_hand_with_ties_in_the_order_of_documents(blocks, k, monkeypatch):
    monkeypatch.setattr(retrieval, "QUERIES_AT_ONCE", blocks[0])
    monkeypatch.setattr(retrieval, "DOCUMENTS_AT_ONCE", blocks[1])
    draw = np.random.default_rng(k)
    # Small whole numbers: many documents are equal, parallel, opposite or zero.
    queries, documents = draw.integers(-1, 2, (7, 3)), draw.integers(-2, 3, (60, 3))

    ids, scores = rank(queries.astype(np.float32), documents.astype(np.float32), k)

    expected, cosines = sorted_by_hand(queries, documents, k)
    assert ids.tolist() == expected
    assert scores.tolist() == cosines


def test_equal_documents_tie_wherever_they_stand_in_a_corpus_of_many_blocks(monkeypatch):
    monkeypatch.setattr(retrieval, "DOCUMENTS_AT_ONCE", 97)
    draw = np.random.default_rng(0)
    documents, queries = (
        draw.standard_normal((1000, 33), np.float32),
        draw.standard_normal((5, 33), np.float32),
    )
    copies = [3, 96, 97, 400, 401, 999]
    documents[copies] = queries[0] + 0.01

    ids, scores = rank(queries, documents, 10)

    assert ids[0, : len(copies)].tolist() == copies and len(set(scores[0, : len(copies)].tolist())) == 1
    assert [own.tolist() for own in ids] == sorted_by_hand(queries, documents, 10)[0]


@given(st.lists(st.integers(-(2**30), 2**30), min_size=1, max_size=20), st.integers(0, 2**31))
def test_keys_hold_cosines_and_rows_and_sort_by_both(values, first):
    cosines = np.array([values]) / 2**30

    keys = retrieval._keys(cosines, first)

    rows, found = retrieval._read(keys)
    assert rows.tolist() == [[first + i for i in range(len(values))]]
    assert found.tolist() == cosines.tolist()
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    assert np.argsort(keys[0])[::-1].tolist() == order


@pytest.mark.parametrize(
    ("queries", "documents", "k", "says"),
    [
        (np.ones((2, 3)), np.ones((2, 4)), 1, r"shape \(2, 3\) and documents of shape \(2, 4\)"),
        (np.ones((2, 3)), np.ones((2, 3)), 0, "k=0 must be 1 or more"),
        (np.ones((2, 3)), np.array([[1, np.nan, 1]]), 1, "1 of 1 documents have vectors that are not finite"),
    ],
)
def test_vectors_that_cannot_be_ranked_are_refused(queries, documents, k, says):
    with pytest.raises(MtnlpError, match=says):
        rank(queries, documents, k)


def embedder(table):
    """Gives every text its vector in a table; texts with a "!" are said to be cut."""

    def embed(texts):
        cut = tuple(i for i, text in enumerate(texts) if "!" in text)
        return SimpleNamespace(vectors=np.array([table(text) for text in texts], np.float32), cut=cut)

    return SimpleNamespace(queries=embed, documents=embed)


def turned(text):
    """Texts as angles, in degrees."""
    return math.cos(math.radians(float(text.strip("!")))), math.sin(math.radians(float(text.strip("!"))))


def test_a_corpus_is_ranked_for_every_query_and_what_went_wrong_is_counted():
    corpus = {"a": "0", "b": "40!", "c": "nan", "d": "90", "e": "40"}
    task = RetrievalTask("t", corpus, {"x": "30", "y": "nan", "z": "100!"}, {"x": {"a": 1}, "y": {}, "z": {}})

    found = retrieve(task, embedder(turned), k=3)

    assert found.predictions == [("b", "e", "a"), (), ("d", "b", "e")]
    assert found.references == [{"a": 1}, {}, {}]
    np.testing.assert_allclose(found.scores[0], np.cos(np.radians([10, 10, 30])), atol=1e-6)
    assert found.notes == (
        "1 of 5 documents are too long and were cut.",
        "1 of 5 documents have vectors that are not finite numbers.",
        "1 of 3 queries are too long and were cut.",
        "1 of 3 queries have vectors that are not finite numbers.",
    )


def ndcg(ranked, gains, k=10):
    """Järvelin and Kekäläinen 2002, with the gains as they are, as in trec_eval."""
    best = sorted(gains.values(), reverse=True)
    own, ideal = (
        sum(gain / math.log2(place + 2) for place, gain in enumerate(row[:k]))
        for row in ([gains.get(document, 0) for document in ranked], best)
    )
    return own / ideal


def test_what_is_retrieved_is_what_metrics_read():
    draw = np.random.default_rng(2)
    corpus = {f"d{i}": str(degrees) for i, degrees in enumerate(draw.integers(0, 180, 40))}
    queries = {f"q{i}": str(degrees) for i, degrees in enumerate(draw.integers(0, 180, 9))}
    qrels = {query: {f"d{i}": int(draw.integers(1, 4)) for i in draw.integers(0, 40, 6)} for query in queries}

    found = retrieve(RetrievalTask("t", corpus, queries, qrels), embedder(turned))

    expected = np.mean([ndcg(*pair) for pair in zip(found.predictions, found.references, strict=True)])
    assert metrics.get("ndcg_10", "retrieve")(found.predictions, found.references) == pytest.approx(expected)
    assert 0 < expected < 1


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), "utf-8")


def beir(folder, qrels=None, *, corpus=(), queries=()):
    """A folder in the layout of BEIR, with more rows."""
    lines(
        folder / "corpus.jsonl", [*({"_id": i, "title": "", "text": t} for i, t in CORPUS.items()), *corpus]
    )
    lines(folder / "queries.jsonl", [*({"_id": i, "text": t} for i, t in QUERIES.items()), *queries])
    judged = [f"{q}\t{d}\t{gain}" for q, own in QRELS.items() for d, gain in own.items()]
    lines(folder / "qrels" / "test.tsv", ["query-id\tcorpus-id\tscore", *(qrels or judged)])
    return folder


def test_both_layouts_with_a_corpus_give_one_task_without_queries_that_have_no_answer(tmp_path):
    other = tmp_path / "other.v1"
    lines(other / "corpus.jsonl", [{"doc_id": i, "title": None, "text": t} for i, t in CORPUS.items()])
    rows = [
        {"id": q, "query": QUERIES[q], "positives": [{"doc_id": d, "score": g} for d, g in own.items()]}
        for q, own in QRELS.items()
    ]
    lines(other / "test.jsonl", rows)

    first, second = read(beir(tmp_path / "beir")), read(other)

    for task in (first, second):
        assert (task.corpus, list(task.queries)) == (CORPUS, ["q1", "q2"]) and task.candidates is None
        assert {query: task.qrels[query] for query in task.queries} == {q: QRELS[q] for q in ("q1", "q2")}
    assert first.digest == second.digest and (first.name, second.name) == ("beir", "other.v1")
    assert first.notes == (
        "1 of 4 documents have no text.",
        "1 of 4 queries have no judged document and are left out.",
        "1 of 4 queries have no relevant document and are left out.",
    )
    changed = beir(tmp_path / "changed", ["q1\td1\t1", "q1\td2\t1", "q2\td2\t1", "q2\td10\t0"])
    assert read(changed, name="beir").digest != first.digest
    titled = beir(tmp_path / "titled", corpus=[{"_id": "d4", "title": "Owls", "text": "They fly."}])
    assert read(titled).corpus["d4"] == "Owls They fly."


def test_everything_wrong_with_a_corpus_its_queries_and_judgements_is_told_with_its_line(tmp_path):
    folder = beir(
        tmp_path / "bad",
        ["q1\td1\t1", "q9\td1\t1", "q1\td7\t1", "q1\td2\tmuch", "q1\td1\t2"],
        corpus=[{"_id": "d2", "text": "again"}, {"text": "no id"}, "{", {"_id": "d5", "text": 5}],
        queries=[{"_id": "q5", "text": " "}],
    )

    with pytest.raises(DataError) as caught:
        read(folder)

    for place, says in [
        ("corpus.jsonl:5", "the id 'd2' stands twice, first in "),
        ("corpus.jsonl:6", "expected an id under _id or doc_id or id, found None"),
        ("corpus.jsonl:7", "not valid JSON"),
        ("corpus.jsonl:8", "expected texts under title and text, found ['', 5]"),
        ("queries.jsonl:5", "the query is empty"),
        ("test.tsv:3", "no query has the id 'q9'"),
        ("test.tsv:4", "no document has the id 'd7'"),
        ("test.tsv:5", "expected a whole number as score, found 'much'"),
        ("test.tsv:6", "the document 'd1' is judged twice for this query"),
    ]:
        assert f"{place}: {says}" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 10


def test_rows_that_name_documents_are_checked_like_judgements_and_long_lists_are_cut(tmp_path):
    lines(tmp_path / "corpus.jsonl", [{"doc_id": "d1", "text": "one"}])
    bad = [{"doc_id": "d2"}, "one", {"doc_id": "d1", "score": 0.5}]
    rows = [
        {"id": 1, "query": "a", "positives": bad},
        {"id": "1", "query": "b", "positives": None},
        {"id": 2},
    ]
    lines(tmp_path / "test.jsonl", rows + [{}] * 30)

    with pytest.raises(DataError) as caught:
        read(tmp_path)

    told = str(caught.value)
    for says in (
        "test.jsonl:1: no document has the id 'd2'",
        "test.jsonl:1: positives: expected {doc_id, score}, found 'one'",
        "test.jsonl:1: expected a whole number as score, found 0.5",
        "test.jsonl:2: the id '1' stands twice",
        "test.jsonl:2: expected a list under 'positives', found None",
        "test.jsonl:3: expected a text under 'query', found None",
    ):
        assert says in told
    assert told.endswith("and 16 more")


def test_files_that_are_not_there_or_judge_nothing_are_told(tmp_path):
    with pytest.raises(DataError, match=r"dev\.tsv: no such file\. Did you mean 'test\.tsv'"):
        read(beir(tmp_path / "a"), "dev")
    with pytest.raises(DataError, match="none of 4 queries has a relevant document"):
        read(beir(tmp_path / "b", ["q1\td1\t0"]))
    with pytest.raises(DataError, match=r"nothing/test\.jsonl|nothing: no such file"):
        read(tmp_path / "nothing")
    beir(tmp_path / "c")
    lines(tmp_path / "c" / "qrels" / "test.tsv", ["q1\td1\t1", "q2\td1\t1"])
    with pytest.raises(DataError, match="expected the header query-id corpus-id score"):
        read(tmp_path / "c")


def test_reranking_orders_the_texts_of_a_query_and_never_by_what_they_are(tmp_path):
    rows = [
        {"query": "10", "positives": ["12", "30"], "negatives": ["80", "11"]},
        {"query": "90", "positives": ["80"], "negatives": ["30", "0"]},
        {"query": "45", "positives": [], "negatives": ["1"]},
    ]
    sides = {"positives": "negatives", "negatives": "positives"}
    lines(tmp_path / "one.jsonl", rows)
    lines(
        tmp_path / "two.jsonl", [{sides.get(name, name): part for name, part in row.items()} for row in rows]
    )
    task, swapped = read(tmp_path / "one.jsonl"), read(tmp_path / "two.jsonl")

    found = retrieve(task, embedder(turned))

    texts = [[task.corpus[document] for document in own] for own in found.predictions]
    assert texts == [["11", "12", "30", "80"], ["80", "30", "0"]] and len(task.corpus) == 6
    gains = [{task.corpus[document]: gain for document, gain in own.items()} for own in found.references]
    assert gains == [{"12": 1, "30": 1, "80": 0, "11": 0}, {"80": 1, "30": 0, "0": 0}]
    assert task.notes == ("1 of 3 queries have no relevant document and are left out.",)
    # Where all texts are alike to the model, relevant ones do not come first.
    same = embedder(lambda text: (1, 0))
    assert retrieve(task, same).predictions == retrieve(swapped, same).predictions[:2]
    assert read(tmp_path / "one.jsonl", name="x").digest == task.digest != swapped.digest


def test_reranking_files_with_faults_are_told_line_by_line(tmp_path):
    lines(
        tmp_path / "test.jsonl",
        [{"query": "a", "positives": ["x", ""], "negatives": ["x", 3]}, {"query": "a", "positives": ["x"]}],
    )

    with pytest.raises(DataError) as caught:
        read(tmp_path)

    for says in (
        "test.jsonl:1: positives: expected texts, found ''",
        "test.jsonl:1: negatives: expected texts, found 3",
        "test.jsonl:1: 'x' is among the positives and the negatives",
        "test.jsonl:2: expected a list under 'negatives', found None",
    ):
        assert says in str(caught.value)


@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared task data")
@pytest.mark.parametrize("name", ["medquad_retrieval", "xquad_r_retrieval"])
def test_shared_tasks_are_read_whole(name):
    sizes = json.loads((SHARED / name / "meta.json").read_text("utf-8"))["sizes"]

    for split in ("validation", "test"):
        task = read(SHARED / name, split)
        assert (len(task.queries), len(task.corpus), task.notes) == (sizes[split], sizes["corpus"], ())


def test_the_room_needs_no_torch():
    code = "import sys, mtnlp.bench.retrieval, mtnlp.bench.vectors; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
