"""Makes an example report and its pictures in docs/: `python docs/make_report.py [FOLDER]`, with Chromium.

The embedded network of the digit scenes explains 360 of them by three methods; FOLDER keeps images, maps and page.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

import fastcam
from fastcam.images import Preprocess, save_png
from fastcam.scenes import load_network, make_scenes

HERE = Path(__file__).parent
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def example(folder: Path, count: int = 360) -> Path:
    """Scenes in a folder a digit, their maps by three methods for the true digit, and the page."""
    images, scenes = folder / "scenes", make_scenes(count, "test", seed=5)
    for n, (image, label) in enumerate(zip(scenes.images, scenes.labels.tolist(), strict=True)):
        (images / NAMES[label]).mkdir(parents=True, exist_ok=True)
        save_png((255 * image[0].numpy()).round().astype(np.uint8), images / NAMES[label] / f"scene-{n:03d}.png")
    (images / NAMES[3] / "scene-cut.png").write_bytes(b"\x89PNG")
    network = load_network()
    # Digits are classes by their value, folders by their name.
    list_of_all = images / "list.txt"
    paths = sorted(p.relative_to(images) for p in images.rglob("*.png"))
    list_of_all.write_text("\n".join(f"{p.as_posix()}\t{NAMES.index(p.parts[0])}" for p in paths))
    files = fastcam.ImageFiles(list_of_all, Preprocess(None, None, (0.0,), (1.0,)))
    for cam in (fastcam.GradCAM, fastcam.LayerCAM, fastcam.EigenCAM):
        fastcam.attribute_dataset(cam(network, "stage3"), files, folder / cam.__name__, "label", workers=0)
    outs = [folder / name for name in ("GradCAM", "LayerCAM", "EigenCAM")]
    return fastcam.write_report(outs, folder / "report.html", images=images, classes=NAMES, title="Digit scenes")


def pictures(page: Path) -> None:
    """Light, dark with one image large, and a phone."""
    sys.path.append(str(HERE.parent / "tests"))
    from chromium import Chromium

    with Chromium(1180, 800) as browser:
        browser.open(page)
        browser.do("(s => { s.value = 'low'; s.dispatchEvent(new Event('change', {bubbles: true})) })(sort)")
        settle(browser)
        (HERE / "report.png").write_bytes(browser.screenshot())
    with Chromium(1180, 800, dark=True) as browser:
        browser.open(page)
        browser.do("document.getElementById('answer-wrong').click(), document.querySelector('.tile').click()")
        settle(browser)
        (HERE / "report_dark.png").write_bytes(browser.screenshot())
    with Chromium(390, 780, scale=1.5) as browser:
        browser.open(page)
        settle(browser)
        (HERE / "report_phone.png").write_bytes(browser.screenshot())


def settle(browser: object) -> None:
    """Wait until what is seen is painted."""
    decoded = "Promise.all([...document.images].filter((i) => i.src).map((i) => i.decode())).then(() => true)"
    browser.do(decoded)  # type: ignore[attr-defined]
    browser.do("new Promise((done) => setTimeout(() => done(true), 400))")  # type: ignore[attr-defined]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        pictures(example(Path(sys.argv[1] if sys.argv[1:] else temporary)))
