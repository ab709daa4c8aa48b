"""Experiment files: the shipped ones, the refused ones and their messages."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from lakd_ray import config as sections
from lakd_ray.config import Experiment, Section, json_schema, load_config, to_dict, to_documented_yaml
from lakd_ray.config.loader import EXPERIMENTS, experiment_names, find_experiment
from lakd_ray.config.renamed import RENAMED, RENAMED_VALUES, find_renamed
from lakd_ray.config.strict_yaml import parse_yaml
from lakd_ray.errors import ConfigError
from lakd_ray.runs.graph import build_run_graph

SHIPPED = sorted(EXPERIMENTS.glob("*.yaml"))
SMALL = """
name: small
languages: [en, fi]
corpora:
  - {name: one, root: "data: one # two"}
  - {name: two, root: here, emotion_map: {joy: happiness}}
teacher: &recipe {model: &model {pretrained: some/model}, optim: &optim {lr: 1.0e-3}}
student: {model: *model, optim: {<<: *optim, epochs: 3}}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(SMALL)
    return file


def error_of(file: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides)
    return str(caught.value)


def test_experiments_ship():
    assert SHIPPED


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_shipped_experiment(file, tmp_path):
    experiment = load_config(file)
    (tmp_path / "again.yaml").write_text(to_documented_yaml(experiment), encoding="utf-8")
    assert load_config(tmp_path / "again.yaml") == experiment
    assert Experiment.model_validate(to_dict(experiment)) == experiment
    runs = build_run_graph(experiment).teachers + build_run_graph(experiment).students
    assert len(runs) > len(experiment.languages)
    assert all(run.recipe == experiment.student for run in runs if run.stage == "distill")


def test_experiments_are_found_by_name_and_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_experiment("demo") == EXPERIMENTS / "demo.yaml" == find_experiment(EXPERIMENTS / "demo.yaml")
    (tmp_path / "demo.yaml").write_text(SMALL)
    assert load_config("demo").name == load_config("./demo.yaml").name == load_config("demo.yaml").name == "small"


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("dema", "did you mean `demo`?"),
        ("minee.yaml", "did you mean `mine.yaml`?"),
        ("paper.yaml", "did you mean `paper`?"),
    ],
)
def test_a_missing_experiment_is_reported_with_the_names_that_exist(tmp_path, monkeypatch, name, suggestion):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(SMALL)
    with pytest.raises(ConfigError) as caught:
        load_config(name)
    message = str(caught.value)
    assert f"no experiment '{name}'; {suggestion}" in message
    assert f"Experiments in the package: {', '.join(experiment_names())}." in message


@pytest.mark.parametrize("part", ["teacher", "student"])
@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_shipped_network(file, part):
    import torch

    from lakd_ray.models import build_model

    experiment = load_config(file)
    model = getattr(experiment, part).model
    if model.config is None:
        assert model.pretrained
        return
    network = build_model(model, experiment.emotions, seed=0)
    with torch.inference_mode():
        logits = network.eval()(torch.randn(2, 8000), torch.tensor([8000, 5000])).logits_BC
    assert logits.shape == (2, len(experiment.emotions))
    assert torch.isfinite(logits).all()
    assert all(weight.requires_grad for weight in network.parameters())


def test_documented_yaml_explains_every_field(small):
    lines = to_documented_yaml(load_config(small)).splitlines()
    assert all("  # " in line for line in lines)
    assert any(line.startswith("    lr: 0.001  # Peak learning rate") for line in lines)


@pytest.mark.parametrize("text", ["a: b # c", "no", "007", "1e3", "null", "- x", "{storage}/ä", "'", "", " x "])
def test_documented_yaml_quotes_values(small, tmp_path, text):
    tree = yaml.safe_load(SMALL)
    tree["corpora"][0]["root"] = text
    tree["corpora"][0]["options"] = {"a": [text, None, True], "b": {text: 1}}
    small.write_text(yaml.safe_dump(tree), encoding="utf-8")
    experiment = load_config(small)
    assert experiment.corpora[0].options == tree["corpora"][0]["options"]
    (tmp_path / "again.yaml").write_text(to_documented_yaml(experiment), encoding="utf-8")
    assert load_config(tmp_path / "again.yaml") == experiment


def test_every_field_is_documented():
    kinds = [kind for kind in vars(sections).values() if isinstance(kind, type) and issubclass(kind, Section)]
    assert Experiment in kinds
    for kind in kinds:
        for name, field in kind.model_fields.items():
            assert field.description, f"{kind.__name__}.{name} has no line of documentation"


