"""The simulator as a page for a browser on this computer: the exact frame buffer, the wire's state, and faults to set.

The page paints the pixels that it is given and knows no rule. The server listens on 127.0.0.1 alone, answers to no other
name (a foreign page whose name is made to point here gets nothing), and changes something only for a POST of its own page.
"""

from __future__ import annotations

import gzip
import json
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any

from firmware_bridge.faults import FaultError, Faults
from firmware_bridge.painter import spoken
from firmware_bridge.png import encode_png
from firmware_bridge.port import LinkError
from firmware_bridge.recording import MAX_MEMORY_BYTES, Recording, RecordingError
from firmware_bridge.schema import BLANK_AFTER_MS
from firmware_bridge.simulator import HEIGHT_PX, WIDTH_PX, Look, Simulator

ADDRESS = "127.0.0.1"
MAX_CONNECTIONS = 64
IDLE_S = 30.0  # a browser that neither asks nor reads for so long is let go
HEARTBEAT_S = 10.0  # without looks nothing is sent but a comment: the page must see that the display stands still
_OWN_NAMES = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?", re.ASCII)
_MAX_FAULTS_BYTES = 1_000
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin"}


class WebError(LinkError):
    """The page cannot be served."""


class WebPage:
    """Serves a simulator. show() is its on_look; close() ends all connections."""

    def __init__(self, simulator: Simulator, port: int = 0) -> None:
        self.simulator = simulator
        self.token = secrets.token_urlsafe(24)
        self.run_id = secrets.token_hex(8)
        self.closing = False
        self._look: Look | None = None
        self._shown_s = 0.0
        self._moved = threading.Condition()
        self._packed: tuple[str, bytes] = ("", b"")
        try:
            self._server = _Server((ADDRESS, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise WebError(f"port {port} of {ADDRESS} cannot be used ({reason}). Choose another, or none for a free one.") \
                from error
        self._server.page = self
        self.url = f"http://{ADDRESS}:{self._server.server_address[1]}/"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        self._thread.start()

    def show(self, look: Look) -> None:
        with self._moved:
            self._look, self._shown_s = look, time.monotonic()
            self._moved.notify_all()

    def close(self) -> None:
        with self._moved:
            self.closing = True
            self._moved.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def next_look(self, after: int, timeout_s: float) -> Look | None:
        """The newest look once it is newer than number `after`; None where none came in time, or all ends."""
        with self._moved:
            self._moved.wait_for(lambda: self.closing or (self._look is not None and self._look.number > after), timeout_s)
            look = self._fresh()
            return None if self.closing or look is None or look.number <= after else look

    def _fresh(self) -> Look | None:
        """The newest look, unless the display stands still: who connects then must not be shown an old number."""
        return self._look if time.monotonic() - self._shown_s < BLANK_AFTER_MS / 1000 else None

    def glass(self) -> tuple[str, bytes] | None:
        """The newest frame buffer: its hash, and gzip. Packed once, for any number of browsers."""
        with self._moved:
            look = self._fresh()
            if look is None or not look.pixels:
                return None
            if self._packed[0] != look.glass:
                self._packed = (look.glass, gzip.compress(look.pixels, 1))
            return self._packed

    def png(self) -> bytes | None:
        look = self._fresh()
        return encode_png(look.pixels, WIDTH_PX, HEIGHT_PX) if look is not None and look.pixels else None

    @cached_property
    def template(self) -> str:
        return files("firmware_bridge").joinpath("page.html").read_text(encoding="utf-8")

    def state(self, look: Look) -> dict[str, Any]:
        """What the page shows beside the glass."""
        screen, link, replay, recorder, recording = look.screen, look.link, look.replay, look.recorder, look.recording
        return {
            "run": self.run_id, "number": look.number, "t_s": round(look.t_s, 1), "glass": look.glass,
            "words": "start-up test" if look.testing else spoken(screen), "mode": screen.mode.name,
            "counters": look.counters, "damage": look.damage, "faults": asdict(look.faults),
            "frames": [asdict(frame) for frame in look.frames],
            "wire": {"mode": look.mode, "name": look.source, "live": link is not None,
                     "link": link.state.value if link is not None else "", "reopens": link.reopens if link is not None else 0},
            "replay": asdict(replay) if replay is not None else None,
            "recorder": {"to": str(recorder.path or ""), "s": round(recorder.duration_s, 1), "bytes": recorder.bytes}
            if recorder is not None else None,
            "recording": {"s": round(recording.duration_ms / 1000, 1), "steps": recording.steps, "screen": recording.screen,
                          "complete": recording.complete} if recording is not None else None,
            "problem": look.problem,
        }


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # browsers keep connections open that nobody writes to
    allow_reuse_address = True
    request_queue_size = MAX_CONNECTIONS
    page: WebPage

    def __init__(self, *args: Any) -> None:
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away in the middle is no news; anything else is a fault of ours."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "physvlm", ""
    timeout = IDLE_S
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """The terminal belongs to the display."""

    @property
    def _page(self) -> WebPage:
        return self.server.page  # type: ignore[attr-defined]

    def do_GET(self) -> None:
        if not self._is_ours():
            return
        answers: dict[str, Callable[[], None]] = {"/": self._send_page, "/events": self._send_events,
                                                  "/glass": self._send_glass, "/screen.png": self._send_png,
                                                  "/recording": self._send_recording}
        answer = answers.get(self.path.partition("?")[0])
        if answer is None:
            self._refuse(HTTPStatus.NOT_FOUND, "no such page; the simulator is at /")
        else:
            answer()

    def do_POST(self) -> None:
        simulator = self._page.simulator
        body = self._body()
        if body is None:
            return
        acts: dict[str, Callable[[], object]] = {
            "/faults": lambda: simulator.set_faults(_faults(body)), "/record": simulator.start_recording,
            "/stop": simulator.stop_recording, "/replay": simulator.replay, "/live": simulator.go_live,
            "/open": lambda: simulator.replay(Recording.read(body)),
        }
        act = acts.get(self.path)
        if act is None:
            self._refuse(HTTPStatus.NOT_FOUND, "no such action")
            return
        try:
            act()
        except FaultError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except RecordingError as error:
            self._refuse(HTTPStatus.CONFLICT, str(error))
        else:
            self._send(HTTPStatus.OK, "application/json", b"{}")

    # --- who may ask ---------------------------------------------------------------------------------------------------

    def _is_ours(self) -> bool:
        """Whether the request names this computer, as no page from elsewhere can."""
        host = self.headers.get("Host", "")
        if len(self.headers.get_all("Host") or ()) == 1 and _OWN_NAMES.fullmatch(host):
            return True
        self._refuse(HTTPStatus.MISDIRECTED_REQUEST, f"asked for {host[:80]!r}; this is {self._page.url} and nothing else")
        return False

    def _body(self) -> bytes | None:
        """The body of a POST that our own page made; None when it was refused."""
        if not self._is_ours():
            return None
        origin, token = self.headers.get("Origin"), self.headers.get("X-Physvlm-Token", "")
        if origin not in (None, f"http://{self.headers['Host']}") or not secrets.compare_digest(
                token.encode("latin-1", "replace"), self._page.token.encode()):
            self._refuse(HTTPStatus.FORBIDDEN, "only the simulator's own page may change anything; load it anew")
            return None
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,12}", length, re.ASCII):
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing")
            return None
        limit = MAX_MEMORY_BYTES + 1_000 if self.path == "/open" else _MAX_FAULTS_BYTES
        if int(length) > limit:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{length} bytes; expected at most {limit}")
            return None
        body = self.rfile.read(int(length))
        return body if len(body) == int(length) else None

    # --- answers --------------------------------------------------------------------------------------------------------

    def _send_page(self) -> None:
        nonce = secrets.token_urlsafe(16)
        html = self._page.template
        for mark, value in (("@NONCE@", nonce), ("@TOKEN@", self._page.token), ("@RUN@", self._page.run_id)):
            html = html.replace(mark, value)
        policy = (f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
                  "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
        self._send(HTTPStatus.OK, "text/html; charset=utf-8", html.encode(), {"Content-Security-Policy": policy})

    def _send_events(self) -> None:
        """Server-sent events: one for every look at the glass. Nothing is repeated: silence means that it stands still."""
        self.close_connection = True
        self._head(HTTPStatus.OK, {"Content-Type": "text/event-stream", "Connection": "close"})
        self.wfile.write(b"retry: 1000\n\n")
        number = 0
        while not self._page.closing:
            look = self._page.next_look(number, HEARTBEAT_S)
            if look is None:
                self.wfile.write(b":\n\n")  # finds out whether the browser is still there
                continue
            number = look.number
            self.wfile.write(b"data: " + json.dumps(self._page.state(look)).encode() + b"\n\n")

    def _send_glass(self) -> None:
        glass = self._page.glass()
        if glass is None:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "the display has not been looked at for 3 s, or never")
            return
        name, packed = glass
        self._send(HTTPStatus.OK, "application/octet-stream", packed, {"Content-Encoding": "gzip", "X-Glass": name})

    def _send_png(self) -> None:
        png = self._page.png()
        if png is None:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "the display has not been looked at for 3 s, or never")
        else:
            self._send(HTTPStatus.OK, "image/png", png)

    def _send_recording(self) -> None:
        recording = self._page.simulator.recording
        if recording is None:
            self._refuse(HTTPStatus.NOT_FOUND, "nothing has been recorded yet")
            return
        try:
            data = recording.as_bytes()
        except RecordingError as error:
            self._refuse(HTTPStatus.CONFLICT, str(error))
            return
        self._send(HTTPStatus.OK, "application/octet-stream", data,
                   {"Content-Disposition": 'attachment; filename="display.pvlrec"'})

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self.close_connection = True  # a body may be unread
        self._send(status, "text/plain; charset=utf-8", (reason + "\n").encode(), {"Connection": "close"})

    def _send(self, status: HTTPStatus, kind: str, body: bytes, more: dict[str, str] | None = None) -> None:
        self._head(status, {"Content-Type": kind, "Content-Length": str(len(body)), **(more or {})})
        self.wfile.write(body)

    def _head(self, status: HTTPStatus, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, **headers}.items():
            self.send_header(name, value)
        self.end_headers()


def _faults(body: bytes) -> Faults:
    try:
        given = json.loads(body)
        return Faults(**given)
    except (ValueError, TypeError, RecursionError) as error:
        if isinstance(error, FaultError):
            raise
        raise FaultError(f"faults: expected a JSON object of {', '.join(Faults.__dataclass_fields__)} ({error})") from error
