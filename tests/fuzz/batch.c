/* What the tests run through the C core by the million. Built by firmware_bridge.core.build as a shared library. */
#include "pvl_core.h"
#include "pvl_traces.h"

enum { MAX_STREAM = 2048, MAX_VERDICTS = 512 };

/* Frames that were really sent: their bytes on the wire, and the numbers that may stand on the glass. */
typedef struct {
    uint8_t wire[160];
    size_t n;
    uint16_t x10[2]; /* 0xFFFF: none */
} batch_sent;

typedef struct {
    uint64_t tried, ok, bad, wrong_frames, wrong_numbers, after_lost;
    uint64_t shown; /* looks that had a number on the glass: without any, nothing was proven */
    uint8_t example[MAX_STREAM];
    size_t example_n;
} batch_result;

/* A display with numbers on the glass, the frames that may be accepted (the last of them follows every damaged piece and
 * must be accepted), and the moment. */
typedef struct {
    pvl_display display;
    uint32_t now_ms;
    uint32_t sent_count;
    batch_sent sent[64];
} batch_scene;

typedef struct {
    const batch_scene *scene;
    uint64_t ok, bad, wrong, last;
} verdict_count;

static void count_verdict(void *user, uint8_t verdict, const uint8_t *raw, size_t n)
{
    verdict_count *count = user;
    if (verdict != PVL_OK) {
        count->bad++;
        return;
    }
    count->ok++;
    for (uint32_t i = 0; i < count->scene->sent_count; i++) {
        const batch_sent *sent = &count->scene->sent[i];
        size_t k = 0;
        while (k < n && n + 2 == sent->n && sent->wire[k + 1] == raw[k])
            k++;
        if (k == n) {
            count->last = i;
            return;
        }
    }
    count->wrong++;
}

static bool may_show(const batch_scene *scene, unsigned which, uint16_t x10)
{
    if (x10 == 0xFFFF)
        return true;
    for (uint32_t i = 0; i < scene->sent_count; i++)
        if (scene->sent[i].x10[which] == x10)
            return true;
    return false;
}

static bool look(const batch_scene *scene, pvl_display *display, batch_result *result)
{
    pvl_view view;
    pvl_look(display, scene->now_ms, &view);
    result->shown += view.pr.x10 != 0xFFFF || view.rr.x10 != 0xFFFF;
    return may_show(scene, 0, view.pr.x10) && may_show(scene, 1, view.rr.x10);
}

/* One damaged piece of wire, cut in two at `cut`, then the frame that follows. */
static void attempt(const batch_scene *scene, const uint8_t *piece, size_t n, size_t cut, batch_result *result)
{
    verdict_count count = {scene, 0, 0, 0, ~(uint64_t)0};
    pvl_hooks hooks = {&count, 0, 0, 0, count_verdict};
    pvl_display display = scene->display;
    const batch_sent *after = &scene->sent[scene->sent_count - 1];
    bool fine;
    pvl_receive(&display, piece, cut, scene->now_ms, &hooks);
    fine = look(scene, &display, result);
    pvl_receive(&display, piece + cut, n - cut, scene->now_ms, &hooks);
    pvl_receive(&display, (const uint8_t *)"", 1, scene->now_ms, &hooks);
    fine = look(scene, &display, result) && fine;
    pvl_receive(&display, after->wire, after->n, scene->now_ms, &hooks);
    fine = look(scene, &display, result) && fine;
    result->tried++;
    result->ok += count.ok;
    result->bad += count.bad;
    result->wrong_frames += count.wrong;
    result->wrong_numbers += !fine;
    result->after_lost += count.last != scene->sent_count - 1;
    if ((count.wrong || !fine || count.last != scene->sent_count - 1) && n <= MAX_STREAM && !result->example_n) {
        for (size_t i = 0; i < n; i++)
            result->example[i] = piece[i];
        result->example_n = n;
    }
}

/* Every one and two flipped bits. */
void batch_flips(const batch_scene *scene, const uint8_t *wire, size_t n, batch_result *result)
{
    uint8_t piece[160];
    for (size_t i = 0; i < n; i++)
        piece[i] = wire[i];
    for (size_t one = 0; one < 8 * n; one++) {
        piece[one / 8] ^= (uint8_t)(1u << one % 8);
        attempt(scene, piece, n, 0, result);
        for (size_t two = one + 1; two < 8 * n; two++) {
            piece[two / 8] ^= (uint8_t)(1u << two % 8);
            attempt(scene, piece, n, 0, result);
            piece[two / 8] ^= (uint8_t)(1u << two % 8);
        }
        piece[one / 8] ^= (uint8_t)(1u << one % 8);
    }
}

