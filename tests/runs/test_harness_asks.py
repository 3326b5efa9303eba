"""What a suite can ask: requests of every kind, slices, clusters, labels and prompts, from file to page."""

from __future__ import annotations

import json
import re
from itertools import chain
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import tiny_tasks
from tiny_hub import stand_in

import mtnlp
from mtnlp import metrics
from mtnlp.bench import statistics
from mtnlp.bench.suites.files import EntrySection
from mtnlp.cli.main import main
from mtnlp.data import prompts
from mtnlp.runs import targets
from mtnlp.tasks.load import from_mapping
from mtnlp.tasks.spec import Example
from mtnlp.tasks.templates import render

WINDOW = 128  # tokens that a decoder reads at once in these tests
PERPLEXITIES = ["perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"]
ASKED = {  # request -> kind of task, and the models that can be asked so
    "auto": ("classify", {"t5", "llama", "run"}),
    "head": ("classify", {"run"}),
    "options": ("classify", {"t5", "llama"}),
    "generate": ("classify", {"t5", "llama"}),
    "likelihood": ("generate", {"t5", "llama"}),
    "text": ("generate", {"llama"}),
    "embed": ("choose", {"t5", "llama", "minilm", "run"}),
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with a model of each family, and a run of one task on the encoder."""
    folder = tmp_path_factory.mktemp("asks")
    for name, kind in (("t5", "t5"), ("llama", "SmolLM2"), ("minilm", "minilm")):
        stand_in(kind, folder / name)
    learned = ("auto", "head", "options", "generate", "embed")
    own = [tiny_tasks.task(f"own/{request}", ASKED[request][0]) for request in learned]
    mtnlp.finetune(tiny_tasks.recipe(str(folder / "minilm"), own), out=folder / "run")
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MTNLP_CACHE", str(tmp_path / "cache"))


def rows_of(name, kind, count=24):
    return tiny_tasks.task(name, kind, rows=count)["source"]["train"]


def entry(folder, name, kind, rows, **options):
    """A suite's entry of a task whose rows are written to a file, with columns of their own."""
    path = folder / f"{name.replace('/', '-')}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {**tiny_tasks.task(name, kind), "source": {"test": str(path)}}
    return {"task": task, **options}


def evaluated(model, entries, folder, code=0):
    """The results, the page and the answers by task, of `mtnlp eval` with a suite file of these entries."""
    (folder / "own.yaml").write_text(json.dumps({"version": 1, "split": "test", "tasks": entries}))
    with pytest.raises(SystemExit) as stopped:
        main(["eval", str(model), "--suite", str(folder / "own.yaml"), "--out", str(folder / "out")])
    assert stopped.value.code == code
    read = [
        json.loads((folder / "out" / "results.json").read_text()),
        (folder / "out" / "report.html").read_text(),
    ]
    samples = {
        path.stem.replace("--", "/"): [json.loads(line) for line in path.read_text().splitlines()]
        for path in (folder / "out" / "samples").glob("*.jsonl")
    }
    return *read, samples


def shown(page, axis):
    """The rows of the page's table below a heading, as lists of cells."""
    table = page.split(f"<h2>By {axis}</h2>")[1].split("</table>")[0].split("<tbody>")[1]
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in table.split("<tr>")[1:]]


@pytest.mark.parametrize("model", ["t5", "llama", "run", "minilm"])
def test_every_request_is_answered_or_refused_with_the_reason(lab, tmp_path, model):
    entries = [
        entry(tmp_path, f"own/{request}", kind, rows_of(f"own/{request}", kind, 4), request=request)
        for request, (kind, _) in ASKED.items()
    ]

    results, page, _ = evaluated(lab / model, entries, tmp_path, code=1)

    scored = {score["task"].split("/")[1]: score for score in results["scores"]}
    assert set(scored) == {request for request, (_, able) in ASKED.items() if model in able}
    reasons = {item["task"].split("/")[1]: item["reason"] for item in results["skipped"]}
    for request, reason in reasons.items():
        assert reason in page.replace("&#x27;", "'").replace("&quot;", '"')
        if model in ("t5", "llama"):
            assert f"request: {request} needs a" in reason and "use auto." in reason
        if model == "run" and request in ("options", "generate"):
            assert "needs a model that writes text" in reason and "is an encoder; use auto." in reason
    if model == "t5":
        assert "needs a decoder" in reasons["text"] and "is an encoder-decoder" in reasons["text"]
    for request in scored.keys() & {"likelihood", "text"}:
        assert scored[request]["kind"] == "text" and list(scored[request]["values"]) == PERPLEXITIES
    lm_eval = json.loads((tmp_path / "out" / "lm_eval.json").read_text())
    assert lm_eval["results"].keys() == {f"own/{request}" for request in scored}


