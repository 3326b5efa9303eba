"""Model cards: what a bundle and each of its tasks are, how well they do, and how to load them.

Every number comes from the report of the run; what is not known is not written. The front matter is that of
model hubs (base_model, library_name, model-index ...).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtnlp import strict_yaml
from mtnlp.bench import export
from mtnlp.bench.evaluate import Report, TaskScore

HEAD = "---\n{}---\n\n"
POOLED = {
    "mean": "(hidden * mask).sum(1) / mask.sum(1)",
    "first": "hidden[:, 0]",
    "last": "hidden[torch.arange(len(hidden)), mask.squeeze(-1).sum(1).long() - 1]",
}
TEXT_CLASSES = {"encoder-decoder": "AutoModelForSeq2SeqLM", "decoder": "AutoModelForCausalLM"}


def bundle_card(manifest: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]], report: Report) -> str:
    """README.md of a bundle.

    Args:
        manifest: as in mtnlp_bundle.json; tasks: as in each mtnlp_task.json.
        report: the scores of all tasks, with intervals where they are known.
    """
    name, backbone, strategy = manifest["name"], manifest["backbone"], manifest["model"]["strategy"]
    matter = _matter(manifest, tasks, report, library="mtnlp", name=name)
    by = f"mtnlp {manifest['mtnlp']}"
    own = f"{len(tasks)} tasks on one backbone, {_code(backbone['name'])}, trained together by {by}"
    parts = [
        f"# {name}",
        f"{own} (strategy {_code(_named(strategy))}).",
        "## Scores",
        _scores(report),
        *_ledger(manifest.get("ledger")),
        "## How to use it",
        "All tasks, with one load of the backbone:",
        _python(
            "import mtnlp",
            'model = mtnlp.load("HERE")  # this folder, its address, or owner/name on a hub',
            f"model.predict([{_row(tasks[0])}], task={tasks[0]['name']!r})",
        ),
        "Each folder below `tasks/` is one task with a card of its own.",
        *_whence(manifest, tasks),
    ]
    return HEAD.format(strict_yaml.dump(matter)) + "\n\n".join(parts) + "\n"


def task_card(manifest: Mapping[str, Any], task: Mapping[str, Any], report: Report) -> str:
    """README.md of one task's folder."""
    own = Report(tuple(score for score in report.scores if score.task == task["name"]), report.about)
    library = "peft" if task["peft"]["adapter"] and not manifest["backbone"]["fresh"] else "mtnlp"
    spec = task["spec"]
    parts = [
        f"# {task['name']}",
        f"One of the {len(manifest['tasks'])} tasks of {_code(manifest['name'])}: {spec['kind']}.",
        *(
            [f"Labels, in the order of the scores: {', '.join(map(_code, spec['labels']))}."]
            if spec["labels"]
            else []
        ),
        *([spec["instruction"]] if spec["instruction"] else []),
        "## Scores",
        _scores(own),
        "## How to use it",
        _python(
            "import mtnlp",
            'model = mtnlp.load("HERE")  # the folder of the whole bundle, or its address',
            f"model.predict([{_row(task)}], task={task['name']!r})",
        ),
        *_with_peft(manifest, task, library),
        *_whence(manifest, [task]),
    ]
    matter = _matter(manifest, [task], own, library=library, name=f"{manifest['name']} {task['name']}")
    return HEAD.format(strict_yaml.dump(matter)) + "\n\n".join(parts) + "\n"


def results(task: Mapping[str, Any], score: TaskScore) -> str:
    """The .eval_results file of a task whose rows come from a data set of the hub; empty of another."""
    place = task["spec"]["source"]
    if not (isinstance(place, str) and place.startswith("hub:")):
        return ""
    address, _, revision = place.removeprefix("hub:").partition("@")
    owner, name, *config = address.split("/", 2)
    metric = score.main
    between = score.intervals.get(metric)
    notes = f"{metric} on {score.n:,} rows of {score.split}, by mtnlp"
    if between:
        notes += f"; 95 % interval {between['low']:.4f} to {between['high']:.4f}"
    entry = {
        "dataset": {
            "id": f"{owner}/{name}",
            "task_id": config[0] if config else "default",
            **({"revision": revision} if revision else {}),
        },
        "value": score.values[metric],
        "notes": notes,
    }
    return strict_yaml.dump([entry])


