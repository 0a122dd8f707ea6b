"""The C code on other machines and under sanitizers: the same text and the same pixels, and no fault on any bytes.

Compilers and emulators that are not here are a skip with its reason; nothing is installed.
"""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from firmware_bridge import core
from firmware_bridge.messages import Status
from firmware_bridge.rules import DisplayRules, Numeral, Screen
from firmware_bridge.schema import VERDICTS, Flags, MessageType
from tests.fuzz.scenario import Scene, Step, frame
from tests.test_core import VECTORS, lead_in

FUZZ = Path(__file__).parent / "fuzz"
DISPLAY = core.SOURCES
DISPLAY_C = sorted(DISPLAY.glob("pvl_*.c"))
HOST = [FUZZ / "replay.c", FUZZ / "host_main.c", *DISPLAY_C]
CORTEX_M3 = ["arm-none-eabi-gcc", "-mcpu=cortex-m3", "-mthumb", "-Os"]
CODES = {name.lower(): code for code, name in enumerate(VERDICTS)}
FUZZ_S = 60


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not here")
    return found


def run(*command: object, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


# --- warnings and size ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("compiler", ["cc", "clang", "arm-none-eabi-gcc"])
@pytest.mark.parametrize("level", ["-Os", "-O2"])
def test_the_display_code_compiles_without_a_warning(compiler, level, tmp_path):
    arm = CORTEX_M3[1:3] if compiler.startswith("arm") else []
    tool(compiler)
    for source in DISPLAY_C:
        done = run(compiler, *arm, *core.FLAGS, "-pedantic", level, "-c", source, "-o", tmp_path / "x.o")
        assert done.stderr == ""


def test_the_core_asks_for_nothing_but_what_a_compiler_brings(tmp_path):
    """No malloc, no stdio, no floats: the objects name no function of a library but those that gcc itself may call."""
    tool("arm-none-eabi-gcc")
    allowed = {"memcpy", "memset", "memmove", "memcmp", "__aeabi_uldivmod", "__aeabi_ldivmod"}
    for source in DISPLAY_C:
        run(*CORTEX_M3, *core.FLAGS, "-c", source, "-o", tmp_path / "x.o")
        names = run("arm-none-eabi-nm", "--undefined-only", "--format=just-symbols", tmp_path / "x.o").stdout.split()
        assert {name for name in names if not name.startswith("pvl_")} <= allowed, source.name


def test_decoder_and_rules_fit_in_1536_bytes_on_a_cortex_m3(tmp_path):
    tool("arm-none-eabi-gcc")
    run(*CORTEX_M3, *core.FLAGS, "-c", DISPLAY / "pvl_core.c", "-o", tmp_path / "core.o")
    sections = {words[0]: int(words[1]) for line in run("arm-none-eabi-size", "-A", tmp_path / "core.o").stdout.splitlines()
                if len(words := line.split()) == 3 and words[1].isdigit()}
    assert sections[".text"] + sum(n for name, n in sections.items() if name.startswith(".rodata")) <= 1536
    assert sections[".data"] == sections[".bss"] == 0


# --- the same text and pixels everywhere ------------------------------------------------------------------------------

def script(scenes: list[tuple[int, list[Step]]], drawn_every: int) -> bytes:
    """The steps as replay.c reads them. Every so-manyth look is drawn."""
    out, looks = bytearray(), 0
    for start_ms, steps in scenes:
        out += struct.pack("<BI", 0, start_ms & 0xFFFFFFFF)
        for step in steps:
            if step.data is None:
                looks += 1
                out += struct.pack("<BI", 3 if looks % drawn_every == 0 else 2, step.now_ms & 0xFFFFFFFF)
            else:
                out += struct.pack("<BIH", 1, step.now_ms & 0xFFFFFFFF, len(step.data)) + step.data
    return bytes(out)


def vector_scenes() -> list[tuple[int, list[Step]]]:
    """Every vector on a glass that shows numbers already, and what stands there after it."""
    scenes = []
    for vector in VECTORS:
        frames, due_ms = lead_in(vector)
        steps = [Step(now_ms, data) for now_ms, data in [*frames, (due_ms, bytes.fromhex(vector["wire"]))]]
        scenes.append((1000, [*steps, Step(due_ms, None)]))
    return scenes


def random_scenes(count: int, acts: int) -> list[tuple[int, list[Step]]]:
    return [((scene := Scene(seed)).start_ms, list(scene.steps(acts))) for seed in range(7_000, 7_000 + count)]


def write_script(folder: Path, scenes: list[tuple[int, list[Step]]], drawn_every: int) -> None:
    data = script(scenes, drawn_every)
    (folder / "script.h").write_text(f"static const uint8_t script[] = {{{','.join(map(str, data))}}};\n")


def numeral_text(numeral: Numeral) -> str:
    return (f"{numeral.text}|{numeral.x10}|{int(numeral.questionable)}|{numeral.bars}|{numeral.averaging_s}|"
            f"{numeral.reason}")


def screen_text(screen: Screen) -> str:
    words = screen.link.split()
    counters = "|".join(str(int(word) & 0xFFFF) for word in words[1::2])
    banners = sum(int(flag) for flag in Flags if any(flag.name in text for text in screen.banners))
    return (f"look|{int(screen.mode)}|{numeral_text(screen.pr)}|{numeral_text(screen.rr)}|{screen.message}|{banners}|"
            f"{screen.alive & 0xFFFF}|{screen.host_t_ms or 0}|{counters}|{screen.product}")


def reference_lines(scenes: list[tuple[int, list[Step]]]) -> list[str]:
    """What the Python rules say to the same steps."""
    lines = []
    for start_ms, steps in scenes:
        rules = DisplayRules(start_ms)
        for step in steps:
            if step.data is None:
                lines.append(screen_text(rules.screen(step.now_ms)))
            else:
                lines += [f"verdict|{CODES[f.verdict.value]}|{len(f.raw)}" for f in rules.receive(step.data, step.now_ms)]
    return [*lines, "end"]


def on_host(folder: Path) -> list[str]:
    run(*core.compiler(), "-std=c99", "-O1", f"-I{folder}", f"-I{DISPLAY}", *HOST, "-o", folder / "host")
    return run(folder / "host").stdout.splitlines()


def without(lines: list[str], *kinds: str) -> list[str]:
    return [line for line in lines if line.split("|")[0] not in kinds]


def test_replay_on_the_host_says_what_the_rules_say(tmp_path):
    try:
        core.compiler()
    except core.CoreError as error:
        pytest.skip(str(error))
    scenes = [*vector_scenes(), *random_scenes(20, 20)]
    write_script(tmp_path, scenes, drawn_every=50)
    lines = on_host(tmp_path)
    assert without(lines, "status", "pixels") == reference_lines(scenes)
    assert sum(line.startswith("pixels") for line in lines) >= 5


@pytest.mark.soak
def test_an_emulated_cortex_m3_gives_the_same_text_and_pixels_for_all_vectors(tmp_path):
    qemu = tool("qemu-system-arm")
    tool("arm-none-eabi-gcc")
    scenes = [*vector_scenes(), *random_scenes(20, 20)]
    write_script(tmp_path, scenes, drawn_every=2)
    elf = tmp_path / "m3.elf"
    run(*CORTEX_M3, "-std=c99", "-ffreestanding", "-nostdlib", f"-I{tmp_path}", f"-I{DISPLAY}", f"-T{FUZZ / 'm3.ld'}",
        FUZZ / "replay.c", FUZZ / "m3_main.c", *DISPLAY_C, "-lgcc", "-o", elf)
    done = run(qemu, "-machine", "mps2-an385", "-cpu", "cortex-m3", "-display", "none", "-serial", "none", "-monitor", "none",
               "-chardev", "stdio,id=out", "-semihosting-config", "enable=on,target=native,chardev=out", "-kernel", elf,
               timeout_s=600)
    lines = done.stdout.splitlines()
    assert lines == on_host(tmp_path)
    assert without(lines, "status", "pixels") == reference_lines(scenes)
    assert sum(line.startswith("pixels") for line in lines) >= len(VECTORS) // 2


# --- sanitizers -----------------------------------------------------------------------------------------------------

def seed_input(seed: int) -> bytes:
    """A random scene as fuzz_core.c reads it."""
    scene, last_ms, out = Scene(seed), None, bytearray()
    for step in scene.steps(12):
        if step.data is None:
            continue
        passed_ms = 0 if last_ms is None else step.now_ms - last_ms
        last_ms = step.now_ms
        out += struct.pack("<HB", min(passed_ms // 4, 0xFFFF), len(step.data) & 0xFF) + step.data[:255]
    return bytes(out)


@pytest.mark.soak
def test_60_s_of_fuzzing_under_address_and_undefined_behaviour_sanitizers_find_nothing(tmp_path):
    flags = ["-g", "-O1", "-fno-sanitize-recover=all", f"-I{DISPLAY}", f"-I{FUZZ.parent / 'vectors'}"]
    sources = [FUZZ / "fuzz_core.c", *DISPLAY_C]
    binary = tmp_path / "fuzz"
    if shutil.which("clang"):
        corpus = tmp_path / "corpus"
        corpus.mkdir()
        for seed in range(200):
            (corpus / str(seed)).write_bytes(seed_input(seed))
        run("clang", *flags, "-fsanitize=fuzzer,address,undefined", *sources, "-o", binary)
        done = run(binary, f"-max_total_time={FUZZ_S}", "-max_len=4096", f"-artifact_prefix={tmp_path}/", corpus,
                   timeout_s=4 * FUZZ_S)
        runs = int(done.stderr.rsplit("Done ", 1)[1].split()[0])
    else:
        print("no clang: an own driver without coverage instead of libFuzzer")
        run(tool("gcc"), *flags, "-DOWN_DRIVER", "-fsanitize=address,undefined", *sources, "-o", binary)
        runs = int(run(binary, FUZZ_S, timeout_s=4 * FUZZ_S).stdout.split()[0])
    print(f"{runs} runs")
    assert runs > 10_000


def test_a_second_of_damaged_frames_under_the_sanitizers_finds_nothing(tmp_path):
    compiler = tool("gcc")
    probe = tmp_path / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    sanitize = "-fsanitize=address,undefined"
    if subprocess.run([compiler, sanitize, str(probe), "-o", str(tmp_path / "probe")], capture_output=True).returncode:
        pytest.skip("gcc has no sanitizers here")
    run(compiler, "-g", "-O1", "-DOWN_DRIVER", sanitize, "-fno-sanitize-recover=all", f"-I{DISPLAY}",
        f"-I{FUZZ.parent / 'vectors'}", FUZZ / "fuzz_core.c", *DISPLAY_C, "-o", tmp_path / "fuzz")
    assert int(run(tmp_path / "fuzz", 1).stdout.split()[0]) > 50


def test_status_survives_every_zero_that_cobs_may_have_to_hide(tmp_path):
    """STATUS is encoded in place: fields of 0 and of anything else, in random order, come out as frame.py reads them."""
    try:
        core.compiler()
    except core.CoreError as error:
        pytest.skip(str(error))
    rng = random.Random(5)
    for _ in range(200):
        start_ms = rng.choice((0, 0x10000, 0x01000100, rng.randrange(2**32)))
        display = core.CoreDisplay(start_ms)
        display.receive(frame(MessageType.BYE, b"", session=rng.choice((1, 0x100, 0xFFFF)), seq=rng.choice((0, 0x100, 77)),
                              t_ms=0), start_ms)
        assert isinstance(display.status(start_ms + rng.choice((0, 255_000, 256_000))), Status)