def test_these_are_all_requests_and_the_page_of_docs_names_each():
    docs = (Path(__file__).parents[2] / "docs" / "evaluate.md").read_text()
    (line,) = [line for line in docs.splitlines() if line.startswith("| `request` |")]

    assert set(ASKED) == set(get_args(EntrySection.model_fields["request"].annotation))
    assert all(f"`{request}`" in line for request in ASKED)


def test_rows_are_sliced_by_language_and_by_columns_of_the_suites_choice(lab, tmp_path):
    rows = [
        {**row, "lang": "sw" if i % 3 else "", "source": f"<{i % 4}>", "once": i}
        for i, row in enumerate(rows_of("own/a", "classify"))
    ]
    plain = rows_of("own/b", "pair", 6)
    entries = [
        entry(tmp_path, "own/a", "classify", rows, slices=["source"]),
        entry(tmp_path, "own/b", "pair", plain),
        entry(tmp_path, "own/c", "classify", rows, slices=["source", "sorce"]),
    ]

    results, page, samples = evaluated(lab / "t5", entries, tmp_path, code=1)

    (a, b), (c,) = results["scores"], results["skipped"]
    right = [sample["value"] == sample["target"] for sample in samples["own/a"]]
    for axis, own in (
        ("language", [row["lang"] or "en" for row in rows]),
        ("source", [r["source"] for r in rows]),
    ):
        expected = {
            name: (own.count(name), np.mean([is_right for is_right, of in zip(right, own) if of == name]))
            for name in set(own)
        }
        assert {
            part["name"]: (part["n"], pytest.approx(part["value"])) for part in a["slices"][axis]
        } == expected
        assert [cells[3] for cells in shown(page, axis)] == [str(part["n"]) for part in a["slices"][axis]]
    assert set(b["slices"]) == {"words"}
    assert "slices: " in c["reason"] and "has no column 'sorce'. Did you mean 'source'" in c["reason"]


def test_rows_of_a_cluster_are_resampled_together(lab, tmp_path):
    single = rows_of("own/a", "classify", 20)
    thrice = [{**row, "document": f"d{i}"} for i, row in enumerate(single) for _ in range(3)]
    alone = [{**row, "document": None} for row in single]  # a row of no document is one by itself
    entries = [
        entry(tmp_path, "own/single", "classify", single),
        entry(tmp_path, "own/thrice", "classify", thrice, cluster="document"),
        entry(tmp_path, "own/loose", "classify", thrice),
        entry(tmp_path, "own/alone", "classify", alone, cluster="document"),
        entry(
            tmp_path, "own/one", "classify", [{**row, "document": "d"} for row in single], cluster="document"
        ),
        entry(tmp_path, "own/none", "classify", single, cluster="document"),
    ]

    results, _, samples = evaluated(lab / "t5", entries, tmp_path, code=1)

    found = {score["task"].split("/")[1]: score for score in results["scores"]}
    for name in found["thrice"]["values"]:  # three copies of a row tell no more than one
        one, three, loose = (found[key]["intervals"][name]["stderr"] for key in ("single", "thrice", "loose"))
        assert three == pytest.approx(one, rel=0.03) and (name != "accuracy" or loose < 0.7 * three)
    stats = metrics.get("accuracy", "classify").stats(
        *([sample[key] for sample in samples["own/thrice"]] for key in ("value", "target")), None
    )
    groups = [int(row["document"][1:]) for row in thrice]
    wanted = statistics.interval(metrics.get("accuracy", "classify"), stats, clusters=groups)
    assert found["thrice"]["intervals"]["accuracy"]["low"] == wanted.low
    assert found["alone"]["intervals"] == found["single"]["intervals"] != {}
    assert found["thrice"]["notes"] == [
        "Intervals are over 20 values of document; the rows of each are drawn together."
    ]
    assert found["one"]["intervals"] == {} and "All rows have the same document" in found["one"]["notes"][0]
    (none,) = results["skipped"]
    assert "cluster: " in none["reason"] and "has no column 'document'" in none["reason"]


