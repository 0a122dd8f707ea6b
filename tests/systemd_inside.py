"""What tests/systemd.sh runs in its container: installs the appliance, starts it, hangs it, kills it, takes it away again."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import termios
import time
import tty
from collections.abc import Callable
from pathlib import Path

from firmware_bridge.frame import Decoder
from firmware_bridge.messages import Bye, Message, Vitals
from firmware_bridge.schema import NO_RATE

PROGRAM, DISPLAY = "/opt/physvlm/bin/physvlm", "/dev/physvlm-display"


def run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, f"{' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


def show(name: str, unit: str = "physvlm") -> str:
    return run("systemctl", "show", f"--property={name}", "--value", unit)


class Screen:
    """The display's end of the line: messages as they come."""

    def __init__(self) -> None:
        self._handle, slave = os.openpty()
        tty.setraw(slave)
        os.set_blocking(self._handle, False)
        shutil.chown(os.ttyname(slave), group="dialout")
        os.chmod(os.ttyname(slave), 0o660)
        os.symlink(os.ttyname(slave), DISPLAY)
        os.close(slave)
        self._decoder = Decoder()

    def free(self) -> None:
        """A pseudo-terminal keeps a killed process's exclusive use of it, which a UART's last close ends."""
        slave = os.open(DISPLAY, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        fcntl.ioctl(slave, termios.TIOCNXCL)
        os.close(slave)

    def heard(self) -> list[Message]:
        try:
            data = os.read(self._handle, 1 << 16)
        except OSError:  # nothing there, or nobody has it open
            return []
        return [frame.message for frame in self._decoder.feed(data) if frame.message is not None]

    def until(self, wanted: Callable[[Message], bool], within_s: float) -> float:
        """Seconds until such a message."""
        begun_s = time.monotonic()
        while time.monotonic() - begun_s < within_s:
            if any(wanted(message) for message in self.heard()):
                return time.monotonic() - begun_s
            time.sleep(0.02)
        raise AssertionError(f"no such message within {within_s:g} s\n" + run("journalctl", "-u", "physvlm", "-n", "40"))


def vitals(message: Message) -> bool:
    return isinstance(message, Vitals)


def a_heart_rate(message: Message) -> bool:
    return isinstance(message, Vitals) and message.pr_x10 != NO_RATE and abs(message.pr_x10 - 1500) <= 50


def hurt(screen: Screen, number: int, within_s: float) -> float:
    """Seconds from the signal to the next message of the next process."""
    screen.heard()
    pid = show("MainPID")
    begun_s = time.monotonic()
    os.kill(int(pid), number)
    while show("MainPID") in (pid, "0"):
        assert time.monotonic() - begun_s < within_s, "no new process"
        screen.free()
        time.sleep(0.05)
    screen.heard()
    screen.until(vitals, within_s)
    return time.monotonic() - begun_s


def main() -> None:
    screen = Screen()
    run(PROGRAM, "install", "--apply", "--program", PROGRAM, "--source", "/opt/clip.avi", "--port", DISPLAY, "--roi", "full")
    run("systemd-sysusers")
    run("systemctl", "daemon-reload")
    begun_s = time.monotonic()
    run("systemctl", "enable", "--now", "physvlm")  # Type=notify: it returns with READY=1
    print(f"ready after {time.monotonic() - begun_s:.1f} s")
    print(f"a heart rate on the line {screen.until(a_heart_rate, 30):.1f} s later")

    pid = show("MainPID")
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0 and status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2" and "0" not in status["Uid"].split()
    mounts = {line.split()[1]: line.split()[3].split(",")[0] for line in Path(f"/proc/{pid}/mounts").read_text().splitlines()}
    assert mounts["/"] == "ro" and mounts["/var/cache/physvlm"] == "rw", mounts
    assert show("WatchdogUSec") == "10s" and "VALID" in show("StatusText")
    print("no rights, read-only system, cache writable")

    hang_s = hurt(screen, signal.SIGSTOP, 20)
    assert hang_s <= 15, hang_s
    print(f"hung: on the line again after {hang_s:.1f} s")
    print(f"killed: on the line again after {hurt(screen, signal.SIGKILL, 10):.1f} s")
    begun_s = time.monotonic()
    run("systemctl", "stop", "physvlm")
    stop_s = time.monotonic() - begun_s
    screen.until(lambda message: isinstance(message, Bye), 1)
    assert stop_s < 5 and show("Result") == "success"
    print(f"stopped with BYE in {stop_s:.1f} s")

    run("systemctl", "reset-failed", "physvlm")
    run("systemctl", "start", "physvlm")
    begun_s, kills = time.monotonic(), 0
    while show("ActiveState") != "failed":
        assert time.monotonic() - begun_s < 60, "systemd never gives up"
        screen.free()
        if (pid := show("MainPID")) != "0":
            os.kill(int(pid), signal.SIGKILL)
            kills += 1
        time.sleep(0.05)
    assert show("ActiveState", "physvlm-recover") == "activating", "nobody starts it again"
    print(f"given up after {kills} kills, physvlm-recover waits")

    run(PROGRAM, "install", "--uninstall", "--apply")
    run("systemctl", "stop", "physvlm-recover", "physvlm")
    run("systemctl", "daemon-reload")
    assert show("LoadState") == "not-found" and not list(Path("/etc/systemd/system").rglob("physvlm*"))
    print("taken away again")
    os.unlink(DISPLAY)
    print("all of it as it must be")


if __name__ == "__main__":
    try:
        main()
    except AssertionError as e:
        print(f"FAILED: {e}")
