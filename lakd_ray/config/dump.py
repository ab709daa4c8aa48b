"""Configurations as plain dictionaries, as documented YAML and as a JSON schema."""

from typing import Any

import yaml

from lakd_ray.config.base import Section
from lakd_ray.config.experiment import Experiment


def to_dict(config: Section) -> dict[str, Any]:
    """Return the configuration as plain JSON types."""
    return config.model_dump(mode="json")


def to_documented_yaml(config: Experiment) -> str:
    """Return the resolved configuration as YAML that can be loaded again, with the documentation of every field."""
    return "\n".join(_yaml_lines(config, "")) + "\n"


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of the experiment file, for completion and checks in editors.

    It describes types, ranges, names of keys and their documentation; rules between keys are checked by
    `load_config` alone.
    """
    schema = Experiment.model_json_schema()
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "lakd-ray experiment"}
    _join_description_lines(schema)
    return schema


def _join_description_lines(node: Any) -> None:
    """Replace the line breaks of docstrings in place."""
    if isinstance(node, dict):
        if isinstance(node.get("description"), str):
            node["description"] = " ".join(node["description"].split())
        for value in node.values():
            _join_description_lines(value)
    elif isinstance(node, list):
        for item in node:
            _join_description_lines(item)


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
            text = yaml.safe_dump(plain, default_flow_style=True, width=10**6, allow_unicode=True)
            lines.append(f"{indent}{name}: {text.removesuffix('...' + chr(10)).strip()}{note}")
    return lines
