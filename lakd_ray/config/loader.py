"""Reads and prints experiment files.

`load(path, overrides)` reads YAML, applies `dotted.key=value` overrides and validates. Unknown keys and impossible
values are refused with what to change. Everything below Ray's border sees typed objects; at the border they become
plain dictionaries (`dump`) and are rebuilt on the other side (`Experiment.model_validate`).
"""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_origin

import yaml
from pydantic import ValidationError

from lakd_ray.config.base import Section
from lakd_ray.config.experiment import Experiment
from lakd_ray.config.model import Recipe
from lakd_ray.errors import ConfigError

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
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {file} as an experiment file: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{file} holds {type(tree).__name__}, expected a mapping of sections")
    tree = _copy_tree(tree)
    for override in overrides:
        _apply_override(tree, override)
    try:
        config = Experiment.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{file}: {_format_errors(error)}") from None
    for name in config.grid.variants:
        with_variant(config, name)
    return _resolve_paths(config)


def with_settings(config: Experiment, settings: dict[str, Any], source: str) -> Experiment:
    """The experiment with other values of some dotted keys.

    Args:
        where: what to call the place that they come from.

    Raises:
        ConfigError: keys or values are refused.
    """
    tree = to_dict(config)
    for key, value in settings.items():
        _set_key(tree, key, value, f"{source}: {key}")
    try:
        return Experiment.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_format_errors(error)}") from None


def with_variant(config: Experiment, name: str) -> Experiment:
    """The experiment with one of its grid's variants as its students' settings.

    Raises:
        ConfigError: the variant's keys or values are refused.
    """
    alone = config.model_copy(update={"grid": config.grid.model_copy(update={"variants": {}})})
    settings = {**config.grid.variants[name], "variant": name}
    return with_settings(alone, settings, f"grid.variants.{name}")


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """`dotted.key=value` pairs as nested mappings; values are YAML.

    Raises:
        ConfigError: one is not of that form.
    """
    tree: dict[str, Any] = {}
    for override in overrides:
        _apply_override(tree, override)
    return tree


def _resolve_paths(config: Experiment) -> Experiment:
    """The experiment with its relative paths resolved here: workers run in other folders.

    Raises:
        ConfigError: storage is relative although this runs as a Ray job.
    """
    where = resolve_location(config.storage, f"storage {config.storage!r}", "--set storage=/path")
    corpora = tuple(corpus.model_copy(update={"root": _absolute_path(corpus.root)}) for corpus in config.corpora)
    recipes = {name: _resolve_model_path(getattr(config, name)) for name in ("teacher", "student")}
    return config.model_copy(update={"storage": where, "corpora": corpora, **recipes})


def resolve_location(location: str, label: str, example: str) -> str:
    """A location that other processes understand too: the path made absolute, a bucket's as it is.

    Args:
        named: what an error calls the location.
        example: how to give another one.

    Raises:
        ConfigError: it is relative although this runs as a Ray job.
    """
    resolved = _absolute_path(location)
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and resolved.rstrip("/") != location.rstrip("/"):
        raise ConfigError(
            f"{label} is relative, and a Ray job runs in a temporary copy that is deleted. "
            f"Give an absolute path that all nodes share, or s3://bucket/prefix: {example}"
        )
    return resolved


def _resolve_model_path(recipe: Recipe) -> Recipe:
    """A recipe whose pretrained model, if it is a folder here, is named by its absolute path."""
    place = recipe.model.pretrained
    if place is None or not Path(place).expanduser().is_dir():
        return recipe
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"pretrained": _absolute_path(place)})})


def _absolute_path(location: str) -> str:
    """An absolute path; buckets and paths below `{storage}` stay as they are."""
    if "://" in location or location.startswith("{storage}"):
        return location
    return str(Path(location).expanduser().absolute())


def to_dict(config: Section) -> dict[str, Any]:
    """The configuration as plain JSON types."""
    return config.model_dump(mode="json")


def to_documented_yaml(config: Experiment) -> str:
    """The resolved configuration as YAML that can be loaded again, every field with its documentation."""
    return "\n".join(_yaml_lines(config, "")) + "\n"


def _yaml_lines(section: Section, indent: str) -> list[str]:
    lines = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        note = "  # " + " ".join(field.description.split()) if field.description else ""
        if isinstance(value, Section):
            lines += [f"{indent}{name}:{note}", *_yaml_lines(value, indent + "  ")]
        elif isinstance(value, tuple) and value and isinstance(value[0], Section):
            lines.append(f"{indent}{name}:{note}")
            for item in value:
                first, *rest = _yaml_lines(item, indent + "    ")
                lines += [f"{indent}  - {first.lstrip()}", *rest]
        else:
            plain = section.model_dump(mode="json", include={name})[name]
            shown = yaml.safe_dump(plain, default_flow_style=True, width=10**6, allow_unicode=True)
            lines.append(f"{indent}{name}: {shown.removesuffix('...' + chr(10)).strip()}{note}")
    return lines


def _copy_tree(value: Any) -> Any:
    """A copy without YAML's aliases, so that an override of `student` leaves the `teacher` it was copied from alone."""
    if isinstance(value, dict):
        return {key: _copy_tree(item) for key, item in value.items()}
    return [_copy_tree(item) for item in value] if isinstance(value, list) else value


def _apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one `dotted.key=value` in the raw tree; validation later refuses keys that do not exist."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: expected dotted.key=value, for instance student.optim.epochs=5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not YAML: {error}") from None
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
        raise ConfigError(f"{source}: expected a number below {len(node)} in place of {index!r}")
    return node[int(index)]


def _format_errors(error: ValidationError) -> str:
    """Pydantic's findings as lines a person can act on."""
    lines = []
    for finding in error.errors():
        where = ".".join(str(part) for part in finding["loc"]) or "the experiment"
        if finding["type"] == "extra_forbidden":
            lines.append(f"unknown key `{where}`{_suggest_key(finding['loc'])}")
        elif finding["type"] == "missing":
            lines.append(f"missing key `{where}`")
        else:
            message = finding["msg"].removeprefix("Value error, ")
            found = finding["input"]
            shown = f" (found {found!r})" if isinstance(found, str | int | float | bool | None) else ""
            lines.append(f"`{where}`: {message}{shown}")
    return "\n  ".join(["refused:", *lines])


def _suggest_key(location: tuple[str | int, ...]) -> str:
    """`; did you mean ...` for a misspelt key."""
    section: Any = Experiment
    parts = [part for part in location[:-1] if isinstance(part, str)]
    while parts:
        section = section.model_fields[parts.pop(0)].annotation
        while not hasattr(section, "model_fields"):  # tuple[Corpus, ...], Model | None, dict[str, Dimension]
            inner = [item for item in getattr(section, "__args__", ()) if item is not Ellipsis]
            if not inner:
                return ""
            if get_origin(section) is dict and parts:
                parts.pop(0)  # the key
            section = inner[-1] if get_origin(section) is dict else inner[0]
    close = difflib.get_close_matches(str(location[-1]), section.model_fields, n=1)
    return f"; did you mean `{close[0]}`?" if close else f"; known here: {', '.join(section.model_fields)}"
