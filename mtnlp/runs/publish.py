"""From a run folder to a bundle, and from a bundle to wherever it goes."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtnlp import __version__, assemble, metrics
from mtnlp.bench.evaluate import Report
from mtnlp.config import ALIASES
from mtnlp.errors import MtnlpError, did_you_mean, shown
from mtnlp.hub import addresses, bundle, cards, stores
from mtnlp.models.places import folder_of
from mtnlp.runs import harness, saved, trained
from mtnlp.runs.folder import RunFolder, spec_to_json
from mtnlp.runs.targets import RunTarget
from mtnlp.runs.trained import Trained
from mtnlp.tasks.spec import TaskSpec

if TYPE_CHECKING:
    from mtnlp.bench.predict import Predictor
    from mtnlp.hub.stores import Published
    from mtnlp.models.backbone import Backbone

TOKEN = re.compile(
    rb"\b(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16})\b"
)


def push(
    run: Path | str,
    address: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    trust_remote_code: bool = False,
) -> Published:
    """Publish a run as a bundle, or a bundle as it is.

    Args:
        run: a finished run folder, or a bundle's folder.
        address: owner/name on the model hub, a folder, or an address such as s3://bucket/name.
        private: make a new hub repository private. revision: the branch to write to. create_pr: propose the
            change instead of making it.

    Raises:
        MtnlpError: no finished run; a file that holds a token; a place that cannot be written.
    """
    addresses.parse(address, revision)  # a mistake in it is told before anything is scored
    if (given := Path(run).expanduser()).is_dir() and bundle.is_bundle(given):
        bundle.read(given)
        return _published(given, address, private=private, revision=revision, create_pr=create_pr)
    with _bundled(trained.finished(run), trust_remote_code) as folder:
        return _published(folder, address, private=private, revision=revision, create_pr=create_pr)


def pull(source: str, out: Path | None = None, *, revision: str | None = None) -> tuple[Path, Trained]:
    """Fetch a bundle into a folder, checked.

    Args:
        out: the folder; None = one called like the bundle, in the working directory.

    Returns:
        The folder, and what is in it.

    Raises:
        MtnlpError: no bundle there, one that is not as it was published, or a folder that holds other things.
    """
    found = trained.find(source, revision=revision, backbone="")  # whichever, as none is loaded
    if found.given is None:
        raise MtnlpError(f"{source} is a run folder on this machine: there is nothing to pull.")
    folder = out or Path(found.given.manifest["name"])
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not bundle.is_bundle(folder))):
        raise MtnlpError(f"{folder} holds other files. Name a new folder with --out.")
    stores.publish(found.where, folder, message="", owned=bundle.owned)
    return folder, found


def export(
    run: Path | str,
    task: str,
    out: Path,
    *,
    backbone: str | None = None,
    trust_remote_code: bool = False,
) -> str:
    """Write one task, merged into the weights of the backbone, as a folder that transformers loads.

    Returns:
        The class of transformers that loads it.

    Raises:
        MtnlpError: no such task; a strategy that is no change of weights; a folder that is not empty.
    """
    from mtnlp.hub import merging

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MtnlpError(f"--out {out} exists and is not empty. Name a new folder.")
    found = trained.find(run, backbone=backbone)
    found.require(trust_remote_code=trust_remote_code)
    names = [spec.name for spec in found.specs]
    if task not in names:
        raise MtnlpError(f"--merge: no task of {run} is called {shown(task)}. {did_you_mean(task, names)}")
    recipe, _ = assemble.settle(found.recipe)
    base = assemble.build_backbone(recipe, trust_remote_code=trust_remote_code)
    found.check(base)
    edited = assemble.build_backbone(recipe, trust_remote_code=trust_remote_code)
    model = assemble.build_model(recipe, found.specs, edited)
    found.fill(model)
    return merging.write(out, model, names.index(task), found.specs[names.index(task)], base)


def write(run: Path | str, folder: Path, *, trust_remote_code: bool = False) -> None:
    """Write the bundle of a finished run into an empty folder.

    Raises:
        MtnlpError: no finished run, or weights that do not fit its recipe.
    """
    _write(trained.finished(run), folder, trust_remote_code)


@contextmanager
def _bundled(found: Trained, trust_remote_code: bool) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mtnlp-") as place:
        folder = Path(place) / "bundle"
        folder.mkdir()
        _write(found, folder, trust_remote_code)
        yield folder


def _published(folder: Path, address: str, **how: Any) -> Published:
    _no_tokens(folder)
    name = json.loads((folder / bundle.MANIFEST).read_text("utf-8"))["name"]
    return stores.publish(folder, address, message=f"mtnlp push: {name}", owned=bundle.owned, **how)


def _write(found: Trained, folder: Path, trust_remote_code: bool) -> None:
    from mtnlp.hub import contents

    recipe, _ = assemble.settle(found.recipe)
    backbone = assemble.build_backbone(recipe, trust_remote_code=trust_remote_code)
    about = _backbone(recipe.model.backbone, backbone)
    names = [name for name, _ in backbone.net.named_parameters()]
    settings = _model(recipe.data()["model"], backbone)
    predictor = saved.live(found, backbone=backbone, trust_remote_code=trust_remote_code).predictor
    specs = {spec.name: spec for spec in found.specs}
    forms = contents.write(folder, predictor.model, specs, names, about["name"])
    report = _scores(found, predictor)
    data = recipe.data()
    manifest = {
        "name": recipe.name,
        "mtnlp": __version__,
        "seed": recipe.seed,
        "backbone": about,
        "model": settings,
        "train": data["train"],
        "tasks": list(specs),
        "ledger": _ledger(RunFolder(found.where).ledger),
    }
    tasks = [_task(specs[name], forms[name], about, report) for name in specs]
    for task in tasks:
        place = folder / bundle.TASKS / bundle.folder_name(task["name"])
        (place / bundle.TASK).write_text(_json(task), "utf-8")
        (place / bundle.CARD).write_text(cards.task_card(manifest, task, report), "utf-8")
    (folder / bundle.CARD).write_text(cards.bundle_card(manifest, tasks, report), "utf-8")
    _results(folder, tasks, report)
    bundle.seal(folder, manifest)


def _backbone(name: str, backbone: Backbone) -> dict[str, Any]:
    """What adapters need to know of it. A folder of this machine goes by its last name only."""
    from mtnlp.models.identity import tokenizer_digest, weights_digest

    local = Path(name).expanduser().is_dir()
    return {
        "name": Path(name).expanduser().resolve().name if local else backbone.name,
        "revision": _commit(name, backbone.revision),
        "alias": name if name in ALIASES else None,
        "local": local,
        "family": backbone.family,
        "fresh": bool(backbone.fresh),
        "digest": weights_digest(backbone),
        "tokenizer": tokenizer_digest(backbone.tokenizer),
    }


def _commit(name: str, revision: str | None) -> str | None:
    """The commit that a hub's backbone was loaded from; else the revision as it was given."""
    folder = folder_of(name, revision)
    return folder.name if folder is not None and folder.parent.name == "snapshots" else revision


