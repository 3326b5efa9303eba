"""Train, push, pull, load: what comes back is what was trained, here and with other libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_tasks
import torch
from tiny_hub import stand_in

import mtnlp
from mtnlp import strategies
from mtnlp.cli.main import main
from mtnlp.hub import bundle
from mtnlp.runs import publish, trained

ENCODER = ("classify", "pair", "ordinal", "multilabel", "regress", "choose", "tag", "span")
TEXT = (*ENCODER, "generate")
OPTIONS = {"lora-per-task": {"name": "lora-per-task", "rank": 4, "alpha": 6, "ranks": {"own/classify": 2}}}


def train(backbone, folder, strategy, kinds, **model):
    templates = {"z": {"prompt": "{{ instruction }} first"}, "a": {"prompt": "second"}}
    tasks = [{**tiny_tasks.task(f"own/{kind}", kind, rows=8), "templates": templates} for kind in kinds]
    strategy = OPTIONS.get(strategy, strategy) if "classify" in kinds else strategy
    recipe = tiny_tasks.recipe(backbone, tasks, strategy=strategy, steps=3, lr=0.05)
    recipe["model"] |= model
    recipe["train"]["examples_per_step"] = 18
    mtnlp.finetune(recipe, out=folder)
    return str(folder)


def questions(kinds):
    """task -> rows without their answers."""
    targets = ("label", "labels", "score", "answer", "answers", "tags", "target")
    return {
        f"own/{kind}": [
            {key: value for key, value in row.items() if key not in targets}
            for row in tiny_tasks.task(f"own/{kind}", kind)["source"]["validation"]
        ]
        for kind in kinds
    }


def state(place, **more):
    return mtnlp.load(place, **more).predictor.model.trainable_state()


@pytest.mark.parametrize(
    ("family", "strategy"),
    [
        *((("minilm", ENCODER), name) for name in strategies.names()),
        *((("t5", TEXT), name) for name in ("lora-per-task", "full")),
        *(
            pytest.param(("t5", TEXT), name, marks=pytest.mark.slow)
            for name in strategies.names()
            if name not in ("heads", "lora-per-task", "full")
        ),
        (("SmolLM2", ("classify", "generate")), "lora-per-task"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_pulled_bundle_is_the_run_bit_for_bit(family, strategy, tmp_path):
    name, kinds = family
    backbone = str(stand_in(name, tmp_path / "backbone"))
    run = train(backbone, tmp_path / "run", strategy, kinds)

    publish.push(run, str(tmp_path / "there"))
    folder, found = publish.pull(str(tmp_path / "there"), tmp_path / "here")

    one, other = mtnlp.load(run), mtnlp.load(folder, backbone=backbone)
    ours, theirs = (made.predictor.model.trainable_state() for made in (one, other))
    assert ours.keys() == theirs.keys() and ours
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    for mine, its in zip(trained.find(run).specs, found.specs, strict=True):
        assert its == mine.replace(source=None) and list(its.templates) == list(mine.templates)
    for task, rows in questions(kinds).items():
        assert one.predict(rows, task=task) == other.predict(rows, task=task)


def test_a_fresh_process_gives_the_same_logits(tmp_path, capsys):
    backbone = str(stand_in("minilm", tmp_path / "backbone"))
    run = train(backbone, tmp_path / "run", "lora-per-task", ("classify", "tag"))
    rows = questions(("classify",))["own/classify"]
    expected = mtnlp.load(run).predict(rows, task="own/classify")
    with pytest.raises(SystemExit) as ended:
        main(["push", run, str(tmp_path / "there")])
    assert not ended.value.code and "Pushed" in capsys.readouterr().out

    words = ["mtnlp", "predict", str(tmp_path / "there"), "--task", "own/classify", "--backbone", backbone]
    code = "import sys; from mtnlp.cli.main import main; main(sys.argv[1:])"
    text = "".join(json.dumps(row) + "\n" for row in rows)
    done = subprocess.run(
        [sys.executable, "-c", code, *words[1:]], input=text, capture_output=True, text=True, check=True
    )

    assert [json.loads(line) for line in done.stdout.splitlines()] == expected


def test_pushing_again_changes_nothing_and_another_run_replaces_all(tmp_path):
    backbone = str(stand_in("minilm", tmp_path / "backbone"))
    run = train(backbone, tmp_path / "run", "lora-per-task", ("classify", "tag"))
    other = train(backbone, tmp_path / "other", "lora-per-task", ("pair",))
    there = tmp_path / "there"

    assert publish.push(run, str(there)).changed
    before = {path: path.read_bytes() for path in there.rglob("*") if path.is_file()}
    assert not publish.push(run, str(there)).changed
    assert {path: path.read_bytes() for path in there.rglob("*") if path.is_file()} == before
    assert publish.push(other, str(there)).changed

    assert [path.name for path in (there / "tasks").iterdir()] == ["own--pair"]
    assert bundle.read(there).manifest["tasks"] == ["own/pair"]


def test_nothing_of_this_machine_is_in_a_bundle(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "c4n4ry" * 6)
    backbone = str(stand_in("minilm", tmp_path / "backbone"))
    run = train(backbone, tmp_path / "run", "lora", ("classify", "choose"))

    publish.push(run, str(tmp_path / "there"))

    for path in (tmp_path / "there").rglob("*"):
        if path.is_file():
            text = path.read_bytes()
            assert str(tmp_path).encode() not in text, path
            assert b"c4n4ry" not in text, path
    assert not [path for path in (tmp_path / "there").rglob("*") if path.suffix in bundle.PICKLES]


def test_a_file_with_a_token_is_not_pushed(tmp_path):
    backbone = str(stand_in("minilm", tmp_path / "backbone"))
    task = tiny_tasks.task("own/classify", "classify", rows=8)
    recipe = tiny_tasks.recipe(backbone, [{**task, "notes": "see hf_" + "a1" * 17}])
    mtnlp.finetune(recipe, out=tmp_path / "run")

    with pytest.raises(mtnlp.MtnlpError, match=r"mtnlp_task\.json holds what looks like an access token"):
        publish.push(tmp_path / "run", str(tmp_path / "there"))
    assert not (tmp_path / "there").exists()


# With other libraries.


def plain_logits(folder: Path, base, inputs):
    """What peft and transformers compute of an adapter."""
    peft = pytest.importorskip("peft")
    with torch.no_grad():
        out = peft.PeftModel.from_pretrained(base, str(folder)).eval()(**inputs)
    return out


def hidden_and_head(run, task, tokenizer_rows):
    """(network, head, inputs) of a loaded run, its adapter chosen."""
    model = mtnlp.load(run)
    net, tokenizer = model.predictor.model, model.predictor.encoder.tokenizer
    inputs = tokenizer(*tokenizer_rows, padding=True, return_tensors="pt")
    index = list(model.tasks).index(task)
    net.begin([index])
    count = len(inputs["input_ids"])
    net.strategy.select(torch.full((count,), index), inputs["attention_mask"], tasks=[index])
    with torch.no_grad():
        hidden = net.backbone.net(**inputs)
    return hidden, net.head(index) if net.heads else None, inputs


@pytest.mark.parametrize("strategy", ["lora", "lora-per-task"])
@pytest.mark.parametrize("kind", ["classify", "pair", "multilabel", "regress", "tag", "span"])
def test_plain_peft_and_transformers_give_the_logits_of_an_adapter_with_its_head(kind, strategy, tmp_path):
    import transformers

    backbone = str(stand_in("minilm", tmp_path / "backbone"))
    run = train(backbone, tmp_path / "run", strategy, (kind,), pooling="first")
    (tmp_path / "there").mkdir()
    publish.write(run, tmp_path / "there")
    texts = (["river answer", "a light stone in winter"],) + ((["card", "city"],) if kind == "pair" else ())
    out, head, inputs = hidden_and_head(run, f"own/{kind}", texts)
    hidden = out.last_hidden_state if kind in ("tag", "span") else out.last_hidden_state[:, 0]
    expected = torch.nn.functional.linear(hidden, head.out.weight, head.out.bias).detach()
    if kind == "regress":
        expected = expected * head.scale + head.centre

    folder = tmp_path / "there" / "tasks" / f"own--{kind}"
    about = json.loads((folder / "mtnlp_task.json").read_text())
    count = {} if kind == "span" else {"num_labels": len(head.out.weight)}
    base = getattr(transformers, about["peft"]["class"]).from_pretrained(backbone, **count)
    found = plain_logits(folder, base, inputs)

    logits = torch.stack([found.start_logits, found.end_logits], -1) if kind == "span" else found.logits
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["classify", "ordinal", "regress", "tag"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_the_lines_of_a_card_give_the_logits_where_no_class_has_the_head(kind, pooling, tmp_path):
    backbone = str(stand_in("ModernBERT" if kind == "tag" else "minilm", tmp_path / "backbone"))
    run = train(backbone, tmp_path / "run", "lora-per-task", (kind,), pooling=pooling)
    (tmp_path / "there").mkdir()
    publish.write(run, tmp_path / "there")
    out, head, inputs = hidden_and_head(run, f"own/{kind}", (["river answer", "a light stone in winter"],))
    from mtnlp.heads.base import pooled

    states = out.last_hidden_state
    if kind != "tag":
        states = pooled(states, inputs["attention_mask"], pooling)
    expected = torch.nn.functional.linear(states, head.out.weight, head.out.bias).detach()
    if kind == "ordinal":
        expected = expected - head.thresholds().detach()
    if kind == "regress":
        expected = expected * head.scale + head.centre

    folder = tmp_path / "there" / "tasks" / f"own--{kind}"
    blocks = (folder / "README.md").read_text().split("```python\n")
    code = next(
        block.split("```")[0] for block in blocks if "import peft" in block or "transformers, peft" in block
    )
    code = code.replace('"HERE/', f'"{folder}/').replace('"HERE"', f'"{folder}"')
    code = code.replace('from_pretrained("backbone"', f'from_pretrained("{backbone}"')
    names: dict = {}
    exec(code, names)  # the lines that the card shows

    with torch.no_grad():
        torch.testing.assert_close(names["scores"](**inputs), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "auto"), [("t5", "AutoModelForSeq2SeqLM"), ("SmolLM2", "AutoModelForCausalLM")]
)
def test_text_adapters_load_in_peft_and_merge_into_plain_folders(name, auto, tmp_path):
    import transformers

    backbone = str(stand_in(name, tmp_path / "backbone"))
    run = train(backbone, tmp_path / "run", "lora-per-task", ("classify", "generate"))
    (tmp_path / "there").mkdir()
    publish.write(run, tmp_path / "there")
    model = mtnlp.load(run)
    net, tokenizer = model.predictor.model, model.predictor.encoder.tokenizer
    inputs = tokenizer(["river answer", "light stone winter"], padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    if name == "t5":
        inputs["decoder_input_ids"] = inputs["input_ids"][:, :3]
    net.begin([1])
    net.strategy.select(torch.ones(2, dtype=torch.long), inputs["attention_mask"], tasks=[1])
    with torch.no_grad():
        expected = net.backbone.net(**inputs).logits

    base = getattr(transformers, auto).from_pretrained(backbone)
    found = plain_logits(tmp_path / "there" / "tasks" / "own--generate", base, inputs)
    torch.testing.assert_close(found.logits, expected, atol=1e-6, rtol=1e-5)

    assert publish.export(run, "own/generate", tmp_path / "merged") == auto
    with torch.no_grad():
        merged = getattr(transformers, auto).from_pretrained(tmp_path / "merged").eval()(**inputs).logits
    torch.testing.assert_close(merged, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("strategy", ["lora", "lora-per-task", "full", "heads"])
@pytest.mark.parametrize("kind", ["tag", "classify"])
def test_a_merged_task_is_a_plain_folder_with_its_head(kind, strategy, tmp_path):
    import transformers

    backbone = str(stand_in("minilm", tmp_path / "backbone"))
    run = train(backbone, tmp_path / "run", strategy, (kind,), pooling="first")
    out, head, inputs = hidden_and_head(run, f"own/{kind}", (["river answer", "a light stone in winter"],))
    hidden = out.last_hidden_state if kind == "tag" else out.last_hidden_state[:, 0]
    expected = torch.nn.functional.linear(hidden, head.out.weight, head.out.bias).detach()

    auto = publish.export(run, f"own/{kind}", tmp_path / "merged")
    model = getattr(transformers, auto).from_pretrained(tmp_path / "merged").eval()

    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, expected, atol=2e-6, rtol=1e-5)
    labels = tiny_tasks.task("x", kind)["labels"]
    assert model.config.id2label == dict(enumerate(labels))
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert (
        again(["river answer"])["input_ids"]
        == mtnlp.load(run).predictor.encoder.tokenizer(["river answer"])["input_ids"]
    )


@pytest.mark.parametrize("strategy", ["adapters", "mixlora", "mtl-lora"])
def test_what_is_no_change_of_weights_is_not_merged(strategy, tmp_path):
    backbone = str(stand_in("minilm", tmp_path / "backbone"))
    run = train(backbone, tmp_path / "run", strategy, ("classify",))
    with pytest.raises(mtnlp.MtnlpError, match=r"own/classify: .* cannot be merged"):
        publish.export(run, "own/classify", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


# What does not fit.


def test_another_backbone_or_tokenizer_is_refused_with_the_reason(tmp_path):
    backbone = stand_in("minilm", tmp_path / "backbone")
    run = train(str(backbone), tmp_path / "run", "lora-per-task", ("classify",))
    publish.push(run, str(tmp_path / "there"))
    with pytest.raises(mtnlp.MtnlpError, match="--backbone FOLDER"):
        mtnlp.load(tmp_path / "there")

    from safetensors.torch import load_file, save_file

    weights = load_file(backbone / "model.safetensors")
    name = sorted(weights)[0]
    weights[name] = weights[name] + 1e-3
    save_file(weights, backbone / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(mtnlp.MtnlpError, match="other weights"):
        mtnlp.load(tmp_path / "there", backbone=str(backbone))
    weights[name] = weights[name] - 1e-3

    other = stand_in("minilm", tmp_path / "other")
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(
        text.replace('"ByteLevel"', '"Whitespace"', 1)
        if '"Whitespace"' in text
        else text.replace('"add_prefix_space":false', '"add_prefix_space":true').replace(
            '"add_prefix_space": false', '"add_prefix_space": true'
        )
    )
    with pytest.raises(mtnlp.MtnlpError, match="other tokenizer"):
        mtnlp.load(tmp_path / "there", backbone=str(other))


def test_what_is_found_says_what_it_is(tmp_path):
    with pytest.raises(mtnlp.MtnlpError, match="not a run folder"):
        trained.find(tmp_path / "nowhere")
