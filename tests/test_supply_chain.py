"""Packages are pinned with hashes, and every installation verifies them."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


def entries() -> dict[str, list[str]]:
    """Return the lines of each entry of constraints.txt, by its first line."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith(" "):
            found[next(reversed(found))].append(line.strip(" \\"))
        elif line:
            found[line.rstrip(" \\")] = []
    return found


def test_every_package_is_pinned_with_hashes():
    for requirement, hashes in entries().items():
        assert re.match(r"[\w.-]+==\S+", requirement), requirement
        assert hashes and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", item) for item in hashes), requirement


def test_every_dependency_is_pinned_in_a_version_that_it_allows():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned: dict[str, list[str]] = {}
    for requirement in map(Requirement, entries()):
        pinned.setdefault(requirement.name, []).append(str(requirement.specifier).removeprefix("=="))
    extras = project["optional-dependencies"].values()
    for text in [*project["dependencies"], *(need for needs in extras for need in needs)]:
        need = Requirement(text)
        if need.name != project["name"]:
            versions = pinned[need.name.lower()]
            assert all(need.specifier.contains(version, prereleases=True) for version in versions), text


def test_installations_verify_hashes():
    """uv verifies the hashes of constraints; pip would not, so it installs nothing but uv, from a file of its own."""
    for name in ("Makefile", "cluster/Dockerfile"):
        text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
        for command in re.findall(r"(?:pip|uv pip) install[^\n&]*", text):
            assert "-c constraints.txt" in command or "--require-hashes" in command, f"{name}: {command}"
            assert "--require-hashes" in command or f"uv {command}" in text or command.startswith("uv"), command


def test_audit_lists_packages_and_vulnerabilities():
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").split("\naudit: env\n")[1].split("\n\n")[0]
    assert "cyclonedx-py environment" in recipe and "pip-audit --strict" in recipe
