/* Plays a script (script.h, made by the test) through the display's code and writes what it did as text: the same file for
 * the host and for an emulated Cortex-M3, whose lines must be the same. */
#include "pvl_draw.h"
#include "replay.h"
#include "script.h"

enum { INIT, RECEIVE, LOOK, DRAW };

static pvl_display display;
static pvl_traces traces;
static char product[17];
static uint16_t frame_buffer[PVL_SCREEN_WIDTH * PVL_SCREEN_HEIGHT];
static char line[512];
static size_t line_n;

static void add(const char *text)
{
    while (*text && line_n + 1 < sizeof line)
        line[line_n++] = *text++;
    line[line_n] = 0;
}

static void add_number(uint32_t value)
{
    char digits[12];
    size_t at = sizeof digits - 1;
    digits[at] = 0;
    do {
        digits[--at] = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    add("|");
    add(digits + at);
}

static void end_line(void)
{
    add("\n");
    replay_write(line);
    line_n = 0;
}

static void on_wave(void *user, const pvl_wave *wave)
{
    (void)user;
    pvl_traces_wave(&traces, wave);
}

static void on_erase(void *user)
{
    (void)user;
    pvl_traces_erase(&traces);
}

static void on_product(void *user, const char name[16])
{
    (void)user;
    for (int i = 0; i < 16; i++)
        product[i] = name[i];
}

static void on_verdict(void *user, uint8_t verdict, const uint8_t *raw, size_t n)
{
    (void)user;
    (void)raw;
    add("verdict");
    add_number(verdict);
    add_number((uint32_t)n);
    end_line();
}

static void add_numeral(const pvl_numeral *numeral)
{
    add("|");
    add(numeral->text);
    add_number(numeral->x10);
    add_number(numeral->questionable);
    add_number(numeral->bars);
    add_number(numeral->averaging_s);
    add("|");
    add(numeral->reason);
}

static uint32_t hash(const uint8_t *at, size_t n)
{
    return ~pvl_crc32(at, n);
}

static void look(uint32_t now_ms, bool with_pixels)
{
    pvl_view view;
    uint8_t status[PVL_STATUS_CAPACITY];
    pvl_look(&display, now_ms, &view);
    pvl_traces_look(&traces, &view, now_ms);
    add("look");
    add_number(view.mode);
    add_numeral(&view.pr);
    add_numeral(&view.rr);
    add("|");
    add(view.message);
    add_number(view.banners);
    add_number(view.alive);
    add_number(view.has_host_t ? view.host_t_ms : 0);
    add_number(view.ok);
    add_number(view.bad);
    add_number(view.lost);
    add_number(view.late);
    add("|");
    add(product);
    end_line();
    add("status");
    add_number(hash(status, pvl_status(&display, now_ms, status)));
    end_line();
    if (with_pixels) {
        pvl_draw(frame_buffer, &view, &traces, product);
        add("pixels");
        add_number(hash((const uint8_t *)frame_buffer, sizeof frame_buffer));
        end_line();
    }
}

static uint32_t get(const uint8_t *at)
{
    return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

/* Records: what, time (4 bytes), and for RECEIVE the length (2 bytes) and the bytes. */
void replay(void)
{
    static const pvl_hooks hooks = {NULL, on_wave, on_erase, on_product, on_verdict};
    for (size_t at = 0; at < sizeof script;) {
        uint8_t what = script[at];
        uint32_t now_ms = get(script + at + 1);
        at += 5;
        if (what == INIT) {
            pvl_init(&display, now_ms);
            pvl_traces_erase(&traces);
            product[0] = 0;
        } else if (what == RECEIVE) {
            size_t n = script[at] | (size_t)script[at + 1] << 8;
            pvl_receive(&display, script + at + 2, n, now_ms, &hooks);
            at += 2 + n;
        } else {
            look(now_ms, what == DRAW);
        }
    }
    replay_write("end\n");
}
