"""Every shipped recipe, end to end: two steps, a run folder, and answers from what it holds.

Nothing is left out but size: backbones are tiny random networks of the same family (all but `minilm`, where it
is installed), hub tasks are a few rows of the same columns (hub_rows.py), other tasks keep some of their rows. A
new recipe is tested unasked.
"""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path

import pytest
import torch
import transformers as tr
from hub_rows import ROWS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import mtnlp
from mtnlp import config
from mtnlp.data.task_data import TaskData
from mtnlp.models import _load
from mtnlp.tasks.load import from_mapping, load
from mtnlp.tasks.spec import TaskSpec

STEPS, LIMIT = 2, 24
WIDTH, VOCABULARY = 32, 320
SIZE = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
# Backbones by a part of their name: the network, and what the tokenizer puts around a text and calls what.
STAND_INS = {
    "minilm": (
        lambda ids: tr.BertModel(tr.BertConfig(**SIZE, **ids), add_pooling_layer=False),
        ("<s> $A </s>", "<s> $A </s> $B </s>"),
        {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>"},
    ),
    "ModernBERT": (
        lambda ids: tr.ModernBertModel(
            tr.ModernBertConfig(**SIZE, **ids, cls_token_id=1, sep_token_id=2, global_attn_every_n_layers=2)
        ),
        ("<s> $A </s>", "<s> $A </s> $B </s>"),
        {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>"},
    ),
    "t5": (
        lambda ids: tr.T5ForConditionalGeneration(
            tr.T5Config(
                **ids, d_model=WIDTH, d_kv=16, d_ff=48, num_layers=2, num_heads=2, decoder_start_token_id=0
            )
        ),
        ("$A </s>", "$A </s> $B </s>"),
        {"eos_token": "</s>", "pad_token": "<pad>"},
    ),
    "SmolLM2": (
        lambda ids: tr.LlamaForCausalLM(tr.LlamaConfig(**SIZE, **ids, num_key_value_heads=1)),
        None,
        {"bos_token": "<s>", "eos_token": "</s>"},  # no padding token, as in the original
    ),
}
ANSWER = {
    "classify": {"label", "score", "scores"},
    "pair": {"label", "score", "scores"},
    "ordinal": {"label", "score", "scores"},
    "multilabel": {"labels"},
    "regress": {"score"},
    "choose": {"choice", "index", "scores"},
    "tag": {"tokens", "tags"},
    "span": {"answer"},
    "generate": {"text"},
}


def tiny(backbone: str, folder) -> str:
    """A folder with a random network of the backbone's family and a byte-level tokenizer."""
    name = next((part for part in STAND_INS if part in backbone), None)
    assert name, f"{backbone} has no stand-in: add one to STAND_INS"
    network, around, special = STAND_INS[name]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([json.dumps([row for row, _ in ROWS.values()])], trainer)
    if around:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=around[0], pair=around[1], special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    torch.manual_seed(0)
    made = network({"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2})
    made.save_pretrained(folder)
    tr.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return str(folder)


def specs_of(recipe: config.Recipe) -> list[tuple[str | dict, TaskSpec]]:
    """(what `use` takes, task) of every task of a recipe."""
    found = []
    for entry in recipe.tasks:
        if isinstance(entry, str):
            specs = load(entry, recipe.base)
            found += [(entry if len(specs) == 1 else spec.name, spec) for spec in specs]
        else:
            found.append((dict(entry), from_mapping(entry, base=recipe.base, where="recipe")))
    return found


def from_hub(spec: TaskSpec) -> bool:
    return str(spec.source).startswith("hub:")


def hub_row(name: str) -> dict:
    return next(row for pattern, (row, _) in ROWS.items() if fnmatch.fnmatch(name, pattern))


def small(entry: str | dict, spec: TaskSpec) -> dict:
    """The task as a recipe's mapping, with few rows."""
    if from_hub(spec):
        rows = [hub_row(spec.name)] * 6
        return {"use": entry, "source": {"train": rows, "validation": rows[:3]}, "splits": {}}
    return {**(entry if isinstance(entry, dict) else {"use": entry}), "limit": LIMIT}


def some_row(spec: TaskSpec) -> dict:
    return hub_row(spec.name) if spec.source is None else TaskData.open(spec).rows("train")[0]


@pytest.mark.parametrize("name", config.shipped())
def test_a_recipe_trains_and_answers(name, tmp_path, monkeypatch):
    recipe = config.load(name)
    backbone, tasks = recipe.model.backbone, specs_of(recipe)
    overrides = [f"tasks={json.dumps([small(*task) for task in tasks])}", f"train.steps={STEPS}"]
    overrides += ["train.examples_per_step=8", "eval.every=1", "eval.rows=4"]
    if backbone not in _load.ALIASES:
        overrides.append(f"model.backbone={tiny(backbone, tmp_path / 'backbone')}")
    elif backbone != "minilm" or _load._packaged() is None:
        folder = Path(tiny(backbone, tmp_path / "backbone"))
        monkeypatch.setattr(_load, "_packaged", lambda: folder)

    report = mtnlp.finetune(name, *overrides, out=tmp_path / "run")
    model = mtnlp.load(tmp_path / "run")

    names = [spec.name for _, spec in tasks]
    assert [score.task for score in report.scores] == names == list(model.tasks)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "step"] == [1, STEPS]
    for _, spec in tasks:
        (answer,) = model.predict([some_row(model.tasks[spec.name])], task=spec.name)
        assert ANSWER[spec.kind] <= set(answer)


def test_every_recipe_says_how_to_run_it_and_what_it_costs():
    for name, path in config.shipped().items():
        comments = [line for line in path.read_text("utf-8").splitlines() if line.startswith("#")]

        assert len(comments) >= 3, f"{name}: a line on what it is, then `Run:`, `Cost`"
        assert f"mtnlp finetune recipes/{path.name}" in comments[1] and "Run:" in comments[1]
        assert comments[2].startswith("# Cost")
