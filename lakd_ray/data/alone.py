"""Decoding in a process of its own, for recordings that are suspected of killing the one that decodes them."""

import os
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from typing import Any

from lakd_ray.data.quality import admit
from lakd_ray.errors import ClipError

_DEADLINE_S = 180.0  # longer than ffmpeg may take


class Alone:
    """A process that may die or hang; the next recording then gets a new one."""

    def __init__(self, deadline_s: float = _DEADLINE_S):
        self._deadline_s = deadline_s
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Alone":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def admit(self, content: bytes, **arguments: Any) -> dict[str, Any]:
        """`lakd_ray.data.quality.admit`, there.

        Raises:
            ClipError: it goes to quarantine; also when it killed the process or was not done in time.
        """
        return dict(self.call(admit, content, **arguments))

    def call(self, function: Any, *arguments: Any, **named: Any) -> Any:
        """Any function of a module, there; raises what it raises.

        Raises:
            ClipError: it killed the process, or was not done in time.
        """
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_end_with_parent)
        try:
            return self._pool.submit(function, *arguments, **named).result(self._deadline_s)
        except BrokenProcessPool:
            self.close()
            raise ClipError("it kills the process that decodes it") from None
        except TimeoutError:
            self.close()
            raise ClipError(f"decoding was not done after {self._deadline_s:g} s") from None

    def close(self) -> None:
        """End the process."""
        if self._pool is None:
            return
        for process in list((self._pool._processes or {}).values()):  # a hanging one would be waited for
            process.kill()
        self._pool.shutdown()
        self._pool = None


def _end_with_parent() -> None:
    """Whoever is killed cannot end its processes, and they would wait for it for ever."""
    parent = parent_process()

    def wait() -> None:
        if parent is not None:
            connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
