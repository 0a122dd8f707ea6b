"""What the display may show, and when: the display's side of PVL/1, in the order of PROTOCOL.md's rules.

Pure: bytes and the display's own monotonic milliseconds in, a Screen out. Nothing here asks the sender to be well; a
number is on the screen only while every rule holds, and nothing is ever held, interpolated or carried over.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from firmware_bridge.frame import DecodedFrame, Decoder, Header, Verdict
from firmware_bridge.messages import Bye, Hello, Status, Vitals, Wave
from firmware_bridge.schema import (
    BANNER_TEXT,
    BLANK_AFTER_MS,
    FAULT_BAD_FRAMES,
    FAULT_CLEARING_FRAMES,
    FAULT_WINDOW_MS,
    FORGET_AFTER_MS,
    LEAK_INTERVAL_MS,
    MAX_AGE_MS,
    MAX_LAG_MS,
    MODE_TEXT,
    NO_AGE,
    NO_RATE,
    NO_SAMPLE,
    NO_SQI,
    PR_PAINTABLE_X10,
    RR_PAINTABLE_X10,
    SEQ_TRUSTED_MS,
    SETTLE_BAND_MS,
    SETTLE_MS,
    SETTLE_PAUSE_MS,
    STATE_TEXT,
    TECH_TEXT,
    TRACE_SLACK_MS,
    UNKNOWN_TECH_TEXT,
    Channel,
    Flags,
    ScreenMode,
    Tech,
    VitalState,
)

DASHES = "---"
PULSE_TRACE_S = 6
RESP_TRACE_S = 20


@dataclass(frozen=True)
class Numeral:
    """One number box. x10: the wire value behind the text, 0xFFFF with dashes; bars 0-5; averaging_s 0 = not known."""

    text: str = DASHES
    questionable: bool = False
    reason: str = ""
    bars: int = 0
    averaging_s: int = 0
    x10: int = NO_RATE

    def __str__(self) -> str:
        return self.text + ("?" if self.questionable else "")


@dataclass(frozen=True)
class Screen:
    """Everything a painter needs, and nothing it has to decide.

    host_t_ms: the sender's clock on the VITALS behind the numbers, None when there is none.
    alive: moves on only when bytes were looked at and the screen was made; a painter turns it into a visible mark.
    pulse, resp: trace samples -127..127, oldest first, None = gap; empty = erased.
    """

    mode: ScreenMode
    pr: Numeral
    rr: Numeral
    message: str
    banners: tuple[str, ...]
    alive: int
    product: str
    pulse: tuple[int | None, ...]
    resp: tuple[int | None, ...]
    link: str
    host_t_ms: int | None


class _LagMeter:
    """Rule 2: how far behind the quickest frame of the session a frame is, without a common clock."""

    def __init__(self) -> None:
        self.settled = False
        self._zero: int | None = None  # t_ms - now_ms of the quickest frame, modulo 2**32

    def measure(self, t_ms: int, now_ms: int) -> int:
        offset = t_ms - now_ms
        if self._zero is None:
            self._zero, self._leaked_ms, self._heard_ms = offset, now_ms, now_ms
            self._restart(offset, now_ms)
            return 0
        pause_ms, self._heard_ms = now_ms - self._heard_ms, now_ms
        steps = (now_ms - self._leaked_ms) // LEAK_INTERVAL_MS
        self._leaked_ms += steps * LEAK_INTERVAL_MS
        self._zero -= steps
        ahead = _signed32(offset - self._zero)
        if ahead > 0:
            self._zero = offset
        if self.settled:
            if ahead > SETTLE_BAND_MS:  # what was taken for zero lag was late
                self._restart(offset, now_ms)
        elif pause_ms > SETTLE_PAUSE_MS or abs(_signed32(offset - self._settling_offset)) > SETTLE_BAND_MS:
            self._restart(offset, now_ms)
        elif now_ms - self._settling_since_ms >= SETTLE_MS:
            self.settled = True
        return max(0, -ahead)

    def _restart(self, offset: int, now_ms: int) -> None:
        self.settled = False
        self._settling_offset, self._settling_since_ms = offset, now_ms


class _Trace:
    """The last seconds of one wave, by sample number; what did not arrive stays a gap."""

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds
        self._samples: deque[int | None] = deque()
        self._rate_hz = 0
        self._next = 0  # first_index that would follow without a gap
        self._due_ms = 0  # when the next WAVE should be here

    def clear(self) -> None:
        self._samples.clear()
        self._rate_hz = 0

    def add(self, wave: Wave, now_ms: int) -> None:
        length = self._seconds * wave.rate_hz
        count = len(wave.samples)
        missing = _signed32(wave.first_index - self._next)
        if wave.rate_hz != self._rate_hz or not -count <= missing < length:
            self._samples, missing = deque(maxlen=length), 0
        self._samples.extend([None] * missing)
        known = max(0, -missing)  # samples that the last WAVE brought already
        self._samples.extend(None if sample == NO_SAMPLE else sample for sample in wave.samples[known:])
        self._rate_hz, self._next = wave.rate_hz, wave.first_index + count
        self._due_ms = now_ms + 1000 * count // wave.rate_hz

    def view(self, now_ms: int) -> tuple[int | None, ...]:
        """Always the full width: the newest sample at the right end, moved left by what is overdue."""
        if not self._rate_hz:
            return ()
        length = self._seconds * self._rate_hz
        overdue = max(0, now_ms - self._due_ms - TRACE_SLACK_MS) * self._rate_hz // 1000
        samples = [*self._samples, *([None] * min(overdue, length))][-length:]
        return () if all(sample is None for sample in samples) else (None,) * (length - len(samples)) + tuple(samples)


class DisplayRules:
    """The display: feed it what the port delivers, ask it for the screen. Times are its own monotonic milliseconds."""

    _meter: _LagMeter
    _vitals: Vitals | None  # the newest VITALS of the session, whether or not it may be shown

    def __init__(self, now_ms: int) -> None:
        self.decoder = Decoder()
        self.lost = 0
        self.late = 0
        self._started_ms = now_ms
        self._header: Header | None = None  # of the newest frame taken
        self._header_ms = now_ms
        self._bad_ms: deque[int] = deque(maxlen=FAULT_BAD_FRAMES)
        self._fault = False
        self._good_in_a_row = 0
        self._unsupported_ms: int | None = None
        self._stopped = False
        self._alive = 0
        self._looked = False
        self._traces = {Channel.PULSE: _Trace(PULSE_TRACE_S), Channel.RESP: _Trace(RESP_TRACE_S)}
        self._new_session()
        self._flags = int(Flags.INVESTIGATIONAL)  # until a sender says otherwise
        self._painted = self.screen(now_ms)

    def receive(self, data: bytes, now_ms: int) -> list[DecodedFrame]:
        """Takes what arrived (nothing, too: that it was looked at moves the alive mark). Returns the verdicts."""
        decoded = self.decoder.feed(data)
        for frame in decoded:
            self._take(frame, now_ms)
        self._looked = True
        return decoded

    def screen(self, now_ms: int) -> Screen:
        """What has to be on the glass at this moment."""
        mode = self._mode(now_ms)
        live = mode == ScreenMode.LIVE
        vitals = self._vitals if live else None
        if not live:
            for trace in self._traces.values():
                trace.clear()
        self._alive += self._looked
        self._looked = False
        self._painted = Screen(
            mode=mode,
            pr=self._numeral("pr", vitals, PR_PAINTABLE_X10, now_ms),
            rr=self._numeral("rr", vitals, RR_PAINTABLE_X10, now_ms),
            message=_tech_text(vitals.tech) if vitals else MODE_TEXT[mode],
            banners=tuple(text for flag, text in BANNER_TEXT.items() if self._flags & flag),
            alive=self._alive,
            product=self._product,
            pulse=self._traces[Channel.PULSE].view(now_ms),
            resp=self._traces[Channel.RESP].view(now_ms),
            link=f"ok {self.decoder.counters.ok} bad {self.decoder.counters.bad} lost {self.lost} late {self.late}",
            host_t_ms=self._vitals_t_ms if vitals else None,
        )
        return self._painted

    def status(self, now_ms: int) -> Status:
        """What was received, and what the last screen made put on the glass."""
        counters, painted, header = self.decoder.counters, self._painted, self._header
        shown = [0 if n.x10 == NO_RATE else 2 if n.questionable else 1 for n in (painted.pr, painted.rr)]
        wrapped = {name: getattr(counters, name) & 0xFFFF for name in ("bad_cobs", "bad_crc", "bad_len")}
        return Status(
            last_session=header.session if header else 0, last_seq=header.seq if header else 0,
            frames_ok=counters.ok & 0xFFFF, **wrapped, lost=self.lost & 0xFFFF, late=self.late & 0xFFFF,
            uptime_s=(now_ms - self._started_ms) // 1000 & 0xFFFF,
            shown_pr_x10=painted.pr.x10, shown_rr_x10=painted.rr.x10,
            shown_state=shown[0] | shown[1] << 2 | painted.mode << 4,
        )

    def _mode(self, now_ms: int) -> ScreenMode:
        if self._stopped:
            return ScreenMode.STOPPED
        if self._unsupported_ms is not None and now_ms - self._unsupported_ms < BLANK_AFTER_MS:
            return ScreenMode.UPDATE_REQUIRED
        if self._header is None and self._unsupported_ms is None:
            return ScreenMode.LINK_FAULT if self._fault else ScreenMode.WAITING
        heard_ms = self._header_ms if self._vitals is None else self._vitals_ms
        if now_ms - heard_ms >= BLANK_AFTER_MS:
            return ScreenMode.LINK_LOST
        if self._fault:
            return ScreenMode.LINK_FAULT
        if self._vitals is None or not self._vitals_settled:
            return ScreenMode.SYNCHRONISING
        return ScreenMode.DELAYED if self._vitals_lag_ms > MAX_LAG_MS else ScreenMode.LIVE

    def _numeral(self, name: str, vitals: Vitals | None, paintable_x10: tuple[int, int], now_ms: int) -> Numeral:
        """Rule 1, once the link as a whole is good."""
        if vitals is None:
            return Numeral()
        x10, state, sqi, age_ds, averaging_s = (
            getattr(vitals, f"{name}_{part}") for part in ("x10", "state", "sqi", "age_ds", "avg_s"))
        if state.shows_number:
            age_ms = now_ms - self._vitals_ms + self._vitals_lag_ms + 100 * age_ds
            if age_ds == NO_AGE or age_ms > MAX_AGE_MS:
                state = VitalState.STALE
            elif not paintable_x10[0] <= x10 <= paintable_x10[1]:
                state = VitalState.OUT_OF_RANGE
        reason = STATE_TEXT[state]
        if state not in (VitalState.VALID, VitalState.OFF, VitalState.OUT_OF_RANGE, VitalState.STALE):
            reason = _tech_text(vitals.tech) or reason
        if not state.shows_number:
            return Numeral(reason=reason, averaging_s=averaging_s)
        bars = 0 if sqi == NO_SQI else (sqi + 19) // 20
        return Numeral(str((x10 + 5) // 10), state == VitalState.QUESTIONABLE, reason, bars, averaging_s, x10)

    def _take(self, frame: DecodedFrame, now_ms: int) -> None:
        self._judge_link(frame.verdict.intact, now_ms)
        if not frame.verdict.intact:
            return
        if frame.verdict in (Verdict.BAD_VERSION, Verdict.UNKNOWN_FLAGS):
            self._new_session()
            self._unsupported_ms = now_ms
            return
        header = frame.header
        if header is None or header.type & 0x80 or not self._is_newer(header, now_ms):
            return
        lag_ms = self._meter.measure(header.t_ms, now_ms)
        self._flags |= header.flags  # a session that was a demonstration once stays one
        message = frame.message
        if isinstance(message, Vitals):
            self._vitals, self._vitals_ms, self._vitals_t_ms = message, now_ms, header.t_ms
            self._vitals_lag_ms, self._vitals_settled = lag_ms, self._meter.settled
            self._unsupported_ms, self._stopped = None, False
            self.late += lag_ms > MAX_LAG_MS
        elif isinstance(message, Wave) and message.channel in (Channel.PULSE, Channel.RESP) and lag_ms <= MAX_LAG_MS:
            self._traces[Channel(message.channel)].add(message, now_ms)
        elif isinstance(message, Hello):
            self._product = message.product
        elif isinstance(message, Bye):
            self._vitals, self._stopped = None, True

    def _judge_link(self, intact: bool, now_ms: int) -> None:
        """Rule 4. A cleared fault starts with a clean sheet, or the old bad frames would raise it again at once."""
        if intact:
            self._good_in_a_row += 1
            if self._fault and self._good_in_a_row >= FAULT_CLEARING_FRAMES:
                self._fault = False
                self._bad_ms.clear()
            return
        self._good_in_a_row = 0
        self._bad_ms.append(now_ms)
        if len(self._bad_ms) == FAULT_BAD_FRAMES and now_ms - self._bad_ms[0] <= FAULT_WINDOW_MS:
            self._fault = True

    def _is_newer(self, header: Header, now_ms: int) -> bool:
        """Orders frames within a session; a new session, or one silent for hours, forgets everything first (rule 5)."""
        last, self_ms = self._header, self._header_ms
        if last is None or header.session != last.session or now_ms - self_ms > FORGET_AFTER_MS:
            self._new_session()
        else:
            step = (header.seq - last.seq) & 0xFFFF
            elapsed_ms = _signed32(header.t_ms - last.t_ms)
            if elapsed_ms < 0 or (elapsed_ms < SEQ_TRUSTED_MS and not 0 < step < 0x8000):
                self.late += 1
                return False
            self.lost += max(0, step - 1)
        self._header, self._header_ms = header, now_ms
        return True

    def _new_session(self) -> None:
        self._vitals = None
        self._vitals_ms = self._vitals_t_ms = self._vitals_lag_ms = 0
        self._vitals_settled = False
        self._meter = _LagMeter()
        self._flags = 0
        self._product = ""
        self._stopped = False
        for trace in self._traces.values():
            trace.clear()


def _tech_text(tech: int) -> str:
    """The most important condition in words; one that this display does not know goes before all others."""
    if tech & ~sum(Tech):
        return UNKNOWN_TECH_TEXT
    return next((text for bit, text in TECH_TEXT.items() if tech & bit), "")


def _signed32(value: int) -> int:
    return (value + 0x80000000 & 0xFFFFFFFF) - 0x80000000
