"""The watchdog is fed by progress alone; what hangs is killed and comes back; a crash leaves no number on the glass."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import sys
import tty
from pathlib import Path

import pytest

from edge import runtime
from edge.config import CameraConfig, Config
from edge.watchdog import STALE_NS, Watchdog
from firmware_bridge.frame import Sender
from firmware_bridge.link import Link
from firmware_bridge.messages import Hello
from firmware_bridge.port import PortMissing
from firmware_bridge.rules import DisplayRules
from firmware_bridge.schema import NO_RATE
from firmware_bridge.transmitter import Transmitter
from tests.fake_engine import FakeEngine, picture, textured
from tests.supervised import OwnTime, Supervisor, until
from tests.test_runtime import World
from tests.videos import write_video

pytestmark = pytest.mark.alone  # waits and timeouts in real time

ROOT = Path(__file__).resolve().parents[1]
MS = 1_000_000
WATCHDOG_S = 2.0
SOON_S = 60.0
"""For what is to come, but not by when: a busy machine may take its time."""


class Ear:
    """A supervisor's socket, and a watchdog in a time of its own that talks to it."""

    def __init__(self, address):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.setblocking(False)
        self.now_ns = 0
        self.dog = Watchdog(address, lambda: self.now_ns)

    def heard(self):
        found = []
        while select.select([self.socket], [], [], 0)[0]:
            found.append(self.socket.recv(4096).decode())
        return found


@pytest.fixture(params=["path", "abstract"])
def ear(request, tmp_path):
    made = Ear(str(tmp_path / "notify") if request.param == "path" else f"@physvlm-test-{os.getpid()}")
    yield made
    made.socket.close()


def test_ready_is_said_once_a_frame_was_processed_and_a_write_accepted(ear):
    assert not ear.dog.feed() and ear.heard() == []
    ear.dog.frame()
    assert not ear.dog.feed() and ear.heard() == []
    ear.dog.port(False)
    assert not ear.dog.feed() and ear.heard() == []
    ear.dog.port(True)
    assert ear.dog.feed("PR SEARCHING") and ear.heard() == ["READY=1\nWATCHDOG=1\nSTATUS=PR SEARCHING"]
    assert ear.dog.feed("PR SEARCHING") and ear.dog.feed("PR\nVALID")
    assert ear.heard() == ["WATCHDOG=1", "WATCHDOG=1\nSTATUS=PR VALID"]


@pytest.mark.parametrize("still", ["frame", "port"])
def test_what_stands_still_for_two_periods_is_not_fed_for(ear, still):
    for step in range(8):
        ear.now_ns = step * 250 * MS
        if still == "port" or step < 2:
            ear.dog.frame()
        ear.dog.port(still == "frame" or step < 2)
        alive = ear.dog.feed()
        assert alive == (ear.now_ns - 250 * MS <= STALE_NS), step
    assert len(ear.heard()) == 6


def test_a_lost_camera_is_fed_for_while_the_display_is_told_so(ear):
    ear.dog.frame()
    ear.dog.port(True)
    assert ear.dog.feed()
    ear.heard()
    for _ in range(20):
        ear.now_ns += 500 * MS
        ear.dog.no_camera()
        ear.dog.port(True)
        assert ear.dog.feed() and ear.heard() == ["WATCHDOG=1"]
    ear.now_ns += 2 * STALE_NS
    ear.dog.no_camera()  # told, but the port took nothing
    assert not ear.dog.feed()


def test_a_camera_that_never_came_is_waited_for_without_being_ready(ear):
    ear.dog.no_camera()
    ear.dog.port(True)
    assert ear.dog.feed("NO CAMERA")
    (text,) = ear.heard()
    assert text.startswith("EXTEND_TIMEOUT_USEC=60000000\n") and "READY" not in text


def test_an_orderly_stop_is_announced(ear):
    ear.dog.stopping()
    assert ear.heard() == ["STOPPING=1\nSTATUS=stopping"]


def test_a_supervisor_that_is_gone_stops_nothing(tmp_path, caplog):
    dog = Watchdog(str(tmp_path / "none"))
    for _ in range(3):
        dog.frame()
        dog.port(True)
        assert dog.feed()
    assert len(caplog.records) == 1 and "does not hear us" in caplog.text


# --- the loop, in a time of its own


class Noted(Watchdog):
    """Keeps when it was fed, and how often it was told READY or the like."""

    def __init__(self, world):
        super().__init__("nowhere", lambda: world.now_ns)
        self.world, self.said = world, []

    def _tell(self, text, status):
        self.said.append((self.world.t_s, text.partition("\n")[0].partition("_")[0]))

    def fed_between(self, a_s, b_s):
        return [t_s for t_s, text in self.said if a_s <= t_s < b_s and text in ("READY=1", "WATCHDOG=1")]


