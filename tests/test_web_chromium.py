"""The page in a real browser: the core's pixels and nothing else, dashes in time, and never a number that nobody sent."""

from __future__ import annotations

import base64
import itertools
import random
import time
from collections.abc import Iterator

import pytest

from firmware_bridge.core import CoreDisplay, CoreError
from firmware_bridge.faults import Faults
from firmware_bridge.schema import NO_RATE
from firmware_bridge.simulator import Look
from tests.devtools import Browser, Tab, browser_path
from tests.supervised import until
from tests.wire_bench import Served

pytestmark = pytest.mark.alone  # waits and timeouts in real time

SOON_S = 30.0
"""For what is to come, but not by when: a busy machine may take its time."""
TRIES = 4
"""What has to be in time has to be so in one of these: a machine that stalls spoils some."""
SHOWS_A_NUMBER = "/PR camera \\d+/.test(glass.getAttribute('aria-label'))"
# [name of what is on the canvas, its pixels as base64 of RGB], read at one moment
CANVAS = """(() => {
  const rgba = glass.getContext('2d').getImageData(0, 0, 800, 480).data, rgb = new Uint8Array(800 * 480 * 3);
  for (let i = 0; i < 800 * 480; i++) rgb.set(rgba.subarray(4 * i, 4 * i + 3), 3 * i);
  let text = '';
  for (let i = 0; i < rgb.length; i += 30000) text += String.fromCharCode(...rgb.subarray(i, i + 30000));
  return [glass.dataset.glass || '', btoa(text)];
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser_path()
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def served():
    try:
        CoreDisplay(0)
    except CoreError as error:
        pytest.skip(str(error))
    served = Served(CoreDisplay)
    yield served
    served.end()


@pytest.fixture(scope="module")
def second(served):
    """Another simulator, so that two tests' waiting goes on at once."""
    second = Served(CoreDisplay)
    yield second
    second.end()


@pytest.fixture(scope="module")
def tabs(browser, served, second):
    tabs = [browser.open(served.page.url), browser.open(second.page.url)]
    for tab in tabs:
        tab.until(SHOWS_A_NUMBER, SOON_S)
    return tabs


@pytest.fixture
def tab(tabs):
    return tabs[0]


@pytest.fixture(autouse=True)
def no_complaints(browser, tab):
    """Whatever a test does, no script throws and nothing is asked for elsewhere."""
    yield
    tab.run("1")  # fetches what the browser still has to say
    ours = [text for text in browser.complaints if "ERR_CONNECTION_REFUSED" not in text and "status of 409" not in text]
    assert ours == []
    assert [url for url in browser.requests if not url.startswith(("http://127.0.0.1:", "data:"))] == []


