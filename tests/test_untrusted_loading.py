"""No module of the package has a call that can run code from a file, except those that are listed with a reason."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    str(file.relative_to(ROOT))
    for folder in ("lakd_ray", "jobs", "benchmarks")
    for file in (ROOT / folder).rglob("*.py")
)
EXEMPT = {
    ("lakd_ray/models/pretrained.py", "from_pretrained"): "the one module that loads pretrained networks",
    ("lakd_ray/models/pretrained.py", "import pickle"): "names the error of a pickle that has more than tensors",
    ("lakd_ray/train/engines/deepspeed.py", "torch.load"): "resume states of DeepSpeed, which are trusted: SECURITY.md",
}
UNPICKLERS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}
UNSAFE_YAML = {"load", "load_all", "full_load", "unsafe_load", "Loader", "FullLoader", "UnsafeLoader"}


def keywords(call: ast.Call) -> dict[str, object]:
    return {item.arg: getattr(item.value, "value", None) for item in call.keywords if item.arg}


def findings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and name of each construct that can run code from a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)]
            yield from ((node.lineno, f"import {name}") for name in names if name.split(".")[0] in UNPICKLERS)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "yaml" and node.attr in UNSAFE_YAML:
            yield node.lineno, f"yaml.{node.attr}"
        if not isinstance(node, ast.Call):
            continue
        given = keywords(node)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name == "from_pretrained":
            yield node.lineno, name
        if name == "from_config" and given.get("trust_remote_code") is not False:
            yield node.lineno, "from_config without trust_remote_code=False"
        if ast.unparse(node.func) == "torch.load" and given.get("weights_only") is not True:
            yield node.lineno, "torch.load"
        if given.get("trust_remote_code") or given.get("allow_pickle") or given.get("shell"):
            yield node.lineno, "trust_remote_code, allow_pickle or shell"
        if (isinstance(node.func, ast.Name) and name in ("eval", "exec")) or ast.unparse(node.func) == "os.system":
            yield node.lineno, name


@pytest.mark.parametrize("file", FILES)
def test_no_call_runs_code_from_a_file(file: str):
    found = list(findings(ast.parse((ROOT / file).read_text(encoding="utf-8"))))
    assert [f"{file}:{line}: {name}" for line, name in found if (file, name) not in EXEMPT] == []


def test_exemptions_are_needed():
    for file, name in EXEMPT:
        assert name in [found for _, found in findings(ast.parse((ROOT / file).read_text(encoding="utf-8")))], file


def test_pretrained_networks_are_loaded_without_their_code():
    tree = ast.parse((ROOT / "lakd_ray/models/pretrained.py").read_text(encoding="utf-8"))
    calls = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and "from_pretrained" in ast.unparse(node.func)
    ]
    assert calls and all(keywords(call).get("trust_remote_code") is False for call in calls)


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "yaml.load(text)",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "numpy.load(file, allow_pickle=True)",
        "AutoModel.from_config(config)",
        "Model.from_pretrained(folder, trust_remote_code=False)",
        "subprocess.run(command, shell=True)",
        "exec(code)",
    ],
)
def test_unsafe_code_is_found(code: str):
    assert list(findings(ast.parse(code)))
