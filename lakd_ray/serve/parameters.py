"""Reject names in requests that the endpoint does not have, instead of ignoring them."""

import difflib
from collections import Counter
from collections.abc import Collection, Sequence

from starlette.datastructures import QueryParams

from lakd_ray.serve.errors import RequestError

_MIN_SIMILARITY = 0.4  # low, because it only chooses which of a few names comes first
_MAX_NAME = 40  # characters of an unknown name that a message repeats


def check_query(query: QueryParams, known: Collection[str]) -> None:
    """Check that a query has known parameters only, each once; see `check_names`."""
    check_names([name for name, _ in query.multi_items()], known, "query parameter")


def check_names(names: Sequence[str], known: Collection[str], kind: str, hint: str = "") -> None:
    """Check that names are known, and that none occurs twice.

    Args:
        names: the names in a request, as often as they occur.
        known: the names that the endpoint has.
        kind: `query parameter`, for example, for the message.
        hint: further advice for an unknown name.

    Raises:
        RequestError: 422 a name is unknown or occurs twice.
    """
    for name, count in Counter(names).items():
        shown = ascii(name[:_MAX_NAME])[1:-1]
        if name not in known:
            close = difflib.get_close_matches(name[:_MAX_NAME].lower(), known, n=1, cutoff=_MIN_SIMILARITY)
            advice = f"did you mean `{close[0]}`? " if close else ""
            expected = "expected " + ", ".join(f"`{item}`" for item in known) if known else "this route has none"
            raise RequestError(422, f"unknown {kind} `{shown}`: {advice}{expected}{hint}")
        if count > 1:
            raise RequestError(422, f"the {kind} `{shown}` is given {count} times, expected one value")
