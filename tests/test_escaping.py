"""Names from outside reach terminals, logs, pages, model cards, figures, YAML and metrics without any effect there."""

import ast
import html
import json
import logging
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from matplotlib.figure import Figure
from support.hostile import CONTROLS, HOSTILE_NAMES

from lakd_ray.cli import format
from lakd_ray.cli.logging import log_to_console, print_message
from lakd_ray.cli.output import print_text
from lakd_ray.escaping import for_line, for_markdown, for_terminal
from lakd_ray.inference.results import EmotionResult, InputWarning
from lakd_ray.report.figures import draw_title, render_png

PACKAGE = Path(__file__).parents[1] / "lakd_ray"


def is_clean(text: str) -> bool:
    return not set(CONTROLS) & set(text)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_terminal(name, capsys):
    print_text(name)
    print_message("error:", name)
    with log_to_console(logging.DEBUG):
        for level in (logging.DEBUG, logging.INFO, logging.WARNING):
            logging.getLogger("lakd_ray.test").log(level, "%s", name)
    out, err = capsys.readouterr()
    assert is_clean(out) and is_clean(err)
    assert for_terminal(name) in out and for_terminal(name) in err


def test_readable_text_is_unchanged():
    text = "naïve 日本語 😀\tx\n  y"
    assert for_terminal(text) == text
    assert for_line(text) == "naïve 日本語 😀 x y"


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("as_json", [True, False])
def test_predictions(name, as_json):
    result = EmotionResult(
        emotion="anger", probabilities={"anger": 1.0}, language=name, duration_s=1.0, model=name, version="1",
        warnings=(InputWarning(code="short", message=name),), language_probability=None, segments=None,
    )  # fmt: skip
    formatter = format.make_formatter(as_json, ["anger"], None, [name])
    for lines in (formatter.format_result(name, result, None), formatter.format_result(name, None, name)):
        assert len(lines) == 1 and is_clean(lines[0]) and "\n" not in lines[0]
        if as_json:
            assert json.loads(lines[0])["file"] == name


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_markdown(name):
    """A cell has neither further cells nor markup: each such character has a backslash."""
    cell = for_markdown(name)
    assert is_clean(cell) and "\n" not in cell
    bare = cell.replace("\\\\", "").replace("\\", "\0")
    assert not any(character in bare.replace(f"\0{character}", "") for character in "`*[]<>|")


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.found.append(tag)


TEMPLATES = sorted(str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.html.j2"))


def test_pages_escape_all_values():
    """Both pages are rendered with `autoescape`; nothing but constants of the template is marked as safe."""
    assert TEMPLATES
    for file in TEMPLATES:
        text = (PACKAGE / file).read_text(encoding="utf-8")
        assert all(part.rstrip().endswith("'") for part in text.split("| safe")[:-1]), file
    sources = [file.read_text(encoding="utf-8") for file in PACKAGE.rglob("*.py")]
    environments = [source for source in sources if "Environment(" in source and "jinja2" in source]
    assert len(environments) == 3
    assert all("autoescape=True" in source or "finalize=_escape" in source for source in environments)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_html(name):
    from jinja2 import Environment

    page = Environment(autoescape=True).from_string('<p title="{{ name }}">{{ name }}</p>').render(name=name)
    tags = Tags()
    tags.feed(page)
    assert tags.found == ["p"] and html.unescape(page).count(name) == 2


@pytest.mark.filterwarnings("error")
def test_figures():
    figure = Figure(figsize=(3, 3))
    axes = figure.add_subplot()
    names = [name for name in HOSTILE_NAMES if name.isascii()]
    axes.set_yticks(range(len(names)), [for_line(name) for name in names])
    draw_title(axes, "".join(names))
    assert render_png(figure, "alt").data_uri.startswith("data:image/png;base64,")


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_comments_in_yaml(name):
    assert yaml.safe_load(f"# {for_line(name)}\na: 1\n") == {"a": 1}


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_labels_of_metrics(name):
    from prometheus_client.parser import text_string_to_metric_families

    from lakd_ray.serve.prometheus import Metrics

    metrics = Metrics()
    metrics._audio.labels(name).inc(2)
    (sample,) = [
        sample
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
        if sample.name == "lakd_audio_seconds_total"
    ]
    assert sample.labels == {"model": name} and sample.value == 2


def test_commands_print_through_one_function():
    for file in sorted((PACKAGE / "cli").glob("*.py")):
        calls = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        prints = [
            call.lineno for call in calls if ast.unparse(call.func) in ("print", "typer.echo", "sys.stdout.write")
        ]
        assert file.name == "output.py" or not prints, f"{file}: use print_text in {prints}"


def test_no_table_for_spreadsheets_has_names_from_outside():
    """The one CSV file is the manifest of the synthesized corpus."""
    writers = {file.name for file in PACKAGE.rglob("*.py") if "csv.writer" in file.read_text(encoding="utf-8")}
    assert writers == {"synthesis.py"}
