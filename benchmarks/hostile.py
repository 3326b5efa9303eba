"""Two hundred damaged and hostile bundles: each is refused, how fast, and with how much memory.

Run:     python benchmarks/hostile.py [--json hostile.json]
Cost:    a minute; with --quick (every tenth case) ten seconds
A run of two tasks on a tiny encoder is trained and pushed to a folder. Each case is a copy of that bundle
with one thing wrong: flipped bits, files cut short, missing or added, tensors renamed, reshaped or NaN,
labels in another order, names and links that leave the folder, pickles, templates and YAML that never end,
patterns that take for ever, and settings that ask for gigabytes. What an attacker can do about it is done:
where only the manifest would notice, the manifest is made to agree. A case is loaded as a user would
(mtnlp.load); its time is the CPU time, its memory what Python and numpy allocated at most meanwhile.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from _kit import Row, arguments, report

import mtnlp
from mtnlp.hub import bundle

Damage = Callable[[Path], None]
SECONDS, MEGABYTES = 1.0, 200.0


class Bomb:
    """What a pickle runs when it is opened: it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def cases(base: Path) -> Iterator[tuple[str, Damage]]:
    """(what is wrong, what makes it so in a copy of the bundle `base`); 200 of them."""
    draw = random.Random(0)
    parts = sorted(
        path.relative_to(base).as_posix()
        for path in base.rglob("*")
        if path.is_file() and path.name != bundle.CARD
    )
    for number in range(70):
        name = parts[number % len(parts)]
        size = (base / name).stat().st_size
        yield f"bit of {name}", _flip(name, draw.randrange(size), draw.randrange(8))
    for number in range(30):
        name = parts[number % len(parts)]
        yield f"{name} cut", _cut(name, draw.random())
    for name in parts[:10]:
        yield f"{name} missing", _remove(name)
    yield from _names()
    yield from _tensors(base, parts)
    yield from _texts(base)
    yield from _manifests()


def _names() -> Iterator[tuple[str, Damage]]:
    """20 cases."""
    for name in ("../escaped", "/tmp/escaped", "tasks/../../escaped", "a\\..\\b", "C:/windows", "tasks/./x"):
        yield f"manifest lists {name}", _listed(name)
    for name in ("tasks/own--tag/head.safetensors", "shared.safetensors", "tasks/own--tag/mtnlp_task.json"):
        yield f"{name} is a link outside", _link(name)
    yield "a folder is a link outside", _link("tasks/extra")
    for suffix in (".bin", ".pt", ".pkl", ".pickle", ".ckpt"):
        yield f"adapter_model{suffix} is a pickle", _pickled(f"tasks/own--tag/adapter_model{suffix}")
        yield f"training_args{suffix} is a pickle", _pickled(f"training_args{suffix}")


def _tensors(base: Path, parts: list[str]) -> Iterator[tuple[str, Damage]]:
    """40 cases; the manifest agrees."""
    import numpy as np

    files = [name for name in parts if name.endswith(".safetensors")]
    first: dict[str, Any] = {
        "renamed": lambda t, n: {(f"{k}x" if k == n else k): v for k, v in t.items()},
        "dropped": lambda t, n: {k: v for k, v in t.items() if k != n},
        "added": lambda t, n: {**t, "more.weight": t[n]},
        "flat": lambda t, n: {**t, n: t[n].reshape(-1)},
        "not a number": lambda t, n: {**t, n: np.full_like(t[n], np.nan)},
        "infinite": lambda t, n: {**t, n: np.full_like(t[n], np.inf)},
        "longer": lambda t, n: {**t, n: np.concatenate([t[n], t[n]])},
        "empty": lambda t, n: {**t, n: t[n][:0]},
        "of a rank more": lambda t, n: {**t, n: t[n][None]},
        "of bytes": lambda t, n: {**t, n: np.zeros(t[n].size, np.uint8)},
    }
    for name in files[:4]:
        for what, change in first.items():
            yield f"{name}: a tensor {what}", _changed(name, change)


