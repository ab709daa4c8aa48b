r"""Make text harmless for its destination: one function for each kind of output that shows names from outside.

File names, names in corpora, manifests and checkpoints, and the messages of endpoints may contain anything. HTML is
escaped by jinja2's `autoescape`, JSON by `json`, YAML by `yaml.safe_dump`, labels of metrics by `prometheus_client`,
and the page of the endpoint sets text, never HTML. `tests/test_escaping.py` sends one list of hostile names to all.
"""

import re

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters of terminals, except tab and line feed
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # change the direction of the text around them
    "\u2028\u2029\ufeff\ud800-\udfff]"  # other line ends, byte order mark, halves of characters
)
_MARKDOWN = re.compile(r"([\\`*\[\]<>|])")


def for_terminal(text: str) -> str:
    r"""Return text without control sequences, for a terminal, a log or a figure.

    An escape character becomes the six characters `\u001b`, as in JSON, so a line of JSON stays valid.
    """
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def for_line(text: str) -> str:
    """Return text as a part of one line, for comments in files and names in tables."""
    return for_terminal(" ".join(text.split()))


def for_markdown(text: str) -> str:
    """Return text as a part of a paragraph or a table cell in Markdown, without markup of its own."""
    return _MARKDOWN.sub(r"\\\1", for_terminal(re.sub(r"\s+", " ", text)))
