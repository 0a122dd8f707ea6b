"""The page's server: only this computer, only its own page, the exact pixels, and nothing that a stuck browser can hold up."""

from __future__ import annotations

import gzip
import select
import socket
import threading
import time

import pytest

from firmware_bridge import web
from firmware_bridge.faults import Faults
from firmware_bridge.recording import MAX_MEMORY_BYTES, Recorder
from firmware_bridge.simulator import HEIGHT_PX, WIDTH_PX
from firmware_bridge.web import ADDRESS, MAX_CONNECTIONS, WebError, WebPage
from tests.supervised import until
from tests.wire_bench import ANSWER_S, Served


@pytest.fixture(scope="module")
def served():
    served = Served()
    yield served
    served.end()


@pytest.fixture(autouse=True)
def repaired(request):
    yield
    if "served" in request.fixturenames:
        request.getfixturevalue("served").simulator.set_faults(Faults())


# --- who may ask ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "",
                                  "127.0.0.2", "0.0.0.0", "127.0.0.1:80:80", "127.0.0.1@evil.example", "[::1]",
                                  "127.0.0.1\u00b2"])
@pytest.mark.parametrize("method, path", [("GET", "/"), ("GET", "/events"), ("GET", "/glass"), ("POST", "/faults")])
def test_another_host_s_name_gets_nothing(served, method, path, host):
    answer, data = served.ask(method, path, b"{}" if method == "POST" else None, Host=host.encode("utf-8").decode("latin-1"),
                              X_Physvlm_Token=served.page.token)
    assert answer.status == 421 and served.page.token.encode() not in data


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "localhost:1", "127.0.0.1:9000"])
def test_this_computer_s_own_names_are_answered_behind_a_forwarded_port_too(served, host):
    assert served.ask("GET", "/", Host=host)[0].status == 200


def test_two_host_headers_get_nothing(served):
    with socket.create_connection((ADDRESS, served.port), timeout=ANSWER_S) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n")
        assert b" 421 " in raw.recv(4096).split(b"\r\n")[0]


@pytest.mark.parametrize("headers", [
    {"X_Physvlm_Token": ""}, {"X_Physvlm_Token": "guess"}, {"X_Physvlm_Token": "\u00e9" * 32},
    {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "https://127.0.0.1"}, {"Origin": "http://127.0.0.1:1"},
])
@pytest.mark.parametrize("path", ["/faults", "/record", "/stop", "/replay", "/live", "/open"])
def test_only_the_page_itself_changes_anything(served, path, headers):
    answer, _ = served.post(path, b'{"drop": 1}', **headers)
    assert answer.status == 403 and served.simulator._wire.faults == Faults() and served.simulator._recorder is None


def test_nothing_changes_by_get_and_no_other_method_is_known(served):
    assert served.ask("GET", "/faults?drop=1", X_Physvlm_Token=served.page.token)[0].status == 404
    for method in ("PUT", "DELETE", "OPTIONS", "HEAD", "TRACE"):
        assert served.ask(method, "/faults")[0].status == 501
    assert served.simulator._wire.faults == Faults()


def test_it_listens_on_the_loopback_alone(served):
    assert served.page._server.server_address[0] == "127.0.0.1"
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in others - {"127.0.0.1"}:
        if not address.startswith("127."):
            with pytest.raises(OSError):
                socket.create_connection((address, served.port), timeout=0.5).close()


def test_the_page_asks_for_nothing_from_outside_and_its_scripts_carry_the_nonce(served):
    answer, data = served.ask("GET", "/")
    html, policy = data.decode(), answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    nonce = policy.split("script-src 'nonce-")[1].split("'")[0]
    assert html.count(f'nonce="{nonce}"') == 2 and html.count("<script") == html.count("<style") == 1
    assert "://" not in html and "@TOKEN@" not in html and served.page.token in html
    assert nonce not in served.ask("GET", "/")[1].decode(), "a new one each time"
    assert answer.headers["Cache-Control"] == "no-store" and answer.headers["X-Frame-Options"] == "DENY"


# --- what it answers --------------------------------------------------------------------------------------------------

def test_the_glass_is_the_display_s_frame_buffer_byte_for_byte(served):
    served.state()  # looked at just now, as an old look is not sent
    answer, data = served.ask("GET", "/glass")
    pixels = gzip.decompress(data)
    assert len(pixels) == 2 * WIDTH_PX * HEIGHT_PX and served.looks[answer.headers["X-Glass"]].pixels == pixels
    served.state()
    assert served.ask("GET", "/screen.png")[1][:8] == b"\x89PNG\r\n\x1a\n"


def test_sliders_reach_the_wire_and_what_cannot_be_is_refused(served):
    body = b'{"drop": 0.5, "bit_errors": 0.001, "delay_ms": 300, "unplugged": true}'
    assert served.post("/faults", body, Origin=f"http://127.0.0.1:{served.port}")[0].status == 200
    state = served.state()
    assert state["faults"] == {"drop": 0.5, "bit_errors": 0.001, "delay_ms": 300, "unplugged": True}
    for wrong in (b"", b"[]", b"7", b"{", b'{"drop": 2}', b'{"drop": NaN}', b'{"drop": "1"}', b'{"x": 1}', b"[" * 500, b"\xff"):
        answer, text = served.post("/faults", wrong)
        assert answer.status == 400 and text, wrong
    assert served.simulator._wire.faults == Faults(0.5, 0.001, 300, True)


