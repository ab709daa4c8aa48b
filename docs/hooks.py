"""Fill the reference pages from the code when the site is built.

A page holds a marker such as `<!-- generated: cli -->`, which is replaced by the Markdown of the function of that name.
"""

import re
import types
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

_MARKER = re.compile(r"<!-- generated: (\w+) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the markers of one page; mkdocs calls this."""
    return _MARKER.sub(lambda match: GENERATORS[match[1]](), markdown)


def cli() -> str:
    """Every command of `lakd`, with its arguments and options."""
    import typer

    from lakd_ray.cli.main import app

    group: Any = typer.main.get_command(app)
    lines: list[str] = []
    for name, command in sorted(group.commands.items()):
        if not command.hidden:
            lines += _command_lines(f"lakd {name}", command)
    return "\n".join(lines)


def _command_lines(name: str, command: Any) -> list[str]:
    import click

    context = click.Context(command, info_name=name)
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [f"## {name}", "", _text(command.help), "", f"    {name} {usage}", ""]
    rows = [
        _parameter_row(parameter, context) for parameter in command.params if not getattr(parameter, "hidden", False)
    ]
    if rows:
        lines += ["| argument or option | meaning | default |", "|---|---|---|", *rows, ""]
    return lines


def _parameter_row(parameter: Any, context: Any) -> str:
    is_argument = parameter.param_type_name == "argument"
    names = parameter.make_metavar(context) if is_argument else ", ".join([*parameter.opts, *parameter.secondary_opts])
    if not is_argument and not parameter.is_flag:
        names += f" {parameter.make_metavar(context)}"
    default = parameter.get_default(context)
    shown = "" if default in (None, False, (), []) or parameter.required else f"`{default}`"
    return f"| `{_cell(names)}` | {_cell(_text(getattr(parameter, 'help', '') or ''))} | {_cell(shown)} |"


def configuration() -> str:
    """Every section and key of the experiment file, with type, default and meaning."""
    from lakd_ray.config import Experiment

    lines: list[str] = []
    for path, section in _sections("", Experiment):
        lines += [f"## {f'`{path}`' if path else 'Top level'}", "", _text(section.__doc__), ""]
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        for name, field in section.model_fields.items():
            default = "required" if field.is_required() else _default(field.get_default(call_default_factory=True))
            meaning = _text(field.description or "")
            lines.append(f"| `{name}` | {_cell(_type(field.annotation))} | {_cell(default)} | {_cell(meaning)} |")
        lines.append("")
    return "\n".join(lines)


def _sections(path: str, section: Any) -> Iterator[tuple[str, Any]]:
    """The section and those below it, each class once, with the dotted path of its first use."""
    seen: set[Any] = set()

    def walk(path: str, section: Any) -> Iterator[tuple[str, Any]]:
        if section in seen:
            return
        seen.add(section)
        yield path, section
        for name, field in section.model_fields.items():
            for inner, suffix in _inner_sections(field.annotation, ""):
                yield from walk(f"{path}.{name}{suffix}".lstrip("."), inner)

    yield from walk(path, section)


def _inner_sections(annotation: Any, suffix: str) -> Iterator[tuple[Any, str]]:
    from lakd_ray.config import Section

    if isinstance(annotation, type) and not get_origin(annotation) and issubclass(annotation, Section):
        yield annotation, suffix
    for argument in get_args(annotation):
        yield from _inner_sections(argument, ".*" if get_origin(annotation) in (tuple, dict) else suffix)


_TYPE_NAMES = {str: "text", int: "integer", float: "number", bool: "true or false"}
_YAML_NAMES = {None: "null", True: "true", False: "false"}


def _type(annotation: Any) -> str:
    """A readable type, such as `text or null`."""
    from lakd_ray.config import Section

    origin, arguments = get_origin(annotation), get_args(annotation)
    readable: dict[Any, Callable[[], str]] = {
        Literal: lambda: "one of " + ", ".join(f"`{value}`" for value in arguments),
        Union: lambda: " or ".join("null" if inner is type(None) else _type(inner) for inner in arguments),
        tuple: lambda: f"list of {_type(arguments[0])}",
        dict: lambda: f"map to {_type(arguments[1])}",
        Annotated: lambda: _type(arguments[0]),
    }
    origin = Union if origin is types.UnionType else origin
    if origin in readable:
        return readable[origin]()
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "section"
    return _TYPE_NAMES.get(annotation, "any")


def _default(value: Any) -> str:
    from lakd_ray.config import Section

    if isinstance(value, Section):
        return "see below"
    if isinstance(value, tuple):
        return "`[" + ", ".join(str(item) for item in value if not isinstance(item, Section)) + "]`"
    return f"`{_YAML_NAMES[value] if isinstance(value, bool | None) else value}`"


def http() -> str:
    """Every path of the endpoint, from its OpenAPI document."""
    document = _openapi()
    lines = [f"OpenAPI version of this document: {document['info']['version']}.", ""]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            lines += [f"## {method.upper()} {path}", "", operation.get("summary", ""), ""]
            lines += [operation.get("description", ""), ""]
            parameters = operation.get("parameters", [])
            if parameters:
                lines += ["| parameter | in | meaning |", "|---|---|---|"]
                lines += [
                    f"| `{item['name']}` | {item['in']} | {_cell(_text(item.get('description', '')))} |"
                    for item in parameters
                ]
                lines.append("")
            lines += ["| status | meaning |", "|---|---|"]
            lines += [
                f"| {status} | {_cell(_text(response.get('description', '')))} |"
                for status, response in operation["responses"].items()
            ]
            lines.append("")
    return "\n".join(lines)


def _openapi() -> dict[str, Any]:
    from unittest.mock import Mock

    from lakd_ray.config import ServeConfig
    from lakd_ray.serve.api import create_app

    document: dict[str, Any] = create_app(Mock(), ServeConfig(), Mock()).openapi()
    return document


def _text(text: str | None) -> str:
    return " ".join((text or "").split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


GENERATORS: dict[str, Callable[[], str]] = {"cli": cli, "configuration": configuration, "http": http}
