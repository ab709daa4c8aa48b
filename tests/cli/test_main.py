"""The command line in this process: every command, global options, errors and output."""

import json
import logging
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
import yaml

from lakd_ray import __version__
from lakd_ray.cli.group import RENAMED_COMMANDS, RayCommand, split_overrides
from lakd_ray.cli.main import app, main
from lakd_ray.config import Experiment, load_config, to_dict
from lakd_ray.corpora import IMPORTERS
from lakd_ray.ops import disk_usage

COMMANDS = typer.main.get_command(app).commands
LAKD = [sys.executable, "-m", "lakd_ray"]
# Ray's own imports: Train and Tune
THIRD_PARTY = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_config_prints_an_experiment_that_loads_again(capsys):
    assert main(["config", "demo", "--set", "seed=7", "train.workers=1", "--set", "name=again"]) == 0
    printed = capsys.readouterr().out
    config = Experiment.model_validate(yaml.safe_load(printed))
    assert (config.seed, config.train.workers, config.name) == (7, 1, "again")
    assert config == load_config("demo", ["seed=7", "train.workers=1", "name=again"])


def test_config_prints_json(capsys):
    assert main(["config", "demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == to_dict(load_config("demo"))


def test_config_prints_the_schema_with_descriptions(capsys):
    assert main(["config", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert set(Experiment.model_fields) <= set(schema["properties"])
    assert schema["properties"]["seed"]["description"] == Experiment.model_fields["seed"].description


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["config", "absent.yaml"], "no experiment 'absent.yaml'"),
        (["config", "dema"], "did you mean `demo`?"),
        (["config", "demo", "--set", "sed=7"], "did you mean `seed`?"),
        (["prepare", "demo", "--set", "train.workers"], "expected dotted.key=value"),
    ],
)
def test_an_error_is_one_line_without_a_traceback(capsys, arguments, words):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert words in err
    assert "Traceback" not in err
    assert out == ""


def test_debug_prints_the_traceback_of_an_error(capsys):
    for arguments in (["--debug", "config", "absent.yaml"], ["config", "absent.yaml", "--debug"]):
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert err.startswith("Traceback") and "ConfigError" in err
        assert err.splitlines()[-1].startswith("error: no experiment 'absent.yaml'")


@THIRD_PARTY
@pytest.mark.parametrize("stage", ["prepare", "pipeline", "serve"])
def test_a_job_rejects_relative_storage(capsys, monkeypatch, tmp_path, stage):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert main([stage, "demo", "--set", "storage=outputs"]) == 2
    err = capsys.readouterr().err
    assert "storage 'outputs' is relative" in err
    assert "--set storage=/path" in err
    assert list(tmp_path.iterdir()) == []


def test_corpora_lists_every_importer(capsys):
    assert main(["corpora"]) == 0
    printed = capsys.readouterr().out
    for name, importer in IMPORTERS.items():
        assert f"\n{name}\n" in f"\n{printed}"
        assert importer.license in printed
        assert importer.availability in printed


def test_corpora_prints_json(capsys):
    assert main(["corpora", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert set(entries) == set(IMPORTERS)
    assert entries["ravdess"]["utterances"] == 1440 and "channel" in entries["ravdess"]["options"]


def test_corpora_shows_one_importer_with_its_options(capsys):
    assert main(["corpora", "ravdess"]) == 0
    printed = capsys.readouterr().out
    assert "option   channel: " in printed
    assert "size     1440 utterances" in printed
    assert main(["corpora", "ravdes"]) == 2
    assert "did you mean `ravdess`?" in capsys.readouterr().err


@THIRD_PARTY
def test_disk_usage_prints_json(capsys, tmp_path):
    arguments = ["demo", "--set", f"storage={tmp_path}"]
    assert main(["disk-usage", *arguments, "--json"]) == 0
    expected = disk_usage.estimate_usage(load_config("demo", [f"storage={tmp_path}"])).to_json()
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(expected))


@pytest.mark.parametrize(
    "arguments", [["fly"], ["prepare"], ["config"], ["config", "demo", "--sett", "a=1"], ["-v", "-q", "corpora"]]
)
def test_usage_errors(capsys, arguments):
    assert main(arguments) == 2
    usage, error, hint = capsys.readouterr().err.splitlines()
    assert usage.startswith("Usage: lakd ")
    assert error.startswith("error: ")
    assert hint.startswith("try: lakd ") and hint.endswith(" --help")


@pytest.mark.parametrize(("typo", "command"), [("pipelin", "pipeline"), ("train-teacher", "train-teachers")])
def test_a_misspelt_command_has_a_suggestion(capsys, typo, command):
    assert main([typo, "demo"]) == 2
    assert f"error: No such command '{typo}'. Did you mean '{command}'" in capsys.readouterr().err


@pytest.mark.parametrize(("old", "new"), RENAMED_COMMANDS.items())
def test_an_old_command_name_gives_the_new_one(capsys, old, new):
    assert main([old, "demo"]) == 2
    assert capsys.readouterr().err == f"error: `lakd {old}` is now `lakd {new}`\n"
    assert new in COMMANDS and old not in COMMANDS


def test_an_old_option_name_gives_the_new_one(capsys):
    assert main(["run-grid", "demo", "--rate=3"]) == 2
    assert capsys.readouterr().err == "error: option --rate is now --throughput\n"


def test_reproduce_is_a_hidden_alias_of_run_grid():
    assert COMMANDS["reproduce"].hidden
    assert [option.name for option in COMMANDS["reproduce"].params] == [
        option.name for option in COMMANDS["run-grid"].params
    ]


def test_help_shows_all_commands_in_groups(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for group in ("Pipeline stages", "Search", "Data", "Models", "Operations", "Configuration"):
        assert group in printed
    shown = set(re.findall(r"^│ ([a-z][a-z-]*) ", printed, re.MULTILINE))
    assert shown == {name for name, command in COMMANDS.items() if not command.hidden}
    assert main([]) == 2
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(capsys, name):
    assert main([name, "--help"]) == 0
    printed = capsys.readouterr().out
    assert f"Usage: lakd {name}" in printed
    for option in COMMANDS[name].params:
        assert option.help, option.name


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell, capsys, monkeypatch):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    assert main(["--show-completion", shell]) == 0
    assert "_LAKD_COMPLETE" in capsys.readouterr().out


def test_completion_of_commands_and_experiments():
    def complete(words: str) -> str:
        env = {
            **os.environ,
            "_LAKD_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
        }
        return subprocess.run(LAKD, env=env, capture_output=True, text=True, check=False).stdout

    assert complete("lakd train").split() == ["train-teachers"]
    assert complete("lakd pipeline paper").split() == ["paper", "paper-demo", "paper-fold"]
    assert complete("lakd scan rav").split() == ["ravdess"]


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lakd-ray {__version__}\n"


def test_set_takes_several_values():
    assert split_overrides(["demo", "--set", "a=1", "b=2", "--json", "x=3", "--set", "c=4"]) == [
        "demo", "--set", "a=1", "--set", "b=2", "--json", "x=3", "--set", "c=4",
    ]  # fmt: skip
    assert split_overrides(["--set", "a=1", "demo", "b=2"]) == ["--set", "a=1", "demo", "b=2"]


@pytest.mark.parametrize(
    ("option", "out", "err"),
    [
        ([], "started\n", "warning: be careful\n"),
        (["-q"], "", "warning: be careful\n"),
        (["-v"], "started\nlakd_ray.test: step 1\n", "warning: be careful\n"),
    ],
)
def test_log_records_are_plain_lines(capsys, monkeypatch, option, out, err):
    def fake_load(*arguments: object) -> Experiment:
        logger = logging.getLogger("lakd_ray.test")
        logger.info("started")
        logger.debug("step %d", 1)
        logger.warning("be careful")
        return load_config("demo")

    monkeypatch.setattr("lakd_ray.cli.configuration.load_config", fake_load)
    monkeypatch.setattr("lakd_ray.cli.configuration.to_documented_yaml", lambda config: "")
    assert main([*option, "config", "demo"]) == 0
    assert capsys.readouterr() == (out, err)
    assert logging.getLogger("lakd_ray").handlers == []


def run_in_terminal(*arguments: str, **variables: str) -> str:
    """Return what a command writes to a terminal."""
    primary, secondary = pty.openpty()
    env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    env |= {"TERM": "xterm-256color", "COLUMNS": "100", **variables}
    process = subprocess.Popen([*LAKD, *arguments], stdout=secondary, stderr=secondary, env=env)
    os.close(secondary)
    chunks = []
    while True:
        try:
            chunks.append(os.read(primary, 1 << 16))
        except OSError:  # the other end is closed
            break
        if not chunks[-1]:
            break
    process.wait()
    os.close(primary)
    return b"".join(chunks).decode()


@pytest.mark.parametrize("arguments", [["--help"], ["config", "absent.yaml"]])
def test_colors_on_a_terminal_only(arguments):
    colors = re.compile(r"\x1b\[[0-9;]*[34]\d")
    assert colors.search(run_in_terminal(*arguments))
    assert not colors.search(run_in_terminal(*arguments, NO_COLOR="1"))
    piped = subprocess.run([*LAKD, *arguments], capture_output=True, text=True, check=False)
    assert "\x1b" not in piped.stdout + piped.stderr


def test_a_reader_that_ends_early_is_no_error():
    with subprocess.Popen([*LAKD, "config", "demo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait(timeout=60)) == (b"", 1)


def test_light_commands_load_neither_torch_nor_ray(tmp_path):
    code = (
        "import sys; from lakd_ray.cli.main import main\n"
        "for arguments in ('--help', 'config demo', 'init mine', 'corpora'): assert main(arguments.split()) == 0\n"
        "sys.exit(str({'torch', 'ray', 'transformers', 'matplotlib'} & set(sys.modules) or ''))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.strip() == ""


def test_interrupting_a_command_ends_with_130(capsys, monkeypatch):
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lakd_ray.cli.configuration.load_config", interrupt)
    assert main(["config", "demo"]) == 130
    assert capsys.readouterr().err == "interrupted (SIGINT); run the same command again to resume\n"


def test_log_lines_of_the_ray_core_are_hidden():
    code = (
        "import os, sys\nfrom lakd_ray.cli.logging import hide_ray_core_lines\n"
        "line = b'[2026-01-01 10:00:00,000 E 12 12] core_worker.cc:24: Actor with class name'\n"
        "os.write(2, line + b'\\n')\n"
        "with hide_ray_core_lines():\n"
        "    for _ in range(2000):\n"
        "        os.write(2, line + b' hidden\\nnative message\\n')\n"
        "        print('python message', file=sys.stderr)\n"
        "print('end', file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, *middle, last = done.stderr.splitlines()
    assert first.endswith("Actor with class name") and last == "end"
    assert sorted(middle) == ["native message"] * 2000 + ["python message"] * 2000  # no line inside another


def test_commands_that_use_ray_are_registered_as_such():
    commands = typer.main.get_command(app).commands
    ray_commands = {name for name, command in commands.items() if isinstance(command, RayCommand)}
    stages = {"prepare", "train-teachers", "distill", "evaluate", "report", "serve", "pipeline", "run-grid"}
    assert ray_commands == {*stages, "reproduce", "tune", "predict-batch", "doctor"}