def _model(section: Mapping[str, Any], backbone: Backbone) -> dict[str, Any]:
    """The recipe's section on the model, without where its backbone lay, and with layers by their names where
    it had a pattern: readers use nobody's patterns."""
    from mtnlp.strategies._lora import find_targets

    found = {key: value for key, value in section.items() if key not in ("backbone", "revision")}
    strategy = found["strategy"]
    if isinstance(strategy, dict) and strategy.get("targets", "auto") != "auto":
        names = find_targets(backbone, strategy["targets"], strategy["name"])
        found["strategy"] = {**strategy, "targets": "^(" + "|".join(map(re.escape, names)) + ")$"}
    return found


def _task(
    spec: TaskSpec, form: Mapping[str, Any], backbone: Mapping[str, Any], report: Report
) -> dict[str, Any]:
    """mtnlp_task.json: the task, without where its rows lay on this machine."""
    data = spec_to_json(spec)
    data["source"] = spec.source if trained.is_public(spec.source) else None
    own = metrics.names(spec.kind)  # a foreign one is a script, and no bundle names any
    data["metrics"] = [name for name in spec.metrics if name in own] or list(spec.parts.metrics)
    data["demonstrations"] = data["demonstrations"][: spec.shots]  # no other rows leave the machine
    score = next((score for score in report.scores if score.task == spec.name), None)
    return {
        "name": spec.name,
        "spec": data,
        "backbone": backbone["digest"],
        "tokenizer": backbone["tokenizer"],
        "peft": dict(form),
        "metrics": dict(score.values) if score else {},
        "split": score.split if score else None,
        "rows": score.n if score else 0,
    }


def _scores(found: Trained, predictor: Predictor) -> Report:
    """The final scores of a run, with intervals where its rows are still there."""
    final = Report.from_dict(json.loads(RunFolder(found.where).results.read_text("utf-8")))
    splits = dict.fromkeys(score.split for score in final.scores)
    target, sure = RunTarget(found), {}
    target.predictor = predictor
    for split in splits:
        names = [score.task for score in final.scores if score.split == split]
        for name in names:
            try:
                for score in harness.evaluate_own(target, [name], split, None).report.scores:
                    sure[score.task] = score
            except MtnlpError:
                continue  # its rows are gone: the score stays as it was, without an interval
    return replace(final, scores=tuple(sure.get(score.task, score) for score in final.scores))


def _ledger(path: Path) -> list[dict[str, Any]] | None:
    """What every task was given in training; None = a run of before there were ledgers."""
    return json.loads(path.read_text("utf-8"))["tasks"] if path.exists() else None


def _results(folder: Path, tasks: list[dict[str, Any]], report: Report) -> None:
    by_task = {score.task: score for score in report.scores}
    for task in tasks:
        text = cards.results(task, by_task[task["name"]]) if task["name"] in by_task else ""
        if text:
            place = folder / bundle.RESULTS
            place.mkdir(exist_ok=True)
            (place / f"{bundle.folder_name(task['name'])}.yaml").write_text(text, "utf-8")


def _no_tokens(folder: Path) -> None:
    """Whether no file holds a secret.

    Raises:
        MtnlpError: one does; which.
    """
    from huggingface_hub import get_token

    own = get_token()
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.suffix == ".safetensors":
            continue
        text = path.read_bytes()
        if TOKEN.search(text) or (own and own.encode() in text):
            name = path.relative_to(folder)
            raise MtnlpError(
                f"{name} holds what looks like an access token; nothing was pushed. Remove it there."
            )


def _json(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"