def test_importers_are_those_of_the_registry():
    from lakd_ray.corpora import IMPORTERS

    assert set(sections.IMPORTER_NAMES) == set(IMPORTERS)


@pytest.mark.parametrize("code", ["en", "eng", "yue", "deu", "ben", "qaa", "qtz"])
def test_language_codes(small, code):
    assert load_config(small, [f"languages=[{code}]"]).languages == (code,)


def set_key(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested mappings; a list replaces `*` in `corpora` and `external_teachers`."""
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault("0" if parent == "*" else parent, {})
    tree[last] = value


@pytest.mark.parametrize("key", RENAMED)
def test_renamed_key(small, key):
    tree: dict[str, Any] = {}
    set_key(tree, key, None)
    old = key.replace("*", "0")
    new = f"{old.rpartition('.')[0]}.{RENAMED[key]}".lstrip(".")
    assert find_renamed(tree) == [f"renamed key `{old}`: use `{new}`"]
    if "*" not in key:
        assert f"renamed key `{old}`: use `{new}`" in error_of(small, f"{old}=null")


@pytest.mark.parametrize("key", [key for key in RENAMED if key.startswith(("student.", "distill."))])
def test_renamed_key_of_a_variant(small, key):
    old = key.replace("*", "0")
    tree = yaml.safe_load(SMALL) | {"grid": {"variants": {"large": {old: 1}}}}
    small.write_text(yaml.safe_dump(tree), encoding="utf-8")
    assert f"renamed key `grid.variants.large.{old}`: use `grid.variants.large." in error_of(small)
    section, _, rest = old.partition(".")
    nested: dict[str, Any] = {}
    set_key(nested, rest, 1)
    assert find_renamed({"grid": {"variants": {"large": {section: nested}}}}) == [
        line.strip() for line in error_of(small).splitlines()[1:]
    ]


@pytest.mark.parametrize(
    "key", [key for key in RENAMED if key.startswith(("student.", "distill.kd.", "distill.mtkd."))]
)
def test_renamed_key_of_the_search_space(key):
    new = f"{key.rpartition('.')[0]}.{RENAMED[key]}"
    assert find_renamed({"tune": {"space": {key: {"low": 1, "high": 2}}}}) == [
        f"renamed key `tune.space.{key}`: use `tune.space.{new}`"
    ]
    space = {new: {"choices": [1, 2]}, "student.optim.lr": {"low": 1, "high": 2, "when": {key: [1]}}}
    assert find_renamed({"tune": {"space": space}}) == [
        "renamed key `tune.space.student.optim.lr.when`: use `tune.space.student.optim.lr.conditions`",
        f"renamed key `tune.space.student.optim.lr.when.{key}`: use `tune.space.student.optim.lr.when.{new}`",
    ]


@pytest.mark.parametrize("key", RENAMED_VALUES)
def test_renamed_value(small, key):
    for old, new in RENAMED_VALUES[key].items():
        assert f"renamed value `{key}: {old}`: use `{key}: {new}`" in error_of(small, f"{key}={old}")
        if key.startswith("distill"):
            space = {key: {"choices": [old, new]}, "student.optim.lr": {"conditions": {key: [old]}}}
            assert find_renamed({"tune": {"space": space}}) == [
                f"renamed value `tune.space.{key}: {old}`: use `tune.space.{key}: {new}`",
                f"renamed value `tune.space.student.optim.lr.conditions.{key}: {old}`: "
                f"use `tune.space.student.optim.lr.conditions.{key}: {new}`",
            ]


def test_renamed_parents_and_lists(small):
    tree = yaml.safe_load(SMALL)
    tree["corpora"][1]["emotions"] = {"joy": "happiness"}
    tree["distill"] = {"brought": [{"name": "a", "checkpoint": "b", "heard": []}]}
    tree["tune"] = {"confirm": {"best": 3, "seeds": [1]}}
    tree["audio"] = {"too_long": "cut"}
    small.write_text(yaml.safe_dump(tree), encoding="utf-8")
    message = error_of(small)
    for old, new in [
        ("key `corpora.1.emotions`", "`corpora.1.emotion_map`"),
        ("key `distill.brought`", "`distill.external_teachers`"),
        ("key `distill.brought.0.heard`", "`distill.external_teachers.0.trained_on`"),
        ("key `tune.confirm`", "`tune.reevaluate`"),
        ("key `tune.confirm.best`", "`tune.reevaluate.top_k`"),
        ("value `audio.too_long: cut`", "`audio.on_too_long: truncate`"),
    ]:
        assert f"renamed {old}: use {new}" in message


def test_new_names_are_not_renamed(small):
    assert find_renamed(to_dict(load_config(small))) == []
    for file in SHIPPED:
        assert find_renamed(yaml.safe_load(file.read_text(encoding="utf-8"))) == []
    options = {"corpora": [{"options": {"emotions": 1, "base": 2}}]}
    architecture = {"student": {"model": {"config": {"layers": 1}}}}
    assert find_renamed(options | architecture) == []


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("train: {workers: 1}\nseed: 1\ntrain: {gpu: true}\n", ("line 11: duplicate key `train`", "line 9")),
        ("train:\n  workers: 1\n  workers: 2\n", ("line 11: duplicate key `train.workers`", "line 10")),
        ("serve: {cpus: 1, cpus: 2}\n", ("line 9: duplicate key `serve.cpus`", "line 9")),
        ("stages:\n  - {a: [{b: 1, b: 2}]}\n", ("line 10: duplicate key `stages.0.a.0.b`",)),
        ("name: other\nteacher: {}\n", ("duplicate key `name`", "duplicate key `teacher`")),
    ],
)
def test_duplicate_keys(small, lines, expected):
    small.write_text(SMALL + lines, encoding="utf-8")
    message = error_of(small)
    for words in (*expected, "small.yaml"):
        assert words in message


def test_duplicate_keys_of_an_override(small):
    assert "duplicate key `workers`" in error_of(small, "train={workers: 1, workers: 2}")


def test_a_key_may_replace_a_merged_one():
    text = "a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: [*b, *a], y: 4}\nd: *b\n"
    assert parse_yaml(text) == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 3, "y": 2},
        "c": {"x": 3, "y": 4},
        "d": {"x": 3, "y": 2},
    }


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_json_schema_accepts_shipped_experiments(file):
    jsonschema.validate(yaml.safe_load(file.read_text(encoding="utf-8")), json_schema())
    jsonschema.validate(to_dict(load_config(file)), json_schema())


def test_json_schema_refuses_and_describes():
    schema = json_schema()
    content = yaml.safe_load(SMALL)
    jsonschema.validate(content, schema)
    for change in ({"seeed": 1}, {"train": {"workers": 0}}, {"corpora": [{"name": "a", "root": "b", "importer": "c"}]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(content | change, schema)
    assert schema["$defs"]["OptimConfig"]["properties"]["lr"]["description"] == "Peak learning rate."
    for name, section in schema["$defs"].items():
        assert section["description"], name
        for key, field in section["properties"].items():
            assert len(field["description"].split()) > 1, f"{name}.{key}"


def test_frozen(small):
    experiment = load_config(small)
    with pytest.raises(ValueError, match="frozen"):
        experiment.seed = 1


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seeed=1", ("unknown key `seeed`", "did you mean `seed`?")),
        ("train.worker=2", ("unknown key `train.worker`", "did you mean `train.workers`?")),
        ("corpora.1.split.fold=3", ("`corpora.1.split.fold`", "did you mean `corpora.1.split.folds`?")),
        ("teacher.model.xyzzy=3", ("`teacher.model.xyzzy`", "expected one of pretrained, revision")),
        (
            "tune.space.distill={low: 1, high: 2, hihg: 3}",
            ("`tune.space.distill.hihg`", "did you mean `tune.space.distill.high`?"),
        ),
        ("distill.kd.temprature=3", ("did you mean `distill.kd.temperature`?",)),
    ],
)
def test_unknown_key(small, override, expected):
    message = error_of(small, override)
    for words in (*expected, "small.yaml"):
        assert words in message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("name=Has Spaces", ("`name`", "'Has Spaces'")),
        ("train.workers=0", ("`train.workers`", "greater than or equal to 1", "found 0")),
        ("train.zero_stage=4", ("`train.zero_stage`", "0, 1, 2 or 3")),
        ("student.optim.lr=.nan", ("`student.optim.lr`",)),
        ("student.optim.warmup_ratio=1.0", ("`student.optim.warmup_ratio`", "less than 1")),
        ("audio.min_seconds=30", ("`audio`", "min_seconds (30.0) must be below max_seconds (20.0)")),
        ("tune.space.x={low: 0, high: 1, log: true}", ("`tune.space.x`", "low > 0 with log", "low=0.0")),
        ("tune.space.x={low: 2, high: 1}", ("`tune.space.x`", "expected low < high")),
        ("train={compile: true, zero_stage: 3}", ("`train`", "neither ZeRO-3", "train.zero_stage to 2")),
        ("tune.gpus_per_trial=0.5", ("renamed key `tune.gpus_per_trial`: use `train.gpus_per_worker`",)),
        ("train={workers: 2, gpus_per_worker: 0.5}", ("`train`", "cannot share a GPU", "gpus_per_worker: 0.5")),
        ("train.gpu=maybe", ("`train.gpu`: Input should be 'auto', true or false",)),
        ("train={gpu: false, precision: fp16}", ("`train`", "fp16 needs GPUs: set train.gpu: true or auto")),
        ("languages=[]", ("`languages`",)),
        ("languages=[en, en]", ("`languages`", "only once")),
        ("languages=[english]", ("`languages.0`", "'english'")),
        ("emotions=[anger, joy]", ("`emotions`", "found ['anger', 'joy']")),
        ("emotions=[anger]", ("`emotions`", "two or more")),
        ("distill.mtkd.weighting=best", ("`distill.mtkd.weighting`", "'rank'", "found 'best'")),
        ("distill.mtkd.weighting=uniforn", ("found 'uniforn'", "did you mean `uniform`?")),
        ("distill.mtkd.weighting=attention", ("language-aware student", "student.model.language_aware: {}")),
        ("distill.kd.weighting=attention", ("`distill.kd` has one teacher",)),
        ("teacher.model.language_aware={}", ("for students",)),
        (
            "student.model={config: {model_type: wav2vec2}, num_layers: 2}",
            ("`student.model`", "num_hidden_layers in `config`"),
        ),
        ("distill.mtkd={weighting: rank, reference_compat: true}", ("`distill.mtkd`", "weighting at similarity")),
        (
            "distill.kd={standardize_logits: true, reference_compat: true}",
            ("`distill.kd`", "standardize_logits at false"),
        ),
        ("corpora.1.importer=iemocpa", ("`corpora.1.importer`", "did you mean `iemocap`?", "emodb")),
        ("corpora.1.importer=oral_history", ("unknown importer 'oral_history'; known importers: csv",)),
        ("corpora.1.languages=[en, xx]", ("`corpora.1.languages.1`", "unknown language 'xx'", "ISO 639-1")),
        ("languages=[en, jp]", ("`languages.1`", "unknown language 'jp'", "did you mean `ja`?")),
        ("languages=[en, zzz]", ("`languages.1`", "qaa to qtz")),
        (
            "distill.external_teachers=[{name: a, checkpoint: b, language: xx}]",
            ("`distill.external_teachers.0.language`", "unknown language 'xx'"),
        ),
        ("distill.mtkd.same_language_weight=1.2", ("`distill.mtkd.same_language_weight`", "less than or equal to 1")),
        ("distill.mtkd.confidence_by=margin", ("`distill.mtkd.confidence_by`", "'label' or 'entropy'")),
        ("student.label_loss.class_balance=2", ("`student.label_loss.class_balance`", "less than or equal to 1")),
        ("teacher.label_loss={focal_gamma: 2, label_smoothing: 0.1}", ("`teacher.label_loss`", "not defined")),
        ("distill.paradigms=[kd, kd]", ("`distill.paradigms`", "only once")),
        ("distill.paradigms=[]", ("`distill.paradigms`", "at least one")),
        ("corpora.1.name=one", ("corpus names must be unique", "['one', 'one']")),
        ("corpora.0.split.scheme=speaker-groups", ("`corpora.0.split`", "`groups` belongs to")),
        ("teacher.model={}", ("`teacher.model`", "either `pretrained` or `config`", "both or neither")),
        ("teacher.model.config={model_type: wav2vec2}", ("`teacher.model`", "found both")),
        ("teacher.model={config: {hidden_size: 8}}", ("needs `model_type`",)),
        ("teacher.model={config: {model_type: wav2vec2}}", ("freeze_feature_encoder: false",)),
        ("student=null", ("`student`",)),
    ],
)
def test_impossible_value(small, override, expected):
    message = error_of(small, override)
    for words in expected:
        assert words in message


def test_every_error_is_listed(small, tmp_path):
    (tmp_path / "empty.yaml").write_text("{}")
    message = error_of(tmp_path / "empty.yaml")
    for key in ("name", "languages", "corpora", "teacher", "student"):
        assert f"missing key `{key}`" in message
    both = error_of(small, "seed=-1", "train.workers=0")
    assert "`seed`" in both
    assert "`train.workers`" in both


def test_unknown_keys_of_the_search_space(small):
    space = "tune.space={KEY: {low: 1, high: 2}}"
    message = error_of(small, space.replace("KEY", "student.optim.weight_decy"))
    assert (
        "unknown key `student.optim.weight_decy` in `tune.space`; did you mean `student.optim.weight_decay`?" in message
    )
    for key in (
        "student.optim.lr",
        "student.model.config.hidden_size",
        "student.model.language_aware.language_dropout",
    ):
        assert list(load_config(small, [space.replace("KEY", key)]).tune.space) == [key]


def test_an_invalid_list_item_has_one_error_line(small):
    assert error_of(small, "corpora.0.split.folds=1", "corpora.1.split.folds=1").count("\n") == 2
    assert "at least 1 item" in error_of(small, "corpora=[]")


def test_overrides(small):
    changed = load_config(
        small,
        [
            "seed=7",
            "corpora.1.root=there",
            "corpora.0.split={folds: 2}",
            "languages=[fr]",
            "languages.0=sv",
            "tune.epochs=null",
            "student.optim.lr=1e-4",
            "cluster.address=a=b",
        ],
    )
    assert changed.seed == 7
    assert [Path(corpus.root).name for corpus in changed.corpora] == ["data: one # two", "there"]
    assert changed.corpora[0].split.folds == 2
    assert changed.languages == ("sv",)
    assert changed.student.optim.lr == 1e-4
    assert changed.cluster.address == "a=b"
    assert changed.teacher == load_config(small).teacher


def test_override_of_an_alias_changes_one_section(small):
    changed = load_config(small, ["student.model.pretrained=other/model"])
    assert changed.student.model.pretrained == "other/model"
    assert changed.teacher.model.pretrained == "some/model"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed", "expected dotted.key=value"),
        ("=3", "expected dotted.key=value"),
        ("seed=[1", "cannot read the value as YAML"),
        ("seed.x=1", "'seed' is a value, not a section"),
        ("corpora.2.root=x", "expected a list index below 2, found '2'"),
        ("corpora.one.root=x", "found 'one'"),
        ("corpora.-1.root=x", "found '-1'"),
        ("languages.²=en", "found '²'"),
    ],
)
def test_bad_override(small, override, expected):
    message = error_of(small, "seed=1", override)
    assert expected in message
    assert repr(override) in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[1, 2]", "has a list: expected a mapping"),
        (b"", "is empty: expected a mapping"),
        (b"a: [", "cannot read"),
        (b"\xff\xfe\xfa", "cannot read"),
        (b"name: !!python/object/apply:os.getcwd []", "cannot read"),
    ],
)
def test_not_an_experiment(tmp_path, content, expected):
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    message = error_of(file)
    assert expected in message
    assert str(file) in message


def test_missing_file(small):
    assert f"did you mean `{small}`?" in error_of(small.with_name("smal.yaml"))
    assert "no-folder/absent.yaml'. Experiments in" in error_of(small.with_name("no-folder") / "absent.yaml")


def test_relative_paths_are_resolved_once(small, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    experiment = load_config(
        small, ["storage=outputs", 'corpora.0.root="{storage}/here"', "corpora.1.root=s3://bucket/c"]
    )
    assert experiment.storage == str(tmp_path / "outputs")
    assert [corpus.root for corpus in experiment.corpora] == ["{storage}/here", "s3://bucket/c"]


@pytest.mark.parametrize("storage", ["/shared/outputs", "/shared/outputs/", "s3://bucket/prefix/"])
def test_absolute_storage_is_taken_in_a_job(small, monkeypatch, storage):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert load_config(small, [f"storage={storage}"]).folder == f"{storage.rstrip('/')}/small"


def test_stage_folders(small: Path):
    experiment = load_config(small, ["storage=s3://bucket/p/", "base_experiment=shared"])
    assert experiment.folder == "s3://bucket/p/small"
    owners: dict[str, Any] = {stage: experiment.stage_folder(stage) for stage in ("prepare", "teachers", "distill")}
    assert owners == {
        "prepare": "s3://bucket/p/shared/prepare",
        "teachers": "s3://bucket/p/shared/teachers",
        "distill": "s3://bucket/p/small/distill",
    }