def _texts(base: Path) -> Iterator[tuple[str, Damage]]:
    """19 cases; the manifest agrees."""
    for what, prompt in {
        "loops": "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}{{ text }}",
        "grows": "{% set x = 'aaaaaaaa' %}" + "{% set x = x + x + x + x %}" * 40 + "{{ x }}{{ text }}",
        "multiplies": "{{ 'a' * 999999999 }}{{ text }}",
        "looks into objects": "{{ text.__class__.__mro__ }}",
        "calls": "{{ text.encode('utf-8') }}",
        "imports": "{% include '/etc/passwd' %}{{ text }}",
        "is none": "{{ text",
    }.items():
        yield (
            f"template {what}",
            _spec(lambda s, p=prompt: s["templates"].update(own={"prompt": p, "target": "x"})),
        )
    yield "labels swapped", _spec(lambda s: s["labels"].reverse())
    yield "a label more", _spec(lambda s: s["labels"].append("more"))
    yield "a million labels", _spec(lambda s: s.update(labels=[f"l{i}" for i in range(1_000_000)]))
    yield "another kind", _spec(lambda s: s.update(kind="regress"))
    yield "no such kind", _spec(lambda s: s.update(kind="execute"))
    yield "an unknown field", _spec(lambda s: s.update(hook="os.system"))
    yield "a metric is a script", _spec(lambda s: s.update(metrics=["evaluate:/tmp/metric.py"]))
    yield "labels are a number", _spec(lambda s: s.update(labels=3))
    yield "rows of this machine", _spec(lambda s: s.update(source="/etc/passwd"))
    unfolding = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
    )
    yield "YAML unfolds", _added(".eval_results/x.yaml", unfolding)
    yield "YAML runs", _added(".eval_results/x.yaml", "!!python/object/apply:os.mkdir [escaped]\n")
    yield "YAML nests", _added(".eval_results/x.yaml", "[" * 100_000)
    yield "JSON nests", lambda folder: _written(folder / bundle.MANIFEST, "[" * 1_000_000)


def _manifests() -> Iterator[tuple[str, Damage]]:
    """11 cases; the digest agrees."""
    yield "tokenizer of another", _sealed(lambda m: m["backbone"].update(tokenizer="0" * 64))
    yield "weights of another", _sealed(lambda m: m["backbone"].update(digest="0" * 64))
    yield (
        "a huge rank",
        _sealed(lambda m: m["model"].update(strategy={"name": "lora-per-task", "rank": 10**9})),
    )
    yield "many experts", _sealed(lambda m: m["model"].update(strategy={"name": "mixlora", "experts": 10**7}))
    yield "a strategy of nobody", _sealed(lambda m: m["model"].update(strategy="os.system"))
    endless = {"name": "lora-per-task", "targets": "(([a-z.]+)*)*!"}
    yield "an endless pattern", _sealed(lambda m: m["model"].update(strategy=endless))
    yield "a huge length", _sealed(lambda m: m["model"].update(max_length=10**12))
    yield "no tasks", _sealed(lambda m: m.update(tasks=[]))
    yield "tasks twice", _sealed(lambda m: m.update(tasks=[*m["tasks"], *m["tasks"]]))
    yield "no settings", _sealed(lambda m: m.update(model=[]))
    yield "a later format", _sealed(lambda m: m.update(format=99))


# What makes one thing wrong.


def _flip(name: str, place: int, bit: int) -> Damage:
    def damage(folder: Path) -> None:
        text = bytearray((folder / name).read_bytes())
        text[place] ^= 1 << bit
        (folder / name).write_bytes(bytes(text))

    return damage


def _cut(name: str, share: float) -> Damage:
    def damage(folder: Path) -> None:
        text = (folder / name).read_bytes()
        (folder / name).write_bytes(text[: int(share * len(text))])

    return damage


