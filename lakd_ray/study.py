"""An experiment over several seeds: the pipeline once a seed, then means and ranges over seeds side by side."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import mean
from typing import Any

from lakd_ray import pipeline, storage
from lakd_ray.config import Experiment
from lakd_ray.labels import POOLED

STUDY = "study.json"


def run(config: Experiment, seeds: Sequence[int]) -> str:
    """Run the experiment's stages for every seed and write `study.json`; finished stages are skipped.

    Returns:
        Where study.json lies.
    """
    results = []
    for number, seed in enumerate(seeds, start=1):
        print(f"\n#### seed {seed} ({number} of {len(seeds)})", flush=True)
        one = config.model_copy(update={"seed": seed, "name": f"{config.name}-seed{seed}"})
        pipeline.run(one)
        results += storage.read_json(storage.join(one.stage_folder("report"), "report.json"))["results"]
    rows = over_seeds(results)
    location = storage.join(config.folder, STUDY)
    storage.write_json(location, {"seeds": list(seeds), "rows": rows, "findings": findings(rows)})
    print("\n" + table(rows))
    for line in findings(rows):
        print(f"note: {line}")
    print(f"study: {location}")
    return location


def over_seeds(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per paradigm, set-up and language with the UR of each seed (the order of `results`), mean and range."""
    groups: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for row in results:
        learned = row["model"] if row["paradigm"] == "teacher" else ""
        groups[row["paradigm"], row["setup"], learned, row["language"]].append(row["UR"])
    return [
        {
            "paradigm": paradigm,
            "setup": setup,
            "model": model,
            "language": language,
            "UR": scores,
            "mean": mean(scores),
            "low": min(scores),
            "high": max(scores),
        }
        for (paradigm, setup, model, language), scores in groups.items()
    ]


def findings(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Whether MTKD is above or below the others, seed by seed."""
    pooled = {
        (row["paradigm"], row["setup"]): row["UR"]
        for row in rows
        if row["language"] == POOLED and row["paradigm"] != "teacher"
    }
    lines = []
    for (paradigm, setup), scores in pooled.items():
        own = pooled.get(("mtkd", setup))
        if paradigm == "mtkd" or own is None:
            continue
        gains = [mine - other for mine, other in zip(own, scores, strict=True)]
        sign = "above" if min(gains) > 0 else "below" if max(gains) < 0 else "neither above nor below"
        lines.append(
            f"{setup}: MTKD is {sign} {paradigm.upper()} in every seed: {100 * mean(gains):+.1f} points of UR on "
            f"average, {100 * min(gains):+.1f} to {100 * max(gains):+.1f}"
        )
    return lines


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Mean UR and range over seeds, in percent, for the terminal."""
    languages = list(dict.fromkeys(row["language"] for row in rows))
    lines = [f"{'UR mean [range over seeds]':<34}" + "".join(f"{language:<22}" for language in languages)]
    for key in dict.fromkeys((row["paradigm"], row["setup"], row["model"]) for row in rows):
        cells = {row["language"]: row for row in rows if (row["paradigm"], row["setup"], row["model"]) == key}
        shown = [
            f"{100 * cells[code]['mean']:.1f} [{100 * cells[code]['low']:.1f}, {100 * cells[code]['high']:.1f}]"
            if code in cells
            else ""
            for code in languages
        ]
        lines.append(f"{' '.join(filter(None, key)):<34}" + "".join(f"{cell:<22}" for cell in shown))
    return "\n".join(lines)
