"""The documents: the site builds, and their commands, settings, imports and links are valid."""

import ast
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from support import documents
from support.documents import ROOT, Block, Command

from lakd_ray.cli.experiment_template import render_experiment
from lakd_ray.cli.main import app, main
from lakd_ray.config import Experiment, experiment_names, load_config, parse_overrides
from lakd_ray.corpora import get_importer_spec

BLOCKS = list(documents.blocks())
CHECKED = [block for block in BLOCKS if block.unchecked is None]
COMMANDS = [command for block in CHECKED for command in documents.commands(block)]
LAKD = [command for command in COMMANDS if command.words[0] == "lakd"]
YAML = [block for block in CHECKED if block.language in ("yaml", "yml")]
CHEAP = ("config", "init", "corpora", "disk-usage", "gc")
"""Commands that need neither prepared data nor models: they are run."""
NOT_RUN = {
    "lakd doctor": "needs the reader's storage and encoder; tests/ops/test_doctor.py runs it",
    "lakd export": "needs a trained checkpoint; tests/ops/test_release.py runs it",
    "lakd pipeline": "trains for minutes; tests/test_pipeline.py runs it",
    "lakd predict": "needs a trained checkpoint; tests/cli/test_predict.py runs it",
    "lakd predict-batch": "needs a trained checkpoint; tests/inference/bulk/test_bulk_job.py runs it",
    "lakd prepare": "needs the reader's corpus; tests/test_pipeline.py runs it",
    "lakd run-grid": "trains for hours; tests/test_run_grid.py runs it, and its --dry-run is run here",
    "lakd scan": "needs the reader's corpus; tests/corpora/test_scan.py runs it",
    "lakd serve": "runs until Ctrl-C; tests/serve/test_serve_ray.py starts an endpoint",
    "lakd tune": "trains for minutes; tests/test_pipeline.py runs it",
    "lakd tune-report": "needs a search; tests/tune/test_search.py writes one",
    "lakd --install-completion": "changes the reader's shell; tests/cli/test_main.py prints the script",
    "python": "scripts exist, which is tested here; tests/test_cluster_files.py checks those for Ray jobs",
    "serve": "needs a cluster; tests/serve/test_rollout.py deploys on one",
    "make": "targets exist, which is tested here; the gate runs env, check and test",
    "curl": "needs an endpoint; tests/serve/test_api.py sends these requests",
    "benchmarks/gpu.sh": "needs a GPU; tests/test_benchmarks.py runs it with small sizes",
    "cluster/local.sh": "starts a cluster; tests/test_cluster_files.py checks it",
    "sbatch": "needs Slurm; tests/test_cluster_files.py checks the script",
    "ray": "starts a cluster on other machines",
    "kubectl": "needs Kubernetes; tests/test_cluster_files.py checks the files",
    "docker": "needs Docker",
    "uvx": "installs a viewer",
    "wandb": "sends to a service",
    "git": "clones the repository",
    "pip": "installs the package",
    "ssh": "needs a second machine",
    "jq": "reads what `lakd predict --json` prints",
    "export cd source chmod (umask for do done less": "the shell's own",
}
"""Commands that are parsed but not run, each with the reason and the test that covers it."""
PLACEHOLDER = re.compile(r"[A-Z][A-Z_]*")
GROUP: Any = typer.main.get_command(app)


def name(item: Block | Command) -> str:
    return item.location if isinstance(item, Block) else f"{item.location} {item.text[:60]}"


def parse(arguments: list[str]) -> Any:
    """Parse a command without running it; return its context."""
    context = GROUP.make_context("lakd", arguments)
    command_name, command, rest = GROUP.resolve_command(context, [*context._protected_args, *context.args])
    return command.make_context(command_name, rest, parent=context)


def replace_placeholders(words: list[str]) -> list[str]:
    """Return a command with its optional parts, `[--cpus N]`, and with a valid value for each choice and number."""
    words = [re.sub(r"^\[(?=-)", "", word) for word in words]
    words = [word.rstrip("]") if "[" not in word else word for word in words]
    words = [word for word in words if word != "..."]
    command = GROUP.commands.get(words[0])
    parameters = {option: parameter for parameter in command.params for option in parameter.opts} if command else {}
    for position, option in enumerate(words[:-1]):
        if option in parameters and PLACEHOLDER.fullmatch(words[position + 1]):
            kind = parameters[option].type_descriptor
            if choices := getattr(kind, "choices", None):
                words[position + 1] = str(getattr(choices[0], "value", choices[0]))
            elif kind.annotation in (int, float):
                words[position + 1] = "1"
    return words


