"""What a run of `mtnlp.runs.train` begins with, and what becomes of it at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtnlp import assemble, config
from mtnlp.runs.folder import RunFolder

if TYPE_CHECKING:
    from mtnlp.bench.evaluate import Report
    from mtnlp.models.backbone import Backbone
    from mtnlp.models.multitask import MultitaskModel
    from mtnlp.resolve import Plan
    from mtnlp.train.loop import Run


class Start:
    """Fresh weights, and a folder of its own. `mtnlp.runs.adding` begins with what others have learned.

    Attributes:
        lines: what else to say before training, once the model is made.
    """

    lines: tuple[str, ...] = ()

    def folder(self, path: Path) -> RunFolder:
        """The run folder at a path; nothing is made yet."""
        return RunFolder(path)

    def model(self, plan: Plan, backbone: Backbone, *, trust_remote_code: bool = False) -> MultitaskModel:
        """The model to be trained, on the CPU. What of it must not change has no gradient.

        Raises:
            MtnlpError: parts that do not go together.
        """
        return assemble.build_model(plan.recipe, plan.specs, backbone)

    def done(self, run: Run, folder: RunFolder, report: Report, say: Callable[[Any], None]) -> Report:
        """Finish the folder of a run that is trained and scored; all ranks come here.

        Returns:
            The table as results.json has it.
        """
        if run.accelerator.is_main_process:
            report.save(folder.results)
        return report


FRESH = Start()


def trainer(source: config.Source, overrides: Iterable[str]) -> Callable[..., Report | None]:
    """What trains a recipe: `runs.safe` where it says so, else `runs.train`."""
    from mtnlp.runs import train

    read, _ = config.read(source, overrides)
    if read is None or not read.safe:
        return train.finetune
    from mtnlp.runs import safe

    return safe.finetune
