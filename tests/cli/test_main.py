"""How errors leave the command line, and help that finds the way."""

import pytest

from mtnlp.errors import MtnlpError, RecipeError, TrainingError


def test_a_mistyped_command_suggests_the_right_one(run):
    result = run("finetun")

    assert result.code == 2
    assert "No such command 'finetun'. Did you mean 'finetune'?" in result.err


def test_no_command_shows_the_help(run):
    result = run()

    assert all(
        name in result.out + result.err for name in ("finetune", "eval", "predict", "check", "list", "show")
    )


@pytest.mark.parametrize("command", ["finetune", "eval", "predict", "check", "list", "show"])
def test_every_command_has_help(run, command):
    result = run(command, "--help")

    assert result.code == 0
    assert "Usage: mtnlp " + command in result.out


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (MtnlpError("no such thing."), 2, "mtnlp: no such thing.\n"),
        (RecipeError("r.yaml", ["a: x.", "b: y."]), 2, "mtnlp: r.yaml:\n  a: x.\n  b: y.\n"),
        (
            TrainingError("step 7, task mood: the loss is nan."),
            1,
            "mtnlp: step 7, task mood: the loss is nan.\n",
        ),
    ],
)
def test_what_a_user_can_mend_is_a_message_and_an_exit_code(run, house, error, code, lines):
    def fail(*args, **kwargs):
        raise error

    house.finetune = fail

    result = run("finetune", "r.yaml")

    assert (result.code, result.err) == (code, lines)


def test_a_fault_of_ours_keeps_its_traceback(run, house):
    def fail(*args, **kwargs):
        raise ZeroDivisionError

    house.finetune = fail

    with pytest.raises(ZeroDivisionError):
        run("finetune", "r.yaml")
