"""Read experiment files, apply overrides and variants, and report actionable errors.

`load_config(path, overrides)` reads YAML, applies `dotted.key=value` overrides and validates. Unknown keys, renamed
keys and invalid values are rejected with a hint. Above Ray's process boundary all code uses typed objects; at
the boundary they become plain dictionaries (`to_dict`) and are rebuilt on the other side (`Experiment.model_validate`).
"""

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import ValidationError

from lakd_ray.config.dump import json_schema, to_dict, to_documented_yaml
from lakd_ray.config.experiment import Experiment
from lakd_ray.config.known_names import find_unknown_names
from lakd_ray.config.optim import Recipe
from lakd_ray.config.renamed import find_renamed, nest
from lakd_ray.config.strict_yaml import parse_yaml
from lakd_ray.errors import ConfigError

__all__ = [
    "experiment_names",
    "find_experiment",
    "json_schema",
    "load_config",
    "parse_overrides",
    "resolve_location",
    "to_dict",
    "to_documented_yaml",
    "with_settings",
    "with_variant",
]


EXPERIMENTS = Path(__file__).parents[1] / "experiments"
"""Folder of the experiments that are installed with the package."""


def experiment_names() -> list[str]:
    """Return the names of the experiments that are installed with the package, sorted."""
    return sorted(file.stem for file in EXPERIMENTS.glob("*.yaml"))


def find_experiment(name: str | Path) -> Path:
    """Return the file of an experiment.

    Args:
        name: path of an experiment file, or its name: a name alone refers to `NAME.yaml` in the current folder if that
            exists, and to the experiment of that name in the package otherwise.

    Raises:
        ConfigError: there is no such experiment.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    is_name = path.suffix != ".yaml" and len(path.parts) == 1
    if is_name:
        for file in (Path(f"{name}.yaml"), EXPERIMENTS / f"{name}.yaml"):
            if file.is_file():
                return file
    known = experiment_names()
    candidates = {name: name for name in known} | {file.stem: str(file) for file in path.parent.glob("*.yaml")}
    close = difflib.get_close_matches(path.stem, candidates, n=1)
    suggestion = f"; did you mean `{candidates[close[0]]}`?" if close else "."
    if path.is_dir():
        suggestion = ", which is a folder."
    raise ConfigError(
        f"no experiment {str(name)!r}{suggestion} Experiments in the package: {', '.join(known)}. "
        "Give one of these names or the path of a YAML file; `lakd init NAME` writes one"
    )


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment and apply overrides such as `student.optim.epochs=5` (values are YAML).

    Args:
        path: file or name of the experiment, see `find_experiment`.
        overrides: `dotted.key=value` pairs.

    Raises:
        ConfigError: there is no such experiment, the file is not YAML, or a key or value is invalid.
    """
    file = find_experiment(path)
    tree = _read_tree(file)
    for override in overrides:
        _apply_override(tree, override)
    config = _validate(tree, str(file))
    for name in config.grid.variants:
        with_variant(config, name)
    if unknown := [*_unknown_space_keys(config), *find_unknown_names(config)]:
        raise ConfigError(_format_lines(str(file), unknown))
    return _resolve_paths(config)


