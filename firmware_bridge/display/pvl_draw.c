#include "pvl_draw.h"

#include "pvl_canvas.h"

#define RGB(r, g, b) ((uint16_t)((((r) >> 3) << 11) | (((g) >> 2) << 5) | ((b) >> 3)))

/* One colour per meaning. Red, and anything that flashes, is kept for alarms, which this display does not have. */
#define BLACK RGB(0, 0, 0)
#define BAR RGB(16, 24, 32)        /* ground of the top and bottom bars */
#define LINE RGB(48, 60, 72)       /* dividers, empty steps */
#define QUIET RGB(152, 168, 184)   /* small print */
#define PLAIN RGB(232, 240, 248)
#define PR_INK RGB(48, 240, 96)    /* green: pulse */
#define RR_INK RGB(255, 232, 0)    /* yellow: breathing */
#define TECHNICAL RGB(0, 224, 255) /* cyan: everything that is about the system, not about the baby */

/* The glass. Numbers stand where they stand in every state; only the traces give way to the DEMO banner. */
enum {
    TOP_BAR = 28,
    ROW_TOP = 30, ROW_HEIGHT = 194, ROW_STEP = 196, /* a row: a trace and, at its right, the number that belongs to it */
    MESSAGE_TOP = 422, MESSAGE_BOTTOM = 462,
    TRACE_LEFT = 2, TRACE_TOP = 28, ERASE_BAR = 14,
    DEMO_TOP = 176, DEMO_BOTTOM = 274, /* 394 x 98 pixels: more than a tenth of the glass */
    NUMBERS_LEFT = 396, SIDE_LEFT = 402,
    DIGITS_LEFT = 456, DIGITS_RIGHT = 728, DIGITS_STEP = 94, DIGITS_TOP = 28,
    MARK_LEFT = 740, RIGHT_EDGE = 797,
    WHY_TOP = 116,
    SOFT = 16, PEN = 38 /* a trace's height is reckoned in 1/16 pixels, and so thick is its pen */
};

