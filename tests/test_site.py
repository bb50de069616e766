"""The site: built without the walkthrough's results, read as files, and opened from its folder in a browser."""

import html.parser
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.parse

import filelock
import numpy as np
import pytest
from conftest import ROOT, rounded

import keras_resnet
from keras_resnet import experiments
from keras_resnet.data import crops
from keras_resnet.runs import Run

ROOMS = ("data", "evaluation", "experiments", "serving", "training", "weights")
NEEDED = ("sphinx", "furo", "myst_parser", "sphinx_copybutton", "jupytext", "nbconvert")
PHONE = {"width": 375, "height": 800}


def needs(*packages):
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed, which is for pages of the site")


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder of the site; built once for all workers of pytest."""
    needs(*NEEDED)
    parallel = "PYTEST_XDIST_WORKER" in os.environ
    base = tmp_path_factory.getbasetemp().parent if parallel else tmp_path_factory.mktemp("site")
    source, folder = base / "source", base / "site"
    with filelock.FileLock(base / "site.lock"):
        if not folder.is_dir():
            ignored = shutil.ignore_patterns("made", "walkthrough.ipynb", "walkthrough.html", "report.html")
            shutil.copytree(ROOT / "docs", source / "docs", ignore=ignored)
            shutil.copy(ROOT / "README.md", source)  # links are followed from where it is
            for name in ("keras_resnet", "tests"):
                (source / name).symlink_to(ROOT / name)
            command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", base / "trees"]
            done = subprocess.run([*command, source / "docs", folder], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    return folder


class Page(html.parser.HTMLParser):
    """The references of a page, `loaded` or `linked`, and its `anchors`."""

    def __init__(self, path):
        super().__init__()
        self.loaded, self.linked, self.anchors = [], [], set()
        self.text = path.read_text("utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors.add(values.get("id"))
        if "src" in values:
            self.loaded.append(values["src"])
        if "href" in values and values["href"]:
            (self.linked if tag == "a" else self.loaded).append(values["href"])


def pages(site):
    found = {path: Page(path) for path in site.rglob("*.html") if "_static" not in path.parts}
    assert len(found) > 20
    return found


def address(path, link):
    """The file and the anchor of a relative link of a page."""
    parts = urllib.parse.urlsplit(link)
    return path.parent.joinpath(urllib.parse.unquote(parts.path)).resolve() if parts.path else path, parts.fragment


def test_links_lead_somewhere_and_nothing_is_loaded_from_elsewhere(site):
    found = pages(site)
    for path, page in found.items():
        for link in page.loaded:
            assert not re.match(r"\w+:|/", link) or link == "data:,", f"{path.name} loads {link}"
        for link in page.loaded + page.linked:
            if re.match(r"(https?|mailto|data):", link):
                continue
            file, anchor = address(path, link)
            assert not link.startswith("/") and file.is_file(), f"{path.name} links to {link}"
            assert not anchor or file not in found or anchor in found[file].anchors, f"{path.name} links to {link}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"@import|url\([\"']?https?:", sheet.read_text("utf-8")), sheet


def test_a_host_finds_what_it_needs(site):
    assert (site / ".nojekyll").is_file() and (site / "searchindex.js").is_file()
    lost = Page(site / "404.html")  # is shown for missing pages of any folder
    assert lost.linked == ["index.html"] and lost.loaded == ["data:,"]
    assert all((folder / "index.html").is_file() for folder in {path.parent for path in pages(site)})


def test_every_public_name_is_in_the_reference(site):
    names = {"index": [*keras_resnet.__all__, "ResNetHyperModel"]}
    names |= {room: importlib.import_module(f"keras_resnet.{room}").__all__ for room in ROOMS}
    for room, public in names.items():
        module = "keras_resnet" if room == "index" else f"keras_resnet.{room}"
        found = Page(site / "reference" / f"{room}.html").anchors
        anchors = {str(anchor).replace(".training.tuning.", ".") for anchor in found}
        missing = [name for name in public if f"{module}.{name}" not in anchors]
        assert not missing, f"{module}: {missing}"
    text = Page(site / "reference" / "index.html").text
    assert "Raises" in text and "shortcut_initializer" in text and "Return type" not in text


def test_the_first_page_is_small_until_a_network_is_chosen(site):
    page = site / "index.html"
    size = page.stat().st_size + sum(
        address(page, link)[0].stat().st_size for link in set(Page(page).loaded) - {"data:,"}
    )
    assert size < 1e6
    assert all(name in Page(page).text for name in ("12.91", "6.84", "6.97"))


def test_every_run_is_shown_with_its_command(site):
    records = experiments.load(ROOT / "docs" / "results")
    text = re.sub(r"<[^>]+>", "", Page(site / "runs.html").text)
    for record in records:
        assert record["command"] in text and f"{100 * record['error']:.2f} %" in text
    shown = json.loads((site / "_static" / "records.js").read_text().split("RECORDS = ")[1].rstrip(";\n"))
    assert sorted(run["error"] for run in shown) == sorted(round(100 * record["error"], 2) for record in records)


def test_the_walkthrough_is_run_again_only_if_its_inputs_changed(tmp_path, monkeypatch, capsys):
    needs("jupytext", "nbconvert", "nbclient", "ipykernel")
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "site"))
    walkthrough = importlib.import_module("walkthrough")
    monkeypatch.setattr(walkthrough, "SOURCE", tmp_path / "source.py")
    monkeypatch.setattr(walkthrough, "NOTEBOOK", tmp_path / "notebook.ipynb")
    walkthrough.SOURCE.write_text("# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\nprint(6 * 7)\nprint('yes')\n")
    assert "make walkthrough" in walkthrough.page(tmp_path)
    walkthrough.main()
    assert capsys.readouterr().out == "cell 1 of 1: print(6 * 7)\n"
    page = walkthrough.page(tmp_path)
    assert page.startswith("# Title\n\nText.") and "    42\n    yes\n" in page and "make walkthrough" not in page
    walkthrough.main()
    assert "is up to date" in capsys.readouterr().out
    walkthrough.SOURCE.write_text(walkthrough.SOURCE.read_text() + "print('more')\n")
    assert "make walkthrough" in walkthrough.page(tmp_path) and not walkthrough.finished()


# ---- In a browser ----


@pytest.fixture(scope="module")
def chromium():
    needs("playwright")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium):
    """A page that must end without a console message and without a request to anywhere else."""
    said = []
    tab = chromium.new_page(viewport={"width": 1280, "height": 900})
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: request.url.startswith(("file:", "data:", "blob:")) or said.append(request.url))
    yield tab
    tab.close()
    assert not said


def choose(tab, layers):
    tab.get_by_role("button", name=f"{layers} layers").click()
    tab.wait_for_selector(f"h3:has-text('plain-{layers}')")


def seen(tab):
    """The input of the page's networks."""
    return np.reshape(tab.evaluate("Array.from(shown.seen)"), (32, 32, 3)).astype("float32")


