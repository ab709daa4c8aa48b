"""Fenced blocks, shell commands and links of the Markdown documents."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELLS = ("bash", "sh", "shell", "console")
_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)
_UNCHECKED = re.compile(r"<!-- unchecked: (?P<reason>[^>]+) -->\s*$")
_LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    file: str
    line: int
    language: str
    text: str
    unchecked: str | None
    """Reason of a comment `<!-- unchecked: REASON -->` before the block, which exempts it."""

    @property
    def location(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command in a shell block, without what follows an operator such as `|`."""

    location: str
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        return shlex.join(self.words)


def blocks() -> Iterator[Block]:
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for match in _FENCE.finditer(text):
            before = text[: match.start()]
            unchecked = _UNCHECKED.search(before)
            indent = len(match["indent"])
            yield Block(
                str(document.relative_to(ROOT)),
                before.count("\n") + 1,
                match["info"].strip().split(" ")[0],
                "".join(f"{line[indent:]}\n" for line in match["text"].splitlines()),
                unchecked["reason"] if unchecked else None,
            )


def commands(block: Block) -> Iterator[Command]:
    """Return the commands of a shell block; in a console block, those after `$ `."""
    if block.language not in SHELLS:
        return
    pending = ""
    for line in block.text.splitlines():
        if block.language == "console" and not pending and not line.startswith("$ "):
            continue
        pending += line.removeprefix("$ ")
        if pending.endswith("\\"):
            pending = pending[:-1] + " "
            continue
        try:
            words = _split(pending)
        except ValueError:  # an open quotation, which continues on the next line
            pending += "\n"
            continue
        yield from (Command(block.location, part) for part in words if part)
        pending = ""
    assert not pending, f"{block.location}: a quotation is not closed: {pending}"


def _split(line: str) -> list[tuple[str, ...]]:
    """Return the commands of a line; redirections and environment variables are left out."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    is_redirected = False
    for word in lexer:
        if word in ("|", "&&", "||", ";", "&"):
            parts.append([])
            is_redirected = False
        elif set(word) <= set("<>&"):
            is_redirected = True
        elif not is_redirected and (parts[-1] or not re.fullmatch(r"[A-Z_]+=.*", word)):
            parts[-1].append(word)
    return [tuple(part) for part in parts]


def links(document: Path) -> list[str]:
    """Return the targets of a document's links and pictures, without those to other hosts."""
    text = _FENCE.sub("", document.read_text(encoding="utf-8"))
    return [match["target"] for match in _LINK.finditer(text) if "://" not in match["target"]]


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub and mkdocs make them of simple titles."""
    titles = re.findall(r"^#+ (.+)$", _FENCE.sub("", document.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}
