"""Fill the reference pages from the code when the site is built.

A page contains a marker such as `<!-- generated: cli -->`. The hook replaces it with the Markdown that the function of
that name in GENERATORS returns.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin
from unittest.mock import Mock

_MARKER = re.compile(r"<!-- generated: (\w+) -->")

_MERMAID_LOADER = re.compile(
    r'<script type="module">(?:(?!</script>).)*?mermaid\.esm(?:(?!</script>).)*</script>', re.DOTALL
)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the markers of one page; mkdocs calls this.

    Raises:
        KeyError: a marker names no generator.
    """
    return _MARKER.sub(lambda match: GENERATORS[match[1]](), markdown)


def on_post_page(output: str, **_: Any) -> str:
    """Remove the diagram loader of notebook pages, which refers to a different host; mkdocs calls this."""
    return _MERMAID_LOADER.sub("", output)


# Command line


def cli() -> str:
    """Return every command of `lakd` with its arguments and options, in the groups of `lakd --help`."""
    import typer

    from lakd_ray.cli.main import app

    root: Any = typer.main.get_command(app)
    groups: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, command in root.commands.items():
        if not command.hidden:
            groups[command.rich_help_panel][name] = command
    context = typer.Context(root, info_name="lakd")
    lines = ["| command | purpose |", "|---|---|"]
    lines += [
        f"| [`lakd {name}`](#lakd-{name}) | {_meaning(_summary(command.help))} |"
        for commands in groups.values()
        for name, command in commands.items()
    ]
    lines += ["", "## Global options", "", "They can stand before or after the command.", ""]
    lines += _option_table(root.params, context)
    for group, commands in groups.items():
        lines += [f"## {group}", ""]
        for name, command in commands.items():
            lines += _command_lines(f"lakd {name}", command)
    return "\n".join(lines)


def _command_lines(name: str, command: Any) -> list[str]:
    import typer

    context = typer.Context(command, info_name=name)
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [f"### {name}", "", *_paragraphs(command.help), "```text", f"{name} {usage}", "```", ""]
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    if arguments:
        lines += ["| argument | meaning |", "|---|---|"]
        lines += [f"| {_argument_name(argument)} | {_help_cell(argument)} |" for argument in arguments]
        lines.append("")
    return lines + _option_table(command.params, context)


