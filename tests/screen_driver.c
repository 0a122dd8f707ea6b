/* Paints 4,000 random views over random waves; test_screen.py builds it with the sanitizers in `make soak`. */
#include <stdlib.h>
#include <string.h>

#include "pvl_draw.h"

static uint32_t below(uint32_t n)
{
    static uint64_t x = 88172645463325252u; /* xorshift64 */
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return (uint32_t)(x % n);
}

static void random_words(char words[70])
{
    uint32_t n = below(69);
    for (uint32_t i = 0; i < n; i++)
        words[i] = (char)(1 + below(255));
    words[n] = '\0';
}

static void random_view(pvl_view *view, char words[2][70])
{
    memset(view, 0, sizeof *view);
    for (int k = 0; k < 2; k++) {
        pvl_numeral *numeral = k ? &view->rr : &view->pr;
        random_words(words[k]);
        for (int i = 0; i < 4; i++)
            numeral->text[i] = "0123456789- \0x"[below(14)];
        numeral->questionable = (uint8_t)below(3);
        numeral->bars = (uint8_t)below(256);
        numeral->averaging_s = (uint8_t)below(256);
        numeral->reason = below(5) ? words[k] : NULL;
    }
    view->mode = (uint8_t)(below(3) ? PVL_MODE_LIVE : below(9));
    view->message = below(5) ? words[below(2)] : NULL;
    view->banners = (uint8_t)below(256);
    view->testing = below(9) == 0;
    view->alive = (uint16_t)below(65536);
    view->ok = view->bad = view->lost = view->late = (uint16_t)below(65536);
}

int main(void)
{
    uint16_t *fb = malloc(PVL_SCREEN_WIDTH * PVL_SCREEN_HEIGHT * sizeof *fb);
    pvl_traces *traces = malloc(sizeof *traces);
    int8_t *samples = malloc(255);
    char words[2][70], product[16];
    pvl_view view;

    pvl_traces_erase(traces);
    for (uint32_t i = 0; i < 4000; i++) {
        uint32_t now_ms = i * 40u - 90000u; /* wraps */
        random_view(&view, words);
        for (int k = 0; k < 16; k++)
            product[k] = (char)below(256);
        for (int k = 0; k < 255; k++)
            samples[k] = (int8_t)below(256);
        for (int k = 0; k < 4; k++) {
            pvl_wave wave = {below(4) ? i * 5u : below(0xFFFFFFFF), now_ms, samples, (uint8_t)below(256),
                             (uint8_t)below(4), (uint8_t)below(below(9) ? 101 : 256)};
            pvl_traces_wave(traces, &wave);
        }
        pvl_traces_look(traces, &view, now_ms + below(3000));
        pvl_draw(fb, &view, below(9) ? traces : NULL, below(9) ? product : NULL);
    }
    free(fb);
    free(traces);
    free(samples);
    return 0;
}
