"""Documented functions of the running interpreter's standard library: parsed, never imported.

A function belongs to one split by a hash of its qualified name. Of functions whose docstrings begin alike
only the first is kept, so no description stands in two splits.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from mtnlp.errors import DataError
from mtnlp.tasks._draw import split_of

SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True)
class Function:
    """One documented function or method.

    Args:
        module: dotted name of its file, `email.message`.
        path: qualified name, `email.message.Message.get_payload`.
        signature: `get_payload(i=None, decode=False)`: parameters with annotations, without self and cls.
        parameters: their names.
        doc: the docstring, dedented.
        body: source of the body after the docstring, dedented; "" if there is nothing else.
    """

    module: str
    path: str
    signature: str
    parameters: tuple[str, ...]
    doc: str
    body: str

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]

    @cached_property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def first_line(self) -> str:
        return self.doc.split("\n", 1)[0].strip()

    @property
    def summary(self) -> str:
        """The docstring's first paragraph, on one line."""
        return " ".join(self.doc.split("\n\n", 1)[0].split())

    @cached_property
    def split(self) -> str:
        return split_of(self.path)


def blanked(text: str, name: str) -> str:
    """The text with "..." in place of a name, wherever that stands as a word, in any capitals."""
    return re.sub(r"\w+", lambda word: "..." if word[0].lower() == name.lower() else word[0], text)


def plain(text: str) -> str:
    """The words of a text, whatever its capitals and punctuation."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


@cache
def functions() -> tuple[Function, ...]:
    """All of them in order of their qualified names; parsed once per process, in a few seconds.

    Raises:
        DataError: this interpreter comes without the sources of its library.
    """
    root = _root()
    found: dict[str, Function] = {}
    for file in library():
        for function in _documented(file, ".".join(_module(file, root))):
            found.setdefault(function.path, function)  # of a property and its setter the first stays
    kept: dict[str, Function] = {}
    for path in sorted(found):
        kept.setdefault(_says(found[path]), found[path])
    kept.pop("", None)
    if not kept:
        raise DataError(
            f"pystdlib: no Python sources in {root}. The tasks pystdlib/* are read from the .py files of the "
            "standard library; use an interpreter that has them."
        )
    return tuple(kept.values())


def _says(function: Function) -> str:
    """What the docstring's first line says, whatever its own name; "" for a doctest."""
    return plain(blanked(function.first_line, function.name).split(">>>")[0])


def _root() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def library() -> Iterator[Path]:
    """The source files of the standard library, in order, without its tests."""
    root = _root()
    for top in sorted(root.iterdir()):
        if top.stem in sys.stdlib_module_names and top.name not in SKIPPED:
            files = sorted(top.rglob("*.py")) if top.is_dir() else [top] * (top.suffix == ".py")
            yield from (file for file in files if not SKIPPED & set(file.relative_to(root).parts))


def _module(file: Path, root: Path) -> list[str]:
    parts = list(file.relative_to(root).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


def _documented(file: Path, module: str) -> Iterator[Function]:
    """Every documented function of a file; files that this Python cannot parse hold none."""
    try:
        with tokenize.open(file) as handle, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library's own style is not our user's concern
            source = handle.read()
            tree = ast.parse(source)
    except (SyntaxError, ValueError):  # some files are in older dialects or odd encodings on purpose
        return
    lines = source.split("\n")  # not splitlines: a form feed ends no line for the parser
    stack: list[tuple[ast.AST, str]] = [(tree, module)]
    while stack:
        node, path = stack.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                if doc := ast.get_docstring(child):
                    yield _function(child, doc, module, f"{path}.{child.name}", lines)
                stack.append((child, f"{path}.{child.name}"))
            elif isinstance(child, (ast.stmt, ast.excepthandler, ast.match_case)):
                stack.append((child, f"{path}.{child.name}" if isinstance(child, ast.ClassDef) else path))


def _function(
    node: ast.FunctionDef | ast.AsyncFunctionDef, doc: str, module: str, path: str, lines: list[str]
) -> Function:
    arguments = node.args
    for group in (arguments.posonlyargs, arguments.args):
        if group and group[0].arg in ("self", "cls"):
            del group[0]
            break
    every = [
        *arguments.posonlyargs,
        *arguments.args,
        arguments.vararg,
        *arguments.kwonlyargs,
        arguments.kwarg,
    ]
    body = "\n".join(lines[node.body[0].end_lineno : node.end_lineno]) if node.body[1:] else ""
    return Function(
        module=module,
        path=path,
        signature=f"{node.name}({ast.unparse(arguments)})",
        parameters=tuple(argument.arg for argument in every if argument is not None),
        doc=doc,
        body=inspect.cleandoc(f"\n{body}"),
    )
