"""Reports in a headless Chromium, opened from the file system: what is seen, by mouse, keyboard and on a phone."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

import fastcam
from fastcam import GradCAM, LayerCAM, attribute_dataset, open_maps, write_report

import chromium
from models import photographs, tiny
from reports import CLASSES, HOSTILE, explained, photos

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium.found() is None, reason="no Chromium: apt-get install chromium"),
]
BEE = CLASSES[1]
NAMES = "[...document.querySelectorAll('#grid .cell')].sort((a, b) => a.ariaPosInSet - b.ariaPosInSet)"
NAMES += ".map((c) => c.querySelector('.name').textContent)"
FIRST = "document.querySelector('[aria-posinset=\"1\"] .picture')"
PAINTED = "[...document.querySelectorAll('#grid img')].every((i) => i.complete && i.naturalWidth > 0) && " + (
    "[...document.querySelectorAll('#grid canvas')].every((c) => c.width > 0)"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders of two methods, and the page of both."""
    folder = tmp_path_factory.mktemp("browser")
    images = photos(folder / "photos")
    explained(images, folder / "one")
    explained(images, folder / "two", LayerCAM, "predicted", layer="body")
    write_report(
        [folder / "one", folder / "two"], folder / "page.html", images=images, classes=CLASSES, title="A & <b>"
    )
    return folder


@pytest.fixture(scope="module")
def browser():
    with chromium.Chromium() as browser:
        yield browser


@pytest.fixture
def page(browser, made):
    """The browser with the page open; nothing may have been complained of in the end."""
    browser.resize(1200, 800)
    browser.open(made / "page.html")
    browser.until(PAINTED)
    yield browser
    assert browser.complaints == []


def choose(page, name, value):
    page.do(f"$({name!r}).value = {value!r}; $({name!r}).dispatchEvent(new Event('change', {{ bubbles: true }}))")


def pixels(page, box):
    """What is seen in a box of the page."""
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    return np.asarray(shot.crop((box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]))).astype(int)


def test_all_images_are_there(page, made):
    assert page.do(NAMES) == open_maps(made / "one").paths
    assert page.do("document.title") == page.do("document.querySelector('h1').textContent") == "A & <b>"
    assert page.do("$('count').textContent") == "24 images"
    assert page.do("$('failed').textContent").count("broken & <i>.jpg") == 2  # its name, and in the reason


def test_the_slider_moves_the_overlays_opacity(page):
    box, seen = page.do(f"{FIRST}.getBoundingClientRect().toJSON()"), {}
    opacity = "getComputedStyle(document.querySelector('#grid canvas')).opacity"
    for value in (0, 50, 100):
        page.do(f"$('opacity').value = {value}; $('opacity').dispatchEvent(new Event('input'))")
        assert float(page.do(opacity)) == value / 100
        assert page.do("document.querySelector('.percent').textContent") == f"{value} %"
        seen[value] = pixels(page, box)
    assert np.abs(seen[100] - seen[0]).mean() > 20
    assert np.abs(seen[50] - (seen[0] + seen[100]) / 2)[8:-8, 8:-8].max() <= 2
    page.do("$('opacity').focus()")
    page.press("ArrowLeft", "ArrowLeft")
    assert float(page.do(opacity)) == 0.98


def test_a_map_is_painted_as_torch_resizes_it_and_fastcam_colours_it(page, made):
    low = open_maps(made / "one").read(3, None)
    wanted = torch.nn.functional.interpolate(torch.from_numpy(low)[None, None], (32, 32), mode="bilinear")[0, 0]
    painted = page.do(
        "[...document.querySelector('[aria-posinset=\"4\"] canvas').getContext('2d').getImageData(0, 0, 32, 32).data]"
    )
    colours = fastcam.overlay(np.zeros((32, 32, 3), np.uint8), wanted.numpy(), image_weight=0).astype(int)
    off = np.abs(np.array(painted).reshape(32, 32, 4)[..., :3] - colours)
    assert off.max() <= 12 and off.mean() < 2  # a map's level is 4 of a colour's, at most; overlays end at 255


def test_the_filter_filters(page, made):
    maps = open_maps(made / "one")
    wrong = [p for p, label, c in zip(maps.paths, maps.target, maps.predicted, strict=True) if label != c]
    page.do("document.querySelector('label[for=answer-wrong]').click()")
    assert page.do(NAMES) == wrong and 0 < len(wrong) < 24
    assert page.do("document.querySelectorAll('#grid .is-wrong').length") == len(wrong)
    assert page.do("$('count').textContent") == f"{len(wrong)} of 24 images"
    page.do("document.querySelector('label[for=answer-right]').click()")
    assert page.do(NAMES) == [p for p in maps.paths if p not in wrong]
    choose(page, "class", "3")
    assert page.do(NAMES) == [] and page.do("$('none').checkVisibility()")
    page.do("$('reset').click()")
    assert len(page.do(NAMES)) == 24 and not page.do("$('none').checkVisibility()")
    choose(page, "class", "3")
    assert page.do(NAMES) == [p for p in maps.paths if p.startswith("class-3/")]


