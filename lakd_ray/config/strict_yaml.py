"""YAML without duplicate keys, which PyYAML accepts silently: the last one would replace the others."""

from collections.abc import Iterator
from typing import Any

import yaml


class DuplicateKeyError(yaml.YAMLError):
    """A mapping in a YAML document has a key twice."""


def parse_yaml(text: str) -> Any:
    """Parse YAML into plain Python objects and reject duplicate keys.

    A key next to a merge (`<<: *anchor`) may replace a merged one; that is what merges are for.

    Raises:
        yaml.YAMLError: the text is not valid YAML.
        DuplicateKeyError: a mapping has a key twice; the message has the lines of both.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if duplicates := list(_find_duplicates(node, "", set())):
            raise DuplicateKeyError("; ".join(duplicates))
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _find_duplicates(node: yaml.Node, path: str, visited: set[int]) -> Iterator[str]:
    if id(node) in visited:  # an alias
        return
    visited.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _find_duplicates(item, f"{path}{number}.", visited)
    elif isinstance(node, yaml.MappingNode):
        first_lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if name in first_lines:
                yield (
                    f"line {line}: duplicate key `{path}{key.value}`, first used in line {first_lines[name]}: "
                    "delete one of the two, or merge them"
                )
            first_lines.setdefault(name, line)
            yield from _find_duplicates(value, f"{path}{key.value}.", visited)
