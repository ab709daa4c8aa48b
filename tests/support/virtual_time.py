"""An event loop whose clock jumps to the next timer.

Waits and speeds in it are the same on a busy machine.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop for code that waits for timers only, not for files, sockets or threads."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        poll = self._selector.select

        def select(timeout: float | None = None) -> Any:
            assert timeout is not None, "all tasks wait for each other"
            self._now += timeout
            return poll(0)

        self._selector.select = select

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._now


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(coroutine)


def now() -> float:
    """Return the virtual time, in place of `time.monotonic`."""
    return asyncio.get_running_loop().time()
