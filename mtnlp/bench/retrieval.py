"""Retrieval and reranking: a corpus, queries, which documents answer them, and what a model ranks first.

Read from a folder or file in one of three layouts (`read`):
    corpus.jsonl {_id, title, text}, queries.jsonl {_id, text}, qrels/SPLIT.tsv (query-id corpus-id score),
        as in BEIR (Thakur et al. 2021, arXiv:2104.08663)
    corpus.jsonl {doc_id, title, text}, SPLIT.jsonl {id, query, positives: [{doc_id, score}]}
    SPLIT.jsonl, or one file, {query, positives: [text], negatives: [text]}: only a query's own texts are
        ranked (reranking)

`retrieve` gives what metrics of the kind "retrieve" read: ranked document ids, and mappings id -> gain. Needs
no torch itself. Shapes: Q queries, N documents, D width, k ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtnlp.bench.samples import key_of
from mtnlp.data import readers
from mtnlp.errors import DataError, MtnlpError, shown

if TYPE_CHECKING:
    from mtnlp.bench.vectors import Vectors
    from mtnlp.models.embedding import Embedder

IDS = ("_id", "doc_id", "id")
QRELS = ("query-id", "corpus-id", "score")
DEPTH = 1000  # ranks that are kept: as many as trec_eval and BEIR score by default
SHOWN = 20  # problems in one message
QUERIES_AT_ONCE, DOCUMENTS_AT_ONCE = 512, 8192  # a block of cosines has 32 MiB
Qrels = dict[str, dict[str, int]]


@dataclass(frozen=True)
class RetrievalTask:
    """One task.

    Args:
        corpus: document id -> text; the order breaks ties.
        queries: query id -> text; each has a relevant document.
        qrels: query id -> document id -> gain, above 0 = relevant. A document without one has gain 0.
        candidates: query id -> the only documents that are ranked for it; None = the whole corpus.
        notes: what was left out when it was read, counted.
    """

    name: str
    corpus: Mapping[str, str]
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]
    candidates: Mapping[str, tuple[str, ...]] | None = None
    notes: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits of all that scores depend on; the same for the same content anywhere."""
        judged = [(query, sorted(self.qrels[query].items())) for query in self.queries]
        ranked = self.candidates and [sorted(self.candidates[query]) for query in self.queries]
        return key_of([*self.corpus.items()], [*self.queries.items()], judged, ranked)


@dataclass(frozen=True)
class Ranked:
    """What a model made of a task; the parts are in the order of the task's queries.

    Args:
        predictions: (Q,) document ids, best first, at most DEPTH or as many as asked for.
        references: (Q,) document id -> gain.
        scores: (Q,) cosines of the ranked documents, float64.
        notes: those of the task, texts that were cut, and vectors that are not finite.
    """

    predictions: list[tuple[str, ...]]
    references: list[Mapping[str, int]]
    scores: list[np.ndarray]
    notes: tuple[str, ...]


def retrieve(task: RetrievalTask, embedder: Embedder | Vectors, *, k: int = DEPTH) -> Ranked:
    """Rank the corpus, or a query's candidates, by cosine for every query.

    A document whose vector is not finite is not ranked, and a query with such a vector finds nothing; both
    are counted in the notes.

    Args:
        k: ranks that are kept.
    """
    names = list(task.corpus)
    documents = embedder.documents(list(task.corpus.values()))
    queries = embedder.queries(list(task.queries.values()))
    usable, asking = (_finite(own.vectors) for own in (documents, queries))
    notes = [*task.notes]
    for what, cut, good in (("documents", documents.cut, usable), ("queries", queries.cut, asking)):
        notes += [f"{len(cut)} of {len(good)} {what} are too long and were cut."] if cut else []
        bad = int((~good).sum())
        notes += [f"{bad} of {len(good)} {what} have vectors that are not finite numbers."] if bad else []
    predictions: list[tuple[str, ...]] = [()] * len(queries.vectors)
    scores = [np.zeros(0)] * len(queries.vectors)
    for rows, among in _searches(task, asking, usable):
        ids, found = rank(queries.vectors[rows], documents.vectors[among], k)
        for row, own, values in zip(rows, among[ids], found):
            predictions[row], scores[row] = tuple(names[i] for i in own), values
    return Ranked(predictions, [task.qrels[query] for query in task.queries], scores, tuple(notes))