def _argument_name(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return f"`{name}`" + ("" if argument.required else " (optional)")


def _option_table(parameters: list[Any], context: Any) -> list[str]:
    options = [parameter for parameter in parameters if parameter.param_type_name == "option" and not parameter.hidden]
    if not options:
        return []
    lines = ["| option | default | meaning |", "|---|---|---|"]
    for option in options:
        names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
        choices = get_args(option.type_descriptor.annotation) if option.metavar is None else ()
        if option.is_flag:
            value = ""
        elif choices and all(isinstance(choice, str) for choice in choices):
            value = " " + _choices(choices)
        else:
            value = f" `{option.metavar or option.name.upper()}`"
        default = "required" if option.required else _option_default(option)
        lines.append(f"| {names}{value} | {default} | {_help_cell(option)} |")
    return [*lines, ""]


def _option_default(option: Any) -> str:
    return "" if option.default in (None, False, (), []) else f"`{option.default}`"


def _help_cell(parameter: Any) -> str:
    from rich.text import Text

    return _meaning(Text.from_markup(_one_line(parameter.help)).plain)


# Configuration


def configuration() -> str:
    """Return every section and key of the experiment file, with type, default and meaning."""
    from lakd_ray.config import Experiment

    paths = _section_paths(Experiment)
    anchors = {section: _anchor(section_paths[0]) for section, section_paths in paths.items()}
    lines: list[str] = []
    for section, (path, *other_paths) in paths.items():
        lines += [f"## {f'`{path}`' if path else 'Top level'} {{ #{anchors[section]} }}", ""]
        lines += [_link_pages(paragraph) for paragraph in _paragraphs(section.__doc__)]
        if other_paths:
            lines += ["The same keys: " + ", ".join(f"`{other}`" for other in other_paths) + ".", ""]
        if not section.model_fields:
            continue
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        for name, field in section.model_fields.items():
            default = "required" if field.is_required() else _default(field.get_default(call_default_factory=True))
            type_name = _type(field.annotation, anchors)
            lines.append(f"| `{name}` | {_cell(type_name)} | {_cell(default)} | {_meaning(field.description)} |")
        lines.append("")
    return "\n".join(lines)


def _anchor(path: str) -> str:
    return "section-" + (re.sub(r"\W+", "-", path).strip("-") or "top")


def _section_paths(root: Any) -> dict[Any, list[str]]:
    """Return the dotted paths at which each section class is used, in the order of the file."""
    paths: dict[Any, list[str]] = {}

    def walk(path: str, section: Any) -> None:
        paths.setdefault(section, []).append(path)
        for name, field in section.model_fields.items():
            for inner, suffix in _inner_sections(field.annotation, ""):
                walk(f"{path}.{name}{suffix}".lstrip("."), inner)

    walk("", root)
    return paths


def _inner_sections(annotation: Any, suffix: str) -> Iterator[tuple[Any, str]]:
    """Yield the section classes of an annotation; sections in lists and maps have the suffix `.*`."""
    if _is_section(annotation):
        yield annotation, suffix
    for argument in get_args(annotation):
        yield from _inner_sections(argument, ".*" if get_origin(annotation) in (tuple, list, dict) else suffix)


def _is_section(annotation: Any) -> bool:
    from lakd_ray.config import Section

    return isinstance(annotation, type) and not get_origin(annotation) and issubclass(annotation, Section)


_TYPE_NAMES = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null"}
_YAML_NAMES = {None: "null", True: "true", False: "false"}


def _type(annotation: Any, anchors: dict[Any, str]) -> str:
    """Return a readable type, such as `text or null`; sections link to their table."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return _choices(arguments)
    if origin is not None:
        names = [_type(argument, anchors) for argument in arguments if argument is not Ellipsis]
        return _generic_type(origin, names)
    return f"[section](#{anchors[annotation]})" if annotation in anchors else _TYPE_NAMES.get(annotation, "any")


def _generic_type(origin: Any, names: list[str]) -> str:
    """Return the readable type of a generic, such as a tuple, with the given names of its arguments."""
    if origin is Annotated:  # its other arguments are constraints
        return names[0]
    if origin in (tuple, list):
        return "list of " + " and ".join(name.replace("one of", "any of") for name in dict.fromkeys(names))
    return f"map from {names[0]} to {names[1]}" if origin is dict else " or ".join(names)


def _default(value: Any) -> str:
    if _is_section(type(value)):
        return "its defaults"
    if isinstance(value, tuple | list):
        return "`[" + ", ".join(str(item) for item in value) + "]`"
    if isinstance(value, str):
        return f"`{value}`" if value else '`""`'
    if isinstance(value, float):
        return f"`{value:.6g}`"
    return f"`{_YAML_NAMES[value] if isinstance(value, bool | None) else value}`"


# HTTP

_CURL = {
    "predict": "curl --data-binary @clip.wav -H 'Content-Type: audio/wav' \\\n"
    "    'http://127.0.0.1:8000/v1/emotion?language=fi&top_k=2'",
    "predict_batch": "curl -F file=@first.wav -F file=@second.flac 'http://127.0.0.1:8000/v1/emotion:batch'",
}


def http() -> str:
    """Return every path of the endpoint with requests and responses, then the schemas, from its OpenAPI document."""
    document = _openapi()
    lines: list[str] = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            lines += [f"## {method.upper()} {path}", "", f"{operation['summary']}.", ""]
            lines += [*_paragraphs(operation.get("description")), "```bash"]
            lines += [_CURL.get(operation["operationId"], f"curl 'http://127.0.0.1:8000{path}'"), "```", ""]
            lines += _parameter_lines(operation.get("parameters", []))
            lines += _body_lines(operation.get("requestBody"))
            lines += ["| status | body | meaning |", "|---|---|---|"]
            lines += [
                f"| {status} | {_content(response.get('content', {}))} | {_meaning(response['description'])} |"
                for status, response in operation["responses"].items()
            ]
            lines.append("")
    lines += ["## Schemas", ""]
    schemas = document["components"]["schemas"]
    for name, schema in schemas.items():
        if not name.endswith("ValidationError"):  # FastAPI's own, which the endpoint does not send
            lines += _schema_lines(name, schema)
    return "\n".join(lines)


def stream_parameters() -> str:
    """Return the query parameters of the WebSocket, which OpenAPI does not describe."""
    from lakd_ray.serve.websocket import StreamParams

    properties = StreamParams.model_json_schema()["properties"]
    parameters = [{"name": name, "in": "query", "schema": schema} for name, schema in properties.items()]
    return "\n".join(_parameter_lines(parameters))


def stream_result() -> str:
    """Return the fields of a result of the WebSocket."""
    from lakd_ray.serve.messages import StreamResult

    schema = StreamResult.model_json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
    return "\n".join(_schema_lines("StreamResult", schema))


def _openapi() -> dict[str, Any]:
    from lakd_ray.config import ServeConfig
    from lakd_ray.serve.api import create_app

    document: dict[str, Any] = create_app(Mock(), ServeConfig(), Mock()).openapi()
    return document


def _parameter_lines(parameters: list[dict[str, Any]]) -> list[str]:
    rows = [
        {
            "parameter": f"`{item['name']}`",
            "in": item["in"],
            "type": _cell(_schema_type(item["schema"]).removesuffix(" or null")),
            "default": f"`{item['schema']['default']}`" if item["schema"].get("default") is not None else "",
            "meaning": _meaning(item.get("description")),
        }
        for item in parameters
    ]
    columns = [name for name in rows[0] if any(row[name] for row in rows)] if rows else []
    return _table(columns, [[row[name] for name in columns] for row in rows]) if rows else []


def _table(columns: list[str], rows: list[list[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return [*("| " + " | ".join(cells) + " |" for cells in lines), ""]


def _body_lines(body: dict[str, Any] | None) -> list[str]:
    if body is None:
        return []
    media_types = ", ".join(f"`{name}`" for name in body["content"])
    return [f"**Request body**: {_one_line(body.get('description'))} Content types: {media_types}.", ""]


def _content(content: dict[str, Any]) -> str:
    if not content:
        return "text"
    bodies = [(name, _schema_type(media.get("schema", {}))) for name, media in content.items()]
    return ", ".join(body if name == "application/json" else f"`{name}`" for name, body in bodies)


def _schema_lines(name: str, schema: dict[str, Any]) -> list[str]:
    lines = [f"### {name} {{ #schema-{name.lower()} }}", "", *_paragraphs(schema.get("description"))]
    lines += ["| field | type | meaning |", "|---|---|---|"]
    lines += [
        f"| `{field}` | {_cell(_schema_type(value))} | {_meaning(value.get('description'))} |"
        for field, value in schema["properties"].items()
    ]
    return [*lines, ""]


_JSON_TYPES = {"string": "text", "boolean": "true or false"}


def _schema_type(schema: dict[str, Any]) -> str:
    """Return a readable type of a JSON schema with its limits; references link to the schema's table."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#schema-{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_schema_type(inner) for inner in schema["anyOf"])
    if "items" in schema:
        return f"list of {_schema_type(schema['items'])}"
    if "additionalProperties" in schema:
        return f"map from text to {_schema_type(schema['additionalProperties'])}"
    return _simple_schema_type(schema)


def _simple_schema_type(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return _choices(schema["enum"])
    if choices := re.fullmatch(r"\^\((\w+(?:\|\w+)*)\)\$", schema.get("pattern", "")):
        return _choices(choices[1].split("|"))
    name = _JSON_TYPES.get(schema.get("type", ""), schema.get("type", "any"))
    if "minimum" in schema and "maximum" in schema:
        return f"{name} from {schema['minimum']:g} to {schema['maximum']:g}"
    return f"{name} that matches `{schema['pattern']}`" if "pattern" in schema else name


# Text


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _choices(values: Iterable[object]) -> str:
    return "one of " + ", ".join(f"`{value}`" for value in values)


def _paragraphs(text: str | None) -> list[str]:
    """Return the paragraphs of a docstring, each followed by an empty line."""
    lines: list[str] = []
    for paragraph in (text or "").split("\n\n"):
        lines += [_one_line(paragraph), ""] if paragraph.strip() else []
    return lines


def _meaning(text: str | None) -> str:
    """Return a description as the cell of a table, with links to the pages that it names."""
    return _cell(_link_pages(_escape(_one_line(text))))


def _link_pages(text: str) -> str:
    """Replace paths of documents with links that are relative to the reference pages."""
    return re.sub(r"docs/(how-to|tutorials|explanation)/([\w-]+)\.md", r"[\2](../\1/\2.md)", text)


def _summary(text: str | None) -> str:
    return (_paragraphs(text) or [""])[0]


def _escape(text: str) -> str:
    """Escape `<` outside code, which Markdown would take for an HTML tag, and `*`, which would be emphasis."""
    return "`".join(
        part if position % 2 else part.replace("<", "&lt;").replace("*", "\\*")
        for position, part in enumerate(text.split("`"))
    )


def _cell(text: str) -> str:
    """Escape the separators of a table outside code, in which Markdown ignores them."""
    return "`".join(part if position % 2 else part.replace("|", "\\|") for position, part in enumerate(text.split("`")))


# The security policy, whose own file is where code hosts look for it


def security() -> str:
    """Return SECURITY.md with links that are relative to `docs/explanation`."""
    policy = (Path(__file__).parents[1] / "SECURITY.md").read_text(encoding="utf-8")
    return policy.replace("](docs/explanation/", "](").replace("](docs/", "](../")


GENERATORS: dict[str, Callable[[], str]] = {
    function.__name__: function for function in (cli, configuration, http, security, stream_parameters, stream_result)
}
