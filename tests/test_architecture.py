"""Imports go down only, and Ray and DeepSpeed stay in the rooms that may use them. Imports inside functions count.

Renames, which publish files, are made by one module.
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lakd_ray"
FLOORS = (
    ("escaping", "processes", "redaction"),
    ("scratch",),
    ("addresses", "devices", "environment", "errors", "extension_builds", "grouping", "labels", "precision"),
    ("progress", "ray_token", "signals"),
    ("config", "metrics", "statistics"),
    ("cluster", "storage"),
    ("job_package", "runs"),
    ("audio",),
    ("corpora", "distill"),
    ("data",),
    ("models",),
    ("inference", "report"),
    ("train",),
    ("launch", "serve"),
    ("tune",),
    ("ops",),
    ("pipeline",),
    ("cli",),
    ("__main__",),
)
FLOOR = {"": 0} | {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}  # "" is lakd_ray itself
MAY_IMPORT = {
    "ray": (
        "data/",
        "launch/driver.py",
        "launch/worker.py",
        "inference/batch.py",
        "tune/",
        "serve/",
        "inference/bulk/job.py",
        "cluster/",
        "ops/doctor/cluster_checks.py",
    ),
    "deepspeed": ("train/engines/deepspeed.py",),
}
FILES = sorted(str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py"))


def name_of(file: str) -> str:
    return ".".join(["lakd_ray", *Path(file).with_suffix("").parts]).removesuffix(".__init__")


MODULES = {name_of(file) for file in FILES}


def imports(file: str) -> set[str]:
    """Every module that a file imports, at its top or anywhere below; `from x import y` is x.y where that is one.

    The public API in `lakd_ray/__init__.py` imports its names lazily; its imports for type checkers do not count.
    """
    found: set[str] = set()
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    if file == "__init__.py":
        tree.body = [node for node in tree.body if not isinstance(node, ast.If)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None and node.level == 0, f"{file}:{node.lineno}: imports are absolute here"
            below = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in below.values()}
    return found


def room(module: str) -> str:
    return [*module.split("."), ""][1]


def refuse_circles(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"circular import: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("file", FILES)
def test_imports_go_down(file):
    here = room(name_of(file))
    assert here in FLOOR, f"give {here} a floor"
    for module in imports(file):
        package = module.split(".")[0]
        if package == "lakd_ray":
            assert FLOOR[room(module)] <= FLOOR[here], f"{file} imports {module}, which is above it"
            assert (here, room(module)) not in {("serve", "train"), ("serve", "tune")}, f"{file} imports {module}"
        elif package in MAY_IMPORT:
            assert file.startswith(MAY_IMPORT[package]), f"{file} imports {package}"


def test_no_circles():
    inner = {name_of(file): {name for name in imports(file) if name in MODULES} for file in FILES}
    refuse_circles(inner)
    packages: dict[str, set[str]] = {}
    for module, imported in inner.items():
        packages.setdefault(room(module), set()).update({room(name) for name in imported} - {room(module), ""})
    refuse_circles(packages)


def test_only_one_module_renames_files():
    """Others would publish a file that a power loss empties, see `lakd_ray.storage.publishing`."""
    functions = {"os": {"replace", "rename", "renames"}, "shutil": {"move"}}
    for file in FILES:
        if file == "storage/publishing.py":
            continue
        for node in ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert not {alias.name for alias in node.names} & functions.get(node.module or "", set()), file
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
            # `Path.replace` has one argument, `str.replace` two; tables of Arrow have `rename_columns`
            is_path = node.func.attr == "rename" or (
                node.func.attr == "replace" and len(node.args) == 1 and not node.keywords
            )
            found = node.func.attr in functions.get(owner, ()) or is_path
            assert not found, f"{file}:{node.lineno}: use `storage.publish` or `storage.publish_folder`"