def _searches(
    task: RetrievalTask, asking: np.ndarray, usable: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows of queries, ascending rows of the documents that are ranked for each of them)."""
    if task.candidates is None:
        yield np.flatnonzero(asking), np.flatnonzero(usable)
        return
    place = {name: i for i, name in enumerate(task.corpus)}
    for row, query in enumerate(task.queries):
        among = np.array(sorted(place[name] for name in task.candidates[query]), np.int64)
        yield np.array([row] if asking[row] else [], np.int64), among[usable[among]]


def rank(queries: np.ndarray, documents: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k documents of highest cosine for every query, exactly.

    Cosines are computed in float64 and rounded to a multiple of 2^-30 (1e-9), so that those of equal
    documents are equal, whatever block they are in; equal ones keep the order of the documents. Memory is
    bounded but for what is given and returned.

    Args:
        queries: (Q, D); documents: (N, D); of any length. The cosine with a vector of zeros is 0.
        k: at most so many; all where there are fewer.

    Returns:
        (Q, min(k, N)) int64 rows of documents, best first, and (Q, min(k, N)) float64 cosines.

    Raises:
        MtnlpError: other shapes, k below 1, or values that are not finite.
    """
    if queries.ndim != 2 or documents.ndim != 2 or queries.shape[1] != documents.shape[1]:
        raise MtnlpError(
            f"Queries of shape {queries.shape} and documents of shape {documents.shape} cannot be compared; "
            "expected (queries, width) and (documents, width), embedded by one model."
        )
    if k < 1:
        raise MtnlpError(f"k={k} must be 1 or more.")
    for what, vectors in (("queries", queries), ("documents", documents)):
        if bad := int((~_finite(vectors)).sum()):
            raise MtnlpError(f"{bad} of {len(vectors)} {what} have vectors that are not finite; drop them.")
    best = np.zeros((len(queries), 0), np.uint64)
    for first in range(0, len(documents), DOCUMENTS_AT_ONCE):
        block = _unit(documents[first : first + DOCUMENTS_AT_ONCE])
        kept = min(k, best.shape[1] + len(block))
        found = np.empty((len(queries), kept), np.uint64)
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            some = slice(start, start + QUERIES_AT_ONCE)
            keys = _keys(_unit(queries[some]) @ block.T, first)
            keys = np.concatenate([best[some], keys], axis=1)
            found[some] = np.partition(keys, keys.shape[1] - kept, axis=1)[:, keys.shape[1] - kept :]
        best = found
    best.sort(axis=1)
    return _read(best[:, ::-1])


# A cosine and the row of its document are one number that sorts as wanted: above the lower 32 bits the cosine
# in steps of 2^-30, counted from -2, and in them the row, counted backwards.
_STEPS, _ZERO, _ROWS = 1 << 30, 1 << 31, (1 << 32) - 1


def _keys(cosines: np.ndarray, first: int) -> np.ndarray:
    """(Q, n) uint64 of the documents from row `first` on."""
    steps = (np.rint(cosines * _STEPS) + _ZERO).astype(np.uint64)
    rows = np.arange(first, first + cosines.shape[1], dtype=np.uint64)
    return (steps << np.uint64(32)) | (np.uint64(_ROWS) - rows)