def test_sorting_sorts(page, made):
    maps = open_maps(made / "one")
    by_score = [maps.paths[n] for n in np.argsort(maps.score, kind="stable")]
    choose(page, "sort", "low")
    assert page.do(NAMES) == by_score
    choose(page, "sort", "high")
    assert page.do(NAMES) == by_score[::-1]
    choose(page, "sort", "name")
    found = page.do(NAMES)
    assert found.index("class-0/photo-5.jpg") < found.index("class-0/photo-10.jpg") < found.index("class-1/photo-1.jpg")
    assert sorted(found) == sorted(maps.paths)


def test_a_method_is_chosen(page, made):
    pixels_of = "[...document.querySelector('#grid canvas').getContext('2d').getImageData(0, 0, 32, 32).data]"
    before = page.do(pixels_of)
    choose(page, "method", "1")
    page.until(PAINTED)
    assert (
        page.do("$('about').textContent")
        == "LayerCAM \u00b7 body \u00b7 explains: predicted class \u00b7 TinyNet, float32"
    )
    assert page.do(pixels_of) != before
    predicted = len(set(open_maps(made / "two").predicted.tolist()))
    assert page.do("$('class').options.length") == 1 + predicted


def test_a_hostile_name_is_text(page):
    assert f"class-2/{HOSTILE}" in page.do(NAMES)
    assert page.do("[...$('class').options].map((o) => o.textContent)[2]") == f"1 {CLASSES[1]} (5)"
    assert page.do("document.querySelectorAll('img[src=x], b, i, script').length") == 3  # those of the page itself
    page.do("[...document.querySelectorAll('.tile')].find((t) => t.title.includes('onerror')).click()")
    assert page.do("$('large-name').textContent") == f"class-2/{HOSTILE}"
    assert page.do("document.querySelectorAll('img[src=x]').length") == 0


def test_the_keyboard(page, made):
    paths, focused = open_maps(made / "one").paths, "document.activeElement.querySelector('.name').textContent"
    page.do("$('opacity').focus()")
    page.press("Tab")
    assert page.do(focused) == paths[0]
    page.press("ArrowRight", "ArrowDown")
    columns = page.do("columns")
    assert page.do(focused) == paths[1 + columns] and columns > 3
    page.press("ArrowLeft", "ArrowUp", "ArrowLeft")
    assert page.do(focused) == paths[0]
    page.press("End")
    assert page.do(focused) == paths[-1]
    box = page.do("document.activeElement.getBoundingClientRect().toJSON()")
    assert box["top"] >= 0 and box["bottom"] <= 800
    page.press("Enter")
    assert page.do("$('large').open") and page.do("$('large-name').textContent") == paths[-1]
    assert page.do("[...document.querySelectorAll('#large figcaption')].map((c) => c.firstChild.textContent)") == [
        *("image", "GradCAM", "LayerCAM")
    ]
    page.press("ArrowLeft", "ArrowLeft")
    assert page.do("$('large-name').textContent") == paths[-3]
    page.press("Escape")
    page.until(f"!$('large').open && {focused} === {paths[-3]!r}")  # a dialog's end is told later
    assert page.do("document.querySelectorAll('#grid .tile[tabindex=\"0\"]').length") == 1


def test_the_keyboard_where_there_is_no_image_before(page, made):
    paths, name = open_maps(made / "one").paths, "$('large-name').textContent"
    page.do("document.querySelectorAll('.tile')[1].click()")
    page.do("$('before').focus()")
    page.press("Enter", "Enter")
    assert page.do(name) == paths[0] and page.do("document.activeElement.id + $('before').ariaDisabled") == "beforetrue"
    page.press("ArrowRight")
    assert page.do(name) == paths[1]
    page.do("document.activeElement.blur()")  # as a click beside the buttons does
    page.press("ArrowRight")
    assert page.do(name) == paths[2] and page.do("$('before').ariaDisabled") == "false"