def live(world, voice=None, monkeypatch=None, **more):
    dog = Noted(world)
    config = Config(camera=CameraConfig(roi="full"))
    if voice is not None:
        monkeypatch.setattr(runtime, "make_transmitter", lambda *_: voice)
    made = runtime.Live(config, FakeEngine(), "fake", lambda: world.now_ns, lambda: world.t_s >= world.stop_s, world.open,
                        watchdog=dog, **more)
    made.run()
    return dog


def test_the_loop_feeds_while_frames_come_and_says_that_it_stops(monkeypatch):
    dog = live(World(monkeypatch, [(0, 99)], stop_s=5))
    assert len(dog.fed_between(0, 5)) >= 7
    assert dog.said[-1][1] == "STOPPING=1" and [text for _, text in dog.said].count("READY=1") == 1


def test_a_silent_camera_ends_the_feeding_within_two_seconds(monkeypatch):
    dog = live(World(monkeypatch, [(0, 3)], silent=True, stop_s=15))
    assert dog.fed_between(2, 3) and not dog.fed_between(4.6, 15)


def test_a_camera_that_went_and_is_being_reopened_is_fed_for(monkeypatch):
    dog = live(World(monkeypatch, [(0, 3), (23, 99)], stop_s=35))
    fed = dog.fed_between(2, 35)
    assert max(b - a for a, b in zip(fed, fed[1:], strict=False)) < 2


def test_without_a_camera_at_first_a_patient_run_waits_and_is_ready_once_it_comes(monkeypatch):
    world = World(monkeypatch, [(3, 99)], stop_s=8)
    config = Config(camera=CameraConfig(roi="full"))
    dog = Noted(world)
    made = runtime.Live(config, FakeEngine(), "fake", lambda: world.now_ns, lambda: world.t_s >= world.stop_s, world.open,
                        watchdog=dog, patient=True)
    assert made.run() > 100
    kinds = [text for _, text in dog.said]
    assert kinds[0] == "EXTEND" and kinds.index("READY=1") > 4
    assert min(t_s for t_s, text in dog.said if text == "READY=1") >= 3


class DeadPort:
    """Open, and takes nothing: a peer that hangs."""

    def write(self, data):
        return 0

    def wait_writable(self, timeout_s):
        pass

    def read(self, timeout_s):
        return b""

    def queued(self):
        return 0

    def discard_output(self):
        pass

    def close(self):
        pass


def missing():
    raise PortMissing("no such port")


@pytest.mark.parametrize(("opener", "fed"), [(DeadPort, False), (missing, True)])
def test_a_port_that_takes_nothing_is_a_hang_and_one_that_is_away_is_none(monkeypatch, opener, fed):
    world = World(monkeypatch, [(0, 99)], stop_s=5)

    class Steps(Link):
        """Waiting for room takes time, here too."""

        def open(self, wait=False):
            super().open(wait=True)

    def clock():
        world.now_ns += 1000
        return world.now_ns

    link = Steps("port", clock=clock, opener=opener)
    voice = Transmitter(Sender(clock), [link], Hello(product="fake"), clock)
    assert bool(live(world, voice, monkeypatch).fed_between(2, 5)) == fed


# --- real processes


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    still = textured()
    pictures = [picture(still, i / 30, 150.0, 45.0) for i in range(30 * 30)]
    return write_video(tmp_path_factory.mktemp("clip") / "c.avi", pictures, fourcc="MJPG")


class Glass:
    """A display's rules at the far end of a pty, in a time that does not count what this machine stalls."""

    def __init__(self):
        self._clock = OwnTime()
        self.master, self._slave = os.openpty()
        tty.setraw(self._slave)
        self.name = os.ttyname(self._slave)
        self.rules = DisplayRules(self.now_ms())
        self.screen = self.rules.screen(self.now_ms())

    def now_ms(self):
        return self._clock() // MS

    def step(self):
        data = os.read(self.master, 65536) if select.select([self.master], [], [], 0)[0] else b""
        self.rules.receive(data, self.now_ms())
        self.screen = self.rules.screen(self.now_ms())

    @property
    def shows(self):
        return any(numeral.x10 != NO_RATE for numeral in (self.screen.pr, self.screen.rr))

    def close(self):
        os.close(self.master)
        os.close(self._slave)


def child(clip, port):
    return [sys.executable, "-m", "tests.supervised", "--source", str(clip), "--port", port, "--roi", "full"]