def _read_tree(file: Path) -> dict[str, Any]:
    try:
        tree = parse_yaml(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {file} as an experiment file: {error}") from error
    if not isinstance(tree, dict):
        found = "is empty" if tree is None else f"has a {type(tree).__name__}"
        raise ConfigError(f"{file} {found}: expected a mapping of sections, such as `lakd init NAME` writes")
    copy: dict[str, Any] = _copy_tree(tree)
    return copy


def with_settings(config: Experiment, settings: dict[str, Any], source: str) -> Experiment:
    """Return the experiment with some dotted keys set to new values.

    Args:
        config: the experiment to start from; it is not modified.
        settings: values by dotted key, for instance {"student.optim.lr": 1e-4}.
        source: name of the settings' origin, for error messages.

    Raises:
        ConfigError: a key or value is rejected.
    """
    tree = to_dict(config)
    if renamed := [line for key, value in settings.items() for line in find_renamed(nest(key, value))]:
        raise ConfigError(_format_lines(source, renamed))
    for key, value in settings.items():
        _set_key(tree, key, value, f"{source}: {key}")
    return _validate(tree, source)


def with_variant(config: Experiment, name: str) -> Experiment:
    """Return the experiment with the settings of one grid variant applied.

    Raises:
        ConfigError: a key or value of the variant is rejected.
    """
    without_variants = config.model_copy(update={"grid": config.grid.model_copy(update={"variants": {}})})
    settings = {**config.grid.variants[name], "variant": name}
    return with_settings(without_variants, settings, f"grid.variants.{name}")


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Return `dotted.key=value` pairs as nested mappings; values are YAML.

    Raises:
        ConfigError: an override does not have that form.
    """
    tree: dict[str, Any] = {}
    for override in overrides:
        _apply_override(tree, override)
    return tree


def _resolve_paths(config: Experiment) -> Experiment:
    """Return the experiment with its relative paths resolved here: workers run in other folders.

    Raises:
        ConfigError: storage is relative although this runs as a Ray job.
    """
    storage = resolve_location(config.storage, f"storage {config.storage!r}", "--set storage=/path")
    corpora = tuple(corpus.model_copy(update={"root": _absolute_path(corpus.root)}) for corpus in config.corpora)
    recipes = {name: _resolve_model_path(getattr(config, name)) for name in ("teacher", "student")}
    return config.model_copy(update={"storage": storage, "corpora": corpora, **recipes})


def resolve_location(location: str, label: str, example: str) -> str:
    """Return a location that other processes can use: a local path made absolute, a bucket unchanged.

    Args:
        location: a path, or a URL such as s3://bucket/prefix.
        label: name of the location in error messages.
        example: the setting or option that changes the location, for error messages.

    Raises:
        ConfigError: the location is relative although this runs as a Ray job.
    """
    resolved = _absolute_path(location)
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and resolved.rstrip("/") != location.rstrip("/"):
        raise ConfigError(
            f"{label} is relative, and a Ray job runs in a temporary copy that is deleted. "
            f"Give an absolute path that all nodes share, or s3://bucket/prefix: {example}"
        )
    return resolved


def _resolve_model_path(recipe: Recipe) -> Recipe:
    """Return a recipe with an absolute path of its pretrained model, if that is a local folder."""
    pretrained = recipe.model.pretrained
    if pretrained is None or not Path(pretrained).expanduser().is_dir():
        return recipe
    model = recipe.model.model_copy(update={"pretrained": _absolute_path(pretrained)})
    return recipe.model_copy(update={"model": model})


def _absolute_path(location: str) -> str:
    """Return an absolute path; URLs and paths below `{storage}` stay as they are."""
    if "://" in location or location.startswith("{storage}"):
        return location
    return str(Path(location).expanduser().absolute())


def _copy_tree(value: Any) -> Any:
    """Copy a tree without YAML's aliases, so that an override of `student` does not change an aliased `teacher`."""
    if isinstance(value, dict):
        return {key: _copy_tree(item) for key, item in value.items()}
    return [_copy_tree(item) for item in value] if isinstance(value, list) else value


def _apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one `dotted.key=value` in the raw tree; validation later rejects keys that do not exist."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: expected dotted.key=value, for instance student.optim.epochs=5")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: cannot read the value as YAML: {error}") from None
    _set_key(tree, key, value, f"override {override!r}")


def _set_key(tree: dict[str, Any], key: str, value: Any, source: str) -> None:
    *parents, last = key.split(".")
    node: Any = tree
    for parent in parents:
        if isinstance(node, list):
            node = _list_item(node, parent, source)
        else:
            if node.get(parent) is None:
                node[parent] = {}
            node = node[parent]
        if not isinstance(node, dict | list):
            raise ConfigError(f"{source}: {parent!r} is a value, not a section")
    if isinstance(node, list):
        _list_item(node, last, source)
        node[int(last)] = value
    else:
        node[last] = value


def _list_item(node: list[Any], index: str, source: str) -> Any:
    if not index.isdecimal() or int(index) >= len(node):
        raise ConfigError(f"{source}: expected a list index below {len(node)}, found {index!r}")
    return node[int(index)]


