"""Cards say what the report says, in the forms that hubs read."""

from __future__ import annotations

import huggingface_hub as client
import yaml
from huggingface_hub._eval_results import parse_eval_result_entries

from mtnlp.bench.evaluate import Report, TaskScore
from mtnlp.hub import cards
from mtnlp.runs.folder import spec_to_json
from mtnlp.tasks.spec import TaskSpec

BETWEEN = {"accuracy": {"stderr": 0.02, "low": 0.71, "high": 0.79}}
SCORES = (
    TaskScore(
        "glue/x", "classify", "test", 400, {"accuracy": 0.75, "macro_f1": 0.7}, {"accuracy": 0.5}, BETWEEN
    ),
    TaskScore("own/y", "regress", "validation", 60, {"spearman": 0.31}, {"spearman": 0.0}),
)
SPECS = (
    TaskSpec(
        "glue/x",
        "classify",
        "hub:ann/data/part@abc123",
        labels=("no", "yes"),
        licence="MIT",
        citation="Ann 2020",
    ),
    TaskSpec("own/y", "regress", None, language="de", score_scale=(2.0, 0.5)),
)
MANIFEST = {
    "name": "mine", "mtnlp": "0.1.0", "seed": 3, "tasks": ["glue/x", "own/y"],
    "backbone": {"name": "ann/base", "revision": "abc", "local": False, "alias": None, "family": "encoder",
                 "fresh": False, "digest": "d" * 64, "tokenizer": "t" * 64},
    "model": {"strategy": {"name": "lora", "rank": 8}, "pooling": "mean", "max_length": 64},
    "train": {"steps": 10, "epochs": None, "examples_per_step": 4, "lr": 1e-3, "schedule": "linear",
              "precision": "fp32"},
    "ledger": [{"task": "glue/x", "rows": 1200, "drawn": 600, "epochs": 0.5, "tokens": 12345,
                "achieved": 0.75}],
}  # fmt: skip
REPORT = Report(SCORES, {"run": "mine"})


def tasks():
    found = []
    for spec in SPECS:
        peft = {"adapter": True, "class": None, "prefix": None, "head": []}
        found.append({"name": spec.name, "spec": spec_to_json(spec), "peft": peft})
    return found


def test_a_hub_reads_the_scores_off_the_card_of_a_bundle():
    card = client.ModelCard(cards.bundle_card(MANIFEST, tasks(), REPORT))

    read = {
        (one.dataset_name, one.metric_type): (one.metric_value, one.dataset_split)
        for one in card.data.eval_results
    }
    assert read == {
        (score.task, metric): (value, score.split)
        for score in SCORES
        for metric, value in score.values.items()
    }
    assert card.data.base_model == "ann/base" and card.data.library_name == "mtnlp"
    assert card.data.datasets == ["ann/data"] and card.data.language == ["de", "en"]
    assert card.data.pipeline_tag == "text-classification"


def test_a_card_shows_intervals_ledger_licences_and_digests_and_nothing_that_is_not_known():
    text = cards.bundle_card(MANIFEST, tasks(), REPORT)

    assert "| glue/x | classify | test | 400 | accuracy | 0.500 | 0.750 | 0.710 to 0.790 |" in text
    assert "| own/y | regress | validation | 60 | spearman | 0.000 | 0.310 |  |" in text
    assert "| glue/x | 1,200 | 600 | 0.50 | 12,345 | 0.750 |" in text
    assert "| glue/x | hub:ann/data/part@abc123 | MIT |" in text and "| not stated |" in text
    assert "- Ann 2020" in text and "d" * 64 in text and "t" * 64 in text
    own = cards.task_card(MANIFEST, tasks()[0], REPORT)
    assert 'AutoModel.from_pretrained("ann/base", revision="abc")' in own


def test_the_result_file_of_a_hub_data_set_is_what_the_hub_s_own_client_reads():
    first, second = tasks()

    (entry,) = parse_eval_result_entries(yaml.safe_load(cards.results(first, SCORES[0])))
    assert (entry.dataset_id, entry.task_id, entry.dataset_revision) == ("ann/data", "part", "abc123")
    assert entry.value == 0.75 and "0.7100 to 0.7900" in entry.notes
    assert cards.results(second, SCORES[1]) == ""


def test_a_backbone_that_was_a_folder_is_no_base_model_of_a_hub():
    local = {**MANIFEST, "backbone": {**MANIFEST["backbone"], "local": True}}
    data = client.ModelCard(cards.task_card(local, tasks()[1], REPORT)).data.to_dict()

    assert "base_model" not in data and not any("base_model" in tag for tag in data["tags"])
