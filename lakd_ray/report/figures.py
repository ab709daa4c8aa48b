"""Figures of the report, as PNG images in data URIs, so that the page needs no network access.

Each figure is small and complete by itself, so that the page can arrange them in a grid or, on a phone, in a column.
Colors are from the palette of Okabe and Ito, which is safe for color-blind readers.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from lakd_ray.escaping import for_terminal
from lakd_ray.report.curves import Curve
from lakd_ray.report.result_table import ResultRow, TableRow, format_language, format_percent

_COLORS = {"teacher": "#9a9a9a", "ft": "#E69F00", "kd": "#009E73", "mtkd": "#0072B2"}
_OTHER_COLOR = "#CC79A7"
LINE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK, FAINT = "#222222", "#8a8a8a"
_COLORMAP = "Blues"
WIDTH_INCHES = 4.6  # the page displays a figure 300 to 460 pixels wide


@dataclass(frozen=True)
class EmbeddedImage:
    """A PNG image with its alternative text."""

    data_uri: str
    alt: str


def draw_recall_bars(table_rows: Sequence[TableRow], language: str, chance: float) -> EmbeddedImage:
    """Draw the UR of every model in one language with its interval, and a line at chance level."""
    shown = [(line, line.cells[language]) for line in table_rows if language in line.cells]
    figure = Figure(figsize=(WIDTH_INCHES, 0.75 + 0.34 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    for position, (line, row) in enumerate(shown):
        color = _COLORS.get(row["paradigm"], _OTHER_COLOR)
        hatch = "////" if line.is_student and row["setup"] == "monolingual" else None
        axes.barh(position, 100 * row["UR"], height=0.7, color=color, hatch=hatch, edgecolor="white", linewidth=0)
        if row["UR_interval"] is not None:
            low, high = (100 * bound for bound in row["UR_interval"])
            axes.plot([low, high], [position, position], color=INK, linewidth=1.4, marker="|", markersize=6)
        axes.text(102, position, format_percent(row["UR"]), va="center", fontsize=9, color=INK)
    axes.axvline(100 * chance, color=INK, linestyle=(0, (4, 3)), linewidth=1)
    axes.set_yticks(range(len(shown)), [_row_label(line) for line, _ in shown])
    axes.set_xlim(0, 100)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlabel(f"UR in %; dashed: chance, {format_percent(chance)}", fontsize=9)
    draw_title(axes, format_language(language))
    style_axes(axes)
    alt = "; ".join(f"{_row_label(line)} {format_percent(row['UR'])}" for line, row in shown)
    return render_png(figure, f"Unweighted recall in percent, {format_language(language)}: {alt}.")


def draw_recall_heatmap(table_rows: Sequence[TableRow], language: str, emotions: Sequence[str]) -> EmbeddedImage:
    """Draw the recall of each emotion for every model in one language."""
    shown = [(line, line.cells[language]) for line in table_rows if language in line.cells]
    shares = [[row["recall"][emotion] for emotion in emotions] for _, row in shown]
    values = np.array([[np.nan if share is None else share for share in row] for row in shares])
    figure = Figure(figsize=(WIDTH_INCHES, 0.65 + 0.34 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    _draw_heatmap(axes, values, [[format_percent(share) for share in row] for row in shares], fontsize=9)
    axes.set_yticks(range(len(shown)), [_row_label(line) for line, _ in shown])
    _set_emotion_ticks(axes, emotions)
    draw_title(axes, format_language(language))
    alt = "; ".join(
        f"{_row_label(line)}: "
        + ", ".join(f"{emotion} {format_percent(row['recall'][emotion])}" for emotion in emotions)
        for line, row in shown
    )
    return render_png(figure, f"Recall by emotion in percent, {format_language(language)}. {alt}.")


def draw_confusion_matrix(row: ResultRow, emotions: Sequence[str]) -> EmbeddedImage:
    """Draw a confusion matrix with the percentage of each true emotion as color and text, and the count below."""
    counts = np.array(row["confusion"])
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.where(totals > 0, counts / np.where(totals > 0, totals, 1), np.nan)
    cell_texts = [
        [
            f"{format_percent(share)}\n({_format_count(count)})" if total else "-"
            for share, count in zip(share_C, count_C, strict=True)
        ]
        for share_C, count_C, total in zip(shares, counts, totals[:, 0], strict=True)
    ]
    side = max(3.1, 0.9 + 0.55 * len(emotions))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    _draw_heatmap(axes, shares, cell_texts, fontsize=9)
    _set_emotion_ticks(axes, emotions, max_letters=24)
    axes.set_yticks(range(len(emotions)), emotions)
    axes.set_xlabel("predicted", fontsize=9, color=FAINT)
    axes.set_ylabel("true", fontsize=9, color=FAINT)
    draw_title(axes, f"{format_language(row['language'])}, n = {row['n']}")
    alt = f"Confusion matrix of {row['model']}, {format_language(row['language'])}: rows are true emotions"
    texts = (", ".join(map(_format_count, count_C)) for count_C in counts)
    return render_png(figure, f"{alt}; {'; '.join(f'{e} {text}' for e, text in zip(emotions, texts, strict=True))}.")


def _format_count(count: float) -> str:
    """Format a number of utterances, which is a fraction where an utterance has predictions by several models."""
    return f"{count:.1f}".removesuffix(".0")


def draw_training_curves(curve: Curve) -> EmbeddedImage:
    """Draw UR on dev by language above the training loss of one run."""
    figure = Figure(figsize=(WIDTH_INCHES, 3.3), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(5, 2))
    single = len(curve.dev_recall) < 2
    for index, (language, UR) in enumerate(curve.dev_recall.items()):
        color = LINE_COLORS[index % len(LINE_COLORS)]
        if not single:
            upper.plot(curve.epochs, 100 * np.array(UR), color=color, linewidth=1.2, marker=".", label=language)
    upper.plot(curve.epochs, 100 * np.array(curve.dev_UR), color=INK, linewidth=2.2, marker=".", label="all")
    upper.set_ylim(0, 102)
    upper.set_ylabel("UR on dev, %", fontsize=9)
    if not single:
        upper.legend(fontsize=8, frameon=False, ncols=4, loc="upper left", bbox_to_anchor=(0, -0.02))
    lower.plot(curve.epochs, curve.loss, color=INK, linewidth=1.6, marker=".")
    lower.set_ylim(bottom=0)
    lower.set_ylabel("loss", fontsize=9)
    lower.set_xlabel("epoch", fontsize=9)
    lower.xaxis.get_major_locator().set_params(integer=True)
    draw_title(upper, curve.run_id)
    for axes in (upper, lower):
        style_axes(axes)
    figure.align_ylabels()
    return render_png(figure, f"Training of {curve.run_id}: UR on dev and loss over {len(curve.epochs)} epochs.")


def _draw_heatmap(
    axes: Axes, values: np.ndarray[Any, np.dtype[np.float64]], cell_texts: list[list[str]], fontsize: float
) -> None:
    """Draw fractions as colors with their texts; cells without a value are gray."""
    axes.set_facecolor("#e6e6e6")
    axes.imshow(values, cmap=_COLORMAP, vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        color = "white" if value > 0.65 else INK
        axes.text(column, row, cell_texts[row][column], ha="center", va="center", fontsize=fontsize, color=color)
    axes.tick_params(length=0, labelsize=8.5)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xticks(np.arange(1, values.shape[1]) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, values.shape[0]) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)


def style_axes(axes: Axes) -> None:
    """Hide the upper and right spine and draw the others in a faint color."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(labelsize=9, color=FAINT)


def draw_title(axes: Axes, text: str) -> None:
    """Set a bold title at the left."""
    axes.set_title(text, fontsize=10, fontweight="bold", loc="left", color=INK)


def _row_label(table_row: TableRow) -> str:
    """Return the setting of a student, the run id of a teacher."""
    return table_row.name if table_row.is_student else table_row.model


def _set_emotion_ticks(axes: Axes, emotions: Sequence[str], max_letters: int = 40) -> None:
    """Label the x axis with emotions, slanted if they have more than `max_letters` letters together."""
    slanted = max(map(len, emotions)) * len(emotions) > max_letters
    axes.set_xticks(range(len(emotions)), emotions, rotation=35 if slanted else 0, ha="right" if slanted else "center")


def render_png(figure: Figure, alt: str) -> EmbeddedImage:
    """Render a figure as a PNG image; its texts are shown as they are, also those with `$`, which starts a formula."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_text(for_terminal(text.get_text()))
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=150, metadata={"Software": None})
    return EmbeddedImage("data:image/png;base64," + base64.b64encode(stream.getvalue()).decode(), alt)
