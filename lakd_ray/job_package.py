"""Collect what is uploaded with a Ray job: the package, the scripts in jobs/ and the experiment's file, nothing else.

A repository's folder may hold corpora, outputs and credentials: they are not part of a job, which reads its data from
storage. `excludes` in runtime_env.yaml has the same effect for `ray job submit --working-dir .`.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lakd_ray.errors import ConfigError, ResourceError
from lakd_ray.scratch import scratch_folder
from lakd_ray.storage import format_bytes

FOLDERS = ("jobs", "lakd_ray")
"""Folders of the repository that are uploaded."""
MAX_BYTES = 50_000_000
"""More than these files have; a dashboard rejects large uploads without naming a file."""
_MAX_LISTED = 5
_EXPERIMENT_SUFFIXES = (".yaml", ".yml")
_IGNORED = shutil.ignore_patterns("__pycache__", ".*", "*.pyc")


@contextmanager
def job_package(root: Path, arguments: Sequence[str]) -> Iterator[tuple[Path, list[str]]]:
    """Yield a temporary folder with the files of a job, and the job's arguments with the files' names in that folder.

    Args:
        root: the repository's folder.
        arguments: arguments of the job's script; files of experiments among them are uploaded.

    Raises:
        ConfigError: an experiment's file does not exist.
        ResourceError: the files are too large to upload.
    """
    experiments = {argument: _find_experiment_file(argument) for argument in arguments}
    with scratch_folder() as folder:
        for name in FOLDERS:
            shutil.copytree(root / name, folder / name, ignore=_ignore_links)
        names = {}
        for argument, file in experiments.items():
            if file is not None:
                names[argument] = _copy_experiment(argument, file, folder)
        _check_size(folder)
        yield folder, [names.get(argument, argument) for argument in arguments]


def _ignore_links(folder: str, names: list[str]) -> set[str]:
    return _IGNORED(folder, names) | {name for name in names if Path(folder, name).is_symlink()}


def _find_experiment_file(argument: str) -> Path | None:
    """Return the file of an argument that names one: its path, or its name without the suffix.

    Raises:
        ConfigError: the argument is the path of an experiment's file that does not exist.
    """
    if argument.startswith("-") or "=" in argument or "://" in argument:
        return None
    path = Path(argument).expanduser()
    if path.suffix in _EXPERIMENT_SUFFIXES:
        if not path.is_file():
            raise ConfigError(f"there is no experiment file {argument} on this machine: correct its path")
        return path
    named = Path(f"{argument}.yaml")
    return named if len(named.parts) == 1 and named.is_file() else None


def _copy_experiment(argument: str, file: Path, folder: Path) -> str:
    """Copy an experiment's file, and return the argument that names it in the job."""
    target = folder / file.name
    if target.exists() and target.read_bytes() != file.read_bytes():
        raise ConfigError(f"two different experiment files are named {file.name}: rename one of them")
    shutil.copyfile(file, target)
    return argument if Path(argument).suffix == "" else target.name


def _check_size(folder: Path) -> None:
    sizes = {str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    total = sum(sizes.values())
    if total > MAX_BYTES:
        largest = sorted(sizes.items(), key=lambda entry: -entry[1])[:_MAX_LISTED]
        listed = ", ".join(f"{name} ({format_bytes(size)})" for name, size in largest)
        raise ResourceError(
            f"the job's files have {format_bytes(total)}, expected at most {format_bytes(MAX_BYTES)}: {listed}. Move "
            f"files that are not code out of {' and '.join(FOLDERS)}"
        )
