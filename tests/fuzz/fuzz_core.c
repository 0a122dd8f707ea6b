/* For libFuzzer, or with -DOWN_DRIVER for a driver of its own: any bytes at any times, under the sanitizers. The input is
 * a list of pieces: how long after the last one (2 bytes, times 4 ms), how many bytes (1), the bytes; a look after each. */
#include <stdlib.h>
#include <string.h>

#include "pvl_draw.h"

static pvl_traces traces;
static uint16_t *frame_buffer;
static unsigned looks;

static void on_product(void *user, const char name[16])
{
    (void)user;
    for (int i = 0; i < 16; i++)
        if (name[i] && (name[i] < 32 || name[i] > 126))
            abort();
}

static void on_verdict(void *user, uint8_t verdict, const uint8_t *raw, size_t n)
{
    (void)user;
    if (verdict >= PVL_VERDICTS || n == 0 || n > PVL_MAX_ENCODED || memchr(raw, 0, n))
        abort();
}

/* What must hold of every view, whatever came. */
static void check(const pvl_view *view, const pvl_numeral *numeral, unsigned least, unsigned most)
{
    const char *end = memchr(numeral->text, 0, sizeof numeral->text);
    if (!end || !memchr(numeral->reason, 0, 64) || numeral->bars > 5)
        abort();
    if (numeral->x10 == PVL_NO_RATE) {
        if (strcmp(numeral->text, "---") != 0 || numeral->questionable)
            abort();
    } else if (view->mode != PVL_MODE_LIVE || view->testing || numeral->x10 < least || numeral->x10 > most
               || strtoul(numeral->text, NULL, 10) != (numeral->x10 + 5u) / 10) {
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const pvl_hooks hooks = {&traces, pvl_traces_wave, pvl_traces_erase, on_product, on_verdict};
    pvl_display display;
    pvl_view view;
    uint8_t status[PVL_STATUS_CAPACITY];
    uint32_t now_ms = size ? 0u - data[0] * 16u : 0;
    pvl_init(&display, now_ms);
    pvl_traces_erase(&traces);
    while (size >= 3) {
        size_t n = data[2] < size - 3 ? data[2] : size - 3;
        uint8_t *piece = malloc(n ? n : 1); /* of its own, so that one byte too far is seen */
        now_ms += (uint32_t)(data[0] | data[1] << 8) * 4u;
        if (!piece)
            return 0;
        memcpy(piece, data + 3, n);
        pvl_receive(&display, piece, n, now_ms, &hooks);
        free(piece);
        data += 3 + n;
        size -= 3 + n;
        pvl_look(&display, now_ms, &view);
        pvl_traces_look(&traces, &view, now_ms);
        if (view.mode > PVL_MODE_DELAYED || !memchr(view.message, 0, 64))
            abort();
        check(&view, &view.pr, PVL_PR_MIN_X10, PVL_PR_MAX_X10);
        check(&view, &view.rr, PVL_RR_MIN_X10, PVL_RR_MAX_X10);
        if (pvl_status(&display, now_ms, status) > sizeof status)
            abort();
        if (++looks % 1024 == 0) { /* drawing is slow */
            if (!frame_buffer)
                frame_buffer = malloc(PVL_SCREEN_WIDTH * PVL_SCREEN_HEIGHT * sizeof *frame_buffer);
            if (frame_buffer)
                pvl_draw(frame_buffer, &view, &traces, "fuzz");
        }
    }
    return 0;
}

#ifdef OWN_DRIVER
#include <stdio.h>
#include <time.h>

#include "vectors.h"

/* Pieces of vectors, damaged, without coverage to guide it. */
int main(int argc, char **argv)
{
    const time_t end = time(NULL) + (argc > 1 ? atoi(argv[1]) : 60);
    unsigned long runs = 0;
    srand(1);
    for (; time(NULL) < end; runs++) {
        uint8_t input[2048];
        size_t n = 0;
        for (int pieces = rand() % 12; pieces >= 0 && n + 300 < sizeof input; pieces--) {
            const size_t which = (size_t)rand() % (sizeof vectors / sizeof *vectors);
            input[n] = (uint8_t)(rand() % 200);
            input[n + 1] = (uint8_t)(rand() % 16 ? 0 : rand());
            input[n + 2] = vectors[which].n;
            memcpy(input + n + 3, vectors[which].wire, vectors[which].n);
            for (int flips = rand() % 4; flips; flips--)
                input[n + 3 + (size_t)rand() % vectors[which].n] ^= (uint8_t)(1 << rand() % 8);
            n += 3u + vectors[which].n;
        }
        LLVMFuzzerTestOneInput(input, n);
    }
    printf("%lu runs\n", runs);
    return 0;
}
#endif
