"""Writes docs/api.md from the docstrings of the public names: `python docs/make_api.py`."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import fastcam

HERE = Path(__file__).parent
MODULES = ("fastcam", "fastcam.metrics", "fastcam.compat")
HEAD = """# fastcam's public names

Made from the docstrings by `python docs/make_api.py`; the tests run their examples and compare this page with them.
B images, k channels of the input, C of a layer, T targets an image, S the spatial dimensions, `(H, W)` of an image.
"""


def text() -> str:
    """The whole page."""
    parts = [HEAD]
    for module in MODULES:
        parts.append(f"## `{module}`\n")
        parts += [entry(module, name) for name in sorted(names_in(module), key=str.lower)]
    return "\n".join(parts)


def names_in(module: str) -> list[str]:
    """The public functions and classes of a package."""
    found = importlib.import_module(module)
    names = [n for n in getattr(found, "__all__", vars(found)) if not n.startswith("_")]
    ours = {n: getattr(inspect.getmodule(getattr(found, n)), "__name__", "") for n in names}
    return [
        n for n, module in ours.items() if module.startswith("fastcam.") and not inspect.ismodule(getattr(found, n))
    ]


def entry(module: str, name: str) -> str:
    """A name's signature and docstring, and those of its methods."""
    value = getattr(importlib.import_module(module), name)
    blocks = [f"### `{name}`\n", fenced(f"{module}.{name}{signature(value)}", inspect.getdoc(value) or "")]
    if inspect.isclass(value):
        if own := vars(value).get("__init__"):
            blocks.append(fenced("", inspect.getdoc(own) or "")) if own.__doc__ else None
        for method, function in vars(value).items():
            public = not method.startswith("_") or method == "__call__"
            if public and inspect.isfunction(function) and function.__doc__:
                blocks.append(fenced(f"{name}.{method}{signature(function)}", inspect.getdoc(function) or ""))
    return "\n".join(blocks)


def fenced(head: str, body: str) -> str:
    return "```text\n" + "\n\n".join(filter(None, (head, body))) + "\n```\n"


def signature(value: Any) -> str:
    try:
        found = str(inspect.signature(value))
    except (TypeError, ValueError):
        return ""
    found = re.sub(r"\bself, |\(self\)", lambda m: "()" if m[0] == "(self)" else "", found)
    return re.sub(r" at 0x[0-9a-f]+", "", found).replace("'", "")


if __name__ == "__main__":
    (HERE / "api.md").write_text(text())
    print(f"wrote {HERE / 'api.md'}, {fastcam.__version__}")
