"""The command line, and what the scripts in jobs/ call."""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import get_args

from lakd_ray import __version__
from lakd_ray.config import Backend, ClusterConfig, Experiment, load_config, parse_overrides, to_documented_yaml
from lakd_ray.errors import LakdError

_COMMAND_HELP = {
    "prepare": "corpora -> validated manifest and 16 kHz FLAC in Parquet shards",
    "teachers": "one fine-tuned teacher per language",
    "distill": "the students: ft, kd, mtkd",
    "tune": "search a student's settings on dev",
    "evaluate": "predictions for every test utterance",
    "report": "report.json and report.html",
    "serve": "serve the best student over HTTP until interrupted",
    "pipeline": "all of them in order",
    "reproduce": "the whole grid: every fold, seed and variant, and one table over them",
    "predict-bulk": "emotions of all recordings in a folder, bucket or manifest, as Parquet",
}
# Commands that are looked at before they start, with the stages that they run; None: the experiment's own.
_PREFLIGHT_STAGES: dict[str, tuple[str, ...] | None] = {
    "teachers": ("teachers",),
    "distill": ("distill",),
    "tune": ("tune",),
    "pipeline": None,
    "reproduce": ("prepare", "teachers", "distill", "evaluate", "report"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `lakd`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="lakd", description="Multilingual speech emotion recognition by distillation."
    )
    parser.add_argument("--version", action="version", version=f"lakd-ray {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for stage, text in _COMMAND_HELP.items():
        _add_stage_arguments(commands.add_parser(stage, help=text, description=text), stage)
    text = "emotions of a few recordings, as a table or JSON lines"
    _add_predict_arguments(
        commands.add_parser("predict", help=text, description=f"{text}: docs/how-to/predict-in-bulk.md")
    )
    _add_experiment_arguments(
        commands.add_parser("config", help="print the resolved configuration, every field explained")
    )
    corpora = commands.add_parser("corpora", help="list the corpora that can be imported")
    corpora.add_argument("name", nargs="?", help="show one whole, with its options")
    scan = commands.add_parser("scan", help="tell what a corpus holds, without writing anything")
    scan.add_argument("corpus", help="importer that reads it, see `lakd corpora`")
    scan.add_argument("root", help="folder or manifest, here or in a bucket")
    _add_overrides_argument(scan, "option=value", "options of the importer; values are YAML")
    scan.add_argument("--json", action="store_true", help="print JSON")
    export = commands.add_parser(
        "export", help="copy a checkpoint for release, with a model card, without its speakers' names"
    )
    export.add_argument("checkpoint", help="folder best-NNNN of a finished run, here or in a bucket")
    export.add_argument("folder", help="a new folder")
    export.add_argument("--report", metavar="PATH", help="a report.json with test metrics of this run, for the card")
    export.add_argument("--onnx", action="store_true", help="also write model.onnx, held against torch")
    export.add_argument("--int8", action="store_true", help="also write model.int8.onnx, and model.onnx")
    export.add_argument("--experiment", metavar="FILE", help="its corpora go on the card, its test clips judge int8")
    _add_overrides_argument(export, "dotted.key=value", "change fields of that file; values are YAML")
    convert = commands.add_parser("convert", help="rewrite an encoder's pytorch_model.bin as safetensors")
    convert.add_argument("name", help="of a model of the hub, or a folder")
    convert.add_argument("folder", help="a new folder")
    convert.add_argument("--revision", help="of the hub's model")
    _add_experiment_arguments(commands.add_parser("tune-report", help="draw a search as it stands, finished or not"))
    doctor = commands.add_parser("doctor", help="look for what would stop the experiment here, and say what to do")
    _add_experiment_arguments(doctor)
    doctor.add_argument("--json", action="store_true", help="for machines")
    disk = commands.add_parser("disk", help="what the experiment takes on its storage, now and when it is finished")
    _add_experiment_arguments(disk)
    disk.add_argument("--json", action="store_true", help="for machines")
    gc = commands.add_parser("gc", help="delete what the experiment does not need any more")
    _add_experiment_arguments(gc)
    gc.add_argument("--yes", action="store_true", help="do not ask")
    gc.add_argument("--dry-run", action="store_true", help="only list it")
    return _run_command(parser.parse_args(argv))


def run_job(stage: str) -> None:
    """Entry point of the scripts in jobs/: `python jobs/X.py EXPERIMENT.yaml [--set dotted.key=value ...]`, mostly."""
    parser = argparse.ArgumentParser(description=_COMMAND_HELP[stage])
    _add_stage_arguments(parser, stage)
    parser.set_defaults(command=stage)
    sys.exit(_run_command(parser.parse_args()))


def _add_stage_arguments(parser: argparse.ArgumentParser, stage: str) -> None:
    if stage == "predict-bulk":
        _add_bulk_arguments(parser)
        return
    _add_experiment_arguments(parser)
    if stage == "reproduce":
        parser.add_argument("--dry-run", action="store_true", help="print the plan and what it costs, and do nothing")
        parser.add_argument(
            "--rate",
            type=float,
            metavar="R",
            help="audio-seconds a second of one run, to reckon the cost with",
        )


def _add_experiment_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", help="experiment file, for instance demo")
    _add_overrides_argument(parser, "dotted.key=value", "change fields of the experiment file; values are YAML")


def _add_predict_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="file, folder, pattern, s3://bucket/file or /prefix")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--url", help="endpoint that is asked; its key is in LAKD_API_KEY")
    asked.add_argument("--model", metavar="FOLDER", help="checkpoint folder that answers in this process")
    parser.add_argument("--language", metavar="CODE", help="language of the recordings, such as en")
    parser.add_argument("--window", type=float, metavar="S", help="a timeline of segments so long")
    parser.add_argument("--hop", type=float, metavar="S", help="from one segment to the next; the window if left out")
    parser.add_argument("--top-k", type=int, metavar="N", help="only so many of the most probable emotions")
    parser.add_argument("--max-seconds", type=float, default=120.0, metavar="S", help="with --model: the longest (120)")
    _add_backend_argument(parser, "with --model: what computes (torch), see docs/how-to/export.md")
    parser.add_argument("--json", action="store_true", help="print JSON lines")


def _add_bulk_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="INPUT", help="folder or s3://bucket/prefix, or a manifest with a column path")
    parser.add_argument("out", metavar="OUT", help="a folder of its own for the predictions, here or in a bucket")
    parser.add_argument("--model", required=True, metavar="FOLDER", help="checkpoint folder")
    parser.add_argument("--workers", type=int, metavar="N", help="copies of the model; as many as there is room for")
    parser.add_argument("--cpus", type=int, metavar="N", help="CPUs of each (1)")
    parser.add_argument("--gpu", action="store_true", help="a GPU for each")
    _add_backend_argument(parser, "what computes (torch), see docs/how-to/export.md")
    parser.add_argument("--language", metavar="CODE", help="language of recordings whose manifest tells none")
    parser.add_argument("--max-seconds", type=float, metavar="S", help="longer ones are quarantined (120)")
    parser.add_argument("--part-files", type=int, metavar="N", help="recordings of one Parquet file (256)")


