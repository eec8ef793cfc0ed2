"""`fastcam layers`: the table of a model's layers."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from fastcam.cli.arguments import DTYPES, load, model_arguments


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser("layers", help="list a model's layers, their output shapes and the suggested one")
    model_arguments(parser)
    parser.set_defaults(run=_layers)


def _layers(options: argparse.Namespace) -> int:
    from fastcam.layers import layer_table, suggest

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # shapes do not depend on weights
        loaded = load(options)
    model = loaded.model.to(options.device, DTYPES[options.dtype])
    side = loaded.preprocess.crop or 224
    x = torch.rand(1, len(loaded.preprocess.mean), side, side, device=options.device, dtype=DTYPES[options.dtype])
    table = layer_table(model, x, receptive_fields=True)
    rows = [("layer", "class", "output", "receptive field")]
    for r in table:
        shape = "not run" if r.order < 0 else "-" if r.shape is None else _times(r.shape)
        seen = r.receptive_field if isinstance(r.receptive_field, str) else _times(r.receptive_field or ())
        rows.append((r.name, type(r.module).__name__, shape, seen))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    print(f"suggested: {suggest(table, x.ndim).name}")
    return 0


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