def answers(tab):
    return np.array(tab.evaluate("panels.map((panel) => panel.probabilities)"))


@pytest.mark.parametrize("layers", [20, 56])
def test_the_page_answers_as_keras(site, tab, layers):
    tab.goto(f"file://{site}/index.html")
    choose(tab, layers)
    models = [Run(f"cifar10-{kind}-{layers}").load_model() for kind in ("resnet", "plain")]
    drawings = tab.eval_on_selector_all("#examples button", "(buttons) => buttons.map((button) => button.title)")
    assert len(drawings) == 12
    images, found = [], []
    tab.set_input_files("#file", ROOT / "docs" / "ship.png")
    tab.wait_for_function("shown.name === 'ship.png'")
    images, found = [seen(tab)], [answers(tab)]
    for name in drawings:
        tab.get_by_role("button", name=name, exact=True).click()
        images.append(seen(tab))
        found.append(answers(tab))
    images, found = np.array(images), np.array(found)
    ship = crops.center_crop(np.asarray(read(ROOT / "docs" / "ship.png")), 32, 32).numpy()
    assert np.abs(images[0] - ship).max() < 0.01
    for place, model in enumerate(models):
        assert np.abs(found[:, place] - rounded(model).predict(images, verbose=0)).max() < 1e-4
        assert np.abs(found[0, place] - model.predict(images[:1], verbose=0)[0]).max() < 1e-4
    classes = (
        "ship",
        "airplane",
        "automobile",
        "truck",
        "frog",
        "bird",
        "cat",
        "horse",
        "dog",
        "deer",
        "ship",
        "truck",
    )
    names = Run(f"cifar10-resnet-{layers}").classes
    assert [names[k] for k in found[1:, 0].argmax(-1)] == list(classes)


