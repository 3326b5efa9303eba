"""Task folders (meta.json beside train.jsonl, validation.jsonl, test.jsonl) and Natural-Instructions files.

meta.json says what a task is (`task_type`), and each task type is one entry of a table here: our kind, and
which of the columns play which part. Natural-Instructions files hold a definition, solved examples and
instances in one JSON. What has a definition and solved examples gets a template for each way of showing them
(`_defined.templates`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtnlp.errors import DataError, MtnlpError, did_you_mean, shown
from mtnlp.tasks import _defined
from mtnlp.tasks._draw import SPLITS, split_of
from mtnlp.tasks.spec import KINDS, TaskSpec, Template

# metric of a meta.json -> ours, and the kinds for which the two are the same number
METRICS: dict[str, tuple[str, set[str]]] = {
    "accuracy": ("accuracy", {"classify", "pair", "ordinal", "choose"}),
    "intent_accuracy": ("accuracy", {"classify"}),
    "f1": ("f1", {"classify", "pair"}),
    "macro_f1": ("macro_f1", {"classify", "pair", "multilabel", "tag"}),
    "micro_f1": ("micro_f1", {"classify", "pair", "multilabel"}),
    "mcc": ("matthews", {"classify", "pair"}),
    "mae": ("mae", {"ordinal", "regress"}),
    "quadratic_weighted_kappa": ("quadratic_kappa", {"ordinal"}),
    "spearman": ("spearman", {"regress"}),
    "pearson": ("pearson", {"regress"}),
    "mse": ("mse", {"regress"}),
    "span_micro_f1": ("span_micro_f1", {"tag"}),
    "token_accuracy": ("token_accuracy", {"tag"}),
    "exact_match": ("exact_match", {"span", "generate"}),
    "token_f1": ("squad_f1", {"span"}),
    "bleu": ("bleu", {"generate"}),
    "chrf": ("chrf", {"generate"}),
    "rouge1": ("rouge_1", {"generate"}),
    "rouge2": ("rouge_2", {"generate"}),
    "rougeL": ("rouge_l", {"generate"}),
}
_PASSAGE = {"text": "question", "text_pair": "context"}
_SPAN = ("span", {})
# task type -> kind and fields; a type that is not here is text generation or has no kind yet
TYPES: dict[str, tuple[str, dict[str, Any]]] = {
    "classification": ("classify", {}),
    "relation_classification": ("classify", {}),
    "ordinal_classification": ("ordinal", {}),
    "pair_classification": ("pair", {}),
    "boolean_qa": ("pair", _PASSAGE),
    "long_context_classification": ("pair", _PASSAGE),
    "multilabel_classification": ("multilabel", {}),
    "regression": ("regress", {}),
    "pair_regression": ("regress", {}),
    "token_classification": ("tag", {}),
    "multiple_choice": ("choose", {}),
    "coreference": (
        "choose",
        {
            "question": 'Whom does "{{ pronoun }}" refer to?',
            "context": "{{ context[:pronoun_offset] }}[{{ pronoun }}]"
            "{{ context[pronoun_offset + (pronoun | length):] }}",
        },
    ),
    "extractive_qa": _SPAN,
    "cross_lingual_qa": _SPAN,
    "long_context_qa": _SPAN,
    "instruction": ("generate", {"text": "input"}),
    "math_generation": ("generate", {"text": "question"}),
    "explanation_generation": ("generate", {}),
}
GENERATION = {
    "constrained_generation",
    "data_to_text",
    "grammar_correction",
    "semantic_parsing",
    "simplification",
    "summarization",
    "text_rewriting",
    "translation",
}
NO_KIND = {
    "retrieval": "ranks passages of a corpus",
    "cross_lingual_retrieval": "ranks passages of a corpus",
    "dependency_parsing": "gives every word a head",
}


def read_folder(path: Path) -> list[TaskSpec]:
    """The task of a folder with meta.json; two tasks (name/intent, name/slots) for intents with slots.

    Raises:
        MtnlpError: no meta.json, bad JSON, a task type that no kind of ours fits, or one that is unknown.
    """
    meta = _json(path / "meta.json", "Give a folder with meta.json and train.jsonl beside it.")
    kind = meta.get("task_type")
    if kind in NO_KIND:
        raise MtnlpError(f"{path}: {kind} {NO_KIND[kind]}, and no kind of task fits that yet. Leave it out.")
    if kind == "intent_and_slots":
        left = "Whether intent and slots are both right is not computed."
        both = {**meta, "notes": " ".join(filter(None, [meta.get("notes"), left]))}
        intent = {
            **both,
            "label_names": meta.get("intent_names"),
            "metrics": ["intent_accuracy"],
            "instruction": "Give the intent of the request.",
        }
        slots = {
            **both,
            "metrics": ["span_micro_f1"],
            "floor": {},
            "instruction": "Tag the slots of the request.",
        }
        return [_spec(path, intent, "classify", {}, "/intent"), _spec(path, slots, "tag", {}, "/slots")]
    if kind in GENERATION:
        return [_spec(path, meta, "generate", {"text": "source"})]
    if kind not in TYPES:
        raise MtnlpError(
            f"{path / 'meta.json'}: task_type {shown(kind)} is not known. "
            f"{did_you_mean(str(kind), [*TYPES, *GENERATION, 'intent_and_slots'], shown=40)}"
        )
    return [_spec(path, meta, *TYPES[kind])]


def read_natural_instructions(path: Path) -> TaskSpec:
    """A task file of Natural Instructions (v1 or v2): Definition, Positive Examples, Instances [{input,
    output}].

    The file has no splits: 80 % of its instances train, 10 % validate and 10 % test, by a hash of the input,
    so equal inputs stay together and other files do not matter. In a small file a split may get no instance
    and is left out; if train gets none, all instances are train. Negative examples are shown by some
    templates; those that are not {input, output} are left out.

    Raises:
        MtnlpError: a part is missing. DataError: an instance is not {input, output}.
    """
    data = _json(path, "Give a Natural-Instructions task file.")
    if missing := [key for key in ("Definition", "Instances") if not data.get(key)]:
        raise MtnlpError(
            f"{path}: no {' and no '.join(map(repr, missing))}. A Natural-Instructions file has "
            "Definition, Positive Examples and Instances."
        )
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for index, item in enumerate(data["Instances"]):
        row = _instance(item, f"{path}: Instances[{index}]")
        rows[split_of(row["input"])].append(row)
    if not rows["train"]:
        rows = {"train": [row for own in rows.values() for row in own]}
    solved = [
        _instance(item, f"{path}: Positive Examples[{i}]")
        for i, item in enumerate(data.get("Positive Examples") or [])
    ]
    definition, source = data["Definition"], data.get("Source") or []
    definition = definition if isinstance(definition, str) else "\n".join(definition)
    return TaskSpec(
        name=path.stem,
        kind="generate",
        source={split: own for split, own in rows.items() if own},
        fields={"text": "input", "target": "output"},
        instruction=definition,
        templates=_templates(definition, data.get("Positive Examples"), data.get("Negative Examples")),
        demonstrations=tuple(solved),
        metrics=("rouge_l", "exact_match"),
        licence=", ".join(data.get("Instance License") or []),
        citation="Wang et al. 2022, Super-NaturalInstructions, arXiv:2204.07705"
        + (f"; source data: {', '.join(source)}" if source else ""),
    )


def _spec(
    path: Path, meta: Mapping[str, Any], kind: str, fields: Mapping[str, Any], part: str = ""
) -> TaskSpec:
    columns = meta.get("fields") or {}
    fields = {**fields, **_generated(meta, columns)} if kind == "generate" else dict(fields)
    if kind == "choose" and not fields:
        fields = _question(meta, columns)
        if fields.get("question", "").startswith('{{ "'):  # the instruction is the question
            meta = {**meta, "instruction": ""}
    labels, licence, language = meta.get("label_names"), meta.get("licence") or {}, meta.get("language", "en")
    metrics, left = _metrics(meta.get("metrics") or (), kind)
    notes = [str(meta.get("notes") or ""), f"Not computed here: {', '.join(left)}." if left else ""]
    low_high = meta.get("score_range")
    instruction, solved = str(meta.get("instruction") or ""), meta.get("positive_examples") or ()
    shows = kind == "generate" and instruction and solved
    return TaskSpec(
        name=str(meta.get("name") or path.name) + part,
        kind=kind,
        source=str(path),
        fields=fields,
        labels=tuple(labels) if labels and KINDS[kind].labelled else None,
        instruction=instruction,
        metrics=metrics,
        templates=_templates(instruction, solved, meta.get("negative_examples")) if shows else {},
        demonstrations=tuple(_demonstration(example, fields["target"]) for example in solved),
        score_range=(float(low_high[0]), float(low_high[1])) if low_high else None,
        floor=meta.get("floor") or {},
        language=language if isinstance(language, str) else ", ".join(language),
        licence=licence if isinstance(licence, str) else str(licence.get("name", "")),
        citation=str(meta.get("citation") or ""),
        notes=" ".join(filter(None, notes)),
    )


def _templates(definition: str, positive: Any, negative: Any) -> dict[str, Template]:
    """Those of a definition and of its examples that are {input, output}; why they are good or bad is called
    explanation, and reason in the first version of Natural Instructions."""
    shown = [
        [
            {**item, "explanation": item.get("explanation") or item.get("reason")}
            for item in examples or ()
            if isinstance(item, Mapping) and isinstance(item.get("input"), str) and item.get("output")
        ]
        for examples in (positive, negative)
    ]
    return _defined.templates(definition, *shown)


def _metrics(names: Any, kind: str) -> tuple[tuple[str, ...], list[str]]:
    """Ours for those we have, and the names of those that we do not have for this kind."""
    ours = [METRICS[name][0] for name in names if name in METRICS and kind in METRICS[name][1]]
    left = [name for name in names if name not in METRICS or kind not in METRICS[name][1]]
    return tuple(dict.fromkeys(ours)), left


def _question(meta: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    if "premise" in columns:
        return {"question": "{{ premise }} What was the {{ question }}?"}
    if "question" in columns:
        return {}
    return {"question": "{{ " + json.dumps(str(meta.get("instruction") or "Which one is right?")) + " }}"}


def _generated(meta: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    fields: dict[str, Any] = {"target": "references" if "references" in columns else "target"}
    if meta.get("task_type") == "explanation_generation":
        inputs = [name for name in columns if name not in ("id", "item", "target", "references", "label")]
        said = {name: columns[name].split(" (")[0].capitalize() for name in inputs}
        fields["text"] = "\n".join(f"{said[name]}: {{{{ {name} }}}}" for name in inputs)
    elif "target_lang" in columns:
        fields["text"] = "{{ source_lang }} to {{ target_lang }}: {{ source }}"
    return fields


def _demonstration(example: Mapping[str, Any], target: str) -> dict[str, Any]:
    output = example["output"]
    return {
        "input": example["input"],
        target: output if target == "target" or isinstance(output, list) else [output],
    }


def _instance(item: Any, where: str) -> dict[str, Any]:
    found = item if isinstance(item, Mapping) else {}
    output = found.get("output")
    output = [output] if isinstance(output, str) else output
    if not isinstance(found.get("input"), str) or not isinstance(output, list) or not output:
        raise DataError(
            f"{where}: expected {{input: text, output: text or list of texts}}, found {item!r:.80}."
        )
    return {"input": found["input"], "output": [str(text) for text in output]}


def _json(path: Path, hint: str) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise MtnlpError(f"{path} does not exist. {hint}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise MtnlpError(f"{path}: not JSON: {error}. {hint}") from None
    if not isinstance(data, dict):
        raise MtnlpError(f"{path}: expected a JSON object, found {type(data).__name__}. {hint}")
    return data
