"""Words: public docstrings are sentences, and code and documents use the field's terms in US spelling.

A line that needs a banned word (a quotation, another project's API) goes into `allowed_words.txt` as `path: line`.
"""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = ROOT / "tests" / "allowed_words.txt"
CHECKED = {".py", ".md", ".yaml", ".yml", ".sh", ".js", ".html", ".j2", ".toml", ".css", ".ipynb", ""}
UNCHECKED = ("LICENSE", "constraints.txt", "tests/test_prose.py", "tests/allowed_words.txt")
MIN_WORDS = 5
BANNED = {
    "tell, told": "log, report, notify, pass",
    "tells, telling": "reports, reporting",
    "said, says, saying": "predicted, states, reports",
    "ask, asks, asked, asking": "query, request, call",
    "hear, hears, heard, hearing": "identify, recognize, seen, trained on",
    "brought": "external, imported",
    "kept": "saved, stored, cached, retained",
    "anew": "again, from scratch",
    "lies": "is in, is at",
    "judge, judged, judges": "evaluate, score",
    "stranger, strangers": "untrusted input, untrusted clients",
    "rubbish": "garbage",
    "whom": "which, who",
    "nobody, everybody, anybody, somebody": "no client, no process, every caller",
    "whole, wholes": "complete, intact, atomic",
    "places, wherever": "paths, indices, files, functions",
    "mend, mends, mended": "fix, correct",
    "goes on, go on, went on, going on, gone on": "resumes, continues",
    "gets on, get on, getting on, got on": "makes progress",
    "so many, so long, so much": "N, that many, that long",
    "held against": "compared with, checked against",
    "is none, that is none, are none": "is not one, None, missing",
    "takes hold, by then": "say when",
    "elsewhere": "external, in another module",
    "colour, colours, behaviour, centre, licence, labelled, unlabelled, labelling, modelled": "US spelling",
    "normalise, normalised, normalises, normalising, normalisation": "US spelling: normalize",
    "standardise, standardised, standardises, standardisation": "US spelling: standardize",
    "quantise, quantised, quantises, quantisation": "US spelling: quantize",
    "synthesise, synthesised, synthesises": "US spelling: synthesize",
    "initialise, initialised, initialises, initialisation": "US spelling: initialize",
    "recognise, recognised, recognises, organise, organised, summarise, summarised": "US spelling: -ize",
    "serialise, serialised, authorise, authorised, optimise, optimised, minimise, maximise": "US spelling: -ize",
    "analyse, analysed, favour, favours, neighbour, neighbours, grey": "US spelling",
}
WORDS = {word.strip(): better for words, better in BANNED.items() for word in words.split(",")}
PHRASES = re.compile(
    "|".join(rf"(?<![a-z]){re.escape(word)}(?![a-z])" for word in sorted(WORDS, key=len, reverse=True))
)
FILES = sorted(
    file
    for file in subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    if Path(file).suffix in CHECKED and file not in UNCHECKED and (ROOT / file).is_file()
)
MODULES = [file for file in FILES if file.startswith("lakd_ray/") and file.endswith(".py")]


def plain(text: str) -> str:
    """The text with identifiers split into words: `saidInTrain` and `said_in_train` are both `said in train`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text).replace("_", " ").lower()


def banned(text: str) -> list[str]:
    """Banned words of one line; Python's `is None` and `file.tell()` are not prose."""
    return PHRASES.findall(plain(re.sub(r"\bis None\b|\.tell\(\)", "", text)))


def allowed() -> set[tuple[str, str]]:
    lines = [line for line in ALLOWED.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return {(file, text.strip()) for file, text in (line.split(": ", 1) for line in lines)}


@pytest.mark.parametrize("file", FILES)
def test_no_banned_words(file: str):
    exempt = {text for name, text in allowed() if name == file}
    found = [
        f"{file}:{number}: {word!r} (better: {WORDS[word]}): {line.strip()[:100]}"
        for number, line in enumerate((ROOT / file).read_text(encoding="utf-8").splitlines(), start=1)
        if line.strip() not in exempt
        for word in banned(line)
    ]
    assert not found, "\n" + "\n".join(found)


def test_allowed_lines_are_needed():
    for file, text in allowed():
        lines = {line.strip() for line in (ROOT / file).read_text(encoding="utf-8").splitlines()}
        assert text in lines and banned(text), f"{file}: {text!r} needs no exemption any more: delete it"


def docstrings(tree: ast.Module) -> Iterator[tuple[str, int, str | None]]:
    """Name, line, and docstring of the module and of its public classes, functions and methods."""
    yield "module", 1, ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node.lineno, ast.get_docstring(node)
            for method in node.body:
                if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and not method.name.startswith("_"):
                    yield f"{node.name}.{method.name}", method.lineno, ast.get_docstring(method)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node.name, node.lineno, ast.get_docstring(node)


def first_sentence(text: str) -> str:
    """The first paragraph up to the end of its first sentence."""
    paragraph = " ".join(text.split("\n\n", maxsplit=1)[0].split())
    return re.split(r"(?<=[.:!?])\s", paragraph)[0]


@pytest.mark.parametrize("file", MODULES)
def test_docstrings_are_sentences(file: str):
    wrong = []
    for name, line, text in docstrings(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if text is None:  # ruff's D1 finds what has none
            continue
        sentence = first_sentence(text)
        if len(sentence.split()) < MIN_WORDS or not sentence.endswith((".", ":")) or sentence[0].islower():
            wrong.append(f"{file}:{line}: {name}: {sentence!r}")
    assert not wrong, f"expected a sentence of at least {MIN_WORDS} words:\n" + "\n".join(wrong)
