"""The database of a search's study: its URL, and its errors."""

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar
from urllib.parse import quote

from lakd_ray import storage

PASSWORD_VARIABLE = "LAKD_STUDY_PASSWORD"


P = ParamSpec("P")
T = TypeVar("T")


class _Stored(Protocol):
    location: str
    """The file of the study."""


S = TypeVar("S", bound=_Stored)


def explain_full_disk(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Turn SQLite's errors in a method of the study into a DiskFullError that names the study's file."""

    @wraps(method)
    def call(study: S, /, *args: P.args, **options: P.kwargs) -> T:
        with storage.explain_full_disk("write", study.location):
            return method(study, *args, **options)

    return call


def with_password(url: str) -> str:
    """Return a database URL with the password of the environment, which no output contains."""
    from sqlalchemy.engine import make_url

    password = os.environ.get(PASSWORD_VARIABLE)
    return make_url(url).set(password=password).render_as_string(hide_password=False) if password else url


def sqlite_url(file: Path) -> str:
    """Return SQLAlchemy's URL of a SQLite file, whatever characters its path has.

    A plain `?` would end the path, `%` would start an escape, and Optuna formats the URL as a template with braces.
    """
    return f"sqlite:///{quote(str(file), safe='/ ')}"
