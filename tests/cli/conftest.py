"""The command line against a stand-in for the rest of the house, in this process."""

import sys
import types

import pytest

import mtnlp.runs
from mtnlp.cli.main import main
from mtnlp.errors import DataError
from mtnlp.tasks.spec import TaskSpec


class Result:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(capsys):
    """run("list", "tasks") -> exit code, standard output and standard error of that command line."""

    def run(*args):
        with pytest.raises(SystemExit) as stopped:
            main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return Result(stopped.value.code or 0, out, err)

    return run


class Model:
    """Answers every row with itself, and remembers how many came at once."""

    def __init__(self):
        specs = [
            TaskSpec("mood", "classify", "mood.csv", labels=("no", "yes")),
            TaskSpec("same", "pair", "same.csv"),
            TaskSpec("names", "tag", "names.conll"),
            TaskSpec("exam", "choose", "exam.jsonl"),
        ]
        self.tasks = {spec.name: spec for spec in specs}
        self.calls = []

    def chosen(self, task):
        return task or next(iter(self.tasks))

    def predict(self, rows, *, task, places):
        self.calls.append((task, len(rows)))
        for row, place in zip(rows, places, strict=True):
            if row.get("text") == "bad":
                raise DataError(f"{place}: no good.")
        return [{"value": row} for row in rows]


class Report:
    def print(self):
        print("the report")

    def save(self, path):
        path.write_text("{}")


class Verdict(Report):
    whole = True
    evaluations = (types.SimpleNamespace(report=Report()),)


@pytest.fixture
def house(monkeypatch):
    """What the commands call, replaced: `house.calls` holds the calls, `house.model` answers rows.

    `house.finetune = f` lets f be called instead.
    """
    house = types.SimpleNamespace(calls=[], model=Model(), report=Report())

    def note(name, answer):
        def call(*args, **kwargs):
            house.calls.append((name, args, kwargs))
            return answer

        setattr(house, name, call)
        return lambda *args, **kwargs: getattr(house, name)(*args, **kwargs)

    rooms = {
        "train": {"finetune": note("finetune", house.report)},
        "check": {"check": note("check", house.report)},
        "saved": {"load": note("load", house.model)},
        "judge": {"judge": note("judge", Verdict()), "check_out": lambda out: None},
    }
    for name, functions in rooms.items():
        module = types.ModuleType(f"mtnlp.runs.{name}")
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(mtnlp.runs, name, module, raising=False)
    return house