@pytest.fixture(scope="module")
def story(clip, tmp_path_factory):
    """Three appliances at once: one is stopped, one's engine hangs, one is killed once a number is on its glass. Times in s."""
    folder = tmp_path_factory.mktemp("story")
    mark = folder / "hang"
    glasses = [Glass() for _ in range(3)]
    surroundings = [{}, {"PHYSVLM_TEST_HANG": str(mark), "PYTHONFAULTHANDLER": "1"}, {}]
    bosses = [Supervisor(child(clip, glass.name), str(folder / str(i)), WATCHDOG_S if i < 2 else 10, surroundings[i])
              for i, glass in enumerate(glasses)]
    stopped, stuck, killed = bosses
    steps = [each.step for each in (*bosses, *glasses)]
    told = {}
    try:
        assert until(lambda: all(boss.ready_at() for boss in bosses), SOON_S, *steps)
        first = stuck.child
        os.kill(stopped.child.pid, signal.SIGSTOP)
        mark.touch()
        hung = [(boss, boss.now_s) for boss in (stopped, stuck)]
        assert until(lambda: all(boss.died and boss.died[-1][0] > since_s for boss, since_s in hung), SOON_S, *steps)
        told["killed after"] = max(boss.died[-1][0] - since_s for boss, since_s in hung)
        mark.unlink()
        told["both again"] = until(lambda: all(boss.ready_at()[-1] > since_s for boss, since_s in hung), SOON_S, *steps)
        told["said"] = first.stderr.read()
        first.stderr.close()
        told["number before"] = until(lambda: glasses[2].shows, SOON_S, *steps)
        os.kill(killed.child.pid, signal.SIGKILL)
        killed_s, killed_ms = killed.now_s, glasses[2].now_ms()
        told["number gone"] = until(lambda: not glasses[2].shows, SOON_S, *steps)
        told["number gone after"] = (glasses[2].now_ms() - killed_ms) / 1e3
        told["ready again"] = until(lambda: killed.ready_at()[-1] > killed_s, SOON_S, *steps)
    finally:
        for each in bosses:
            each.end()
        for each in glasses:
            each.close()
    return told


def test_a_crash_leaves_no_number_on_the_glass_and_the_appliance_comes_back(story):
    assert story["number before"] and story["number gone"] and story["ready again"]
    assert story["number gone after"] <= 3.3


def test_a_stopped_process_and_a_hung_engine_end_in_a_new_process(story):
    assert story["both again"]
    # 1 s until the feeding ends, the watchdog's time, 1 s to abort, and what a busy machine adds
    assert story["killed after"] < 1 + WATCHDOG_S + 1 + 1.5
    assert "in stem" in story["said"]  # the journal says where it hung


@pytest.mark.soak
def test_a_hang_is_over_within_fifteen_seconds_with_the_unit_s_own_times(tmp_path):
    """The shipped student, the unit's WatchdogSec, SIGSTOP; thrice, with one number on the glass at least."""
    still = textured()
    clip = write_video(tmp_path / "c.avi", [picture(still, i / 30, 150.0, 45.0) for i in range(30 * 30)], fourcc="MJPG")
    glass = Glass()
    boss = Supervisor([sys.executable, "-m", "edge", "run", "--source", str(clip), "--port", glass.name, "--roi", "full"],
                      str(tmp_path / "notify"), watchdog_s=10)
    try:
        for turn in range(3):
            assert until(lambda: glass.shows, SOON_S, boss.step, glass.step)
            os.kill(boss.child.pid, signal.SIGSTOP)
            stopped_s, stopped_ms = boss.now_s, glass.now_ms()
            assert until(lambda: not glass.shows, SOON_S, boss.step, glass.step)
            assert glass.now_ms() - stopped_ms <= 3500
            assert until(lambda s=stopped_s: boss.ready_at()[-1] > s, SOON_S, boss.step, glass.step), turn
            assert boss.ready_at()[-1] - stopped_s <= 15 and not glass.shows
    finally:
        boss.end()
        glass.close()


# --- the wall clock


WALL_CLOCK = re.compile(r"\btime\.time(_ns)?\(|\bdatetime\.(now|utcnow|today)\(|\btime\.(local|gm)time\(|CLOCK_REALTIME")
FOR_PEOPLE = {"edge/appliance/bundle_make.py": "the date in a manifest", "edge/recorder.py": "the name of a run's folder",
              "edge/bench.py": "the date in a report", "edge/bench_child.py": "told, so that a step is seen to have come",
              "edge/bench_run.py": "whether a step that was injected has come"}
"""Files that read the wall clock for people or for the benchmark; nothing is decided by it."""


def test_nothing_is_decided_by_the_wall_clock():
    """A step of an hour once left a number on another maker's screen; here none has a clock to step."""
    found = {}
    for package in ("edge", "firmware_bridge"):
        for path in (ROOT / package).rglob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            lines = [line for line in path.read_text().splitlines() if WALL_CLOCK.search(line)]
            if lines and name not in FOR_PEOPLE:
                found[name] = lines
    assert found == {}


def test_the_search_for_wall_clocks_finds_them():
    for line in ("x = time.time()", "datetime.now(timezone.utc)", "time.time_ns()", "time.clock_gettime(CLOCK_REALTIME)"):
        assert WALL_CLOCK.search(line)
    assert not WALL_CLOCK.search("time.monotonic_ns()")