/* Every run of bytes deleted or doubled, every truncation at either end, every byte put to every value, every split. */
void batch_edits(const batch_scene *scene, const uint8_t *wire, size_t n, batch_result *result)
{
    uint8_t piece[2 * 160];
    for (size_t from = 0; from < n; from++)
        for (size_t to = from + 1; to <= n; to++) {
            size_t m = 0;
            for (size_t i = 0; i < n; i++)
                if (i < from || i >= to)
                    piece[m++] = wire[i];
            attempt(scene, piece, m, 0, result);
            m = 0;
            for (size_t i = 0; i < to; i++)
                piece[m++] = wire[i];
            for (size_t i = from; i < n; i++)
                piece[m++] = wire[i];
            attempt(scene, piece, m, m / 2, result);
            attempt(scene, wire + from, to - from, 0, result);
        }
    for (size_t i = 0; i < n; i++)
        piece[i] = wire[i];
    for (size_t at = 0; at < n; at++) {
        for (unsigned value = 0; value < 256; value++) {
            piece[at] = (uint8_t)value;
            attempt(scene, piece, n, 0, result);
        }
        piece[at] = wire[at];
    }
    for (size_t cut = 0; cut <= n; cut++)
        attempt(scene, wire, n, cut, result);
}

static uint32_t draw(uint64_t *seed, uint32_t below)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((*seed >> 33) % below);
}

/* `count` random corruptions of the scene's frames: flips, other bytes, bytes lost, doubled and put in, pieces of others. */
void batch_random(const batch_scene *scene, uint64_t seed, uint64_t count, batch_result *result)
{
    while (count--) {
        uint8_t piece[512];
        const batch_sent *source = &scene->sent[draw(&seed, scene->sent_count)];
        size_t n = source->n;
        for (size_t i = 0; i < n; i++)
            piece[i] = source->wire[i];
        for (uint32_t rounds = 1 + draw(&seed, 4); rounds; rounds--) {
            const batch_sent *other = &scene->sent[draw(&seed, scene->sent_count)];
            size_t at = draw(&seed, (uint32_t)n), from = draw(&seed, (uint32_t)other->n), k = 1 + draw(&seed, 8);
            switch (draw(&seed, 7)) {
            case 0: case 1: case 2:
                piece[at] ^= (uint8_t)(1u << draw(&seed, 8));
                break;
            case 3:
                piece[at] = (uint8_t)draw(&seed, 256);
                break;
            case 4:
                k = k < n - at ? k : n - at;
                k = k < n ? k : n - 1;
                for (size_t i = at; i + k < n; i++)
                    piece[i] = piece[i + k];
                n -= k;
                break;
            case 5:
                for (size_t i = n; i-- > at;)
                    piece[i + k] = piece[i];
                for (size_t i = 0; i < k; i++)
                    piece[at + i] = (uint8_t)draw(&seed, 256);
                n += k;
                break;
            default:
                for (size_t i = 0; i < k && at + i < n && from + i < other->n; i++)
                    piece[at + i] = other->wire[from + i];
            }
        }
        attempt(scene, piece, n, draw(&seed, (uint32_t)n + 1), result);
    }
}

typedef struct {
    uint32_t verdicts;
    uint8_t verdict[MAX_VERDICTS];
    pvl_view view;
    uint8_t status[PVL_STATUS_CAPACITY];
    size_t status_n;
} batch_stream_result;

static void keep_verdict(void *user, uint8_t verdict, const uint8_t *raw, size_t n)
{
    batch_stream_result *result = user;
    (void)raw;
    (void)n;
    if (result->verdicts < MAX_VERDICTS)
        result->verdict[result->verdicts++] = verdict;
}

/* A stream into a fresh display, in portions of `portion` bytes, `step_ms` apart. */
void batch_stream(const uint8_t *bytes, size_t n, size_t portion, uint32_t now_ms, uint32_t step_ms,
                  batch_stream_result *result)
{
    pvl_hooks hooks = {result, 0, 0, 0, keep_verdict};
    pvl_display display;
    result->verdicts = 0;
    pvl_init(&display, now_ms);
    for (size_t at = 0; at < n; at += portion, now_ms += step_ms)
        pvl_receive(&display, bytes + at, n - at < portion ? n - at : portion, now_ms, &hooks);
    pvl_look(&display, now_ms, &result->view);
    result->status_n = pvl_status(&display, now_ms, result->status);
}

/* For the bindings: what Python must agree with. */
size_t batch_layout(unsigned which)
{
    const size_t layout[] = {
        sizeof(pvl_display), sizeof(pvl_view), sizeof(pvl_numeral), sizeof(pvl_hooks), sizeof(pvl_traces),
        offsetof(pvl_view, pr), offsetof(pvl_view, rr), offsetof(pvl_view, message), offsetof(pvl_view, banners),
        offsetof(pvl_view, testing), offsetof(pvl_view, alive), offsetof(pvl_view, host_t_ms),
        offsetof(pvl_view, has_host_t), offsetof(pvl_view, ok), offsetof(pvl_view, late),
        offsetof(pvl_numeral, x10), offsetof(pvl_numeral, questionable), offsetof(pvl_numeral, bars),
        offsetof(pvl_numeral, averaging_s), offsetof(pvl_numeral, reason), offsetof(pvl_hooks, verdict),
        sizeof(batch_scene), sizeof(batch_result), sizeof(batch_sent), sizeof(batch_stream_result),
    };
    return which < sizeof layout / sizeof *layout ? layout[which] : 0;
}
