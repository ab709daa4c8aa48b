"""Every wait has a deadline in the table of docs/explanation/reliability.md, or a reason here for having none."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lakd_ray.config import Experiment
from lakd_ray.config.base import Section

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/explanation/reliability.md"
FILES = sorted([*(ROOT / "lakd_ray").rglob("*.py"), *(ROOT / "jobs").glob("*.py")])
CONSTANT = re.compile(r"^_?[A-Z_]*(TIMEOUT|DEADLINE|GRACE|JOIN|SILENCE|DRAIN|EXPIRY)[A-Z_]*_S(ECONDS)?$")
SETTING = re.compile(r"(timeout|deadline|wait|connect|stop|drain|stream)_s$")

TASK = "a task of Ray that computes: Ray ends the wait with an error if its process or node is lost"
_REQUESTS = (
    "run", "call", "check_call", "check_output", "Popen", "get", "post", "request", "urlopen", "create_connection",
)  # fmt: skip
THREAD = "a thread of this process whose own waits have deadlines"
STREAM = "one of several tasks of a stream; the others end it at serve.deadline_s or serve.max_stream_s"
WITHOUT_DEADLINE = {
    "lakd_ray/audio/sandbox.py:call": "the pool ends the call at its timeout_s",
    "lakd_ray/corpora/espeak/synthesis.py:_run_worker": "a child process that computes; its end closes the pipe",
    "lakd_ray/data/reader.py:_chain_executions": THREAD,
    "lakd_ray/inference/bulk/prefetch.py:iter_recordings": THREAD,
    "lakd_ray/launch/driver.py:_fit_groups": TASK,
    "lakd_ray/launch/event_log.py:poll_events": THREAD,
    "lakd_ray/launch/tracking/manager.py:_run": "waits for events; the thread ends with the process",
    "lakd_ray/serve/websocket.py:emit_rolling_results": STREAM,
    "lakd_ray/serve/websocket.py:_run_concurrently": "tasks that are done",
    "lakd_ray/serve/webm.py:close": STREAM,
    "lakd_ray/serve/webm.py:kill": "a process that was killed",
    "lakd_ray/serve/proxy/middleware.py:receive": "room for the next message; the request's deadline ends it",
    "lakd_ray/storage/lease.py:release": THREAD,
    "lakd_ray/train/checkpointing.py:wait": "a thread whose collectives end at train.rank_wait_s",
    "lakd_ray/train/prefetch.py:__next__": THREAD,
    "lakd_ray/tune/run.py:_prepare_shared_inputs": TASK,
    "lakd_ray/tune/run.py:_reevaluate": TASK,
    "lakd_ray/tune/trial.py:_train_in_worker_group": THREAD,
}


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def is_blocking(call: ast.Call) -> bool:
    """Return whether a call waits for a process, a thread, a server or a queue, and has no timeout."""
    if not isinstance(call.func, ast.Attribute) or any("timeout" in str(keyword.arg) for keyword in call.keywords):
        return False
    method, owner = call.func.attr, ast.unparse(call.func.value)
    if owner == "ray":
        return method in ("get", "wait")
    if owner in ("subprocess", "requests", "httpx", "urllib.request", "socket"):
        return method in _REQUESTS
    if owner.endswith(("checkpointer", "room")) or owner == "self" or owner.endswith(("timeout_s", "_held")):
        return False  # functions of this project, whose own calls count, and variables of a context
    return method in ("join", "wait", "get", "acquire", "result", "communicate", "recv", "accept") and not call.args


def blocking_calls(file: Path) -> Iterator[str]:
    def visit(node: ast.AST, function: str) -> Iterator[str]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        if isinstance(node, ast.Call) and is_blocking(node):
            yield f"{name_of(file)}:{function}"
        for child in ast.iter_child_nodes(node):
            yield from visit(child, function)

    yield from visit(ast.parse(file.read_text(encoding="utf-8")), "<module>")


def constants(file: Path) -> Iterator[str]:
    """Yield the deadlines of a module: its constants, and the defaults of the argument `timeout_s`."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            plain, given = [*function.args.posonlyargs, *function.args.args], function.args.defaults
            defaults = dict(zip([argument.arg for argument in plain][len(plain) - len(given) :], given, strict=True))
            keywords = [argument.arg for argument in function.args.kwonlyargs]
            defaults |= dict(zip(keywords, function.args.kw_defaults, strict=True))
            if isinstance(defaults.get("timeout_s"), ast.Constant):
                yield f"{name_of(file)}:timeout_s"
    for node in tree.body:
        for target in node.targets if isinstance(node, ast.Assign) else ():
            for name in target.elts if isinstance(target, ast.Tuple) else [target]:
                if isinstance(name, ast.Name) and CONSTANT.match(name.id):
                    yield f"{name_of(file)}:{name.id}"


def settings(section: type[Section], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from settings(field.annotation, f"{prefix}{name}.")
        elif SETTING.search(name):
            yield f"{prefix}{name}"


def documented() -> set[str]:
    """Return the names in the last column of the table."""
    section = PAGE.read_text(encoding="utf-8").partition("## Waits and their deadlines\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")][2:]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row[-1])}


def test_every_deadline_is_documented():
    found = {name for file in FILES for name in constants(file)} | set(settings(Experiment, ""))
    known = documented()
    assert found - known == set(), f"add these deadlines to the table in {name_of(PAGE)}"
    assert known - found == set(), f"{name_of(PAGE)} has deadlines that the code does not have"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_every_wait_has_a_deadline(file):
    missing = set(blocking_calls(file)) - set(WITHOUT_DEADLINE)
    assert not missing, f"give these waits a timeout, or a reason in {Path(__file__).name}: {sorted(missing)}"


def test_reasons_belong_to_waits():
    found = {name for file in FILES for name in blocking_calls(file)}
    assert set(WITHOUT_DEADLINE) - found == set()
