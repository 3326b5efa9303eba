"""What was trained and lies on a disk: the folder of a run, or a bundle from anywhere.

Nothing of it is loaded here; `saved.load` and the targets of `mtnlp eval` do that.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mtnlp import assemble, metrics, tasks
from mtnlp.config import Recipe
from mtnlp.errors import MtnlpError, RecipeError, shown
from mtnlp.hub import bundle, stores
from mtnlp.hub.bundle import Bundle
from mtnlp.models.places import content_of
from mtnlp.resolve import load_imports
from mtnlp.runs.folder import RunFolder, spec_from_json
from mtnlp.tasks import templates
from mtnlp.tasks.spec import TaskSpec

if TYPE_CHECKING:
    from mtnlp.models.backbone import Backbone
    from mtnlp.models.multitask import MultitaskModel


PUBLIC = ("hub:", "pystdlib:")  # sources that mean the same everywhere


def is_public(source: Any) -> bool:
    """Whether rows can be found there from any machine."""
    return isinstance(source, str) and source.startswith(PUBLIC)


class NoBundle(MtnlpError):
    """A place that cannot be reached, or that holds something else, such as a plain model."""


@dataclass(frozen=True)
class Trained:
    """A trained model that is whole.

    Args:
        name: as it was given. where: its folder on this machine.
        recipe: of a bundle, without its data. specs: its tasks, in the order of their indices.
        given: the bundle; None = a run folder.
    """

    name: str
    where: Path
    recipe: Recipe
    specs: tuple[TaskSpec, ...]
    given: Bundle | None = None

    @property
    def parts(self) -> list[str]:
        """Hashes of what was learned and of the tasks."""
        if self.given is not None:
            return [self.given.digest]
        folder = RunFolder(self.where)
        return [content_of(path).hex() for path in (folder.weights, folder.tasks)]

    def check(self, backbone: Backbone) -> None:
        """Whether this is the backbone that it was trained on; call it before a strategy edits it.

        Raises:
            MtnlpError: other weights, or another tokenizer.
        """
        from mtnlp.models.identity import tokenizer_digest, weights_digest

        if self.given is None:
            return
        wanted = self.given.manifest["backbone"]
        for what, own, expected in (
            ("weights", weights_digest(backbone), wanted["digest"]),
            ("tokenizer", tokenizer_digest(backbone.tokenizer), wanted["tokenizer"]),
        ):
            if own != expected:
                raise MtnlpError(
                    f"{self.name}: it was trained on {wanted['name']}, and {backbone.described} has other "
                    f"{what} (SHA-256 {own[:12]}..., expected {expected[:12]}...). Name the folder of the "
                    "right backbone with --backbone."
                )

    def require(self, *, trust_remote_code: bool = False) -> None:
        """Whether the tensors of a bundle are those that its settings ask for; nothing of their size is made.

        Raises:
            MtnlpError: they are not; or the backbone is not to be found.
        """
        if self.given is None:
            return
        try:
            self._require(trust_remote_code)
        except MtnlpError as error:
            text = str(error)
            raise MtnlpError(text if self.name in text else f"{self.name}: {text}") from None

    def _require(self, trust_remote_code: bool) -> None:
        import torch

        from mtnlp.hub import contents
        from mtnlp.models.backbone import Backbone

        model = self.recipe.model
        outline = Backbone.outline(
            model.backbone,
            revision=model.revision,
            family=model.family,
            trust_remote_code=trust_remote_code,
        )
        assemble.check_backbone(self.recipe, outline.family, outline.max_length)
        names = [name for name, _ in outline.net.named_parameters()]
        with torch.device("meta"):
            built = assemble.build_model(self.recipe, self.specs, outline)
            contents.check(built, self.specs, names, self.given)

    def fill(self, model: MultitaskModel) -> None:
        """Put what was learned into a model built from `recipe` and `specs`.

        Raises:
            MtnlpError: damaged files, or tensors that do not fit.
        """
        from mtnlp.hub import contents
        from mtnlp.train.checkpoint import read_table

        if self.given is not None:
            contents.fill(model, self.given)
        else:
            model.load_trainable_state(read_table(RunFolder(self.where).weights, model.row_layout))


def find(place: Path | str, *, revision: str | None = None, backbone: str | None = None) -> Trained:
    """The trained model at a place.

    Args:
        place: a run folder; a bundle's folder, its address (s3:// ...), or owner/name on the model hub.
        revision: of a hub repository.
        backbone: a folder or hub id to take in place of the one that a bundle names.

    Raises:
        MtnlpError: neither, an unfinished run, or a bundle that is not as it was published.
    """
    path = Path(place).expanduser()
    if RunFolder(path).holds_run() or not (bundle.is_bundle(path) or _elsewhere(str(place))):
        if backbone is not None:
            raise MtnlpError(f"--backbone goes with a bundle, and {place} holds no {bundle.MANIFEST}.")
        if (path / bundle.ADAPTER_CONFIG).is_file():
            raise MtnlpError(
                f"{place} is an adapter, which knows no task. Name a run or a whole bundle; or ask it "
                f"the tasks of a suite: `mtnlp eval MODEL --adapter {place} --suite SUITE`."
            )
        return finished(path)
    return _of_bundle(str(place), bundle.read(_fetched(str(place), revision)), backbone)


def finished(place: Path | str) -> Trained:
    """A run folder, with what its recipe imports.

    Raises:
        MtnlpError: no run folder, or one whose training has not finished.
    """
    folder = RunFolder(Path(place))
    recipe, specs = folder.read_recipe(), folder.read_specs()
    for path in (folder.results, folder.weights):  # weights are kept at every best evaluation
        if not path.exists():
            again = shlex.join(["mtnlp", "finetune", str(folder.recipe), "--out", str(place), "--resume"])
            go_on = f"Go on with `{again}`."
            if (folder.path / "added.json").exists():
                go_on = "Run the `mtnlp finetune --add` command that began it once more, with --resume."
            raise MtnlpError(f"{place} holds no {path.name}: its training has not finished. {go_on}")
    if problems := load_imports(recipe):
        raise RecipeError(folder.recipe, problems)
    return Trained(str(place), folder.path, recipe, specs)


def _elsewhere(place: str) -> bool:
    return stores.is_address(place) and not Path(place).expanduser().is_dir()


def _fetched(place: str, revision: str | None) -> Path:
    """The folder of a bundle. Names and sizes of its files are looked at before any is fetched."""
    is_one = False

    def check(files: Sequence[tuple[str, int]]) -> None:
        nonlocal is_one
        is_one = bundle.MANIFEST in dict(files)
        if not is_one:
            raise MtnlpError(f"it has no {bundle.MANIFEST}, so it is no bundle.")
        bundle.check_names(files)

    try:
        return stores.fetch(place, revision=revision, check=check)
    except MtnlpError as error:
        raise error if is_one else NoBundle(str(error)) from None


def _of_bundle(place: str, given: Bundle, backbone: str | None) -> Trained:
    manifest = given.manifest
    if manifest["backbone"]["local"] and backbone is None:
        raise MtnlpError(
            f"{place}: its backbone, {shown(manifest['backbone']['name'])}, was a folder of whoever trained "
            "it. Name yours with --backbone FOLDER (backbone=... in Python)."
        )
    specs = tuple(_spec(place, about["spec"]) for about in given.tasks)
    known = [spec.name for spec in specs if spec.name in tasks.names()]
    own = manifest["backbone"]
    name = backbone or own["alias"] or own["name"]
    _check_targets(place, manifest["model"]["strategy"])
    model = {**manifest["model"], "backbone": name, "revision": None if backbone else own["revision"]}
    data = {"name": manifest["name"], "seed": manifest["seed"], "tasks": known, "train": manifest["train"]}
    try:
        recipe = Recipe.model_validate({**data, "model": model})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise MtnlpError(f"{place}: {bundle.MANIFEST}: {key}: {first['msg']}.") from None
    return Trained(place, given.folder, recipe, specs, given)


def _check_targets(place: str, strategy: Any) -> None:
    """A pattern of somebody else is used only if it is a plain list of names: others can take for ever."""
    targets = strategy.get("targets", "auto") if isinstance(strategy, dict) else "auto"
    if not (isinstance(targets, str) and re.fullmatch(r"auto|\^\([\w\\.|-]+\)\$", targets)):
        raise MtnlpError(
            f"{place}: {bundle.MANIFEST}: model.strategy.targets: {shown(targets)} is no list of layers."
        )


def _spec(place: str, data: Any) -> TaskSpec:
    """A task of a bundle; its templates are looked at before they are ever used."""
    try:
        spec = spec_from_json(data)
    except (MtnlpError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise MtnlpError(f"{place}: {bundle.TASK}: not a task ({error}).") from None
    if foreign := sorted(set(spec.metrics) - set(metrics.names(spec.kind))):
        raise MtnlpError(f"{place}: {spec.name}: metrics: {shown(foreign[0])} is none of mtnlp's own.")
    if spec.source is not None and not is_public(spec.source):
        raise MtnlpError(
            f"{place}: {spec.name}: source: {shown(spec.source)} is a place on somebody's machine."
        )
    for name, template in spec.templates.items():
        if problem := templates.problem(spec.kind, template):
            raise MtnlpError(f"{place}: {spec.name}: templates.{name}.{problem}")
    return spec