static char *decimal(char *out, uint32_t value)
{
    char digits[10];
    int32_t n = 0;

    do {
        digits[n++] = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    while (n > 0)
        *out++ = digits[--n];
    *out = '\0';
    return out;
}

static char *append(char *out, const char *words)
{
    while (*words)
        *out++ = *words++;
    *out = '\0';
    return out;
}

/* ---- numbers ---------------------------------------------------------------------------------------------------- */

/* One to three digits without a leading zero; anything else is painted as dashes. */
static bool is_number(const char *shown)
{
    uint32_t n = 0;

    while (n < 3 && shown[n] >= '0' && shown[n] <= '9')
        n++;
    return n > 0 && shown[0] != '0' && shown[n] == '\0';
}

static void quality(const pvl_canvas *on, int32_t top, const pvl_numeral *numeral, uint16_t ink)
{
    char words[8];
    const pvl_font *font = numeral->averaging_s < 100 ? &pvl_font_medium : &pvl_font_small;

    pvl_text(on, &pvl_font_small, SIDE_LEFT, top + 28, "signal", 6, QUIET, BLACK);
    for (int32_t step = 0; step < 5; step++) {
        int32_t y = top + 114 - 16 * step;
        pvl_fill(on, SIDE_LEFT, y, SIDE_LEFT + 42, y + 12, step < numeral->bars ? ink : LINE);
        if (step >= numeral->bars)
            pvl_fill(on, SIDE_LEFT + 2, y + 2, SIDE_LEFT + 40, y + 10, BLACK);
    }
    if (!numeral->averaging_s)
        return;
    append(decimal(words, numeral->averaging_s), " s");
    pvl_text(on, &pvl_font_small, SIDE_LEFT, top + 144, "avg", 3, QUIET, BLACK);
    pvl_text(on, font, SIDE_LEFT, top + 180 - font->cap, words, UINT32_MAX, PLAIN, BLACK);
}

/* Three dashes, and why, in words to be read from a distance. */
static void dashes(const pvl_canvas *screen, int32_t top, const char *why, uint16_t ink)
{
    pvl_canvas number = pvl_within(screen, DIGITS_LEFT, top + DIGITS_TOP, RIGHT_EDGE, top + WHY_TOP);
    pvl_canvas below = pvl_within(screen, DIGITS_LEFT, top + WHY_TOP, RIGHT_EDGE, top + ROW_HEIGHT);

    for (int32_t place = 0; place < 3; place++) {
        int32_t left = DIGITS_LEFT + 8 + DIGITS_STEP * place;
        pvl_text(&number, &pvl_font_digits, left, top + DIGITS_TOP - 40, "-", 1, ink, BLACK);
    }
    pvl_paragraph(&below, &pvl_font_large, why, 38, TECHNICAL, BLACK);
}

/* label, unit, and for a shown number its reason at the right, smaller where it would not fit. */
static void heading(const pvl_canvas *on, const char *label, const char *unit, const char *reason, uint16_t ink)
{
    int32_t top = on->top + 5, left, right = RIGHT_EDGE - 6;
    const pvl_font *font = &pvl_font_medium;

    left = pvl_text(on, font, SIDE_LEFT, top, label, UINT32_MAX, ink, BLACK);
    left = pvl_text(on, font, left + 6, top, unit, UINT32_MAX, QUIET, BLACK) + 6;
    if (pvl_text_width(font, reason, UINT32_MAX) > right - left)
        font = &pvl_font_small;
    if (pvl_text_width(font, reason, UINT32_MAX) < right - left)
        left = right - pvl_text_width(font, reason, UINT32_MAX);
    pvl_text(on, font, left, top + pvl_font_medium.cap - font->cap, reason, UINT32_MAX, TECHNICAL, BLACK);
}

static void number_box(const pvl_canvas *screen, int32_t top, const char *label, const char *unit,
                       const pvl_numeral *numeral, const char *message, uint16_t ink)
{
    pvl_canvas head = pvl_within(screen, SIDE_LEFT, top, RIGHT_EDGE, top + DIGITS_TOP);
    pvl_canvas side = pvl_within(screen, SIDE_LEFT, top + DIGITS_TOP, DIGITS_LEFT - 2, top + ROW_HEIGHT);
    pvl_canvas number = pvl_within(screen, DIGITS_LEFT, top + DIGITS_TOP, RIGHT_EDGE, top + ROW_HEIGHT);
    const char *reason = numeral->reason ? numeral->reason : "";
    int32_t left;

    quality(&side, top, numeral, ink);
    if (!is_number(numeral->text)) {
        heading(&head, label, unit, "", ink);
        dashes(screen, top, reason[0] ? reason : message, ink); /* no reason of its own: the message is about both */
        return;
    }
    heading(&head, label, unit, reason, ink);
    left = DIGITS_RIGHT - pvl_text_width(&pvl_font_digits, numeral->text, 3);
    pvl_text(&number, &pvl_font_digits, left, top + DIGITS_TOP, numeral->text, 3, ink, BLACK);
    if (numeral->questionable)
        pvl_text(&number, &pvl_font_mark, MARK_LEFT, top + DIGITS_TOP + 42, "?", 1, ink, BLACK);
}

/* ---- traces ----------------------------------------------------------------------------------------------------- */

typedef struct {
    pvl_canvas on;
    uint16_t shade[16];
    int32_t column;       /* being gathered; -1 none */
    int32_t high, low;    /* in 1/SOFT pixels from the top of the screen */
} pencil;

/* Neighbouring columns overlap; the fuller coverage stays. Every ink here is mostly green. */
static void lighten(const pvl_canvas *on, int32_t x, int32_t y, uint16_t colour)
{
    uint16_t *at = pvl_pixel(on, x, y);

    if (at && (*at & 0x07E0) < (colour & 0x07E0))
        *at = colour;
}

static void flush(pencil *pen)
{
    int32_t top = pen->high - PEN / 2, bottom = pen->low + PEN / 2;

    if (pen->column >= 0)
        for (int32_t y = top / SOFT; y * SOFT < bottom; y++) {
            int32_t from = y * SOFT > top ? y * SOFT : top;
            int32_t to = (y + 1) * SOFT < bottom ? (y + 1) * SOFT : bottom;
            uint16_t shade = pen->shade[(to - from) * 15 / SOFT];
            lighten(&pen->on, pen->column, y, shade);
            lighten(&pen->on, pen->column + 1, y, shade); /* or steep parts would look thinner than flat ones */
        }
    pen->column = -1;
}

static void touch(pencil *pen, int32_t column, int32_t y)
{
    if (column != pen->column) {
        flush(pen);
        pen->column = column;
        pen->high = pen->low = y;
    }
    if (y < pen->high)
        pen->high = y;
    if (y > pen->low)
        pen->low = y;
}

/* A straight line; x in 1/256 pixels, rising. */
static void stroke(pencil *pen, int32_t x0, int32_t y0, int32_t x1, int32_t y1)
{
    for (int32_t column = x0 >> 8; column <= x1 >> 8; column++) {
        int32_t from = column << 8 > x0 ? column << 8 : x0;
        int32_t to = (column + 1) << 8 < x1 ? (column + 1) << 8 : x1;
        touch(pen, column, x1 == x0 ? y0 : y0 + (y1 - y0) * (from - x0) / (x1 - x0));
        touch(pen, column, x1 == x0 ? y1 : y0 + (y1 - y0) * (to - x0) / (x1 - x0));
    }
}

/* One sweep across the box. The newest sample stands where the sweep is; the gap ahead of it is the erase bar. */
static void sweep(const pvl_canvas *on, const pvl_traces *traces, uint8_t channel, uint16_t ink)
{
    bool is_pulse = channel == PVL_CHANNEL_PULSE;
    const pvl_trace *trace = is_pulse ? &traces->pulse : &traces->resp;
    int32_t px_256 = is_pulse ? PVL_PX_256_PER_S(PVL_PULSE_NM_PER_S) : PVL_PX_256_PER_S(PVL_RESP_NM_PER_S);
    int32_t samples = (is_pulse ? PVL_PULSE_SWEEP_S : PVL_RESP_SWEEP_S) * trace->rate_hz;
    int32_t erased = ERASE_BAR * 256 * trace->rate_hz / px_256 + 1;
    int32_t middle = (on->top + on->bottom) * SOFT / 2;
    int32_t reach = (on->bottom - on->top - 6) * SOFT / 2;
    int32_t last_x = 0, last_y = 0;
    bool joined = false;
    pencil pen;

    pen.on = *on;
    pen.column = -1;
    for (uint32_t i = 0; i < 16; i++)
        pen.shade[i] = pvl_mix(BLACK, ink, i);
    for (int32_t i = 0; i < samples; i++) {
        int32_t age = (trace->sweep + trace->overdue % samples + 2 * samples - 1 - i) % samples;
        int8_t sample = age >= samples - erased ? PVL_NO_SAMPLE : pvl_traces_at(traces, channel, (uint32_t)age);
        int32_t x = (on->left << 8) + i * px_256 / trace->rate_hz, y = middle - sample * reach / 127;
        if (sample != PVL_NO_SAMPLE)
            stroke(&pen, joined ? last_x : x, joined ? last_y : y, x, y);
        joined = sample != PVL_NO_SAMPLE;
        last_x = x;
        last_y = y;
    }
    flush(&pen);
}

static void trace_panel(const pvl_canvas *screen, int32_t top, int32_t bottom, const char *name, const char *speed,
                        const pvl_traces *traces, uint8_t channel, uint16_t ink)
{
    pvl_canvas on = pvl_within(screen, TRACE_LEFT, top, NUMBERS_LEFT - 4, bottom);
    int32_t second = PVL_PX_256_PER_S(PVL_PULSE_NM_PER_S);
    int32_t x = pvl_text(&on, &pvl_font_medium, TRACE_LEFT + 6, top + 5, name, UINT32_MAX, ink, BLACK);

    pvl_text(&on, &pvl_font_small, x + 8, top + 9, "relative", UINT32_MAX, QUIET, BLACK);
    x = on.right - 6 - pvl_text_width(&pvl_font_small, speed, UINT32_MAX);
    pvl_text(&on, &pvl_font_small, x, top + 9, speed, UINT32_MAX, QUIET, BLACK);
    for (int32_t i = 0; i * second >> 8 < PVL_TRACE_ROOM_PX; i++) /* a tick every 25 mm */
        pvl_fill(&on, TRACE_LEFT + (i * second >> 8), bottom - 5, TRACE_LEFT + (i * second >> 8) + 2, bottom, LINE);
    on.top += TRACE_TOP;
    on.bottom -= 6;
    if (traces)
        sweep(&on, traces, channel, ink);
}

/* ---- bars and banners ------------------------------------------------------------------------------------------- */

/* Eight dots on a ring, one of them lit; all during the segment test. */
static void alive_mark(const pvl_canvas *on, uint16_t alive, bool all)
{
    static const int8_t place[8][2] = {{0, -9}, {6, -6}, {9, 0}, {6, 6}, {0, 9}, {-6, 6}, {-9, 0}, {-6, -6}};

    for (int32_t i = 0; i < 8; i++) {
        bool lit = all || i == (alive & 7);
        int32_t x = 783 + place[i][0], y = 14 + place[i][1], r = lit ? 3 : 2;
        pvl_fill(on, x - r, y - r + 1, x + r, y + r - 1, lit ? PLAIN : LINE);
        pvl_fill(on, x - r + 1, y - r, x + r - 1, y + r, lit ? PLAIN : LINE);
    }
}

static void top_bar(const pvl_canvas *screen, const pvl_view *view, const char *product)
{
    pvl_canvas on = pvl_within(screen, 0, 0, PVL_SCREEN_WIDTH, TOP_BAR);
    pvl_canvas left = pvl_within(screen, 0, 0, 276, TOP_BAR); /* the widest banner begins behind it */
    bool investigational = view->banners & PVL_FLAG_INVESTIGATIONAL;
    const char *banner = view->testing ? "TEST" : investigational ? PVL_BANNER_INVESTIGATIONAL : "";
    int32_t x = 760 - pvl_text_width(&pvl_font_medium, banner, UINT32_MAX);

    pvl_fill(&on, 0, 0, PVL_SCREEN_WIDTH, TOP_BAR, BAR);
    pvl_text(&left, &pvl_font_medium, 8, 6, product && product[0] ? product : "camera unit", 16, PLAIN, BAR);
    pvl_text(&on, &pvl_font_medium, x, 6, banner, UINT32_MAX, TECHNICAL, BAR);
    alive_mark(&on, view->alive, view->testing);
}

static void demo_banner(const pvl_canvas *screen, const char *words)
{
    pvl_canvas on = pvl_within(screen, 0, DEMO_TOP, NUMBERS_LEFT - 2, DEMO_BOTTOM);
    uint32_t first = 0, rest;

    pvl_fill(&on, 0, DEMO_TOP, NUMBERS_LEFT - 2, DEMO_BOTTOM, TECHNICAL);
    while (words[first] && !(words[first] == ' ' && words[first + 1] == '-'))
        first++;
    rest = words[first] ? first + 3 : first;
    for (int32_t line = 0; line < 2; line++) {
        const char *part = line ? words + rest : words;
        uint32_t most = line ? UINT32_MAX : first;
        int32_t x = (NUMBERS_LEFT - 2 - pvl_text_width(&pvl_font_large, part, most)) / 2;
        pvl_text(&on, &pvl_font_large, x, DEMO_TOP + (words[first] ? 15 + 40 * line : 35), part, most, BLACK, TECHNICAL);
    }
}

static void message_line(const pvl_canvas *screen, const char *message)
{
    pvl_canvas on = pvl_within(screen, 0, MESSAGE_TOP, PVL_SCREEN_WIDTH, MESSAGE_BOTTOM);

    pvl_text(&on, &pvl_font_large, 8, MESSAGE_TOP + 5, message, UINT32_MAX, TECHNICAL, BLACK);
}

static void bottom_bar(const pvl_canvas *screen, const pvl_view *view)
{
    pvl_canvas on = pvl_within(screen, 0, MESSAGE_BOTTOM, PVL_SCREEN_WIDTH, PVL_SCREEN_HEIGHT);
    char words[64], *end = append(words, "frames ok ");

    end = append(decimal(end, view->ok), "   bad ");
    end = append(decimal(end, view->bad), "   lost ");
    end = append(decimal(end, view->lost), "   late ");
    decimal(end, view->late);
    pvl_fill(&on, 0, MESSAGE_BOTTOM, PVL_SCREEN_WIDTH, PVL_SCREEN_HEIGHT, BAR);
    pvl_text(&on, &pvl_font_small, 8, MESSAGE_BOTTOM + 2, words, UINT32_MAX, QUIET, BAR);
}

void pvl_draw(uint16_t *fb, const pvl_view *view, const pvl_traces *traces, const char *product)
{
    static const pvl_numeral all = {"888", 0xFFFF, 1, 5, 88, "TEST"};
    pvl_canvas screen = {fb, 0, 0, PVL_SCREEN_WIDTH, PVL_SCREEN_HEIGHT};
    bool testing = view->testing != 0, demo = testing || (view->banners & PVL_FLAG_DEMO);
    const char *message = testing ? "START-UP TEST" : view->message ? view->message : "";
    int32_t second = ROW_TOP + ROW_STEP;

    if (testing || view->mode != PVL_MODE_LIVE)
        traces = NULL;
    pvl_fill(&screen, 0, 0, PVL_SCREEN_WIDTH, PVL_SCREEN_HEIGHT, BLACK);
    pvl_fill(&screen, 0, second - 2, PVL_SCREEN_WIDTH, second - 1, LINE);
    pvl_fill(&screen, 0, MESSAGE_TOP - 2, PVL_SCREEN_WIDTH, MESSAGE_TOP - 1, LINE);
    pvl_fill(&screen, NUMBERS_LEFT - 2, TOP_BAR, NUMBERS_LEFT - 1, MESSAGE_TOP - 2, LINE);
    trace_panel(&screen, ROW_TOP, demo ? DEMO_TOP : second - 2, "pulse", "25 mm/s", traces, PVL_CHANNEL_PULSE, PR_INK);
    trace_panel(&screen, demo ? DEMO_BOTTOM : second, MESSAGE_TOP - 2, "breathing", "6.25 mm/s", traces,
                PVL_CHANNEL_RESP, RR_INK);
    if (demo)
        demo_banner(&screen, testing ? "TEST" : PVL_BANNER_DEMO);
    /* Seen by a camera: never HR, which means ECG. */
    number_box(&screen, ROW_TOP, "PR camera", "bpm", testing ? &all : &view->pr, message, PR_INK);
    number_box(&screen, second, "RR camera", "/min", testing ? &all : &view->rr, message, RR_INK);
    top_bar(&screen, view, product);
    message_line(&screen, message);
    bottom_bar(&screen, view);
}
