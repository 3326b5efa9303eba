"""Documentation that runs: Python blocks are executed, command lines parsed, YAML blocks validated, links
followed. test_docs_console.py runs the command lines; that the tables agree with the code, test_reference.py
says."""

import re
import shlex
from pathlib import Path

import pytest
from pages import PAGES, ROOT, SHELL, blocks, command_lines
from typer.main import get_command

from mtnlp import balancers, config, samplers, strategies, strict_yaml
from mtnlp.cli.list import ROOMS
from mtnlp.cli.main import app
from mtnlp.tasks.load import from_mapping, load

END_OF_COMMAND = {"|", ">", "<", "&&", ";", "||"}


def commands(page: Path) -> list[list[str]]:
    """Arguments of every `mtnlp` in the command lines of the page."""
    found = []
    for line in command_lines(page):
        words = shlex.split(line, comments=True)
        while "mtnlp" in words:
            words = words[words.index("mtnlp") + 1 :]
            ends = [i for i, word in enumerate(words) if word in END_OF_COMMAND]
            found.append(words[: ends[0]] if ends else words)
    return found


def valid(source, overrides=()) -> config.Recipe:
    """The recipe, with keys and options that exist; methods that it imports itself are left alone."""
    recipe, problems = config.read(source, overrides)
    assert problems == []
    slots = {"model.strategy": (recipe.model.strategy, strategies), "sampler": (recipe.sampler, samplers)}
    for key, (slot, room) in {**slots, "balancer": (recipe.balancer, balancers)}.items():
        if not recipe.imports:
            config.build(key, slot, room)
    return recipe


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_block_is_one_that_is_run_or_a_drawing(page):
    fences = re.findall(r"^ *```.*$", (ROOT / page).read_text("utf-8"), re.MULTILINE)

    assert len(fences) == 2 * len(blocks(page, "python", "yaml", *SHELL, ""))
    assert not [body for body in blocks(page, "") if "mtnlp " in body or "$ " in body]
    shown = "".join(blocks(page, *SHELL)).replace("\\\n", " ").splitlines()
    assert all(line.startswith("$ ") for line in shown), "output is shown that no test compares"


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

    if (recipe := context.params.get("recipe")) and not context.params.get("add"):
        valid(ROOT / recipe if "/" in recipe else recipe, context.params["overrides"] or ())
    if command == "list":
        assert context.params["room"] in ROOMS
    if command == "show":
        assert load(context.params["name"], ROOT)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_recipes_and_tasks_in_yaml_blocks_are_valid(page, tmp_path):
    for body in blocks(page, "yaml"):
        data = strict_yaml.load(body, page)
        if "kind" in data:
            entries = [data]
        else:
            entries = [entry for entry in valid(data).tasks if isinstance(entry, dict)]
        for entry in entries:
            assert from_mapping(entry, base=tmp_path, where=str(page)).name


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text("utf-8")
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", text):
        there = (ROOT / page).parent / target if target else ROOT / page

        assert there.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", there.read_text("utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def test_the_first_page_of_the_docs_leads_to_all_others():
    first = (ROOT / "docs" / "index.md").read_text("utf-8")
    others = {path.name for path in (ROOT / "docs").rglob("*.md")} - {"index.md"}

    assert others <= set(re.findall(r"\]\(([\w-]+\.md)\)", first))


def test_the_readme_starts_with_the_two_commands():
    first = blocks(Path("README.md"), "console")[0]

    assert re.findall(r"^\$ make (\w+)", first, re.MULTILINE) == ["quickstart", "test"]
    assert len(commands(Path("README.md"))) > 8
