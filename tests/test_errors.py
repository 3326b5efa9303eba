"""The error tree: one line per problem, exit codes, suggestions."""

import pytest

from mtnlp.errors import DataError, MtnlpError, RecipeError, TrainingError, did_you_mean


def test_exit_codes_tell_wrong_input_from_a_run_that_stopped():
    assert [error.exit_code for error in (MtnlpError, RecipeError, DataError, TrainingError)] == [2, 2, 2, 1]


def test_a_recipe_error_lists_every_problem_under_its_file():
    error = RecipeError("r.yaml", iter(["train.lr: too low.", "tasks: none."]))

    assert str(error) == "r.yaml:\n  train.lr: too low.\n  tasks: none."
    assert error.problems == ("train.lr: too low.", "tasks: none.")


@pytest.mark.parametrize("typo", ["pcgard", "PCGrad", "pc-grad"])
def test_the_nearest_name_is_suggested_whatever_its_case(typo):
    said = did_you_mean(typo, ["uniform", "pcgrad", "equal"])

    assert said == "Did you mean 'pcgrad'? Known: equal, pcgrad, uniform."


def test_far_names_are_not_suggested_and_long_lists_are_cut():
    assert did_you_mean("zzz", ["a", "b"]) == "Known: a, b."
    assert did_you_mean("zzz", []) == "None is known."
    assert did_you_mean("zzz", map(str, range(100)), shown=2) == "Known: 0, 1, ... (100 in all)."
