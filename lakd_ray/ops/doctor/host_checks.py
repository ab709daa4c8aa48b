"""Checks of the machine that they run on. No Ray: they are also sent to a cluster's nodes.

Limits that are sure to break a stage fail; what only makes it slow or fragile warns.
"""

import os
import platform
import resource
import shutil
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from lakd_ray import storage
from lakd_ray.config import Experiment
from lakd_ray.ops.doctor.check import Check, CheckResult, Status

_CRITICAL_PACKAGES = ("torch", "ray", "deepspeed")  # another version of these is another program; of others, a risk
_DEEPSPEED_OP = "deepspeed_shm_comm"
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_MEMINFO, _SHM = "/proc/meminfo", "/dev/shm"
_STORE_FRACTION, _MAX_STORE_BYTES, _MAX_SLOW_STORE_BYTES = (
    0.3,
    200 * 10**9,
    10**10,
)  # Ray's own: of memory, at most, refused in /tmp
_PROCESS_BYTES, _MIN_PROCESS_BYTES = 10**9, 250 * 10**6  # a worker with torch and Ray: as a rule, and at the very least
_EXTRA_PROCESSES = 3  # processes besides the workers: the driver and Ray's own
_MIN_OPEN_FILES, _RECOMMENDED_OPEN_FILES = 1024, 8192  # Ray recommends the latter
_MIN_TEMP_BYTES, _MIN_INODES, _MAX_TEMP_USAGE = 200 * 10**6, 1000, 0.95  # Ray refuses objects on a disk that is fuller


def host_checks(config: Experiment) -> list[Check]:
    """The quick ones."""
    looks: dict[str, Callable[[], CheckResult]] = {
        "versions": check_versions,
        "compiler": lambda: check_compiler(config),
        "gpu": lambda: check_gpu(config),
        "memory": lambda: check_memory(config),
        "shared memory": lambda: check_shared_memory(config),
        "open files": check_open_files,
        "temporary": check_temporary,
    }
    return [Check(name, look) for name, look in looks.items()]


def node_checks(config: Experiment, *, gpu: bool) -> list[Check]:
    """Those that say something of one node of a cluster, which does not do all of the work by itself."""
    general = {"versions", "compiler", "open files", "temporary"} | ({"gpu"} if gpu else set())
    return [check for check in host_checks(config) if check.name in general]


def check_versions() -> CheckResult:
    """Python and packages against the package's own requirements."""
    try:
        about = metadata.metadata("lakd-ray")
    except metadata.PackageNotFoundError:
        return CheckResult("versions", "warn", "lakd-ray is not installed", "its requirements", "pip install lakd-ray")
    found = {"Python": platform.python_version()}
    python = SpecifierSet(about["Requires-Python"] or "")
    wrong = [] if python.contains(found["Python"]) else [("Python", f"Python {python}")]
    for requirement in map(Requirement, metadata.requires("lakd-ray") or ()):
        if requirement.marker is not None:
            continue  # extras
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = "missing"
        if requirement.name in _CRITICAL_PACKAGES or version == "missing":
            found[requirement.name] = version
        if version == "missing" or not requirement.specifier.contains(version, prereleases=True):
            found[requirement.name] = version
            wrong.append((requirement.name, f"{requirement.name}{requirement.specifier}"))
    told = ", ".join(f"{name} {version}" for name, version in found.items())
    if not wrong:
        return CheckResult("versions", "ok", told)
    grave = any(name in ("Python", *_CRITICAL_PACKAGES) or found[name] == "missing" for name, _ in wrong)
    todo = "install again: pip install -c constraints.txt ."
    return CheckResult("versions", "fail" if grave else "warn", told, ", ".join(text for _, text in wrong), todo)


def check_compiler(config: Experiment) -> CheckResult:
    """What DeepSpeed builds its CPU op with. torch calls ninja in every process; the compiler only if the op is new."""
    tools = {"g++": os.environ.get("CXX", "c++"), "ninja": "ninja"}
    missing = [name for name, command in tools.items() if shutil.which(command) is None]
    if not missing:
        return CheckResult("compiler", "ok", ", ".join(str(shutil.which(command)) for command in tools.values()))
    todo = {"g++": "install g++ (Debian: apt-get install g++)", "ninja": "activate the environment, which has ninja"}
    spared = config.train.gpu or (missing == ["g++"] and _is_op_built())  # on GPUs there is no such op
    return CheckResult(
        "compiler",
        "warn" if spared else "fail",
        f"no {' and no '.join(missing)} on PATH",
        "g++ and ninja, with which DeepSpeed builds an op on first use",
        "; ".join(todo[name] for name in missing),
    )


def _is_op_built() -> bool:
    """Whether an earlier run left DeepSpeed's op where torch looks for it."""
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or "~/.cache/torch_extensions").expanduser()
    return any(folder.rglob(f"{_DEEPSPEED_OP}/{_DEEPSPEED_OP}.so"))


def check_gpu(config: Experiment) -> CheckResult:
    """Whether torch can use the GPUs, which they are, and bf16 where it is asked for."""
    if not config.train.gpu:
        return CheckResult("gpu", "ok", "not asked for (train.gpu: false)")
    import torch  # takes a second

    if not torch.cuda.is_available():
        found = f"torch {torch.__version__} cannot use a GPU"
        todo = "see whether nvidia-smi works and fits torch's CUDA, or set train.gpu: false"
        return CheckResult("gpu", "fail", found, "a GPU, for train.gpu: true", todo)
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    told = ", ".join(f"{each.name} with {storage.format_bytes(each.total_memory)}" for each in properties)
    if config.train.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        todo = "set train.precision: fp32, or take GPUs from Ampere on"
        return CheckResult("gpu", "fail", f"{told}, without bf16", "bf16, for train.precision: bf16", todo)
    return CheckResult("gpu", "ok", told)


