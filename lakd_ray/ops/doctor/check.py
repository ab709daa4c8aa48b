"""What a check is, what it finds, and how checks are asked so that none can keep the others waiting."""

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
    """What a check has found. All but `found` is empty where all is well."""

    name: str
    status: Status
    found: str
    expected: str = ""
    hint: str = ""

    def __str__(self) -> str:
        expected = f"; expected {self.expected}" if self.expected else ""
        return f"{self.name}: {self.found}{expected}" + (f". To do: {self.hint}" if self.hint else "")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Check:
    """A question to the machine, the storage or the cluster."""

    name: str
    run: Callable[[], CheckResult]
    target: str = "this machine"
    """Whose answer it waits for, told where none comes."""
    timeout_s: float = CHECK_TIMEOUT_S
    """Longest wait."""


def run_checks(checks: Iterable[Check]) -> list[CheckResult]:
    """All results, in the order of the checks, which are asked at the same time.

    A check that does not answer in time is left behind in its thread, which does not keep the process from ending.
    """
    started = time.monotonic()
    asked = [(check, *_start_check(check)) for check in checks]
    results = []
    for check, thread, answer in asked:
        thread.join(max(0.0, started + check.timeout_s - time.monotonic()))
        results.append(answer[0] if answer else _missing_result(check, alive=thread.is_alive()))
    return results


def _start_check(check: Check) -> tuple[threading.Thread, list[CheckResult]]:
    answer: list[CheckResult] = []

    def look() -> None:
        try:
            answer.append(check.run())
        except (LakdError, OSError) as error:
            answer.append(CheckResult(check.name, "fail", str(error)))

    thread = threading.Thread(target=look, name=f"doctor: {check.name}", daemon=True)
    thread.start()
    return thread, answer


def _missing_result(check: Check, *, alive: bool) -> CheckResult:
    if alive:
        found = f"no answer from {check.target} within {check.timeout_s:g} s"
        return CheckResult(check.name, "fail", found, "an answer", "see whether it is up, reachable and not overloaded")
    return CheckResult(check.name, "fail", "the check itself broke off, with the error above", "an answer", "report it")


def raise_on_failure(results: Sequence[CheckResult], storage_checks: Iterable[str]) -> None:
    """Raise if anything failed, with everything that did.

    Args:
        storage: names of the checks of places.

    Raises:
        StorageError: only places failed.
        ResourceError: something else did, too.
    """
    failed = [result for result in results if result.status == "fail"]
    if not failed:
        return
    kind = StorageError if {result.name for result in failed} <= set(storage_checks) else ResourceError
    listed = "".join(f"\n  {result}" for result in failed)
    raise kind(f"not started, for {_format_count(len(failed))} failed (`lakd doctor` looks more closely):{listed}")


def format_table(results: Sequence[CheckResult]) -> str:
    """The results for people."""
    shown = {"ok": "ok", "warn": "warn", "fail": "FAIL"}
    width = max(len(result.name) for result in results) + 2
    lines = []
    for result in results:
        lines.append(f"{result.name:<{width}}{shown[result.status]:<6}{result.found}")
        indent = " " * (width + 6)
        lines += [f"{indent}expected: {result.expected}"] if result.expected else []
        lines += [f"{indent}to do: {result.hint}"] if result.hint else []
    failed, warned = (sum(result.status == status for result in results) for status in ("fail", "warn"))
    lines.append(f"{_format_count(len(results))}: {failed} failed, {warned} with a warning")
    return "\n".join(lines)


def _format_count(number: int) -> str:
    return "1 check" if number == 1 else f"{number} checks"