def read(path):
    """An image as RGB, rotated according to its EXIF data, on white."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def photograph(height, width):
    """A smooth image, so that JPEG's errors are small."""
    y, x = np.mgrid[:height, :width] / (height, width)[0]
    channels = [127 + 100 * np.sin(3 * x + phase) * np.cos(5 * y + phase) for phase in (0, 1, 2)]
    return np.stack(channels, -1).astype("uint8")


def test_pictures_of_every_kind(site, tab, tmp_path):
    from PIL import Image

    large, turned, clear = tmp_path / "large.jpg", tmp_path / "turned.jpg", tmp_path / "clear.png"
    Image.fromarray(photograph(3000, 4000)).save(large, quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(photograph(90, 160)).save(turned, quality=95, exif=exif)
    alpha = np.linspace(0, 255, 120, dtype="uint8")[None, :, None].repeat(80, 0)
    Image.fromarray(np.concatenate([photograph(80, 120), alpha], -1)).save(clear)
    tab.goto(f"file://{site}/index.html")
    for path in (large, turned, clear):
        tab.set_input_files("#file", path)
        tab.wait_for_function(f"shown.name === '{path.name}'")
        expected = crops.center_crop(np.asarray(read(path)), 32, 32).numpy()
        assert np.abs(seen(tab) - expected).max() < 2, path.name  # browsers decode JPEG a little differently
    (tmp_path / "none.txt").write_text("no picture")
    tab.set_input_files("#file", tmp_path / "none.txt")
    tab.wait_for_selector("#message:has-text('This browser cannot read none.txt as an image.')")
    tab.get_by_role("button", name="Use the camera").click()
    tab.wait_for_selector("#message:has-text('camera')")
    assert tab.evaluate("shown.name") == "clear.png"


def test_the_lesson_draws_what_is_chosen(site, tab):
    tab.goto(f"file://{site}/lesson.html")
    assert tab.locator("#lesson path").count() == 8  # ResNet-20 and plain-20 have two seeds
    said = tab.locator(".said")
    assert said.inner_text() == (
        "Without shortcuts, 56 layers are worse than 20: 12.91 % test error, against 9.38 %. "
        "With shortcuts, 56 layers are better than 20: 6.84 % test error, against 8.28 %."
    )
    tab.get_by_label("Layer responses").check()
    assert said.inner_text().startswith(
        "Without shortcuts, responses are 0.57 on average with 56 layers, 0.85 with 20."
    )
    tab.get_by_label("Training").check()
    tab.get_by_label("without", exact=True).uncheck()
    assert tab.locator("#lesson path").count() == 4 and said.inner_text().startswith("With shortcuts")
    tab.get_by_label("2,560").check()
    assert said.inner_text() == "With shortcuts, 56 layers are worse than 20: 33.85 % test error, against 20.05 %."
    tab.get_by_label("Errors, every seed").check()
    assert tab.locator("#lesson tbody tr").count() == 4 and tab.locator("#lesson circle").count() == 7
    tab.get_by_label("Layer responses").check()
    assert tab.locator("#lesson path").count() == 2
    for layers in ("20", "32", "56"):
        tab.get_by_label(layers, exact=True).uncheck()
    assert "No such run exists" in tab.locator("#lesson .picture").inner_text()


def test_the_search_finds_pages_in_a_folder(site, tab):
    tab.goto(f"file://{site}/index.html")
    tab.get_by_placeholder("Search").fill("OpenVINO")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#search-results a:has-text('Serving')")


def test_pages_fit_a_telephone(site, tab):
    tab.set_viewport_size(PHONE)
    for path in pages(site):
        tab.goto(f"file://{path}")
        assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], path.name


# Sphinx writes the lines of a long signature as descriptions without terms, and MyST tables with empty heads.
OTHERS_RULES = {"definition-list", "empty-table-header"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_our_pages(site, chromium, scheme):
    needs("axe_playwright_python")
    from axe_playwright_python.sync_playwright import Axe

    tab = chromium.new_page(viewport=PHONE, color_scheme=scheme)
    for name in ("index", "lesson", "seeds", "404", "reference/data"):
        tab.goto(f"file://{site}/{name}.html")
        if name == "index":
            choose(tab, 20)
        found = Axe().run(tab).response["violations"]
        assert {rule["id"] for rule in found} <= OTHERS_RULES, (name, [(rule["id"], rule["nodes"]) for rule in found])
    tab.close()
