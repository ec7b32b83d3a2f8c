"""The pictures with sliders, in a real Chromium: an exported notebook, offline, moved by mouse and keys."""

import itertools
import json
import shutil
import subprocess
import time
import urllib.request

import nbformat
import pytest
import websocket
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_output

from course.interactive import Picture, Slider
from lib import paths

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: apt-get install chromium")


class Browser:
    """A tab, over the DevTools protocol. complaints: what went wrong on the page, or asked for the network."""

    def __init__(self, socket):
        self.socket, self.numbers, self.complaints = socket, itertools.count(1), []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            self.note(message)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def note(self, message):
        method, said = message.get("method"), message.get("params", {})
        wrong = method == "Runtime.exceptionThrown" or (
            method == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning")
        )
        wrong |= method == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning")
        wrong |= method == "Network.requestWillBeSent" and not said["request"]["url"].startswith(("file:", "data:"))
        self.complaints += [json.dumps(said)[:500]] if wrong else []

    def open(self, path, script=True):
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.call("Page.navigate", url=path.as_uri())
        for _ in range(300):
            if self.ask("document.readyState === 'complete' && location.protocol === 'file:'"):
                return
            time.sleep(0.1)
        raise TimeoutError(path)

    def ask(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def mouse(self, kind, x, y):
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def drag(self, start, end):
        self.mouse("mousePressed", *start)
        self.mouse("mouseMoved", *((a + b) / 2 for a, b in zip(start, end, strict=True)))
        self.mouse("mouseMoved", *end)
        self.mouse("mouseReleased", *end)

    def press(self, key):
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=39)

    def place(self, selector, x=0.5, y=0.5):
        """The point on the screen at this share of an element, which is scrolled into sight."""
        self.ask(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        box = f"(r => [r.x + {x} * r.width, r.y + {y} * r.height])"
        return self.ask(f"{box}(document.querySelector({selector!r}).getBoundingClientRect())")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chromium")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--window-size=1000,900"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder}", "--remote-allow-origins=*"]
    with subprocess.Popen(
        [CHROMIUM, *options, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            file = folder / "DevToolsActivePort"
            for _ in range(600):
                if file.exists() and "\n" in file.read_text():
                    break
                time.sleep(0.1)
            port = file.read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as reply:
                page = next(tab for tab in json.load(reply) if tab["type"] == "page")
            socket = websocket.create_connection(page["webSocketDebuggerUrl"], timeout=60)
            yield Browser(socket)
            socket.close()
        finally:
            process.terminate()


@pytest.fixture
def tab(browser):
    browser.complaints.clear()
    yield browser
    assert browser.complaints == []


def export(notebook, path):
    """As nbconvert does, without the scripts that it takes from the network."""
    page, _ = HTMLExporter(mathjax_url="", require_js_url="", mermaid_js_url="").from_notebook_node(notebook)
    path.write_text(page, encoding="utf-8")
    return path


STATE = "JSON.stringify([...document.querySelectorAll('figure[class^=picture] [data-part]')].map(e => e.outerHTML))"


def pictures_of(path):
    """How many pictures with sliders the outputs of a notebook hold."""
    code = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    pages = ["".join(output.get("data", {}).get("text/html", "")) for cell in code for output in cell.outputs]
    return sum(page.startswith('<figure class="picture-') for page in pages)


PICTURES = {path: n for path in sorted((paths.PROJECT / "notebooks").glob("*.ipynb")) if (n := pictures_of(path))}


def test_these_notebooks_have_pictures():
    assert {path.name[:2] for path in PICTURES} >= {"01", "02", "03", "05", "06", "07", "08", "10"}


@needs_chromium
@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_every_slider_of_a_notebook_changes_its_picture(tab, tmp_path, path):
    tab.open(export(nbformat.read(path, 4), tmp_path / "page.html"))
    assert tab.ask("document.querySelectorAll('figure[class^=picture] svg').length") == PICTURES[path]
    sliders = tab.ask("[...document.querySelectorAll('figure[class^=picture] input')].map(e => '#' + e.id)")
    assert len(sliders) >= PICTURES[path]
    for slider in sliders:
        before, value = tab.ask(STATE), tab.ask(f"document.querySelector({slider!r}).value")
        x, y = tab.place(
            slider, 0.05 if tab.ask(f"(e => e.value === e.max)(document.querySelector({slider!r}))") else 0.95
        )
        tab.drag((x, y), (x, y))
        assert tab.ask(f"document.querySelector({slider!r}).value") != value
        assert tab.ask(STATE) != before


@pytest.fixture
def small(tmp_path):
    """A page with one picture: sliders m (0 to 4, at 1) and s (1 or 10), a handle at (m, s)."""
    made = Picture([Slider("m", "margin", range(5), 1), Slider("s", "scale", [1, 10], 1)], alt="a handle")
    panel = made.panel((0, 4, [0, 4]), (0, 10, [0, 10]))
    panel.handle(lambda m, s: (m, s))
    made.readout(lambda m, s: f"m = {m}, s = {s}")
    output = new_output("display_data", made._repr_mimebundle_())
    notebook = nbformat.v4.new_notebook(cells=[new_code_cell("picture", outputs=[output], execution_count=1)])
    return export(notebook, tmp_path / "small.html")


READOUT = "document.querySelector('figure svg > text[data-part]').textContent"


@needs_chromium
def test_keys_and_mouse(tab, small):
    tab.open(small)
    assert tab.ask(READOUT) == "m = 1, s = 1"
    tab.ask("document.querySelector('figure input').focus()")
    tab.press("ArrowRight")
    assert tab.ask(READOUT) == "m = 2, s = 1"
    assert tab.ask("document.querySelector('figure output').textContent") == "2"
    start = tab.place("figure path[data-part]")
    corner = tab.ask("(r => [r.right - 20, r.top + 30])(document.querySelector('figure svg').getBoundingClientRect())")
    tab.drag(start, corner)
    assert tab.ask(READOUT) == "m = 4, s = 10"
    assert tab.ask("[...document.querySelectorAll('figure input')].map(e => e.value)") == ["4", "1"]
    tab.mouse("mouseMoved", *start)  # let go: it stays
    assert tab.ask(READOUT) == "m = 4, s = 10"


@needs_chromium
def test_without_scripts_the_still_picture_stays(tab, small):
    tab.open(small, script=False)
    image = "document.querySelector('figure img')"
    assert tab.ask(f"{image}.naturalWidth") > 0 and tab.ask(f"{image}.alt") == "a handle"
    assert tab.ask("document.querySelectorAll('figure input').length") == 0