def test_bodies_are_bounded_and_their_length_is_needed(served):
    assert served.post("/faults", b"x" * 1001)[0].status == 413
    with socket.create_connection((ADDRESS, served.port), timeout=ANSWER_S) as raw:
        head = f"POST /%s HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Physvlm-Token: {served.page.token}\r\n"
        raw.sendall((head % "open" + f"Content-Length: {MAX_MEMORY_BYTES + 2000}\r\n\r\n").encode())
        assert b" 413 " in raw.recv(4096).split(b"\r\n")[0]
    with socket.create_connection((ADDRESS, served.port), timeout=ANSWER_S) as raw:
        raw.sendall((head % "faults" + "Transfer-Encoding: chunked\r\n\r\n").encode())
        assert b" 411 " in raw.recv(4096).split(b"\r\n")[0]


def test_record_stop_download_open_and_replay_over_http(served):
    assert served.ask("GET", "/recording")[0].status == 404
    for path in ("/stop", "/replay"):
        answer, text = served.post(path)
        assert answer.status == 409 and text
    assert served.post("/record")[0].status == 200
    assert until(lambda: served.state()["recorder"]["bytes"] > 100, 10.0)
    assert served.post("/replay")[0].status == 409
    assert served.post("/stop")[0].status == 200
    answer, data = served.ask("GET", "/recording")
    assert data.startswith(b"PVL-RECORDING 1\n") and "attachment" in answer.headers["Content-Disposition"]
    assert served.post("/open", data.replace(b"\n", b"\n1", 2))[0].status == 409
    assert served.post("/open", data)[0].status == 200
    assert until(lambda: served.state()["replay"]["over"], 30.0)
    state = served.state()
    assert state["replay"]["same"] is True and state["replay"]["screen"] == state["recording"]["screen"]
    assert state["wire"]["mode"] == "silent" and served.post("/record")[0].status == 409
    assert served.post("/live")[0].status == 200 and served.state()["wire"]["mode"] == "live"


def test_events_carry_every_look_and_stand_still_with_the_display():
    served = Served()
    try:
        first, again = served.state(), served.state()
        assert again["number"] > first["number"] and {"counters", "frames", "damage", "words"} <= set(first)
        served.simulator.stop()
        served._thread.join()
        newest = served.page._look.number
        assert served.page.next_look(newest - 1, 0.1).number == newest
        assert served.page.next_look(newest, 0.1) is None, "an old look is never sent as a new one"
        served.page._shown_s -= 3.0
        assert served.page.next_look(0, 0.1) is None, "nor as the first one to a browser that comes now"
        assert served.ask("GET", "/glass")[0].status == served.ask("GET", "/screen.png")[0].status == 503
    finally:
        served.end()


def test_many_browsers_are_served_and_one_that_reads_nothing_holds_nobody_up(served):
    stuck = socket.create_connection((ADDRESS, served.port))
    stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    stuck.sendall(b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    got = []
    threads = [threading.Thread(target=lambda: got.append((served.state(), served.ask("GET", "/glass")[0].status)))
               for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    stuck.close()
    assert [status for _, status in got] == [200] * 20


def test_more_connections_than_allowed_are_turned_away_and_room_is_made_again(served):
    before = threading.active_count()
    idle = [socket.create_connection((ADDRESS, served.port)) for _ in range(MAX_CONNECTIONS + 20)]
    # those turned away read an end, the others not before IDLE_S
    assert until(lambda: len(select.select(idle, [], [], 0)[0]) >= 20, 15.0)
    assert threading.active_count() - before <= MAX_CONNECTIONS
    for connection in idle:
        connection.close()

    def answered() -> bool:
        try:
            return served.ask("GET", "/")[0].status == 200
        except OSError:  # turned away
            return False

    assert until(answered, 10.0)


def test_closing_ends_the_server_its_streams_and_its_port():
    served = Served()
    stream = socket.create_connection((ADDRESS, served.port), timeout=ANSWER_S)
    stream.sendall(b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    stream.recv(100)
    start_s = time.monotonic()
    served.end()
    assert time.monotonic() - start_s < 6.0, "a stream is not waited for: it would notice after ten seconds"
    while stream.recv(65536):
        assert time.monotonic() - start_s < 9.0
    stream.close()
    with pytest.raises(OSError):
        socket.create_connection((ADDRESS, served.port), timeout=0.5)


def test_a_port_that_is_taken_is_said_in_words(served):
    with pytest.raises(WebError, match=f"port {served.port} of 127.0.0.1"):
        WebPage(served.simulator, served.port)


def test_a_recording_too_large_for_a_browser_cannot_come_from_one_either():
    recorder = Recorder()
    assert recorder.step(0, b"x") and web.MAX_MEMORY_BYTES == MAX_MEMORY_BYTES
    recorder.size = MAX_MEMORY_BYTES
    assert not recorder.step(1, b"x") and recorder.problem == "full"
