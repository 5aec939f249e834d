"""YAML as plain data, with the line of every key; nothing in a document can run code.

Only the types of JSON (and dates) come out. What a recipe has no use for and an attacker has is refused: tags, merge
keys, duplicate keys, aliases that grow without bound, deep nesting.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Any

import yaml

from geoeco.errors import RecipeError

__all__ = ["Document", "apply_setting", "nearest", "parse_yaml"]

#: A recipe is a page of text; these bounds are far above any and stop "billion laughs" early.
MAX_BYTES = 1_000_000
MAX_NODES = 20_000
MAX_DEPTH = 40

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Document:
    """Plain data of a YAML text.

    Attributes
    ----------
    data : object
        dict, list, str, int, float, bool, None, date or datetime.
    lines : dict
        Line number (from 1) of each key path.
    source : str
        File name for messages.
    """

    data: Any
    lines: dict[KeyPath, int] = field(default_factory=dict)
    source: str = "<text>"

    def where(self, path: KeyPath) -> str:
        """``file:line: a.b[0]`` of a key path; the line of the nearest parent where the path itself is not there."""
        line = None
        for length in range(len(path), -1, -1):
            line = self.lines.get(path[:length])
            if line is not None:
                break
        place = self.source if line is None else f"{self.source}:{line}"
        return f"{place}: {dotted(path)}" if path else place


def dotted(path: KeyPath) -> str:
    """``steps[0].bands`` for ``("steps", 0, "bands")``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def nearest(name: str, valid: list[str]) -> str | None:
    """Return the valid name most like `name`, if any is like it at all."""
    found = difflib.get_close_matches(name.lower(), [v.lower() for v in valid], n=1, cutoff=0.5)
    if not found:
        return None
    return next(v for v in valid if v.lower() == found[0])


def parse_yaml(text: str, source: str = "<text>") -> Document:
    """Read one YAML document safely.

    Parameters
    ----------
    text : str
    source : str
        File name for messages.

    Raises
    ------
    RecipeError
        If the text is no YAML, or holds tags, merge keys, duplicate keys, or is too large once aliases are expanded.
    """
    if len(text.encode("utf-8", "replace")) > MAX_BYTES:
        raise RecipeError(f"the file is larger than {MAX_BYTES:,} bytes", where=source, what_to_do="is it a recipe?")
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        builder = _Builder(loader, source)
        data = None if node is None else builder.build(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}" if mark else source
        raise RecipeError(
            f"not valid YAML: {error.problem or error.context}",
            where=place,
            what_to_do="check indentation, quotes and colons near this line; one file holds one document",
        ) from error
    except yaml.YAMLError as error:
        raise RecipeError(f"not valid YAML: {error}", where=source) from error
    except RecursionError as error:
        raise RecipeError("nested too deeply", where=source) from error
    except ValueError as error:  # for example the date 2019-02-31
        raise RecipeError(f"not a valid value: {error}", where=source) from error
    finally:
        if loader is not None:
            loader.dispose()
    return Document(data, builder.lines, source)


class _Builder:
    """Nodes to plain data, with counting: an alias costs as much as what it stands for."""

    def __init__(self, loader: yaml.SafeLoader, source: str) -> None:
        self.loader = loader
        self.source = source
        self.lines: dict[KeyPath, int] = {}
        self.count = 0

    def refuse(self, node: yaml.Node, what: str, what_to_do: str = "") -> RecipeError:
        return RecipeError(what, where=f"{self.source}:{node.start_mark.line + 1}", what_to_do=what_to_do)

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        self.count += 1
        if self.count > MAX_NODES or len(path) > MAX_DEPTH:
            raise self.refuse(node, "the document is too large or too deep once its aliases are expanded")
        self.lines.setdefault(path, node.start_mark.line + 1)
        if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.rsplit(":", 1)[1] not in _PLAIN_TAGS:
            raise self.refuse(node, f"the tag {node.tag!r} is not allowed", "write plain values; recipes hold no code")
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(child, (*path, index)) for index, child in enumerate(node.value)]
        return self.loader.construct_object(node)

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise self.refuse(key_node, "merge keys (<<) are not allowed", "write the keys out")
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.refuse(key_node, "a key must be plain text")
            key = key_node.value
            if key in out:
                raise self.refuse(key_node, f"the key {key!r} is given twice", "keep one of them")
            self.lines[(*path, key)] = key_node.start_mark.line + 1
            out[key] = self.build(value_node, (*path, key))
        return out


_PLAIN_TAGS = frozenset({"map", "seq", "str", "int", "float", "bool", "null", "timestamp"})


def apply_setting(document: Document, setting: str) -> Document:
    """Apply one ``key=value`` of the command line to a document.

    Parameters
    ----------
    document : Document
    setting : str
        ``grid.block=512``, ``steps[0].bands=[B04, B08]`` or ``steps.0.name=cube``; the value is YAML.

    Raises
    ------
    RecipeError
        If it is no ``key=value``, or the key leads through something that is no mapping or list.
    """
    key, equals, value = setting.partition("=")
    parts: list[str | int] = [
        int(part) if part.isdigit() else part for part in key.strip().replace("[", ".").replace("]", "").split(".")
    ]
    if not equals or not all(str(part) for part in parts):
        raise RecipeError(
            f"--set {setting!r} is not key=value", what_to_do="for example --set grid.block=512 --set steps.0.name=cube"
        )
    parsed = parse_yaml(value, f"--set {key.strip()}").data
    data = _replaced(document.data if document.data is not None else {}, tuple(parts), parsed, setting)
    return Document(data, document.lines, document.source)


def _replaced(node: Any, path: KeyPath, value: Any, setting: str) -> Any:
    if not path:
        return value
    head, rest = path[0], path[1:]
    if isinstance(node, list):
        if not isinstance(head, int) or not 0 <= head < len(node):
            raise RecipeError(f"--set {setting!r}: {head!r} is no place in a list of {len(node)}")
        return [_replaced(child, rest, value, setting) if i == head else child for i, child in enumerate(node)]
    if isinstance(node, dict) or node is None:
        out = dict(node or {})
        out[str(head)] = _replaced(out.get(str(head)), rest, value, setting)
        return out
    raise RecipeError(f"--set {setting!r}: {head!r} lies below a plain value")
