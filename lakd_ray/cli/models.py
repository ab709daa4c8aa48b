"""Commands that use or convert trained models: predict, predict-batch, export, to-safetensors."""

import logging
import os
from typing import Annotated

import typer

from lakd_ray.cli import options
from lakd_ray.cli.group import LakdCommand, RayCommand
from lakd_ray.cli.options import BackendOption, OverridesOption
from lakd_ray.config import ClusterConfig, load_config

logger = logging.getLogger(__name__)

LanguageOption = Annotated[
    str | None, typer.Option(metavar="CODE", help="Language of the recordings, such as en.", show_default=False)
]
WindowOption = Annotated[
    float | None, typer.Option(metavar="S", help="Length of a timeline's segments in seconds.", show_default=False)
]
HopOption = Annotated[
    float | None,
    typer.Option(
        metavar="S", help="Step from one segment to the next in seconds. Default: the window.", show_default=False
    ),
]
MaxSecondsOption = Annotated[float, typer.Option(metavar="S", help="Longest recording that is accepted, in seconds.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    command = app.command(cls=LakdCommand, rich_help_panel=options.MODELS_PANEL)
    command(predict)
    app.command(cls=RayCommand, rich_help_panel=options.MODELS_PANEL)(predict_batch)
    command(export)
    command(to_safetensors)


def predict(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE", help="Files, folders, patterns, s3://bucket/file or s3://bucket/prefix.", show_default=False
        ),
    ],
    url: Annotated[
        str | None,
        typer.Option(help="Endpoint to query; its key is read from LAKD_API_KEY.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Checkpoint folder to load in this process.", show_default=False),
    ] = None,
    language: LanguageOption = None,
    window: WindowOption = None,
    hop: HopOption = None,
    top_k: Annotated[
        int | None, typer.Option(metavar="N", help="Only the N most probable emotions.", show_default=False)
    ] = None,
    max_seconds: MaxSecondsOption = 120.0,
    backend: BackendOption = "torch",
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="cpu, cuda, one of several GPUs (cuda:1), or auto: a GPU if any.")
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> int:
    """Predict the emotions of a few recordings, as a table or JSON lines.

    Queries an endpoint (--url) or loads a checkpoint (--model). --max-seconds, --backend and --device apply only to
    --model.
    """
    from lakd_ray.cli import predict as predictions  # httpx and, for a local model, torch take seconds to load
    from lakd_ray.inference.options import PredictOptions

    if (url is None) == (model is None):
        raise typer.BadParameter("give either --url or --model, and only one of them")
    return predictions.run(
        files,
        PredictOptions(language, window, hop, top_k),
        url=url,
        model=model,
        max_seconds=max_seconds,
        backend=backend,
        device=device,
        as_json=as_json,
    )


def predict_batch(
    input_: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="Folder or s3://bucket/prefix, or a manifest with a column path.",
            show_default=False,
        ),
    ],
    out: Annotated[
        str,
        typer.Argument(metavar="OUT", help="New folder for the predictions, local or in a bucket.", show_default=False),
    ],
    model: Annotated[str, typer.Option(metavar="FOLDER", help="Checkpoint folder.", show_default=False)],
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", help="Copies of the model. Default: as many as fit.", show_default=False),
    ] = None,
    cpus: Annotated[int, typer.Option(metavar="N", help="CPUs of each worker.")] = 1,
    gpu: Annotated[bool, typer.Option("--gpu", help="Reserve a GPU for each worker, as --gpus 1.")] = False,
    gpus: Annotated[
        float, typer.Option(metavar="FRACTION", help="Reserve a fraction of a GPU, which workers then share.")
    ] = 0.0,
    backend: BackendOption = "torch",
    language: LanguageOption = None,
    max_seconds: MaxSecondsOption = 120.0,
    part_files: Annotated[int, typer.Option(metavar="N", help="Recordings in one Parquet file.")] = 256,
) -> None:
    """Predict the emotions of all recordings in a folder, bucket or manifest, as Parquet.

    The manifest's own language takes precedence over --language. Longer recordings are quarantined.
    """
    from lakd_ray.cluster import ray_session
    from lakd_ray.inference.bulk import job  # Ray and torch take seconds to load

    settings = job.parse_settings(
        input=input_,
        out=out,
        model=model,
        workers=workers,
        cpus=cpus,
        gpus=1 if gpu else gpus,
        backend=backend,
        language=language,
        max_seconds=max_seconds,
        part_files=part_files,
    )
    local_cpus = max(os.cpu_count() or 1, (settings.workers or 1) * settings.cpus)
    with ray_session(ClusterConfig(object_store_mb=job.OBJECT_STORE_MB), local_cpus):
        job.run(settings)


def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT", help="Folder best-NNNN of a finished run, local or in a bucket.", show_default=False
        ),
    ],
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="New folder.", show_default=False)],
    report: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="report.json with test metrics of this run, for the model card.", show_default=False
        ),
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Also write model.onnx, compared with torch.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Also write model.int8.onnx, and model.onnx.")] = False,
    experiment: Annotated[
        str | None,
        typer.Option(
            metavar="EXPERIMENT",
            help="Experiment whose corpora the model card lists, and whose test utterances evaluate int8.",
            autocompletion=options.complete_experiments,
            show_default=False,
        ),
    ] = None,
    overrides: OverridesOption = None,
) -> None:
    """Copy a checkpoint for release: with a model card, without the names of its speakers."""
    config = None if experiment is None else load_config(experiment, overrides or ())
    from lakd_ray.ops import release  # torch takes seconds to load

    location = release.export_checkpoint(checkpoint, folder, report=report, experiment=config, onnx=onnx, int8=int8)
    logger.info("exported to %s", location)


def to_safetensors(
    name: Annotated[
        str, typer.Argument(metavar="MODEL", help="Name of a model on the hub, or a folder.", show_default=False)
    ],
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="New folder.", show_default=False)],
    revision: Annotated[str | None, typer.Option(help="Revision on the hub.", show_default=False)] = None,
) -> None:
    """Convert the pytorch_model.bin of a pretrained encoder to safetensors."""
    from lakd_ray.models.convert import convert_to_safetensors  # torch takes seconds to load

    logger.info("converted to %s", convert_to_safetensors(name, folder, revision=revision))
