"""Runs for the tests of reports: crops of photographs in folders of classes, explained by a small network."""

from __future__ import annotations

import base64
import html
import io
import json
import pathlib
import re

import numpy as np
from PIL import Image

from fastcam import GradCAM, ImageFiles, attribute_dataset
from fastcam.images import Preprocess

from models import photographs, tiny

HOSTILE = "<img src=x onerror=alert(1)>.jpg"
CLASSES = ["ant", "bee</script><script>alert(2)</script>", "cow", "dog", "<b>elk</b>"]


def photos(folder: pathlib.Path, count: int = 24) -> pathlib.Path:
    """Images in five folders of classes, one with a name that would be a tag, and a file that is no image."""
    for n, image in enumerate(photographs(count, 40, 40)):
        file = folder / f"class-{n % 5}" / (HOSTILE if n == 7 else f"photo-{n}.jpg")
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = ((image * 0.25 + 0.45).clamp(0, 1) * 255).byte().movedim(0, -1).numpy()
        Image.fromarray(pixels).save(file, quality=95)
    (folder / "class-1" / "broken & <i>.jpg").write_text("no image")
    return folder


def explained(images: pathlib.Path, out: pathlib.Path, method=GradCAM, targets="label", layer="tail", **given):
    """The maps of a folder of images by the network of the tests."""
    files = ImageFiles(images, Preprocess(36, 32))
    return attribute_dataset(method(tiny(), layer), files, out, targets, workers=0, **given)


class Page:
    """What a report holds, read from its text without a browser."""

    def __init__(self, file: pathlib.Path) -> None:
        self.text = file.read_text(encoding="utf-8")
        (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', self.text, re.DOTALL)
        self.data = json.loads(found)
        parts = re.findall(r'<script type="text/plain" id="part-(\d+)">(.*?)</script>', self.text, re.DOTALL)
        assert [int(number) for number, _ in parts] == list(range(len(parts)))
        self.lines = [line.split("\t") for _, part in parts for line in part.split("\n")]
        self.title = html.unescape(re.search("<title>(.*?)</title>", self.text)[1])

    def picture(self, place: int) -> Image.Image:
        return Image.open(io.BytesIO(base64.b64decode(self.lines[place][0])))

    def map(self, place: int, method: int = 0) -> np.ndarray:
        """In [0, 1]."""
        found = np.frombuffer(base64.b64decode(self.lines[place][1 + method]), np.uint8)
        return found[2:].reshape(found[:2]) / 255