def _add_backend_argument(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--backend", choices=get_args(Backend), default="torch", help=text)


def _add_overrides_argument(parser: argparse.ArgumentParser, form: str, text: str) -> None:
    parser.add_argument("--set", action="extend", nargs="+", default=[], dest="overrides", metavar=form, help=text)


def _run_command(options: argparse.Namespace) -> int:
    try:
        return _dispatch(options)
    except LakdError as error:
        print(f"error: {error_message(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _dispatch(options: argparse.Namespace) -> int:
    without_experiment: dict[str, Callable[[argparse.Namespace], int]] = {
        "corpora": _print_corpora,
        "scan": _scan,
        "export": _export,
        "convert": _convert,
        "predict": _predict,
        "predict-bulk": _predict_bulk,
    }
    if options.command in without_experiment:
        return without_experiment[options.command](options)
    config = load_config(options.experiment, options.overrides)
    if options.command == "gc":
        return _collect_garbage(config, yes=options.yes, dry_run=options.dry_run)
    if options.command == "doctor":
        return _run_doctor(config, as_json=options.json)
    if options.command == "config":
        print(to_documented_yaml(config), end="")
    elif options.command == "tune-report":
        from lakd_ray.tune import html_report  # Ray and matplotlib take seconds to load

        print(f"search: {html_report.write_html_report(config)}")
    elif options.command == "disk":
        _print_disk_usage(config, as_json=options.json)
    else:
        _run_stage(options, config)
    return 0


def error_message(error: LakdError) -> str:
    """What to tell; an error from a worker carries its traceback along, its cause does not."""
    return str(getattr(error, "cause", None) or error)


def _run_stage(options: argparse.Namespace, config: Experiment) -> None:
    from lakd_ray import pipeline  # Ray takes seconds to load, and `lakd config` needs none of it
    from lakd_ray.cluster import experiment_session
    from lakd_ray.ops import doctor

    if options.command == "reproduce" and options.dry_run:
        pipeline.run_grid(config, dry_run=True, throughput=options.rate)
        return
    stages: dict[str, Callable[[Experiment], object]] = {
        **{name: partial(pipeline.run_stage, stage=name) for name in pipeline.STAGES},
        "pipeline": pipeline.run_stages,
        "serve": _serve,
    }
    stages["reproduce"] = lambda config: pipeline.run_grid(config, throughput=options.rate)
    command = options.command
    checked = command in _PREFLIGHT_STAGES
    with (
        doctor.checked_session(config, _PREFLIGHT_STAGES[command] or config.stages)
        if checked
        else experiment_session(config)
    ):
        stages[command](config)


def _serve(config: Experiment) -> None:
    """Keep the best student up until interrupted."""
    from lakd_ray.cluster import cluster_address
    from lakd_ray.runs import build_run_graph
    from lakd_ray.runs.state import find_best_student_checkpoint
    from lakd_ray.serve import deploy as serving

    checkpoint = find_best_student_checkpoint(build_run_graph(config))
    url = serving.start(config, checkpoint)
    print(f"serving {checkpoint}\n  POST {url}/v1/emotion, documentation at {url}/docs; Ctrl-C stops it", flush=True)
    try:
        while True:
            time.sleep(3600)
    finally:
        serving.stop(before_cluster_shutdown=cluster_address(config) is None)


def _predict(options: argparse.Namespace) -> int:
    from lakd_ray.cli import predict  # httpx and, for a model here, torch take seconds to load
    from lakd_ray.inference.recordings import PredictOptions

    question = PredictOptions(options.language, options.window, options.hop, options.top_k)
    asked = {name: getattr(options, name) for name in ("url", "model", "max_seconds", "backend")}
    return predict.run(options.files, question, **asked, as_json=options.json)


def _predict_bulk(options: argparse.Namespace) -> int:
    from lakd_ray.cluster import ray_session
    from lakd_ray.inference.bulk import job  # Ray and torch take seconds to load

    chosen = job.parse_settings(**{name: getattr(options, name) for name in job.BulkConfig.model_fields})
    cpus = max(os.cpu_count() or 1, (chosen.workers or 1) * chosen.cpus)
    with ray_session(ClusterConfig(object_store_mb=job.OBJECT_STORE_MB), cpus):
        job.run(chosen)
    return 0


def _run_doctor(config: Experiment, *, as_json: bool) -> int:
    from lakd_ray.ops import doctor  # Ray takes seconds to load

    results = doctor.run_all_checks(config)
    healthy = all(result.status != "fail" for result in results)
    if as_json:
        print(json.dumps({"ok": healthy, "checks": [result.to_json() for result in results]}, indent=1))
    else:
        print(doctor.format_table(results))
    return 0 if healthy else 2


def _print_disk_usage(config: Experiment, *, as_json: bool) -> None:
    from lakd_ray.ops import disk_usage as disk  # torch takes seconds to load

    usage = disk.estimate_usage(config)
    print(json.dumps(usage.to_json(), indent=1) if as_json else disk.format_usage(usage))


def _collect_garbage(config: Experiment, *, yes: bool, dry_run: bool) -> int:
    from lakd_ray import storage
    from lakd_ray.ops import garbage  # torch takes seconds to load

    findings = garbage.find_garbage(config)
    print(garbage.format_report(findings))
    if dry_run or not findings.items:
        return 0
    if not yes and not sys.stdin.isatty():
        print("nothing was deleted: add --yes, or run this in a terminal, where it asks", file=sys.stderr)
        return 1
    if not yes and input("Delete all of it? [y/N] ").strip().lower() not in ("y", "yes"):
        print("nothing was deleted")
        return 0
    print(f"freed {storage.format_bytes(garbage.delete_garbage(config, findings))}")
    return 0


def _print_corpora(options: argparse.Namespace) -> int:
    from lakd_ray.corpora import IMPORTERS, get_importer_spec  # only this command needs it

    name: str | None = options.name
    for each, entry in IMPORTERS.items() if name is None else [(name, get_importer_spec(name))]:
        print(f"{each}\n  layout   {entry.layout}\n  license  {entry.license}\n  obtain   {entry.availability}")
        for option, text in entry.options.items() if name else ():
            print(f"  option   {option}: {text}")
        if name and entry.expected_counts.get(""):
            print(f"  holds    {entry.expected_counts['']} utterances")
    return 0


def _scan(options: argparse.Namespace) -> int:
    """Tell what a corpus holds."""
    from lakd_ray.corpora import scan  # soundfile is loaded where it is used

    told = scan.scan_corpus(options.corpus, options.root, parse_overrides(options.overrides))
    print(
        json.dumps(dataclasses.asdict(told), indent=1, ensure_ascii=False) if options.json else scan.format_report(told)
    )
    return 0


def _export(options: argparse.Namespace) -> int:
    from lakd_ray.ops import release as export  # torch takes seconds to load

    experiment = None if options.experiment is None else load_config(options.experiment, options.overrides)
    place = export.export_checkpoint(
        options.checkpoint,
        options.folder,
        report=options.report,
        experiment=experiment,
        onnx=options.onnx,
        int8=options.int8,
    )
    print(f"exported to {place}")
    return 0


def _convert(options: argparse.Namespace) -> int:
    from lakd_ray.models.convert import convert_to_safetensors  # torch takes seconds to load

    print(f"converted to {convert_to_safetensors(options.name, options.folder, revision=options.revision)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
