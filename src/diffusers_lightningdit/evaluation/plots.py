# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Plots by matplotlib, an optional dependency, without its windows and global state."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch

from ..files import atomic_write


def check_matplotlib() -> None:
    """Raise ImportError, in one line, if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError('a plot needs matplotlib: pip install "diffusers-lightningdit[evaluation]".')


def plot_density(path: str | Path, points: torch.Tensor, density: torch.Tensor, title: str) -> None:
    """Plot points [N, 2], coloured by their density [N], to a PNG file."""
    figure, axes = _figure()
    order = density.argsort()  # the densest points on top
    x, y = points[order].unbind(1)
    size = min(20.0, max(1.0, 20_000 / len(points)))
    dots = axes.scatter(x.numpy(), y.numpy(), c=density[order].numpy(), s=size, cmap="viridis", linewidths=0)
    axes.set(xticks=[], yticks=[], title=title)
    figure.colorbar(dots, label="density")
    _save(figure, path)


def plot_lines(
    path: str | Path, lines: dict[str, Sequence[tuple[float, float]]], x_name: str, y_name: str, title: str
) -> None:
    """Plot lines through points (x, y), by name, to a PNG file."""
    figure, axes = _figure()
    for name, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
    axes.set(xlabel=x_name, ylabel=y_name, title=title)
    if len(lines) > 1:  # beside the axes, where it hides no line
        figure.set_size_inches(9, 5)
        figure.legend(fontsize="small", loc="outside right upper")
    _save(figure, path)


def plot_panels(path: str | Path, panels: dict[str, dict[str, Sequence[tuple[float, float]]]], x_name: str) -> None:
    """Plot panels of lines through points (x, y), both by name, one below the other, to a PNG file."""
    check_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.6 + 1.7 * len(panels)), dpi=110, layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for name, points in lines.items():
            style = {"marker": ".", "linewidth": 1} if len(points) < 50 else {"linewidth": 1}
            axis.plot(*zip(*points, strict=True), label=name, **style)
        axis.set_ylabel(title)
        axis.grid(alpha=0.3)
        if len(lines) > 1:
            axis.legend(fontsize="small")
    axes[-1].set_xlabel(x_name)
    _save(figure, path)


def plot_bars(path: str | Path, values: dict[str, float], x_name: str, title: str) -> None:
    """Plot a horizontal bar for each value, by name and with the first on top, to a PNG file."""
    figure, axes = _figure()
    bars = axes.barh(list(values), list(values.values()))
    axes.bar_label(bars, fmt="{:g}", padding=2, fontsize="small")
    axes.margins(x=0.25)  # leaves room for the numbers
    axes.invert_yaxis()
    axes.set(xlabel=x_name, title=title)
    _save(figure, path)


def _figure():
    check_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), dpi=150, layout="constrained")
    return figure, figure.add_subplot()


def _save(figure, path: str | Path) -> None:
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png")
