"""Runs of the command line that may be killed: started, watched, ended with all that they have started."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
MARK = "LAKD_TEST"  # in the environment of everything that a test starts

SMALL = """
name: {name}
storage: {storage}
languages: [en]
corpora:
  - name: demo
    importer: espeak
    root: "{{storage}}/corpus"
    options: {{speakers: 8, sentences: 2, languages: [en]}}
    split: {{scheme: speaker-folds, folds: 4, dev_speakers: 2}}
audio: {{row_group_utterances: 4}}
teacher: &recipe
  model:
    freeze_feature_encoder: false
    architecture:
      model_type: wav2vec2
      conv_dim: [16, 16, 16, 16, 16, 16, 16]
      hidden_size: 32
      num_hidden_layers: 1
      num_attention_heads: 2
      intermediate_size: 64
      num_conv_pos_embeddings: 16
      num_conv_pos_embedding_groups: 4
      classifier_proj_size: 32
  optim: {{epochs: {epochs}, lr: 0.001}}
student: *recipe
distill: {{paradigms: [mtkd]}}
batch: {{padded_seconds: 12, max_utterances: 2}}
cluster: {{object_store_mb: 200, logs: true}}
"""
"""An experiment with a small corpus and network; `name`, `storage` and `epochs` are to be filled in."""


class Runs:
    """Processes that run an experiment file and may be killed.

    Args:
        content: of the file: `name` and `storage` are filled in, and what else `settings` has.
    """

    def __init__(self, folder: Path, content: str, *, environment: dict[str, str], **settings: int) -> None:
        self._folder, self._content, self._settings, self._environment = folder, content, settings, environment
        self._processes: list[subprocess.Popen[bytes]] = []
        self.log = folder / "log"

    def experiment(self, name: str) -> Path:
        file = self._folder / f"{name}.yaml"
        file.write_text(self._content.format(name=name, storage=self._folder / "out", **self._settings))
        return file

    def start(self, name: str) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "lakd_ray", "pipeline", str(self.experiment(name))],
                cwd=ROOT, env=self._environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self._processes.append(process)
        return process

    def wait(self, process: "subprocess.Popen[bytes]", until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not until():
            assert process.poll() is None, f"it ended too early:\n{self.told()}"
            assert time.monotonic() < deadline, f"it got no further:\n{self.told()}"
            time.sleep(0.02)

    def finish(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.wait(timeout=900) == 0, self.told()

    def told(self) -> str:
        return self.log.read_text()[-4000:]

    def close(self) -> None:
        for process in self._processes:
            kill_all(process)


def kill_all(process: "subprocess.Popen[bytes]") -> None:
    """A driver and all that it has started, at once."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    for each in family:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait(timeout=60)


def marked(folder: Path) -> dict[str, str]:
    """An environment for what is started: its own home, and a mark to know it by."""
    home = folder / "home"
    home.mkdir()
    return {**os.environ, "HOME": str(home), "PYTHONUNBUFFERED": "1", MARK: str(folder)}


def workers(mark: str, kind: str) -> list[psutil.Process]:
    """Ray's processes of a kind (`ray::kind...`) in clusters with this mark in their environment."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        words = process.info["cmdline"] or []
        mine = (process.info["environ"] or {}).get(MARK) == mark
        if mine and words and words[0].startswith(f"ray::{kind}"):
            found.append(process)
    return found