def check_memory(config: Experiment) -> CheckResult:
    """Memory, or the container's part of it, against the object store and the workers' processes."""
    total, available = _read_memory()
    store = _object_store_bytes(config, total)
    processes = _count_processes(config)
    least, good = store + processes * _MIN_PROCESS_BYTES, store + processes * _PROCESS_BYTES
    told = f"{storage.format_bytes(total)}, {storage.format_bytes(available)} of it available"
    expected = f"{storage.format_bytes(good)}: object store {storage.format_bytes(store)} and {processes} processes"
    todo = "lower train.parallel_runs, train.workers, tune.max_concurrent_trials or cluster.object_store_mb, or take more memory"
    if total < least:
        return CheckResult("memory", "fail", told, expected, todo)
    return (
        CheckResult("memory", "warn", told, expected, todo) if available < good else CheckResult("memory", "ok", told)
    )


def check_shared_memory(config: Experiment) -> CheckResult:
    """Room in /dev/shm for the object store; Ray takes a disk instead, or refuses if the store is large."""
    free, store = shutil.disk_usage(_SHM).free, _object_store_bytes(config, _read_memory()[0])
    told = f"{storage.format_bytes(free)} free in {_SHM}, object store {storage.format_bytes(store)}"
    if free >= store:
        return CheckResult("shared memory", "ok", told)
    slow = store <= _MAX_SLOW_STORE_BYTES or os.environ.get("RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE")
    status: Status = "warn" if slow else "fail"
    todo = f"raise it (docker run --shm-size), or set cluster.object_store_mb below {free // 1024**2}"
    return CheckResult("shared memory", status, told, "room for the object store; a disk in its place is slow", todo)


def check_open_files() -> CheckResult:
    """How many files a process may open; Ray raises the soft limit to the hard one by itself."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if limit == resource.RLIM_INFINITY or limit >= _RECOMMENDED_OPEN_FILES:
        return CheckResult("open files", "ok", "no limit" if limit == resource.RLIM_INFINITY else f"at most {limit}")
    todo = f"raise the hard limit (limits.conf, or LimitNOFILE of the service) to {_RECOMMENDED_OPEN_FILES}"
    status: Status = "fail" if limit < _MIN_OPEN_FILES else "warn"
    return CheckResult("open files", status, f"at most {limit}", f"{_RECOMMENDED_OPEN_FILES} or more", todo)


def check_temporary() -> CheckResult:
    """Room where files are made before they are sent, and where Ray keeps its session and spills objects."""
    here = tempfile.gettempdir()
    folders = dict.fromkeys([here, str(storage.nearest_existing_parent(os.environ.get("RAY_TMPDIR") or here))])
    told, wrong = [], []
    full = False
    for folder in folders:
        with tempfile.TemporaryFile(dir=folder) as probe:  # an error names the folder
            probe.write(b"lakd")
        usage, inodes = shutil.disk_usage(folder), _free_inodes(folder)
        told.append(f"{storage.format_bytes(usage.free)} free in {folder}")
        if usage.free < _MIN_TEMP_BYTES:
            wrong.append(f"{storage.format_bytes(_MIN_TEMP_BYTES)} free in {folder}")
        if inodes is not None and inodes < _MIN_INODES:
            told[-1] += f" and room for {inodes} files"
            wrong.append(f"room for {_MIN_INODES} files in {folder}")
        full = full or 1 - usage.free / usage.total > _MAX_TEMP_USAGE
    todo = "make room there, or set TMPDIR and RAY_TMPDIR to a folder on another disk"
    if wrong:
        return CheckResult("temporary", "fail", ", ".join(told), ", ".join(wrong), todo)
    if full:
        expected = f"a disk that is less than {_MAX_TEMP_USAGE:.0%} full: Ray refuses to spill objects to a fuller one"
        return CheckResult("temporary", "warn", ", ".join(told), expected, todo)
    return CheckResult("temporary", "ok", ", ".join(told))


def _free_inodes(folder: str) -> int | None:
    """None where the file system does not count them."""
    found = os.statvfs(folder)
    return found.f_favail if found.f_files else None


def _read_memory() -> tuple[int, int]:
    """Bytes in all and bytes available, the container's limit observed."""
    entries = (line.split() for line in Path(_MEMINFO).read_text(encoding="ascii").splitlines())
    found = {entry[0]: int(entry[1]) * 1024 for entry in entries}
    limits = [Path(file).read_text(encoding="ascii").strip() for file in _CGROUP_LIMITS if Path(file).exists()]
    total = min([found["MemTotal:"], *(int(limit) for limit in limits if limit.isdigit())])
    return total, min(total, found["MemAvailable:"])


def _object_store_bytes(config: Experiment, total: int) -> int:
    """The object store of a cluster started here; Ray's default takes no more than /dev/shm has, if that has enough."""
    if config.cluster.object_store_mb is not None:
        return config.cluster.object_store_mb * 1024**2
    room = max(_MAX_SLOW_STORE_BYTES, round(shutil.disk_usage(_SHM).free * 0.95))
    return min(round(total * _STORE_FRACTION), _MAX_STORE_BYTES, room)


def _count_processes(config: Experiment) -> int:
    trials = config.tune.max_concurrent_trials * config.tune.workers_per_trial
    return max(config.train.parallel_runs * config.train.workers, trials) + _EXTRA_PROCESSES