def _matter(
    manifest: Mapping[str, Any],
    tasks: Sequence[Mapping[str, Any]],
    report: Report,
    *,
    library: str,
    name: str,
) -> dict[str, Any]:
    specs, base = [task["spec"] for task in tasks], manifest["backbone"]["name"]
    kinds = list(dict.fromkeys(export.HUB_TASKS[spec["kind"]] for spec in specs))
    hubs = [spec["source"].removeprefix("hub:") for spec in specs if str(spec["source"]).startswith("hub:")]
    index = export.model_index(report)
    index[0]["name"] = name
    found: dict[str, Any] = {
        "library_name": library,
        "base_model": base,
        "base_model_relation": "adapter",
        "pipeline_tag": kinds[0],
        "tags": list(dict.fromkeys(["mtnlp", "multi-task", f"base_model:adapter:{base}", *kinds])),
        "language": sorted({spec["language"] for spec in specs}),
        "datasets": list(dict.fromkeys("/".join(place.split("@")[0].split("/")[:2]) for place in hubs)),
        "metrics": list(dict.fromkeys(metric for score in report.scores for metric in score.values)),
        "model-index": index if report.scores else [],
    }
    if manifest["backbone"]["local"]:  # no hub knows it
        del found["base_model"], found["base_model_relation"]
        found["tags"] = [tag for tag in found["tags"] if not tag.startswith("base_model")]
    return {key: value for key, value in found.items() if value}


def _scores(report: Report) -> str:
    if not report.scores:
        return "Not scored."
    lines = [
        "| task | kind | split | rows | metric | baseline | score | 95 % |",
        "|---|---|---|--:|---|--:|--:|--:|",
    ]
    for score in report.scores:
        for i, (metric, value) in enumerate(score.values.items()):
            who = (score.task, score.kind, score.split, f"{score.n:,}") if i == 0 else ("",) * 4
            plain = f"{score.baseline[metric]:.3f}" if metric in score.baseline else ""
            found = score.intervals.get(metric)
            between = f"{found['low']:.3f} to {found['high']:.3f}" if found else ""
            lines.append(f"| {' | '.join((*who, metric, plain, f'{value:.3f}', between))} |")
    note = "The baseline answers without reading: the most frequent label, the mean, or nothing."
    if any(score.intervals for score in report.scores):
        note += " Intervals: bootstrap over the rows."
    return "\n".join(lines) + f"\n\n{note}"


def _ledger(entries: Sequence[Mapping[str, Any]] | None) -> list[str]:
    """What every task was given in training; see mtnlp.train.ledger."""
    if not entries:
        return []
    lines = ["| task | rows | drawn | epochs | tokens | share |", "|---|--:|--:|--:|--:|--:|"]
    for entry in entries:
        counts = f"{entry['rows']:,} | {entry['drawn']:,} | {entry['epochs']:.2f} | {entry['tokens']:,}"
        lines.append(f"| {entry['task']} | {counts} | {entry['achieved']:.3f} |")
    return ["## What it was trained on", "\n".join(lines)]


def _with_peft(manifest: Mapping[str, Any], task: Mapping[str, Any], library: str) -> list[str]:
    """How to load the adapter without mtnlp, or why that cannot be."""
    if library != "peft":
        why = f"What {_code(_named(manifest['model']['strategy']))} learned cannot be said in peft's format"
        if manifest["backbone"]["fresh"]:
            why = "The backbone has weights that no checkpoint holds; they are in the bundle"
        return ["## Without mtnlp", f"{why}, so only mtnlp loads this task."]
    base, family = manifest["backbone"]["name"], manifest["backbone"]["family"]
    auto = task["peft"]["class"] or TEXT_CLASSES.get(family, "AutoModel")
    labels = task["spec"]["labels"]
    count = (
        f", num_labels={len(labels) if labels else 1}"
        if task["peft"]["class"] and task["spec"]["kind"] != "span"
        else ""
    )
    revision = manifest["backbone"]["revision"]
    pinned = f', revision="{revision}"' if revision else ""
    lines = [
        "import torch, transformers, peft",
        f'base = transformers.{auto}.from_pretrained("{base}"{pinned}{count})',
        "# HERE: this folder; or owner/name, with subfolder=",
        'model = peft.PeftModel.from_pretrained(base, "HERE").eval()',
    ]
    if family == "encoder" and not task["peft"]["class"]:
        lines += _head_lines(task["spec"]["kind"], manifest["model"]["pooling"], task["spec"]["score_scale"])
    limit = manifest["model"]["max_length"]
    note = f"Inputs of at most {limit} tokens."
    if task["peft"]["class"] and task["spec"]["kind"] not in ("tag", "span"):
        note += " In float16 the scores lose digits; use float32 or bfloat16."
    return ["## Without mtnlp", _python(*lines), note]


