"""`mtnlp check RECIPE [key=value ...]`: what a run would do, without weights."""

from __future__ import annotations

from mtnlp.cli._arguments import OverridesArgument, RecipeArgument, TrustOption


def check(
    recipe: RecipeArgument, overrides: OverridesArgument = None, trust_remote_code: TrustOption = False
) -> None:
    """Look a recipe over before it runs.

    Without weights: names, columns, labels, lengths, steps and epochs per task, memory, rendered prompts.
    """
    from mtnlp.runs.check import check as look_over

    look_over(recipe, overrides or [], trust_remote_code=trust_remote_code).print()
