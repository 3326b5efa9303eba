"""Documentation that runs: Python blocks are executed, command lines parsed, YAML blocks validated."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

import mtnlp
from mtnlp import config, strict_yaml
from mtnlp.cli.main import app
from mtnlp.tasks.load import from_mapping

ROOT = Path(mtnlp.__file__).parents[1]
PAGES = sorted(path.relative_to(ROOT) for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
END_OF_COMMAND = {"|", ">", "<", "&&", ";", "||"}


def blocks(page: Path, *languages: str) -> list[str]:
    """Bodies of the fenced blocks of a page in one of the languages."""
    fenced = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [body for language, body in fenced if language in languages]


def commands(page: Path) -> list[list[str]]:
    """Arguments of every `mtnlp` in the page's shell blocks: lines that start with `$ `."""
    found = []
    for body in blocks(page, "console", "bash"):
        for line in re.findall(r"^\$ (.*)$", body.replace("\\\n", " "), re.MULTILINE):
            words = shlex.split(line, comments=True)
            while "mtnlp" in words:
                words = words[words.index("mtnlp") + 1 :]
                ends = [i for i, word in enumerate(words) if word in END_OF_COMMAND]
                found.append(words[: ends[0]] if ends else words)
    return found


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_python_blocks_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "__main__"}
    for body in blocks(page, "python"):
        exec(compile(body, str(page), "exec"), namespace)


@pytest.mark.parametrize(
    ("page", "args"), [(page, args) for page in PAGES for args in commands(page)], ids=str
)
def test_command_lines_are_valid(page, args):
    command, *rest = args
    context = get_command(app).commands[command].make_context(command, rest)

    recipe = context.params.get("recipe", "")
    assert not recipe.startswith("recipes/") or (ROOT / recipe).exists()
    if recipe.startswith("recipes/"):
        assert config.read(ROOT / recipe, context.params["overrides"] or ())[1] == []
    if command == "list":
        assert context.params["room"] in (
            "tasks",
            "strategies",
            "samplers",
            "balancers",
            "heads",
            "recipes",
            "metrics",
        )


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_recipes_and_tasks_in_yaml_blocks_are_valid(page, tmp_path):
    for body in blocks(page, "yaml"):
        data = strict_yaml.load(body, page)
        if "tasks" in data:
            recipe, problems = config.read(data)
            assert problems == []
            entries = [entry for entry in recipe.tasks if isinstance(entry, dict)]
        else:
            entries = [data] if "kind" in data else []
        for entry in entries:
            assert from_mapping(entry, base=tmp_path, where=str(page)).name


def test_the_readme_starts_with_the_two_commands():
    first = blocks(Path("README.md"), "console")[0]

    assert re.findall(r"^\$ make (\w+)", first, re.MULTILINE) == ["quickstart", "test"]
    assert len(commands(Path("README.md"))) > 8
