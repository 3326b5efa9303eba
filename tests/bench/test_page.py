"""The page of an evaluation: it needs nothing else, shows every number, and lets no text out of its place."""

from html.parser import HTMLParser

from mtnlp.bench.comparison import Comparison, TaskDifference
from mtnlp.bench.evaluate import GroupScore, Report, TaskScore
from mtnlp.bench.page import page

EVIL = "<script>alert(1)</script>\"'&"
INTERVAL = {"accuracy": {"stderr": 0.01, "low": 0.71, "high": 0.79}}
SCORES = (
    TaskScore(
        "a/b", "classify", "test", 1234, {"accuracy": 0.754, "macro_f1": 0.5}, {"accuracy": 0.25}, INTERVAL,
        notes=("3 of 1,234 inputs were cut.",),
        slices={"words": [{"name": "0 to 8", "n": 77, "value": 0.912}]},
        labels={EVIL: {"precision": 0.111, "recall": 0.222, "f1": 0.148, "count": 1717.0}},
    ),
    TaskScore(EVIL, "regress", "test", 10, {"mse": 7.5}, {"mse": 2.0}),
)  # fmt: skip
DIFFERENCE = TaskDifference(
    "a/b", "accuracy", 1234, 0.7, 0.754, 0.054, 0.01, 0.1, 0.01, 0.02, None, 0.04, "better"
)


class Seen(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.links = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "line", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_shows_all_and_loads_nothing():
    report = Report(
        SCORES,
        {"target": EVIL, "suite": "s"},
        (GroupScore("all", "macro", 0.42, 0.01, ("a/b",)),),
        ({"task": "c", "reason": EVIL},),
        overlap={"tasks": [{"task": "a/b", "rows": 9, "exact": 1, "near": 2, "fraction": 1 / 3}]},
    )
    wrong = {"a/b": [{"row": "f:1", "inputs": {"text": EVIL}, "target": 1, "value": 0}]}

    seen = Seen(page(report, wrong, [Comparison("x", "y", (DIFFERENCE,), ("d: not compared.",))]))

    text = " ".join(seen.text)
    assert not seen.open and not seen.links and "script" not in seen.tags and "http" not in text
    for part in ("0.754", "0.710 to 0.790", "0.250", "7.500", "0.420", "1,234", "0.912", "0 to 8", "+0.054",
                 "better", "0.111", "0.222", "0.148", "1,717", "3 of 1,234 inputs were cut.", "33.3%",
                 "d: not compared."):  # fmt: skip
        assert part in text
    assert text.count(EVIL) >= 5 and seen.tags.count("svg") == 1 and seen.tags.count("circle") == 2


def test_how_likely_texts_are_has_no_wrong_answers_and_leaves_the_chart_to_scores():
    texts = TaskScore("books", "text", "test", 10, {"perplexity": 412.0}, {})
    wrong = {"books": [{"row": "f:1", "inputs": {"text": "x"}, "target": ["x"], "value": {"logprob": -1.0}}]}

    mixed, alone = page(Report((SCORES[0], texts)), wrong), page(Report((texts,)), wrong)

    assert "412.000" in mixed and "Wrong answers" not in mixed
    assert mixed.count("<circle") == alone.count("<circle") == 1 and ">1</text>" in mixed


def test_a_page_of_nothing_says_so():
    assert "Nothing was scored." in page(Report(()), {})
