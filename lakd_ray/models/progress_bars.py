"""Progress bars of transformers, which it shows even for small local checkpoints."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def hide_progress_bars() -> Iterator[None]:
    """Hide the bars of loading and saving weights until the `with` block ends; bars of downloads are shown."""
    from transformers.utils import logging  # seconds to load

    previous = logging.set_tqdm_hook(_make_hidden_bar)
    try:
        yield
    finally:
        logging.set_tqdm_hook(None if previous is _make_hidden_bar else previous)  # blocks of threads may overlap


def _make_hidden_bar(_factory: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    from transformers.utils.logging import EmptyTqdm

    return EmptyTqdm(*arguments, **options)
