"""What `mtnlp eval` can evaluate: run folders, and plain models of transformers with any number of adapters.

A target says what its answers depend on (`digest`) before any weight is loaded, so that an evaluation whose
answers are all kept loads nothing.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtnlp import assemble
from mtnlp.bench import labels
from mtnlp.bench.samples import key_of
from mtnlp.config import ALIASES
from mtnlp.errors import MtnlpError, did_you_mean, shown
from mtnlp.hub import bundle, stores
from mtnlp.models.places import content_of, digest_of, folder_of
from mtnlp.runs import plain, trained
from mtnlp.runs.folder import RunFolder
from mtnlp.runs.trained import Trained
from mtnlp.tasks.spec import TaskSpec

if TYPE_CHECKING:
    from mtnlp.bench.predict import Predictor
    from mtnlp.strategies._peft_files import Adapter

LONGEST = 2048  # tokens of a prompt, where the model itself sets no lower limit
ANSWER = 256  # tokens of an answer
HEADS = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification"}  # peft's task_type
LIBRARIES = ("torch", "transformers", "tokenizers")
CODE = (
    "bench/classifiers.py",
    "bench/labels.py",
    "bench/predict.py",
    "bench/similar.py",
    "data",
    "heads",
    "models",
    "strategies",
    "tasks/templates.py",
    "tasks/answers.py",
)


@cache
def code_version() -> str:
    """A hash of the code that answers are made by: ours, and the versions of the libraries below it."""
    root = Path(assemble.__file__).parent
    files = [path for part in CODE for path in sorted([root / part, *(root / part).glob("*.py")])]
    ours = [content_of(path).hex() for path in files if path.is_file()]
    return key_of(ours, [version(name) for name in LIBRARIES])


class Target(ABC):
    """One thing to be evaluated.

    Attributes:
        name: as it was given. models: what stands in the table for it: one, or one per adapter.
        about: what else reports should say.
    """

    name: str
    models: tuple[str, ...]
    about: dict[str, Any]

    @abstractmethod
    def digest(self, model: str) -> str:
        """A hash of all that this model's answers depend on beside the question: weights, tokenizer,
        settings, code."""

    @abstractmethod
    def spec(self, asked: TaskSpec) -> TaskSpec:
        """The task as these models answer it.

        Raises:
            MtnlpError: they cannot; why.
        """

    def check(self, model: str, spec: TaskSpec) -> None:
        """Whether a model can answer a task, once its labels are known. MtnlpError if not."""
        return

    @abstractmethod
    def index(self, model: str, spec: TaskSpec) -> int:
        """The task index under which the predictor is to be asked."""

    @cached_property
    def predictor(self) -> Predictor:
        """Loaded when first asked for."""
        return self._load()

    @abstractmethod
    def _load(self) -> Predictor: ...


class RunTarget(Target):
    """A finished run, or a bundle: its tasks by their own heads or adapters; others too where all share one
    text model."""

    def __init__(self, found: Trained, *, trust_remote_code: bool = False) -> None:
        self.name, self.models, self.trust = found.name, ("",), trust_remote_code
        self.found, self.recipe = found, found.recipe
        self.tasks = {spec.name: spec for spec in found.specs}
        self.about = {"backbone": self.recipe.model.backbone, "strategy": self.recipe.model.strategy.name}

    @cached_property
    def _digest(self) -> str:
        model, train = self.recipe.model, self.recipe.train
        folder = folder_of(model.backbone, model.revision)
        settings = [model.model_dump(), train.precision, train.matmul, train.max_tokens]
        return key_of(code_version(), self.found.parts, settings, folder and digest_of(folder))

    def digest(self, model: str) -> str:
        return self._digest

    def spec(self, asked: TaskSpec) -> TaskSpec:
        own = self.tasks.get(asked.name)
        if own is None:
            return self._foreign(asked)
        if own.kind != asked.kind:
            raise MtnlpError(f"the run learned {asked.name} as {own.kind}, and here it is {asked.kind}.")
        if asked.labels is not None and (lacking := sorted(set(asked.labels) - set(own.labels or ()))):
            raise MtnlpError(f"the run has no label {', '.join(map(shown, lacking))} for it.")
        return asked.replace(labels=own.labels, words=own.words, score_scale=own.score_scale)

    def _foreign(self, asked: TaskSpec) -> TaskSpec:
        strategy = self.recipe.model.strategy.name
        if strategy not in ("full", "lora") or self.predictor.encoder.form == "encoder":
            hint = did_you_mean(asked.name, self.tasks)
            raise MtnlpError(f"the run has learned no task of this name. {hint}")
        return asked

    def index(self, model: str, spec: TaskSpec) -> int:
        return list(self.tasks).index(spec.name) if spec.name in self.tasks else 0

    def _load(self) -> Predictor:
        from mtnlp.runs import saved

        return saved.live(self.found, trust_remote_code=self.trust).predictor


class ModelTarget(Target):
    """A model that writes text, alone or with adapters in peft's format, each of them a row of one bank."""

    def __init__(
        self,
        name: str,
        adapters: Sequence[str] = (),
        *,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.name, self.revision, self.trust = name, revision, trust_remote_code
        self.adapters = {Path(adapter).name: _adapter_folder(adapter) for adapter in adapters}
        if len(self.adapters) < len(adapters):
            raise MtnlpError("--adapter: two adapters end in the same name; rename one folder.")
        self.models = tuple(self.adapters) or ("",)
        self.about = {"backbone": name}

    @cached_property
    def _base(self) -> str:
        folder = folder_of(self.name, self.revision)
        if folder is None:  # downloads it
            self.predictor  # noqa: B018
            folder = folder_of(self.name, self.revision)
        return key_of(code_version(), folder and digest_of(folder), LONGEST, ANSWER)

    def digest(self, model: str) -> str:
        return key_of(self._base, digest_of(self.adapters[model])) if model else self._base

    def spec(self, asked: TaskSpec) -> TaskSpec:
        return asked

    def index(self, model: str, spec: TaskSpec) -> int:
        return self.models.index(model)

    def _load(self) -> Predictor:
        return plain.build(
            self.name,
            self.adapters,
            revision=self.revision,
            longest=LONGEST,
            answer=ANSWER,
            trust_remote_code=self.trust,
        )


class ClassifierTarget(ModelTarget):
    """A plain network with a head for sequences or tokens, matched to tasks by the names of its labels."""

    def __init__(self, name: str, config: dict[str, Any], **options: Any) -> None:
        super().__init__(name, **options)
        self.config = config

    def check(self, model: str, spec: TaskSpec) -> None:
        labels.columns(self.config, spec)

    def _load(self) -> Predictor:
        return plain.build_classifier(
            self.name, [self.config], revision=self.revision, trust_remote_code=self.trust
        )


class HeadsTarget(ModelTarget):
    """A plain network with adapters that have a classification head each, as peft saves them."""

    @cached_property
    def _read(self) -> dict[str, Adapter]:
        from mtnlp.strategies import _peft_files

        return {model: _peft_files.read(folder) for model, folder in self.adapters.items()}

    @cached_property
    def _configs(self) -> dict[str, dict[str, Any]]:
        """What describes the head of every adapter. Labels have names where the folder has a config.json."""
        from mtnlp.strategies import _peft_heads

        found = {}
        for model, folder in self.adapters.items():
            count = _peft_heads.scores(self._read[model].saved)
            if count is None:
                raise MtnlpError(
                    f"--adapter {folder}: adapter_model.safetensors holds no head: expected the weight of a "
                    f"{' or '.join(_peft_heads.OUTPUTS)} that modules_to_save names."
                )
            names = {str(i): f"LABEL_{i}" for i in range(count)}
            kept = _config(folder).get("id2label") if (folder / "config.json").exists() else None
            if kept is not None and (not isinstance(kept, dict) or kept.keys() != names.keys()):
                raise MtnlpError(
                    f"{folder / 'config.json'}: id2label: expected names for 0 to {count - 1}, as the head "
                    f"has {count} outputs, found {shown(kept)}."
                )
            found[model] = {"architectures": [f"X{_head_of(folder)}"], "id2label": kept or names}
        return found

    def check(self, model: str, spec: TaskSpec) -> None:
        labels.columns(self._configs[model], spec)

    def _load(self) -> Predictor:
        return plain.build_classifier(
            self.name,
            list(self._configs.values()),
            self._read,
            revision=self.revision,
            trust_remote_code=self.trust,
        )


def open_target(
    name: str,
    adapters: Sequence[str] = (),
    *,
    revision: str | None = None,
    backbone: str | None = None,
    trust_remote_code: bool = False,
) -> Target:
    """A run folder, a bundle by its folder or address, or a model: folder, alias or hub id.

    Args:
        backbone: a folder or hub id to take in place of the one that a bundle names.

    Raises:
        MtnlpError: nothing of that name, or a run that is not finished.
    """
    path = Path(name).expanduser()
    if (found := _trained(name, path, revision, backbone)) is not None:
        if adapters:
            raise MtnlpError("--adapter goes with a plain model; this target has adapters of its own.")
        target = RunTarget(found, trust_remote_code=trust_remote_code)
        if folder_of(found.recipe.model.backbone, found.recipe.model.revision) is None:
            _ = target.predictor  # downloads its backbone, or says that there is none
        return target
    if path.is_dir() and not (path / "config.json").exists():
        raise MtnlpError(
            f"{name} is neither a run folder (no recipe.yaml and tasks.json), nor a bundle (no "
            f"{bundle.MANIFEST}), nor a model (no config.json)."
        )
    folder = folder_of(name, revision)
    config = _config(folder) if folder else {}
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    if labels.head_of(config) and not adapters:
        return ClassifierTarget(name, config, **options)
    target = ModelTarget(name, adapters, **options)
    heads = {model: _head_of(folder) for model, folder in target.adapters.items()}
    if len(set(heads.values())) > 1:
        told = ", ".join(f"{model} for {head or 'text'}" for model, head in heads.items())
        raise MtnlpError(
            f"--adapter: all must be for one class of network, found {told}. Evaluate them apart."
        )
    if any(heads.values()):
        target = HeadsTarget(name, adapters, **options)
    if folder is None:
        _ = target.predictor  # downloads it, or says that there is no such model, before anything is asked
    return target


def may_have_tasks(name: str) -> bool:
    """Whether a name can be that of a run or a bundle, before anything is opened."""
    path = Path(name).expanduser()
    here = RunFolder(path).holds_run() or bundle.is_bundle(path)
    return here or (stores.is_address(name) and not path.is_dir())


def _trained(name: str, path: Path, revision: str | None, backbone: str | None) -> Trained | None:
    """What was trained by mtnlp; None = a plain model, or nothing."""
    if RunFolder(path).holds_run() or bundle.is_bundle(path) or "://" in name:
        return trained.find(name, revision=revision, backbone=backbone)
    if path.is_dir() or name in ALIASES or not stores.is_address(name):
        return None
    there = folder_of(name, revision)
    if there is not None and not bundle.is_bundle(there):
        return None
    try:
        return trained.find(name, revision=revision, backbone=backbone)
    except trained.NoBundle:
        return None


def _config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    try:
        found = json.loads((folder / name).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise MtnlpError(f"{folder / name}: cannot be read ({error}).") from None
    return found if isinstance(found, dict) else {}


def _head_of(adapter: Path) -> str | None:
    """The head that an adapter was trained with, a key of labels.KINDS; None = it has none."""
    path = adapter / "adapter_config.json"
    config = _config(adapter, path.name) if path.exists() else {}
    mapping = config.get("auto_mapping")  # where peft was not told a task_type
    trained = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    return labels.head_of({"architectures": [HEADS.get(str(config.get("task_type")), str(trained))]})


def _adapter_folder(name: str) -> Path:
    """The folder of an adapter: as named, or fetched from its address."""
    path = Path(name).expanduser()
    if not path.is_dir() and not stores.is_address(name):
        raise MtnlpError(f"--adapter {name}: no such folder.")
    try:
        return path if path.is_dir() else stores.fetch(name)
    except MtnlpError as error:
        raise MtnlpError(f"--adapter {error}") from None
