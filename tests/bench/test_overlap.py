"""Overlap against a search that compares every test row with every train row, word for word."""

from __future__ import annotations

import json
import random
from collections import Counter

import numpy as np
import pytest

from mtnlp.bench import overlap as module
from mtnlp.bench.overlap import SHORTEST, Hit, overlap, text_of, words_of
from mtnlp.errors import MtnlpError
from mtnlp.tasks.spec import Example, TaskSpec

LONG = "it was the best of times it was the worst of times it was the age of wisdom and of foolishness"


def grams(words, n):
    """Windows of n words; a shorter text is one window, unless it is too short for any."""
    if len(words) < min(SHORTEST, n):
        return []
    return [tuple(words[i : i + n]) for i in range(max(len(words) - n + 1, 1))]


def holds(row, gram):
    return any(tuple(row[i : i + len(gram)]) == gram for i in range(len(row) - len(gram) + 1))


def brute_force(train, texts, n, share):
    """Hits of one test task by looking at all rows for each of its grams."""
    rows = [(task, i, words_of(text)) for task, own in train.items() for i, text in enumerate(own)]
    hits = []
    for row, text in enumerate(texts):
        words = words_of(text)
        equal = [(task, i) for task, i, other in rows if words and other == words]
        if equal:
            hits.append(Hit(row, True, 1.0, *equal[0]))
            continue
        own = grams(words, n)
        first = [next((k for k, row in enumerate(rows) if holds(row[2], gram)), None) for gram in own]
        there = Counter(k for k in first if k is not None)
        if own and there.total() / len(own) >= share:
            most = min(k for k in there if there[k] == max(there.values()))
            hits.append(Hit(row, False, there.total() / len(own), *rows[most][:2]))
    return tuple(hits)


def corpus(seed):
    """Train and test with planted copies: equal up to case and punctuation, changed by a word, cut, or put
    inside other text; and rows that are empty, short or made of the few words that all rows are made of."""
    draw = random.Random(seed)
    known = ["a", "b", "été", "Straße", "да", "第", "x1", "can't", "ок", "मान"]

    def text(most):
        return " ".join(draw.choice(known) for _ in range(draw.randrange(most)))

    def copied(text):
        words = text.split()
        kind = draw.randrange(5)
        if kind == 0:
            return text.upper() + "!?"
        if kind == 1 and words:
            words[draw.randrange(len(words))] = "new"
        if kind == 2:
            words = words[: len(words) // 2]
        if kind == 3:
            words = ["so", *words, "there"]
        return ", ".join(words)

    test = {name: [text(24) for _ in range(12)] for name in ("p", "q")}
    test["none"] = []
    old = [*test["p"], *test["q"]]
    train = {name: [text(40) for _ in range(30)] for name in ("s", "t")}
    train["t"] += [copied(draw.choice(old)) for _ in range(10)]
    train["u"] = []
    train["v"] = [copied(draw.choice(old)) for _ in range(10)]
    return train, test


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("n", "share"), [(13, 0.5), (3, 0.3), (1, 1.0), (9, 0.01)])
def test_the_hits_are_those_of_a_search_through_all_rows(seed, n, share, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 50)  # several chunks
    train, test = corpus(seed)

    found = overlap({task: iter(texts) for task, texts in train.items()}, test, n=n, share=share)

    assert found.train_rows == 80
    for task in found.tasks:
        wanted = brute_force(train, test[task.task], n, share)
        lengths = [len(words_of(text)) for text in test[task.task]]
        assert task.hits == wanted
        assert (task.exact, task.near) == tuple(sum(h.exact is e for h in wanted) for e in (True, False))
        assert (task.rows, task.empty) == (len(lengths), lengths.count(0))
        assert task.short == sum(0 < length < min(SHORTEST, n) for length in lengths)
        assert task.sources == Counter(hit.train_task for hit in wanted)


def test_a_suite_that_was_trained_on_overlaps_completely():
    _, test = corpus(3)

    found = overlap(test, test)

    for task in found.tasks[:2]:
        assert task.fraction == 1.0
        assert task.exact == task.rows - task.empty
    assert found.tasks[2].fraction == 0.0


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("Don't stop -- me,  now!", "don t STOP me\tnow"),
        ("STRASSE", "straße"),
        ("caf\u00e9", "CAFE\u0301"),
        ("co\u00adoperate\ufeff", "cooperate"),
        ("«Привет», мир…", "привет мир"),
        ("你好，世界。", "你好世界"),
        ("", " \n!?… "),
        ("half \ud800 pair", "half pair"),
    ],
)
def test_texts_are_equal_up_to_case_punctuation_and_spaces(a, b):
    found = overlap({"train": [b]}, {"test": [a]})

    assert words_of(a) == words_of(b)
    assert found.tasks[0].exact == bool(words_of(a))