def own_head(kind: str, pooling: str, scale: Sequence[float] | None) -> str:
    """README.md of a merged folder whose head no class of transformers has."""
    lines = ["import torch, transformers", 'model = transformers.AutoModel.from_pretrained("HERE").eval()']
    return _python(*lines, *_head_lines(kind, pooling, scale)) + "\n"


def _head_lines(kind: str, pooling: str, scale: Sequence[float] | None) -> list[str]:
    """The head in plain torch."""
    lines = [
        "from safetensors.torch import load_file",
        'head = load_file("HERE/head.safetensors")',
        "def scores(**inputs):  # what the tokenizer of the backbone gives",
        "    hidden, mask = model(**inputs).last_hidden_state, inputs['attention_mask'].unsqueeze(-1)",
    ]
    if kind not in ("tag", "span"):
        lines.append(f"    hidden = {POOLED[pooling]}")
    lines.append("    out = torch.nn.functional.linear(hidden, head['out.weight'], head.get('out.bias'))")
    if kind == "ordinal":
        gaps = "torch.nn.functional.softplus(head['gaps']).cumsum(0)"
        lines += [
            f"    bounds = torch.cat([head['first'], head['first'] + {gaps}])",
            "    return out - bounds  # logits of being above each label but the last",
        ]
    elif kind == "regress":
        centre, spread = scale or (0.0, 1.0)
        lines.append(f"    return out * {spread!r} + {centre!r}")
    else:
        lines.append("    return out")
    return lines


def _whence(manifest: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Data with their licences, settings, versions and digests."""
    lines = ["| task | data | licence |", "|---|---|---|"]
    for task in tasks:
        spec = task["spec"]
        source = spec["source"] if isinstance(spec["source"], str) else "files of its author"
        lines.append(f"| {task['name']} | {source} | {spec['licence'] or 'not stated'} |")
    cited = [task["spec"]["citation"] for task in tasks if task["spec"]["citation"]]
    train, backbone = manifest["train"], manifest["backbone"]
    settings = ", ".join(
        f"{key} {train[key]}"
        for key in ("steps", "epochs", "examples_per_step", "lr", "schedule", "precision")
        if train[key] is not None
    )
    at = f" at {_code(backbone['revision'])}" if backbone["revision"] else ""
    return [
        "## Data",
        "\n".join(lines),
        *(["\n".join(f"- {text}" for text in dict.fromkeys(cited))] if cited else []),
        "## Settings",
        f"{settings}; strategy {_code(_named(manifest['model']['strategy']))}; seed {manifest['seed']}.",
        f"Backbone: {_code(backbone['name'])}{at}. SHA-256 of its weights: {_code(backbone['digest'])}; of "
        f"its tokenizer: {_code(backbone['tokenizer'])}.",
    ]


def _row(task: Mapping[str, Any]) -> str:
    """A row of the right form, as Python."""
    from mtnlp.tasks.spec import KINDS

    examples = {"tokens": ["Some", "words"], "choices": ["one", "another"]}
    return repr({name: examples.get(name, "...") for name in KINDS[task["spec"]["kind"]].inputs})


def _named(strategy: Any) -> str:
    """A strategy with its options, in one line."""
    if isinstance(strategy, str):
        return strategy
    options = [f"{key}={value}" for key, value in strategy.items() if key != "name" and value]
    return " ".join([strategy["name"], *options])


def _code(text: str) -> str:
    return f"`{text}`"


def _python(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])
