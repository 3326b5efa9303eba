"""Retrieval through a suite file, against the bare network on one text at a time and nDCG by hand.

test_harness.py has it on two processes.
"""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
import tiny
import tiny_tasks
import torch
import transformers as tr
from tiny_hub import stand_in

import mtnlp
from mtnlp import strategies
from mtnlp.cli.main import main
from mtnlp.data.kept import cache_dir
from mtnlp.models.embedding import Embedder, embed
from mtnlp.runs import judge, saved, search, targets

DOCUMENTS, QUERIES = 60, 8


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MTNLP_CACHE", str(tmp_path / "cache"))


def written(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")


def corpus(folder, **edited):
    """A folder of texts of random words in the layout of BEIR; `edited`: document id -> another text."""
    draw = random.Random(3)
    texts = [" ".join(draw.choices(tiny_tasks.WORDS, k=draw.randint(5, 60))) for _ in range(DOCUMENTS)]
    texts[7] = " ".join(tiny_tasks.WORDS * 20)  # longer than the model reads
    found = {f"d{i}": text for i, text in enumerate(texts)} | edited
    asked = {f"q{i}": " ".join(draw.choices(tiny_tasks.WORDS, k=4)) for i in range(QUERIES)}
    gains = {
        query: {f"d{i}": draw.randint(1, 3) for i in draw.sample(range(DOCUMENTS), 6)} for query in asked
    }
    written(folder / "corpus.jsonl", [{"_id": i, "title": "", "text": text} for i, text in found.items()])
    written(folder / "queries.jsonl", [{"_id": i, "text": text} for i, text in asked.items()])
    lines = [f"{query}\t{i}\t{gain}" for query, own in gains.items() for i, gain in own.items()]
    (folder / "qrels").mkdir(exist_ok=True)
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    return found, asked, gains


def suite(folder, *entries):
    """A suite file; an entry is a name, or a name and a path."""
    pairs = [entry if isinstance(entry, tuple) else (entry, "corpus") for entry in entries]
    text = {
        "name": "found",
        "version": 1,
        "retrieval": [{"name": name, "path": path} for name, path in pairs],
    }
    (folder / "found.yaml").write_text(json.dumps(text))
    return str(folder / "found.yaml")


def ndcg(vectors, asked, found, gains):
    """The mean over queries of nDCG at 10 (Järvelin and Kekäläinen 2002), from vectors of documents, then of
    queries."""
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    table, values = vectors[len(found) :] @ vectors[: len(found)].T, []
    for query, cosines in zip(asked, table, strict=True):
        ranked = [list(found)[i] for i in np.argsort(-cosines)[:10]]
        own, best = [gains[query].get(i, 0) for i in ranked], sorted(gains[query].values(), reverse=True)
        values.append(
            np.divide(*(sum(gain / math.log2(i + 2) for i, gain in enumerate(row)) for row in (own, best)))
        )
    return float(np.mean(values))


@torch.no_grad()
def bare(folder, texts, net=None):
    """Means of the states of the network as transformers loads it, one text at a time."""
    net = net or tr.AutoModel.from_pretrained(folder).eval()
    tokenizer = tr.AutoTokenizer.from_pretrained(folder)
    rows = [tokenizer(text, return_tensors="pt", truncation=True, max_length=512) for text in texts]
    return np.stack([net(row["input_ids"]).last_hidden_state[0].double().mean(0).numpy() for row in rows])


def scored(*line):
    """The report of `mtnlp eval` without when and what, and the exit code."""
    evaluation = judge.judge([str(line[0])], line[1]).evaluations[0]
    report = {"skipped": [], **json.loads(json.dumps(evaluation.report.as_dict()))}
    return {key: report[key] for key in report if key != "about"}


def counted(monkeypatch):
    """Texts that are embedded from now on, and how many batches they come in."""
    seen, batches, real, run = [], [], Embedder.batches, Embedder._vectors
    monkeypatch.setattr(
        Embedder, "batches", lambda self, texts, *more: seen.extend(texts) or real(self, texts, *more)
    )
    monkeypatch.setattr(Embedder, "_vectors", lambda self, batch: batches.append(batch) or run(self, batch))
    return seen, batches


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """An encoder, and a folder of texts."""
    folder = tmp_path_factory.mktemp("search")
    stand_in("minilm", folder / "minilm")
    corpus(folder / "corpus")
    return folder


def test_scores_are_those_of_ranking_by_hand_and_a_second_time_no_model_is_loaded(lab, tmp_path, monkeypatch):
    found, asked, gains = corpus(lab / "corpus")
    out, line = tmp_path / "out", ["eval", str(lab / "minilm"), "--suite", suite(lab, "mine"), "--out"]
    with pytest.raises(SystemExit) as stopped:
        main([*line, str(out)])

    (score,) = json.loads((out / "results.json").read_text())["scores"]
    rows = [json.loads(row) for row in (out / "samples" / "mine.jsonl").read_text().splitlines()]
    vectors = bare(lab / "minilm", [*found.values(), *asked.values()])
    assert stopped.value.code == 0 and score["n"] == QUERIES
    assert score["values"]["ndcg_10"] == pytest.approx(ndcg(vectors, asked, found, gains), abs=1e-9) and (
        0 < score["values"]["ndcg_10"] < 1
    )
    assert score["notes"] == [f"1 of {DOCUMENTS} documents are too long and were cut."]
    assert [row["target"] for row in rows] == list(gains.values())

    monkeypatch.setattr(targets.ModelTarget, "_load", lambda self: pytest.fail("the model was loaded"))
    with pytest.raises(SystemExit):
        main([*line, str(tmp_path / "again")])
    assert json.loads((tmp_path / "again" / "results.json").read_text())["scores"] == [score]


def test_of_a_changed_corpus_only_what_is_new_is_embedded(lab, tmp_path, monkeypatch):
    scored(lab / "minilm", suite(lab, "mine"))
    found, asked, gains = corpus(
        tmp_path / "corpus", d3="something else", d60="d5 was here", d61="d5 was here"
    )
    seen, _ = counted(monkeypatch)

    report = scored(lab / "minilm", suite(tmp_path, "mine", "again"))

    assert sorted(seen) == ["d5 was here", "something else"]
    vectors = bare(lab / "minilm", [*found.values(), *asked.values()])
    for score in report["scores"]:
        assert score["values"]["ndcg_10"] == pytest.approx(ndcg(vectors, asked, found, gains), abs=1e-9)


def test_a_kill_loses_one_batch_and_changes_no_bit(lab, monkeypatch):
    path, (_, batches) = suite(lab, "mine"), counted(monkeypatch)
    whole = scored(lab / "minilm", path)
    (file,) = (cache_dir() / "answers").glob("*.jsonl")
    kept, count, real = sorted(file.read_text().splitlines()), len(batches), Embedder._vectors
    file.unlink()
    batches.clear()
    limit = []

    def killed(self, batch):
        if len(batches) == limit[-1]:
            raise KeyboardInterrupt
        return real(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(Embedder, "_vectors", killed)
        for stop in (1, 2, count - 1):
            limit.append(stop)
            with pytest.raises(KeyboardInterrupt):
                scored(lab / "minilm", path)

    assert scored(lab / "minilm", path) == whole and len(batches) == count > 3
    assert sorted(file.read_text().splitlines()) == kept


@pytest.mark.parametrize("strategy", ["lora", "lora-per-task"])
def test_a_run_of_several_tasks_embeds_as_all_of_them_or_as_the_one_of_that_name(lab, tmp_path, strategy):
    tasks = [tiny_tasks.task(name, "classify") for name in ("one", "two")]
    recipe = tiny_tasks.recipe(str(lab / "minilm"), tasks, strategy=strategy, lr=0.05)
    mtnlp.finetune(recipe, out=tmp_path / "run")
    found, asked, gains = corpus(tmp_path / "corpus")
    model = saved.live(targets.open_target(str(tmp_path / "run")).found).predictor.model
    texts = [*found.values(), *asked.values()]
    one, two = (ndcg(embed(model, texts, task=name), asked, found, gains) for name in ("one", "two"))

    report = scored(tmp_path / "run", suite(tmp_path, "one", "two", "three"))

    values = [score["values"]["ndcg_10"] for score in report["scores"]]
    if strategy == "lora":
        assert values == pytest.approx([one] * 3, abs=1e-9) and not report["skipped"]
    else:
        assert values == pytest.approx([one, two], abs=1e-9) and one != two
        (left,) = report["skipped"]
        assert left["task"] == "three" and "for each of its tasks" in left["reason"]
        assert left["reason"].endswith("the name of the one that is to embed: one, two.")


@pytest.mark.parametrize("name", strategies.names())
def test_strategies_without_a_row_for_each_task_are_those_whose_vectors_are_alike(name):
    assert (tiny.model(name, "bert", ("a", "b")).strategy.bank is None) == (name in search.ALIKE)


def test_folders_with_faults_are_told_and_the_others_scored(lab, tmp_path, capsys):
    names = ("good", "no-qrels", "unknown", "empty", "nothing")
    for name in names[:-1]:
        corpus(tmp_path / name)
    (tmp_path / "no-qrels" / "qrels" / "test.tsv").unlink()
    (tmp_path / "unknown" / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq0\td99\t1\nq77\td1\t1\n"
    )
    (tmp_path / "empty" / "corpus.jsonl").write_text("")
    path = suite(tmp_path, *((name, name) for name in names))

    with pytest.raises(SystemExit) as stopped:
        main(["eval", str(lab / "minilm"), "--suite", path, "--out", str(tmp_path / "out")])

    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert stopped.value.code == 1 and [score["task"] for score in report["scores"]] == ["good"]
    reasons = {item["task"]: item["reason"] for item in report["skipped"]}
    for name, says in {
        "no-qrels": ["qrels/test.tsv: no such file"],
        "unknown": ["test.tsv:2: no document has the id 'd99'", "test.tsv:3: no query has the id 'q77'"],
        "empty": ["empty/corpus.jsonl: no document can be read"],
        "nothing": [str(tmp_path / "nothing"), "no such"],
    }.items():
        assert all(part in reasons[name] for part in says), reasons[name]


def test_a_model_without_vectors_is_told(lab, tmp_path):
    config = tr.BertConfig(
        vocab_size=320, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48
    )
    tr.BertForSequenceClassification(config).save_pretrained(tmp_path / "head")
    tr.AutoTokenizer.from_pretrained(lab / "minilm").save_pretrained(tmp_path / "head")

    (left,) = scored(tmp_path / "head", suite(lab, "mine"))["skipped"]

    assert "answers by a classification head and has no vectors" in left["reason"]


def test_with_several_adapters_the_one_of_that_name_embeds(lab, tmp_path):
    peft = pytest.importorskip("peft")
    stand_in("t5", tmp_path / "t5")
    for seed in (1, 2):
        net = tr.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "t5")
        net = peft.get_peft_model(net, peft.LoraConfig(r=4, target_modules=["q", "v"]))
        torch.manual_seed(seed)
        for key, value in net.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(value)
        net.save_pretrained(tmp_path / f"a{seed}")
    found, asked, gains = corpus(tmp_path / "corpus")
    both = [str(tmp_path / "a1"), str(tmp_path / "a2")]

    report = (
        judge.judge([str(tmp_path / "t5")], suite(tmp_path, "a1", "a2", "a3"), adapters=both)
        .evaluations[0]
        .report
    )

    for score, name in zip(report.scores, both, strict=True):
        net = peft.PeftModel.from_pretrained(tr.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "t5"), name)
        vectors = bare(tmp_path / "t5", [*found.values(), *asked.values()], net=net.eval().get_encoder())
        assert score.values["ndcg_10"] == pytest.approx(ndcg(vectors, asked, found, gains), abs=1e-9)
    assert "for each of its adapters" in report.skipped[0]["reason"]
