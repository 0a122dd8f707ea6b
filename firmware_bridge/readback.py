"""Whether the display shows what was sent: its STATUS against the frames that went out. No I/O and no clock in here.

It fails towards dashes: a camera unit that cannot explain what is on the glass is to send no numbers. A display that keeps
PROTOCOL.md is never accused, whatever the line does, short of holding back STATUS itself for seconds or hiding a delay of
seconds from the display: then what is on the glass is old indeed, or nobody can tell.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

from firmware_bridge.frame import Header
from firmware_bridge.messages import Message, Status, Vitals
from firmware_bridge.schema import BLANK_AFTER_MS, MAX_AGE_MS, MAX_LAG_MS, NO_RATE, ScreenMode, VitalState

STATUS_PERIOD_MS = 1_000
# A number may stand on the glass for so long after it was sent (rule 1), STATUS describes a screen painted up to a period
# ago, and the display measures lag against its quickest frame, so it may be wrong by what it lets pass (rule 2).
EXPLAINED_MS = MAX_AGE_MS + STATUS_PERIOD_MS + MAX_LAG_MS
# What an earlier session left on the glass is gone by then.
TAKEOVER_MS = BLANK_AFTER_MS + STATUS_PERIOD_MS + MAX_LAG_MS
# STATUS names the newest frame taken. A frame is half a second old at most, STATUS waits as long to be read; twice that.
MAX_BEHIND_MS = 2_000
# Being behind, or taking nothing, has to last so long: a hiccup of the line is the display's own affair.
PERSISTS_MS = 3_000
# A camera unit that sent nothing for so long was itself asleep. What waits in its input is as old as that.
ASLEEP_MS = 1_500
SILENT_MS = 2_500  # two STATUS missed: what came before says nothing about how long something has lasted
REMEMBERED = 1_024  # frames: 85 s at twelve a second

_MARKS = {VitalState.VALID: 1, VitalState.QUESTIONABLE: 2}  # of shown_state, beside a number


class Trouble(Enum):
    """The worst thing that a STATUS tells. DEAF: the display takes nothing. DELAYED: what it takes is old."""

    NONE = "none"
    DELAYED = "delayed"
    DEAF = "deaf"
    MISMATCH = "mismatch"


# For so long after trouble was seen last no number is to be sent: a wrong glass that is right again under dashes would
# otherwise be wrong again every few seconds. A deaf display blanks by itself.
DISTRUST_MS = {Trouble.MISMATCH: 60_000, Trouble.DELAYED: 5_000}


@dataclass(frozen=True)
class Finding:
    """What one STATUS tells, in words for the log; no words without trouble."""

    trouble: Trouble
    text: str = ""


_NOTHING = Finding(Trouble.NONE)


class ReadBack:
    """Remembers what one sender said lately, and judges what the display says it shows. Times: monotonic milliseconds."""

    def __init__(self) -> None:
        self._session = 0
        self._first_ms = 0
        self._sent_ms = 0
        self._seqs: deque[tuple[int, int]] = deque(maxlen=REMEMBERED)  # (seq, when), oldest first
        self._vitals: deque[tuple[int, Vitals]] = deque(maxlen=REMEMBERED)  # likewise
        self._judged_from_ms = 0
        self._last: Status | None = None
        self._last_ms = 0
        self._taken: int | None = None  # the newest of our frames that the display took, None = none of ours
        self._stuck_ms = 0  # since when that has not changed
        self._behind_ms: int | None = None  # since when it is old
        self._distrusted_until_ms = 0

    def sent(self, header: Header, message: Message, now_ms: int) -> None:
        """Takes down a frame that goes out. A new session forgets the one before."""
        if header.session != self._session:
            self._session, self._first_ms, self._judged_from_ms = header.session, now_ms, now_ms
            self._seqs.clear()
            self._vitals.clear()
        elif now_ms - self._sent_ms > ASLEEP_MS:
            self._judged_from_ms = now_ms + STATUS_PERIOD_MS
        self._sent_ms = now_ms
        self._seqs.append((header.seq, now_ms))
        if isinstance(message, Vitals):
            self._vitals.append((now_ms, message))

    def check(self, status: Status, now_ms: int) -> Finding:
        """Judges a STATUS that has just arrived; of several at once only the newest."""
        if not self._session or now_ms < self._judged_from_ms or now_ms - self._sent_ms > ASLEEP_MS:
            self._last = None
            return _NOTHING
        before, self._last = self._last, status
        self._follow(status, now_ms, fresh=before is None or now_ms - self._last_ms > SILENT_MS)
        self._last_ms = now_ms
        finding = self._judge(status, before, now_ms)
        held_ms = DISTRUST_MS.get(finding.trouble)
        if held_ms is not None:
            self._distrusted_until_ms = max(self._distrusted_until_ms, now_ms + held_ms)
        return finding

    def distrusts(self, now_ms: int) -> bool:
        """Whether no number should be sent: the glass was wrong, or old, a moment ago."""
        return now_ms < self._distrusted_until_ms

    def _follow(self, status: Status, now_ms: int, fresh: bool) -> None:
        """Since when the display has taken nothing new, and since when what it took is old."""
        taken = status.last_seq if status.last_session == self._session else None
        if fresh or taken != self._taken:
            self._taken, self._stuck_ms = taken, now_ms
        behind_ms = self._behind(now_ms)
        if taken is None or (behind_ms is not None and behind_ms <= MAX_BEHIND_MS):
            self._behind_ms = None
        elif fresh or self._behind_ms is None:
            self._behind_ms = now_ms

    def _behind(self, now_ms: int) -> int | None:
        """How long ago the newest frame taken was sent; None where that is not remembered."""
        return next((now_ms - when_ms for seq, when_ms in reversed(self._seqs) if seq == self._taken), None)

    def _judge(self, status: Status, before: Status | None, now_ms: int) -> Finding:
        text = self._contradiction(status, now_ms)
        if text:
            return Finding(Trouble.MISMATCH, text)
        if now_ms - self._stuck_ms >= PERSISTS_MS:
            return Finding(Trouble.DEAF, f"the display takes nothing of what is sent; {_advice(status, before)}")
        if self._behind_ms is not None and now_ms - self._behind_ms >= PERSISTS_MS:
            behind_ms = self._behind(now_ms)
            age = f"{behind_ms / 1000:.1f} s" if behind_ms is not None else "more than a minute"
            return Finding(Trouble.DELAYED, f"what the display takes is {age} old, expected {MAX_BEHIND_MS / 1000:g} s; "
                           "check what stores bytes between the two ends (converters, network bridges)")
        return _NOTHING

    def _contradiction(self, status: Status, now_ms: int) -> str:
        """Why what is on the glass cannot be right, "" where it can."""
        values = (status.shown_pr_x10, status.shown_rr_x10)
        marks = (status.shown_state & 3, status.shown_state >> 2 & 3)
        mode = status.shown_state >> 4
        on_glass = f"the glass shows PR {_number(values[0], marks[0])} RR {_number(values[1], marks[1])}"
        if any((value == NO_RATE) != (mark == 0) or mark == 3 for value, mark in zip(values, marks, strict=True)):
            return f"{on_glass}, its STATUS says shown_state 0x{status.shown_state:02X}: expected both to agree"
        if values == (NO_RATE, NO_RATE):
            return ""
        if mode != ScreenMode.LIVE:
            return f"{on_glass} in screen mode {mode}: expected dashes"
        if now_ms - self._first_ms < TAKEOVER_MS:  # also with a frame of ours taken: the screen may have been painted before
            return ""
        if status.last_session != self._session:
            return f"{on_glass} of session {status.last_session:04X}: expected {self._session:04X}; look for a second sender"
        recent = [vitals for when_ms, vitals in self._vitals if now_ms - when_ms <= EXPLAINED_MS]
        if any(_shows(vitals, values, marks) for vitals in recent):
            return ""
        newest = recent[-1] if recent else None
        was_sent = f"PR {_sent(newest, 'pr')} RR {_sent(newest, 'rr')}" if newest is not None else "no VITALS"
        return f"{on_glass}; sent was {was_sent}, and nothing within {EXPLAINED_MS / 1000:g} s that explains it"


def _shows(vitals: Vitals, values: tuple[int, int], marks: tuple[int, int]) -> bool:
    """Whether a glass with these numbers can come from this message alone. Dashes are always right."""
    sent = ((vitals.pr_x10, vitals.pr_state), (vitals.rr_x10, vitals.rr_state))
    return all(mark == 0 or (value == x10 and mark == _MARKS.get(state))
               for value, mark, (x10, state) in zip(values, marks, sent, strict=True))


def _number(x10: int, mark: int) -> str:
    return "---" if x10 == NO_RATE else f"{x10 / 10:.1f}{'?' if mark == 2 else ''}"


def _sent(vitals: Vitals, name: str) -> str:
    return _number(getattr(vitals, f"{name}_x10"), _MARKS.get(getattr(vitals, f"{name}_state"), 0))


def _advice(status: Status, before: Status | None) -> str:
    """Where to look, by what the display did receive."""
    if status.shown_state >> 4 == ScreenMode.UPDATE_REQUIRED:
        return "it does not know this version of the protocol: update the display"
    broken = sum(getattr(status, n) - getattr(before or status, n) & 0xFFFF for n in ("bad_cobs", "bad_crc", "bad_len"))
    if broken:
        return "bytes arrive broken: check baud rate, stop bits, ground and cable"
    return "no bytes arrive: check the wire from the camera unit's TX to the display's RX"