def _read(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and cosines of keys."""
    rows = np.uint64(_ROWS) - (keys & np.uint64(_ROWS))
    return rows.astype(np.int64), ((keys >> np.uint64(32)).astype(np.float64) - _ZERO) / _STEPS


def _finite(vectors: np.ndarray) -> np.ndarray:
    """(N,) bool, of vectors of float32: their sums cannot overflow."""
    return np.isfinite(vectors.sum(1, dtype=np.float64))


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths == 0, 1, lengths)


# Files.


def read(path: str | Path, split: str = "test", *, name: str | None = None) -> RetrievalTask:
    """The task of a folder or file, in one of the layouts above.

    Queries that have no relevant document, or none that is judged, are left out and counted in the notes, as
    trec_eval leaves them out; so are documents without a text counted, which stay.

    Args:
        split: the file of queries or qrels that is asked.
        name: of the task; None = that of the folder or file.

    Raises:
        DataError: everything that is wrong with the files, each with its line.
    """
    path, problems = Path(path), []
    notes: list[str] = []
    if not (path / "corpus.jsonl").is_file():
        file = path / f"{split}.jsonl" if path.is_dir() else path
        corpus, queries, qrels, candidates = _reranking(file, problems)
    else:
        corpus, candidates = _texts(path / "corpus.jsonl", problems), None
        if not corpus:  # nothing could be judged
            raise DataError(
                "\n  ".join([f"{path / 'corpus.jsonl'}: no document can be read.", *problems[:SHOWN]])
            )
        if (path / "queries.jsonl").is_file():
            queries = _texts(path / "queries.jsonl", problems, empty=False)
            qrels = _qrels(path / "qrels" / f"{split}.tsv", corpus, queries, problems)
        else:
            queries, qrels = _judged(path / f"{split}.jsonl", corpus, problems)
    if problems:
        more = [f"  and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise DataError("\n".join([f"{path}:", *(f"  {problem}" for problem in problems[:SHOWN]), *more]))
    if empty := sum(not text for text in corpus.values()):
        notes.append(f"{empty} of {len(corpus)} documents have no text.")
    relevant = {query for query, gains in qrels.items() if any(gain > 0 for gain in gains.values())}
    kept = {query: text for query, text in queries.items() if query in relevant}
    if unjudged := len(queries.keys() - qrels.keys()):
        notes.append(f"{unjudged} of {len(queries)} queries have no judged document and are left out.")
    if without := len(queries) - unjudged - len(kept):
        notes.append(f"{without} of {len(queries)} queries have no relevant document and are left out.")
    if not kept:
        raise DataError(f"{path}: none of {len(queries)} queries has a relevant document (gain above 0).")
    return RetrievalTask(
        name or (path.name if path.is_dir() else path.stem), corpus, kept, qrels, candidates, tuple(notes)
    )


def _rows(path: Path, problems: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and content of each row that can be read; what cannot is a problem."""
    try:
        rows, lines = readers.read(path)
    except DataError as error:
        problems.append(str(error))
        return
    for i in range(len(rows)):
        try:
            yield f"{path}:{i + 1 if lines is None else lines[i]}", rows[i]
        except DataError as error:
            problems.append(str(error))


class _Ids:
    """Ids that may stand once each, and where they stood."""

    def __init__(self, problems: list[str]) -> None:
        self.problems, self._places = problems, {}

    def of(self, row: Mapping[str, Any], place: str) -> str | None:
        """The id of a row; None, and a problem, where there is none or it stood before."""
        found = next((row[name] for name in IDS if name in row), None)
        if isinstance(found, bool) or not isinstance(found, (str, int)) or found == "":
            self.problems.append(f"{place}: expected an id under {' or '.join(IDS)}, found {shown(found)}.")
            return None
        if str(found) in self._places:
            self.problems.append(
                f"{place}: the id {shown(found)} stands twice, first in {self._places[str(found)]}."
            )
            return None
        self._places[str(found)] = place
        return str(found)


def _texts(path: Path, problems: list[str], *, empty: bool = True) -> dict[str, str]:
    """Id -> title and text, of documents or queries. empty: whether a text may be missing or blank."""
    ids, found = _Ids(problems), {}
    for place, row in _rows(path, problems):
        key = ids.of(row, place)
        parts = [row.get(name) if row.get(name) is not None else "" for name in ("title", "text")]
        if not all(isinstance(part, str) for part in parts):
            problems.append(f"{place}: expected texts under title and text, found {shown(parts)}.")
            continue
        text = " ".join(part for part in parts if part).strip()
        if not (text or empty):
            problems.append(f"{place}: the query is empty.")
        if key is not None:
            found[key] = text
    return found


def _qrels(path: Path, corpus: Mapping[str, str], queries: Mapping[str, str], problems: list[str]) -> Qrels:
    found: Qrels = {}
    for place, row in _rows(path, problems):
        if missing := [name for name in QRELS if name not in row]:
            problems.append(
                f"{place}: no column {' and no '.join(missing)}; expected the header {' '.join(QRELS)}, with "
                "tabs between."
            )
            return found
        query, document, score = (row[name] for name in QRELS)
        if query not in queries:
            problems.append(f"{place}: no query has the id {shown(query)}.")
        _judge(found.setdefault(query, {}), document, score, corpus, place, problems)
    return found


def _judge(
    gains: dict[str, int],
    document: Any,
    score: Any,
    corpus: Mapping[str, str],
    place: str,
    problems: list[str],
) -> None:
    """Writes one judgement of a query into its gains, or a problem."""
    try:
        gain = int(score)
    except (TypeError, ValueError, OverflowError):
        gain = None
    if gain is None or (isinstance(score, float) and gain != score):
        problems.append(f"{place}: expected a whole number as score, found {shown(score)}.")
    elif str(document) not in corpus:
        problems.append(f"{place}: no document has the id {shown(document)}.")
    elif str(document) in gains:
        problems.append(f"{place}: the document {shown(document)} is judged twice for this query.")
    else:
        gains[str(document)] = gain


def _asked(path: Path, problems: list[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Place, query and row of each row with a query that is a text."""
    for place, row in _rows(path, problems):
        query = row.get("query")
        if isinstance(query, str) and query.strip():
            yield place, query, row
        else:
            problems.append(f"{place}: expected a text under 'query', found {shown(query)}.")


def _judged(path: Path, corpus: Mapping[str, str], problems: list[str]) -> tuple[dict[str, str], Qrels]:
    """Queries that name documents of the corpus."""
    ids, queries, qrels = _Ids(problems), {}, {}
    for place, query, row in _asked(path, problems):
        key, gains = ids.of(row, place), {}
        for item in _list(row, "positives", place, problems):
            if isinstance(item, dict) and "doc_id" in item:
                _judge(gains, item["doc_id"], item.get("score", 1), corpus, place, problems)
            else:
                problems.append(f"{place}: positives: expected {{doc_id, score}}, found {shown(item)}.")
        if key is not None:
            queries[key], qrels[key] = query, gains
    return queries, qrels


def _reranking(
    path: Path, problems: list[str]
) -> tuple[dict[str, str], dict[str, str], Qrels, dict[str, tuple[str, ...]]]:
    """Corpus, queries, qrels and candidates. Equal texts are one document.

    Documents are called, and stand, by a hash of their text: if relevant ones came first, a model that says
    the same of all texts would be right.
    """
    corpus: dict[str, str] = {}
    queries: dict[str, str] = {}
    qrels: Qrels = {}
    for place, query, row in _asked(path, problems):
        own = {}
        for side in ("negatives", "positives"):
            for text in _list(row, side, place, problems):
                if not isinstance(text, str) or not text.strip():
                    problems.append(f"{place}: {side}: expected texts, found {shown(text)}.")
                    continue
                key, gain = key_of(text), int(side == "positives")
                if own.setdefault(key, gain) != gain:
                    problems.append(f"{place}: {shown(text)} is among the positives and the negatives.")
                corpus[key] = text
        number = place.rpartition(":")[2]
        queries[number], qrels[number] = query, own
    candidates = {query: tuple(sorted(own)) for query, own in qrels.items()}
    return {key: corpus[key] for key in sorted(corpus)}, queries, qrels, candidates


def _list(row: Mapping[str, Any], name: str, place: str, problems: list[str]) -> list[Any]:
    found = row.get(name)
    if isinstance(found, list):
        return found
    problems.append(f"{place}: expected a list under {name!r}, found {shown(found)}.")
    return []