def _validate(tree: dict[str, Any], source: str) -> Experiment:
    if renamed := find_renamed(tree):
        raise ConfigError(_format_lines(source, renamed))
    try:
        return Experiment.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_format_lines(source, _error_lines(error))) from None


def _format_lines(source: str, lines: Sequence[str]) -> str:
    return "\n  ".join([f"{source}: invalid configuration:", *lines])


# pydantic's messages that name types of Python, by its error type
_PLAIN_MESSAGES = {
    "tuple_type": "expected a list, as in `[a, b]` or lines that start with `-`",
    "dict_type": "expected a mapping, lines of `key: value`",
    "model_type": "expected a section, lines of `key: value`",
    "string_type": "expected text; put a number or a word such as yes into quotes",
    "bool_parsing": "expected true or false",
    "bool_type": "expected true or false",
    "int_parsing": "expected an integer",
    "int_type": "expected an integer",
    "int_from_float": "expected an integer",
    "float_parsing": "expected a number",
    "float_type": "expected a number",
}


def _error_lines(error: ValidationError) -> list[str]:
    """Return pydantic's errors as lines that use the key names of the file."""
    lines = []
    findings = error.errors()
    parents = {finding["loc"][:-1] for finding in findings}
    for finding in findings:
        if finding["type"] == "too_short" and finding["loc"] in {loc[: len(finding["loc"])] for loc in parents}:
            continue  # pydantic counts the valid items only, and the invalid ones have a line each
        location = tuple(part for part in finding["loc"] if part != "[key]")
        key = ".".join(str(part) for part in location) or "the experiment"
        if finding["type"] == "extra_forbidden":
            lines.append(f"unknown key `{key}`{_suggest_key(location)}")
        elif finding["type"] == "missing":
            lines.append(f"missing key `{key}`")
        else:
            message, value = finding["msg"].removeprefix("Value error, "), finding["input"]
            message = _PLAIN_MESSAGES.get(finding["type"], message)
            if finding["type"] == "literal_error":
                message = message.replace("True", "true").replace("False", "false")  # as in YAML
            found = f" (found {value!r})" if isinstance(value, str | int | float | bool | None) else ""
            choices = re.findall(r"'([^']*)'", finding["msg"]) if finding["type"] == "literal_error" else []
            close = difflib.get_close_matches(str(value), choices, n=1)
            lines.append(f"`{key}`: {message}{found}" + (f"; did you mean `{close[0]}`?" if close else ""))
    return lines


def _unknown_space_keys(config: Experiment) -> list[str]:
    """Return an error line for each key of the search space that the configuration does not have."""
    lines = []
    for key in config.tune.space:
        section: Any = Experiment
        names: list[str] = []
        for name in key.split("."):
            names.append(name)
            if name not in section.model_fields:
                lines.append(f"unknown key `{key}` in `tune.space`{_suggest_key(tuple(names))}")
                break
            annotation = section.model_fields[name].annotation
            section = next(
                (kind for kind in (annotation, *get_args(annotation)) if hasattr(kind, "model_fields")), None
            )
            if section is None:  # a value, or a mapping with free keys
                break
    return lines


def _suggest_key(location: tuple[str | int, ...]) -> str:
    """Return `; did you mean ...` for a misspelt key, or the keys of its section."""
    section: Any = Experiment
    names = [part for part in location[:-1] if isinstance(part, str)]
    while names:
        section = section.model_fields[names.pop(0)].annotation
        while not hasattr(section, "model_fields"):  # tuple[CorpusConfig, ...], Model | None, dict[str, Dimension]
            inner = [item for item in getattr(section, "__args__", ()) if item is not Ellipsis]
            if not inner:
                return ""
            if get_origin(section) is dict and names:
                names.pop(0)  # the key
            section = inner[-1] if get_origin(section) is dict else inner[0]
    close = difflib.get_close_matches(str(location[-1]), section.model_fields, n=1)
    if not close:
        return f"; expected one of {', '.join(section.model_fields)}"
    return f"; did you mean `{'.'.join(str(part) for part in (*location[:-1], close[0]))}`?"