@pytest.mark.parametrize("command", LAKD, ids=name)
def test_commands_exist_with_their_options(command: Command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = list(command.words[1:])
    group_options = {option for parameter in GROUP.params for option in parameter.opts}
    if arguments[0] in group_options or {"-h", "--help"} & set(arguments):
        return  # eager options run while they are parsed
    context = parse(replace_placeholders(arguments))
    overrides = [text for text in context.params.get("overrides") or () if text != "key=value"]
    if context.info_name == "scan":
        spec = get_importer_spec(context.params["corpus"])
        assert {key.split(".")[0] for key in parse_overrides(overrides)} <= set(spec.options)
    elif (experiment := context.params.get("experiment")) in experiment_names():
        load_config(experiment, overrides)
    elif overrides:
        write_experiment(tmp_path / "mine.yaml", {})
        load_config(tmp_path / "mine.yaml", overrides)


RUN = sorted({command.words for command in LAKD if command.words[1] in CHEAP}, key=lambda words: words[1] != "init")


@pytest.mark.parametrize("words", RUN, ids=" ".join)
def test_cheap_commands_run(words: tuple[str, ...], tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if words[1] != "init":
        write_experiment(tmp_path / "mine.yaml", {})
    assert main([word if not PLACEHOLDER.fullmatch(word) else "demo" for word in words[1:]]) == 0, (
        capsys.readouterr().err
    )
    assert capsys.readouterr().out


def test_the_plan_of_a_grid_needs_only_prepared_data(tmp_path, monkeypatch, capsys):
    """The grid's `--dry-run` in an empty folder stops with the command that the documents run before it."""
    monkeypatch.chdir(tmp_path)
    plans = [command for command in LAKD if command.words[1] == "run-grid" and "--dry-run" in command.words]
    assert plans
    for command in plans:
        assert main(list(command.words[1:])) == 2
        assert "Run `lakd prepare` with this experiment first." in capsys.readouterr().err


def test_commands_that_are_not_run_have_a_reason():
    documented = {" ".join(command.words[:2]) if command in LAKD else command.words[0] for command in COMMANDS}
    documented -= {f"lakd {command}" for command in CHEAP}
    reasons = {words: reason for key, reason in NOT_RUN.items() for words in ([key] if "lakd" in key else key.split())}
    assert sorted(documented - reasons.keys()) == []
    tests = {file for reason in NOT_RUN.values() for file in re.findall(r"tests/\S+\.py", reason)}
    assert sorted(file for file in tests if not (ROOT / file).is_file()) == []


@pytest.mark.parametrize("command", [item for item in COMMANDS if item.words[0] == "make"], ids=name)
def test_make_targets_exist(command: Command):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in command.words[1:]:
        assert "=" in target or re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target


SCRIPTS = [item for item in COMMANDS if re.fullmatch(r"python[\d.]*|bash|sbatch", item.words[0])]


@pytest.mark.parametrize("command", SCRIPTS, ids=name)
def test_scripts_exist(command: Command):
    file = next((word for word in command.words[1:] if word.endswith((".py", ".sh", ".sbatch"))), None)
    assert file is None or (ROOT / file).is_file()


def write_experiment(file: Path, settings: dict[str, Any]) -> None:
    """Write the experiment of `lakd init`, with some settings replaced."""
    text = render_experiment("mine", str(file), languages=["en", "fr"], encoder="facebook/wav2vec2-base")
    file.write_text(yaml.safe_dump(merge(yaml.safe_load(text), settings)), encoding="utf-8")


def merge(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: merge(settings[key], changes[key])
        for key in settings.keys() & changes
        if _are_maps(settings, changes, key)
    }
    return settings | changes | both


def _are_maps(settings: dict[str, Any], changes: dict[str, Any], key: str) -> bool:
    return isinstance(settings[key], dict) and isinstance(changes[key], dict)


@pytest.mark.parametrize("block", YAML, ids=name)
def test_settings_are_valid(block: Block, tmp_path):
    settings = yaml.safe_load(block.text)
    if isinstance(settings, list):
        settings = {"corpora": settings}
    elif "importer" in settings:
        settings = {"corpora": [settings]}
    assert set(settings) <= set(Experiment.model_fields), f"{block.location}: mark it with <!-- unchecked: REASON -->"
    write_experiment(tmp_path / "mine.yaml", settings)
    load_config(tmp_path / "mine.yaml")


PYTHON = [block for block in CHECKED if block.language == "python" and block.file != "docs/how-to/extend.md"]


@pytest.mark.parametrize("block", PYTHON, ids=name)
def test_python_examples_import_what_exists(block: Block):
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("lakd_ray"):
            module = import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_lead_to_files_and_headings(document: str):
    for target in documents.links(ROOT / document):
        path, _, anchor = target.partition("#")
        file = ROOT / document if not path else ROOT / path
        assert file.exists(), f"{document}: {target}"
        assert not anchor or anchor in documents.anchors(file), f"{document}: {target}"


def test_exemptions_have_reasons_and_fences_are_balanced():
    for block in BLOCKS:
        assert block.unchecked is None or len(block.unchecked.split()) >= 3, block.location
    for document in documents.DOCUMENTS:
        assert len(re.findall(r"^ *```", document.read_text(encoding="utf-8"), re.MULTILINE)) % 2 == 0, document


def test_the_site_builds(tmp_path):
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "site" / "index.html").is_file() and (tmp_path / "site" / "tour" / "index.html").is_file()