def test_different_texts_stay_different():
    pairs = [("great 😀", "great 😡"), ("हिन्दी", "हनद"), ("ab", "a b"), ("3.5", "35"), ("a\n\nb", "ab")]

    for a, b in pairs:
        assert overlap({"train": [b]}, {"test": [a]}).tasks[0].hits == ()


def test_scripts_without_spaces_have_near_duplicates():
    text = "明日は東京で友達と一緒に映画を見に行く予定です"

    (hit,) = overlap({"train": ["昨日の話。" + text]}, {"test": [text]}).tasks[0].hits

    assert (hit.exact, hit.share) == (False, 1.0)


def test_short_texts_are_not_looked_for_inside_others():
    words = LONG.split()
    train = {"train": [f"she said {LONG} and left"]}

    found = overlap(train, {"test": [" ".join(words[:7]), " ".join(words[:8])]})

    assert [hit.row for hit in found.tasks[0].hits] == [1]
    assert found.tasks[0].short == 1


def test_the_row_that_most_grams_come_from_is_named_and_shown():
    words = LONG.split()
    rows = [" ".join(words[:13]), "unrelated", f"Then: {LONG.upper()} indeed", LONG.title()]

    shown = overlap({"a": rows[:2], "b": rows[2:]}, {"test": ["nothing", f"{LONG} again"]}).tasks[0]

    assert [(hit.row, hit.train_task, hit.train_row) for hit in shown.hits] == [(1, "b", 0)]
    assert [(pair.text, pair.train_text) for pair in shown.pairs] == [(f"{LONG} again", rows[2])]


def test_equal_hashes_of_different_words_are_no_hit(monkeypatch):
    monkeypatch.setattr(module, "_values", lambda words, seed: np.ones(words, np.uint64))
    words = LONG.split()[:13]
    turned = " ".join(reversed(words))

    found = overlap({"train": [turned, f"see {' '.join(words)}"]}, {"test": [f"{' '.join(words)}"]})

    assert [(hit.share, hit.train_row) for hit in found.tasks[0].hits] == [(1.0, 1)]


def test_test_grams_with_one_hash_are_hashed_anew(monkeypatch):
    tried, values = [], module._values

    def bad_at_first(words, seed):
        tried.append(seed)
        return np.ones(words, np.uint64) if seed == 0 else values(words, seed)

    monkeypatch.setattr(module, "_values", bad_at_first)
    train, test = corpus(5)

    found = overlap(train, test)

    assert tried == [0, 1]
    assert found.tasks[0].hits == brute_force(train, test["p"], 13, 0.5)


def test_all_inputs_of_every_kind_become_text():
    inputs = {
        "pair": {"text_pair": "second", "text": "first"},
        "choose": {"question": "who", "choices": ["she", "he"], "context": "long ago"},
        "tag": {"tokens": ["two", "words"]},
        "span": {"question": "who", "context": "long ago"},
        "generate": {"text": "first"},
    }
    texts = {
        kind: text_of(TaskSpec("t", kind, {}), Example("t", 0, own, None)) for kind, own in inputs.items()
    }

    assert texts == {
        "pair": "first\nsecond",
        "choose": "who\nshe he\nlong ago",
        "tag": "two words",
        "span": "who\nlong ago",
        "generate": "first",
    }


def test_the_result_is_plain_data_and_prints(capsys):
    found = overlap({"a": [LONG]}, {"test": [LONG.upper(), "other"]})

    found.print()

    (task,) = json.loads(json.dumps(found.as_dict()))["tasks"]
    assert (task["fraction"], task["exact"], task["sources"]) == (0.5, 1, {"a": 1})
    assert "50.0%" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("train", "test", "options", "message"),
    [
        ({"a": "one text"}, {}, {}, "train task a: found one text 'one text'; expected many"),
        ({}, {"b": ["x", None]}, {}, "test task b, row 1: found None; expected a text"),
        ({}, {}, {"n": 0}, "n=0"),
        ({}, {}, {"share": 0.0}, r"a share in \(0, 1\]"),
    ],
)
def test_what_is_no_text_is_refused(train, test, options, message):
    with pytest.raises(MtnlpError, match=message):
        overlap(train, test, **options)