def surprise(folder, texts):
    """Nats of texts by a plain loop: windows side by side, the last one as far back as it has room."""
    import torch
    import transformers as tr

    net, tokenizer = (kind.from_pretrained(folder) for kind in (tr.AutoModelForCausalLM, tr.AutoTokenizer))
    total, tokens = 0.0, 0
    for text in texts:
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]
        done = 0
        while done < len(ids) - 1:
            end = min(done + WINDOW, len(ids) - 1)
            read = ids[max(0, end - WINDOW) : end]
            with torch.no_grad():
                logprobs = net.eval()(torch.tensor([read])).logits[0].log_softmax(-1)
            new = torch.arange(end - done)
            total -= float(logprobs[len(read) - len(new) + new, ids[done + 1 : end + 1]].sum())
            done = end
        tokens += len(ids) - 1
    return total, tokens


def test_the_perplexity_of_texts_of_any_length_is_that_of_a_plain_loop(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "LONGEST", WINDOW)
    monkeypatch.setattr(targets, "ANSWER", WINDOW // 4)
    texts = [row["text"] * times for row, times in zip(rows_of("own/a", "generate", 5), (1, 9, 3, 50, 2))]
    rows = [{"text": text} for text in texts]
    by_label = [{**row, "label": "neutral"} for row in rows]
    entries = [
        entry(tmp_path, "own/plain", "generate", rows, request="text"),
        entry(
            tmp_path, "own/main", "classify", by_label, request="text", metric=["bits_per_byte", "perplexity"]
        ),
    ]

    results, page, samples = evaluated(lab / "llama", entries, tmp_path)

    nats, tokens = surprise(lab / "llama", texts)
    words, size = sum(len(text.split()) for text in texts), sum(len(text.encode()) for text in texts)
    expected = [np.exp(nats / tokens), np.exp(nats / words), np.exp(nats / size), nats / size / np.log(2)]
    plain, main = results["scores"]
    assert max(map(len, texts)) > 5 * WINDOW and len(samples["own/plain"]) == 5
    assert plain["values"] == pytest.approx(dict(zip(PERPLEXITIES, expected)), rel=1e-5)
    assert list(main["values"].values()) == pytest.approx([expected[3], expected[0]], rel=1e-5)
    assert main["values"].keys() == main["intervals"].keys() == {"bits_per_byte", "perplexity"}
    assert f"{expected[3]:.3f}" in page and "Wrong answers" not in page and not plain["labels"]


@pytest.mark.parametrize("new", [6, 40])
def test_prompts_of_a_decoder_leave_room_for_the_text_and_what_they_lost_is_told(
    lab, tmp_path, monkeypatch, new
):
    import torch
    import transformers as tr

    monkeypatch.setattr(targets, "LONGEST", WINDOW)
    monkeypatch.setattr(targets, "ANSWER", WINDOW // 4)
    rows = rows_of("own/a", "generate", 3)
    rows[1] = {**rows[1], "text": rows[1]["text"] * 50}
    asked = entry(tmp_path, "own/a", "generate", rows, request="generate", generation={"max_new_tokens": new})

    results, page, samples = evaluated(lab / "llama", [asked], tmp_path)

    note = (
        "1 of 3 inputs were longer than the model reads and lost tokens: solved examples, then the start of"
    )
    assert results["scores"][0]["notes"] == [f"{note} the prompt."] and note in page
    net, tokenizer = (
        kind.from_pretrained(lab / "llama") for kind in (tr.AutoModelForCausalLM, tr.AutoTokenizer)
    )
    spec = from_mapping(asked["task"], base=tmp_path, where="here")
    for row, sample in zip(rows, samples["own/a"], strict=True):
        prompt = render(spec, Example("own/a", 0, {"text": row["text"]}, None)).prompt.rstrip()
        ids = torch.tensor([tokenizer(prompt).input_ids[-(WINDOW - new) :]])  # it has no special tokens
        written = net.generate(ids, max_new_tokens=new, do_sample=False)[0, ids.shape[1] :]
        assert sample["text"].strip() == tokenizer.decode(written, skip_special_tokens=True).strip()


def test_a_likelihood_of_targets_that_were_cut_is_marked(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "ANSWER", 16)
    rows = rows_of("own/a", "generate", 4)
    long = [{**row, "target": row["target"] * 9} for row in rows]
    entries = [
        entry(
            tmp_path, "own/short", "generate", [{**row, "target": "a"} for row in rows], request="likelihood"
        ),
        entry(tmp_path, "own/long", "generate", long, request="likelihood"),
    ]

    results, _, _ = evaluated(lab / "llama", entries, tmp_path, code=1)

    short, cut = results["scores"]
    assert not short["faults"] and "perplexities by word and byte are too low" in cut["faults"][0]


def test_each_label_has_its_precision_recall_f1_and_count(lab, tmp_path):
    reference = pytest.importorskip("sklearn.metrics").precision_recall_fscore_support
    kinds = ("classify", "pair", "ordinal", "multilabel", "tag")
    brief = {"generation": {"max_new_tokens": 8}}
    entries = [entry(tmp_path, f"own/{kind}", kind, rows_of(f"own/{kind}", kind), **brief) for kind in kinds]
    entries.append(entry(tmp_path, "own/choose", "choose", rows_of("own/choose", "choose", 4)))

    results, page, samples = evaluated(lab / "t5", entries, tmp_path)

    cells = shown(page, "label")
    for kind, score in zip(kinds, results["scores"]):
        guessed, true = ([sample[key] for sample in samples[f"own/{kind}"]] for key in ("value", "target"))
        if kind == "tag":
            guessed, true = (list(chain.from_iterable(rows)) for rows in (guessed, true))
        if kind == "multilabel":
            guessed, true = ([[i in own for i in range(3)] for own in rows] for rows in (guessed, true))
        expected = np.transpose(reference(true, guessed, labels=range(3), zero_division=0))
        names = tiny_tasks.ENTITIES if kind == "tag" else tiny_tasks.LABELS
        assert list(score["labels"]) == list(names)
        for label, (precision, recall, f1, count) in zip(names, expected):
            own = {"precision": precision, "recall": recall, "f1": f1, "count": count}
            assert score["labels"][label] == pytest.approx(own)
            assert [label, f"{count:.0f}", f"{precision:.3f}", f"{recall:.3f}", f"{f1:.3f}"] in [
                c[1:] for c in cells
            ]
    assert results["scores"][-1]["labels"] == {} and len(cells) == 3 * len(kinds)
    wrong = page.split("<summary>own/classify</summary>")[-1].split("</table>")[0]
    words = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)[2:] for row in wrong.split("<tr>")[2:]]
    assert words and all({*pair} < {*tiny_tasks.LABELS} and pair[0] != pair[1] for pair in words)


