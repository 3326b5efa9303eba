"""YAML as people mean it: the scalars of YAML 1.2, and no surprises.

PyYAML follows YAML 1.1, where `3e-4` is a text, `no` and `off` are false, `1:30` is ninety and `2024-05-01` a
date. Here `3e-4` is a number and all the others are texts, so a label may be called `no`. Refused, with the
line: keys given twice, tags that build Python objects, aliases that unfold into more than `MAX_NODES` values.
"""

from __future__ import annotations

import re
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

import yaml

from mtnlp.errors import MtnlpError

MAX_NODES = 1_000_000  # values of one document with its aliases written out
MAX_DEPTH = 1_000  # of brackets; PyYAML takes a minute to find out that 100,000 are too many

_SCALARS = {  # tag: (pattern, first characters)
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+(?:_[0-9]+)*|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict] = {}

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict:
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, _ in node.value:
                if key.tag.endswith(":merge") or not isinstance(key, yaml.ScalarNode):
                    continue
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_int(self, node: yaml.Node) -> int:
        text = self.construct_scalar(node).replace("_", "")
        return int(text, {"0x": 16, "0o": 8}.get(text[:2], 10))


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 would read as something else."""

    yaml_implicit_resolvers: ClassVar[dict] = {
        first: list(found) for first, found in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, text: str) -> yaml.Node:
        # Unicode's own line breaks survive only as escapes.
        style = '"' if re.search("[\x85\u2028\u2029]", text) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


for _tag, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)
_Dumper.add_representer(str, _Dumper.represent_str)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)


def load(text: str, where: object) -> Any:
    """The value of one YAML document.

    Args:
        text: the document; an empty one is None.
        where: what messages call it, usually its path.

    Raises:
        MtnlpError: not YAML, a repeated key, an unsafe tag, or too many aliases; names the line.
    """
    if _depth(text) > MAX_DEPTH:
        raise MtnlpError(f"{where}: nested too deeply.")
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _size(node, {}) > MAX_NODES:
                raise MtnlpError(f"{where}: its aliases unfold into more than {MAX_NODES:,} values.")
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark and "\n" in text else ""
        raise MtnlpError(f"{where}: {line}{error.problem or error.context}.") from None
    except (yaml.YAMLError, ValueError) as error:
        raise MtnlpError(f"{where}: not readable as YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise MtnlpError(f"{where}: nested too deeply.") from None


def read(path: Path) -> Any:
    """The value of a YAML file; MtnlpError when it cannot be read (see `load`)."""
    try:
        return load(Path(path).read_text("utf-8"), path)
    except UnicodeDecodeError:
        raise MtnlpError(f"{path}: not a UTF-8 text file.") from None
    except OSError as error:
        raise MtnlpError(f"{path}: {error.strerror or error}.") from None


def dump(value: Any) -> str:
    """YAML text of plain data, in its order; `load(dump(value))` is `value` again."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _depth(text: str) -> int:
    """How many brackets are open at most, those inside of texts among them."""
    opened = accumulate(1 if found in "[{" else -1 for found in re.findall(r"[\[{\]}]", text))
    return max(opened, default=0)


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Values at and below `node`, aliases counted at every use; a node inside itself counts as too many."""
    if id(node) not in known:
        known[id(node)] = MAX_NODES + 1  # what a cycle back to here is worth
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        else:
            children = node.value if isinstance(node, yaml.SequenceNode) else []
        known[id(node)] = 1 + sum(_size(child, known) for child in children)
    return known[id(node)]