def test_what_a_screen_reader_reads(page, made):
    record = open_maps(made / "one").record(6)
    label = page.do("document.querySelector('[aria-posinset=\"7\"] .tile').ariaLabel")
    percent = f"{100 * record['score']:.0f} %"
    assert page.do("document.querySelector('[aria-posinset=\"7\"] .said').textContent") == f"ant ({BEE} {percent})"
    assert label.startswith(f"{record['path']}, {BEE} {percent}") and label.endswith(", predicted ant, wrong")
    page.do("(page.kept = page.classes, page.classes = {})")
    assert page.do("[briefly(6), said(6)]") == [f"0 (class 1: {percent})", f"class 1: {percent}, predicted 0"]
    page.do("page.classes = page.kept")
    unlabelled = "[...document.querySelectorAll('select, input, button')].filter((e) => !e.labels?.length && "
    assert page.do(unlabelled + "!e.ariaLabel && !e.textContent.trim()).length") == 0


def test_a_phone(page):
    page.resize(360, 640)
    page.until("columns < 4 && document.documentElement.scrollWidth <= 360")
    assert page.do("columns") >= 2
    page.do("document.querySelector('.tile').click()")
    assert page.do("$('large').getBoundingClientRect().right <= 360 && $('large').scrollWidth <= 360")
    page.press("Escape")
    page.until("!$('large').open")
    page.resize(667, 375)  # on its side
    page.do("scrollTo(0, 300)")
    page.until("$('bar').getBoundingClientRect().bottom <= 0")
    page.do("document.querySelector('.tile').click()")
    assert page.do("$('large').getBoundingClientRect().right <= 667 && $('large').scrollWidth <= 667")
    tops = page.do("[...document.querySelectorAll('#large .picture')].map((p) => p.getBoundingClientRect().top)")
    assert len(set(tops)) == 1


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_in_the_dark_and_in_the_light(page, dark):
    page.prefer(dark)
    for element in ("h1", "#about", ".name", ".said", ".is-wrong .said", "#sort", ":checked + label"):
        text, ground = page.do(
            f"""(() => {{
              let e = document.querySelector({element!r}), text = getComputedStyle(e).color, ground;
              for (; (ground = getComputedStyle(e).backgroundColor) === "rgba(0, 0, 0, 0)"; e = e.parentElement);
              return [text, ground];
            }})()"""
        )
        assert contrast(text, ground) >= 4.5, (element, text, ground)
    page.prefer(False)


def contrast(one: str, other: str) -> float:
    """WCAG's, of two colours as CSS gives them."""

    def luminance(colour):
        levels = [int(n) / 255 for n in re.findall(r"\d+", colour)[:3]]
        return np.dot(
            [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in levels], (0.2126, 0.7152, 0.0722)
        )

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_several_results_in_one_notebook(browser, tmp_path):
    x = photographs(2, 24, 24)
    results = [fastcam.compare(tiny(), x, ["gradcam", "saliency"], 1, "body"), fastcam.Saliency(tiny())(x, 2)]
    (tmp_path / "a.html").write_text("<meta charset=utf-8>" + "".join(r._repr_html_() for r in results))
    browser.open(tmp_path / "a.html")
    opacities = "[...document.querySelectorAll('.fastcam-map img + img')].map((i) => getComputedStyle(i).opacity)"
    assert browser.do(opacities) == ["0.5"] * 6
    browser.do("(i => { i.value = 20; i.dispatchEvent(new Event('input')) })(document.querySelectorAll('input')[1])")
    assert browser.do(opacities) == ["0.5"] * 4 + ["0.2"] * 2
    assert browser.do("[...document.querySelectorAll('output')].map((o) => o.textContent)") == ["50 %", "20 %"]
    assert browser.do("[...document.images].every((i) => i.naturalWidth === 24)") and browser.complaints == []


@pytest.mark.slow
def test_ten_thousand_images(browser, tmp_path):
    crops = (photographs(50, 224, 224) * 0.25 + 0.45).clamp(0, 1)
    pictures = [(255 * p.roll(n, 2)).byte() for n in range(200) for p in crops]
    data = TensorDataset(torch.rand(10_000, 3, 16, 16), torch.arange(10_000) % 5)
    attribute_dataset(GradCAM(tiny(), "body"), data, tmp_path / "run", workers=0, batch_size=500)
    file = write_report(tmp_path / "run", images=pictures)
    browser.open(file)
    painted = browser.do("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    browser.until(PAINTED)
    seen = browser.do("performance.now()")
    print(f"{file.stat().st_size / 1e6:.1f} MB, first paint {painted:.0f} ms, images by {seen:.0f} ms")
    assert file.stat().st_size <= 60e6
    assert painted < 2000
    assert browser.do("document.querySelector('#grid img').naturalWidth") == 96
    assert browser.do("$('count').textContent") == "10,000 images"
    assert browser.do("document.querySelectorAll('#grid .cell').length") < 400
    browser.do("$('grid').querySelector('.tile').focus()")
    browser.press("End")
    browser.until(PAINTED)
    assert browser.do("document.activeElement.title").startswith("image 9999\n") and browser.complaints == []
