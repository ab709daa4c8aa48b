"""Checks, their results, and running checks concurrently so that a slow one does not delay the others."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lakd_ray.errors import LakdError, ResourceError, StorageError

CHECK_TIMEOUT_S = 20.0
Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class CheckResult:
    """Result of a check; `expected` and `hint` are empty if the check passed."""

    name: str
    status: Status
    found: str
    expected: str = ""
    hint: str = ""

    def __str__(self) -> str:
        expected = f"; expected {self.expected}" if self.expected else ""
        return f"{self.name}: {self.found}{expected}" + (f". Fix: {self.hint}" if self.hint else "")

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Check:
    """A named check of the machine, the storage or the cluster."""

    name: str
    run: Callable[[], CheckResult]
    target: str = "this machine"
    """What it waits for; named in the result of a timeout."""
    timeout_s: float = CHECK_TIMEOUT_S
    """Seconds until the check counts as failed."""


def run_checks(checks: Iterable[Check]) -> list[CheckResult]:
    """Run checks concurrently and return their results in order.

    A check that exceeds its timeout is abandoned in a daemon thread, which does not delay the exit of the process.
    """
    started = time.monotonic()
    running = [(check, *_start_check(check)) for check in checks]
    results = []
    for check, thread, output in running:
        thread.join(max(0.0, started + check.timeout_s - time.monotonic()))
        results.append(output[0] if output else _missing_result(check, alive=thread.is_alive()))
    return results


def _start_check(check: Check) -> tuple[threading.Thread, list[CheckResult]]:
    output: list[CheckResult] = []

    def run() -> None:
        try:
            output.append(check.run())
        except (LakdError, OSError) as error:
            output.append(CheckResult(check.name, "fail", str(error)))

    thread = threading.Thread(target=run, name=f"doctor: {check.name}", daemon=True)
    thread.start()
    return thread, output


def _missing_result(check: Check, *, alive: bool) -> CheckResult:
    if alive:
        found = f"no response from {check.target} within {check.timeout_s:g} s"
        hint = "make sure that it is running, reachable and not overloaded"
        return CheckResult(check.name, "fail", found, "a response", hint)
    return CheckResult(check.name, "fail", "the check raised the error above", "a result", "report this as a bug")


def raise_on_failure(results: Sequence[CheckResult], storage_checks: Iterable[str]) -> None:
    """Raise an error that lists all failed checks, if there are any.

    Args:
        results: results of all checks.
        storage_checks: names of the storage checks.

    Raises:
        StorageError: only storage checks failed.
        ResourceError: other checks failed.
    """
    failed = [result for result in results if result.status == "fail"]
    if not failed:
        return
    kind = StorageError if {result.name for result in failed} <= set(storage_checks) else ResourceError
    listed = "".join(f"\n  {result}" for result in failed)
    raise kind(f"not started: {_format_count(len(failed))} failed (run `lakd doctor` for all checks):{listed}")


def format_table(results: Sequence[CheckResult]) -> str:
    """Format results as a human-readable table."""
    labels = {"ok": "ok", "warn": "warn", "fail": "FAIL"}
    width = max(len(result.name) for result in results) + 2
    lines = []
    for result in results:
        lines.append(f"{result.name:<{width}}{labels[result.status]:<6}{result.found}")
        indent = " " * (width + 6)
        lines += [f"{indent}expected: {result.expected}"] if result.expected else []
        lines += [f"{indent}fix: {result.hint}"] if result.hint else []
    failed, warned = (sum(result.status == status for result in results) for status in ("fail", "warn"))
    lines.append(f"{_format_count(len(results))}: {failed} failed, {warned} with a warning")
    return "\n".join(lines)


def _format_count(number: int) -> str:
    return "1 check" if number == 1 else f"{number} checks"