def rgb(pixels: bytes) -> bytes:
    """RGB565 little endian as 24 bit, scaled as in the PNGs."""
    words = memoryview(pixels).cast("H")
    table = {w: bytes(((w >> 11) * 255 // 31, (w >> 5 & 63) * 255 // 63, (w & 31) * 255 // 31)) for w in set(words)}
    return b"".join(map(table.__getitem__, words))


def move(tab: Tab, slider: str, value: float) -> None:
    """As a hand would: the value, then the event."""
    tab.run(f"{slider}.value = {value}; {slider}.dispatchEvent(new Event('input', {{bubbles: true}})); 0")


def press(tab: Tab, button: str) -> None:
    tab.until(f"!document.getElementById('{button}').disabled", SOON_S)
    tab.run(f"document.getElementById('{button}').click(); 0")


def words(tab: Tab) -> str:
    return tab.run("glass.getAttribute('aria-label')")


def painted(tab: Tab, simulator: Served) -> tuple[bytes, Look]:
    """What is on the canvas, and the look that it says it is of."""
    tab.until("glass.dataset.glass", SOON_S)
    name, pixels = tab.run(CANVAS)
    return base64.b64decode(pixels), simulator.looks[name]


def test_the_canvas_holds_exactly_the_core_s_frame_buffer(served, tab):
    for _ in range(3):
        pixels, look = painted(tab, served)
        assert pixels == rgb(look.pixels)
        assert look.screen.pr.x10 == 1432 and len(set(look.pixels)) > 4
        time.sleep(0.15)


def test_the_drop_slider_at_100_percent_and_the_unplugged_cable_lead_to_dashes_within_3_s_and_back(served, second, tabs):
    def dashes_after() -> float:
        """Breaks both lines and repairs them. Seconds until both pages showed dashes."""
        for tab in tabs:
            tab.until(SHOWS_A_NUMBER, SOON_S)
        move(tabs[0], "drop", 100)
        tabs[1].run("unplug.click(); 0")
        start_s = time.monotonic()
        for tab in tabs:
            tab.until(f"!{SHOWS_A_NUMBER}", SOON_S)
        passed_s = time.monotonic() - start_s
        assert served.simulator._wire.faults == Faults(drop=1.0)
        assert second.simulator._wire.faults == Faults(unplugged=True)
        for simulator, tab in zip((served, second), tabs, strict=True):
            shown = [look.t_s for look in simulator.looks.values() if look.screen.pr.x10 != NO_RATE]
            heard = [frame.t_s for look in simulator.looks.values() for frame in look.frames]
            assert max(shown) - max(heard) < 3.0
            tab.until("/camera link lost/.test(glass.getAttribute('aria-label'))", SOON_S)
            assert "no number" in words(tab)
            pixels, look = painted(tab, simulator)
            assert pixels == rgb(look.pixels)
            press(tab, "sound")
        for tab in tabs:
            tab.until(SHOWS_A_NUMBER, SOON_S)
        assert served.simulator._wire.faults == second.simulator._wire.faults == Faults()
        return passed_s

    assert any(dashes_after() <= 3.4 for _ in range(TRIES))  # 3.0 s by the display's clock, a look, a poll


def test_bit_errors_and_delay_reach_the_wire_and_faults_set_elsewhere_move_the_sliders(served, tab):
    move(tab, "bits", 21)
    move(tab, "delay", 1500)
    tab.until("document.getElementById('bits-is').textContent === '1 in 10,000'", SOON_S)
    assert until(lambda: served.simulator._wire.faults.delay_ms == 1500, SOON_S)
    faults = served.simulator._wire.faults
    assert faults.bit_errors == pytest.approx(1e-4) and faults.delay_ms == 1500 and faults.drop == 0
    served.simulator.set_faults(Faults(drop=0.25))
    tab.until("drop.value === '25' && delay.value === '0' && bits.value === '0'", SOON_S)
    served.simulator.set_faults(Faults())


@pytest.mark.parametrize("width", [390, 320, 768, 1280])
def test_no_width_scrolls_sideways_and_every_control_has_a_name(tab, width):
    tab.resize(width, 844, mobile=width < 500)
    tab.until(f"innerWidth === {width}", SOON_S)
    assert tab.run("document.documentElement.scrollWidth") <= width
    assert tab.run("glass.getBoundingClientRect().width") > 0.85 * min(width, 800)
    assert tab.run("[...document.querySelectorAll('input,button,a')].filter(e => !e.hidden && "
                   "!(e.labels && e.labels.length) && !e.textContent.trim()).map(e => e.id)") == []
    assert "SIMULATOR" in tab.run("document.querySelector('.mark').innerText + document.title")
    assert tab.run("document.querySelector('.pane').innerText.includes('SIMULATOR')") is False, "it stands outside the glass"
    tab.resize(1280, 900)


def test_what_was_recorded_replays_to_the_same_pixels(served, tab):
    # between two questions of ours the start-up test may come and go
    tab.run("seen = []; watch = new MutationObserver(() => seen.push(glass.getAttribute('aria-label') + source.textContent)); "
            "watch.observe(glass, {attributes: true}); watch.observe(source, {childList: true})")
    press(tab, "record")
    tab.until("record.textContent === 'Stop recording'", SOON_S)
    tab.until("seen.some(words => !/PR camera/.test(words))", SOON_S)  # the start-up test: it was switched on anew
    tab.until(SHOWS_A_NUMBER, SOON_S)
    press(tab, "record")
    tab.until("recording.textContent.startsWith('Recorded')", SOON_S)
    press(tab, "replay")
    tab.until("/Replay is over. Its last screen has the recorded pixels/.test(recording.textContent)", SOON_S)
    assert tab.run("seen.some(words => /replay of/.test(words))")
    tab.run("watch.disconnect()")
    recording = served.simulator.recording
    assert recording.screen in served.looks and served.looks[recording.screen].screen.pr.x10 == 1432
    press(tab, "live")
    tab.until("/^live from/.test(source.textContent)", SOON_S)


def test_a_page_whose_simulator_is_gone_removes_its_numbers(browser, second, tabs):
    def anew() -> Iterator[tuple[Served, Tab]]:
        yield second, tabs[1]
        while True:
            simulator = Served(CoreDisplay)
            yield simulator, browser.open(simulator.page.url)

    for simulator, tab in itertools.islice(anew(), TRIES):
        tab.until(SHOWS_A_NUMBER, SOON_S)
        simulator.end()
        if (passed_s := tab.until("document.body.classList.contains('stale-now')", SOON_S)) <= 3.6:
            break
    assert passed_s <= 3.6
    name, pixels = tab.run(CANVAS)
    assert name == "" and len(set(base64.b64decode(pixels))) <= 3, "one colour"
    text = tab.run("document.body.innerText + glass.getAttribute('aria-label')")
    assert "No data from the simulator" in text and "143" not in text


@pytest.mark.soak
def test_two_minutes_of_random_sliders_never_leave_the_canvas_behind_the_core(served, tab):
    rng = random.Random(1)
    until_s = time.monotonic() + 120
    while time.monotonic() < until_s:
        slider, most = rng.choice([("drop", 60), ("bits", 30), ("delay", 2000)])
        move(tab, slider, rng.randint(0, most) // 10 * 10)
        time.sleep(rng.random())
        name, pixels = tab.run(CANVAS)
        if name:
            assert base64.b64decode(pixels) == rgb(served.looks[name].pixels)
    press(tab, "sound")