def test_a_natural_instructions_file_is_asked_with_the_prompts_that_a_suite_names(lab, tmp_path, monkeypatch):
    seen, real = [], prompts.render

    def rendered(*args, **more):
        seen.append((found := real(*args, **more)).prompt)
        return found

    monkeypatch.setattr(prompts, "render", rendered)
    file = {
        "Definition": ["Name the capital."],
        "Positive Examples": [{"input": "France", "output": "Paris"}],
        "Negative Examples": [{"input": "Chad", "output": "Rome"}],
        "Instances": [{"input": f"Country {i}", "output": [f"City {i}"]} for i in range(40)],
    }
    (tmp_path / "capitals.json").write_text(json.dumps(file))
    names = ["definition", "positive-1-negative-1"]
    suite = [{"task": "./capitals.json", "templates": names, "limit": 1, "generation": {"max_new_tokens": 2}}]

    results, _, samples = evaluated(lab / "t5", suite, tmp_path)

    (row,) = samples["capitals definition"]
    asked = f"Now complete the following example -\nInput: {row['inputs']['text']}\nOutput:"
    assert seen == [
        f"Definition: Name the capital.\n\n{asked}",
        "Definition: Name the capital.\n\nPositive Example 1 -\nInput: France\nOutput: Paris\n\n"
        f"Negative Example 1 -\nInput: Chad\nOutput: Rome\n\n{asked}",
    ]
    assert [score["template"] for score in results["scores"]] == names and results["spreads"][0][
        "templates"
    ] == 2
    (tmp_path / "own.yaml").write_text(
        json.dumps({"version": 1, "tasks": [{"task": "./capitals.json", "templates": ["positive-2"]}]})
    )
    with pytest.raises(mtnlp.MtnlpError, match=r"templates: none is called 'positive-2'\. .*positive-1"):
        mtnlp.bench.suites.load(tmp_path / "own.yaml")