def _remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def _written(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def _added(name: str, text: str) -> Damage:
    return lambda folder: _written(folder / name, text)


def _link(name: str) -> Damage:
    def damage(folder: Path) -> None:
        outside = folder.parent / "outside"
        outside.mkdir(exist_ok=True)
        target = outside / "file"
        if (folder / name).exists():
            shutil.move(folder / name, target)
        (folder / name).symlink_to(target if target.exists() else outside)

    return damage


def _pickled(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes(pickle.dumps(Bomb(folder.parent / "exploded")))


def _sealed(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Change the manifest, and make its digest agree."""

    def damage(folder: Path) -> None:
        manifest = json.loads((folder / bundle.MANIFEST).read_text("utf-8"))
        del manifest["digest"]
        change(manifest)
        manifest["digest"] = bundle._digest(manifest)
        (folder / bundle.MANIFEST).write_text(bundle._text(manifest), "utf-8")

    return damage


def _again(folder: Path) -> None:
    """Seal the folder as it is now."""
    manifest = json.loads((folder / bundle.MANIFEST).read_text("utf-8"))
    bundle.seal(folder, {key: manifest[key] for key in manifest if key not in ("digest", "files", "format")})


def _listed(name: str) -> Damage:
    return _sealed(lambda manifest: manifest["files"].update({name: {"bytes": 1, "sha256": "0" * 64}}))


def _spec(change: Callable[[dict[str, Any]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "tasks" / "own--classify" / bundle.TASK
        task = json.loads(path.read_text("utf-8"))
        change(task["spec"])
        path.write_text(json.dumps(task), "utf-8")
        _again(folder)

    return damage


def _changed(name: str, change: Callable[[dict[str, Any], str], dict[str, Any]]) -> Damage:
    def damage(folder: Path) -> None:
        from safetensors import safe_open
        from safetensors.numpy import save_file

        with safe_open(folder / name, "numpy") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        save_file(change(tensors, sorted(tensors)[-1]), folder / name, metadata=metadata)
        _again(folder)

    return damage


# The run that all cases are made from, and what becomes of them.


def published(folder: Path) -> tuple[Path, str]:
    """A bundle of two tasks, and its backbone."""
    from mtnlp.runs import publish

    backbone = _backbone(folder / "backbone")
    rows = [{"text": f"word{i % 7} thing", "label": ("no", "yes")[i % 2]} for i in range(12)]
    tags = [{"tokens": ["word", "thing"], "tags": ["O", "X"]} for _ in range(12)]
    recipe = {
        "model": {"backbone": backbone, "attention": "eager", "max_length": 32},
        "tasks": [
            {"name": "own/classify", "kind": "classify", "source": {"train": rows, "validation": rows}},
            {"name": "own/tag", "kind": "tag", "source": {"train": tags, "validation": tags}},
        ],
        "train": {"steps": 2, "examples_per_step": 4, "precision": "fp32", "matmul": "highest"},
    }
    mtnlp.finetune(recipe, out=folder / "run")
    publish.push(folder / "run", str(folder / "bundle"))
    return folder / "bundle", backbone


def _backbone(folder: Path) -> str:
    """A tiny BERT with random weights, and a tokenizer of letters."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    names = ["<pad>", "<s>", "</s>", "<unk>", *pre_tokenizers.ByteLevel.alphabet()]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    special = {"pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special).save_pretrained(
        folder
    )
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = BertConfig(vocab_size=len(names), max_position_embeddings=64, **sizes)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return str(folder)


def refusal(base: Path, damage: Damage, backbone: str, folder: Path) -> tuple[str, float, float]:
    """Load a damaged copy: (why it was refused, CPU seconds, megabytes).

    Raises:
        AssertionError: it was loaded, something ran, or the error is none that says why.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder / "bundle")
    damage(folder / "bundle")
    tracemalloc.start()
    start, reason = time.process_time(), ""
    try:
        mtnlp.load(folder / "bundle", backbone=backbone)
    except mtnlp.MtnlpError as error:
        reason = str(error)
    seconds, (_, most) = time.process_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert reason, "it was loaded"
    assert not (folder / "exploded").exists(), "it ran code"
    return reason, seconds, most / 1e6


def main() -> None:
    parser = arguments(__doc__)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        base, backbone = published(Path(place))
        found = list(cases(base))
        assert len(found) == 200, len(found)
        rows = []
        refusal(base, found[0][1], backbone, Path(place) / "case")  # libraries are loaded
        for what, damage in found[:: 10 if args.quick else 1]:
            reason, seconds, memory = refusal(base, damage, backbone, Path(place) / "case")
            print(
                f"{seconds:.3f} s  {memory:6.1f} MB  {what}: {reason.splitlines()[0][:150]}", file=sys.stderr
            )
            rows.append((seconds, memory))
    times, sizes = [row[0] for row in rows], [row[1] for row in rows]
    told = [
        Row("refused, of all", "-", 1.0, 1.0, 1.0, 1.0, most=False, note=f"{len(rows)} bundles"),
        Row("slowest refusal, CPU-s", "1", max(times), min(times), max(times), SECONDS, note="least to most"),
        Row("most memory, MB", "1", max(sizes), min(sizes), max(sizes), MEGABYTES, note="least to most"),
    ]
    report("Damaged and hostile bundles", {"200 bundles, each with one thing wrong": told}, args)


if __name__ == "__main__":
    main()
