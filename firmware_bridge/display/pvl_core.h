/* PVL/1, the display's side: wire bytes in, what may stand on the glass out. ../PROTOCOL.md is the reference.
 *
 * No allocation, no floats, no stdio, no globals. Every time is the display's own monotonic millisecond counter modulo
 * 2^32; it may start anywhere and may wrap. Call pvl_receive at least every 100 ms, with n == 0 when nothing came, then
 * pvl_look and paint. One pvl_display belongs to one context: it is no queue between an interrupt and the main loop.
 */
#ifndef PVL_CORE_H
#define PVL_CORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pvl_wire.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PVL_STATUS_CAPACITY 64u /* bytes pvl_status may write */

/* A run of samples to be drawn now. Valid only while the hook runs. */
typedef struct {
    uint32_t first_index;
    uint32_t now_ms;
    const int8_t *samples; /* -127..127 relative; PVL_NO_SAMPLE is a gap */
    uint8_t n;
    uint8_t channel; /* PVL_CHANNEL_PULSE or PVL_CHANNEL_RESP */
    uint8_t rate_hz; /* 1-100; with 1 and n == 0 after a WAVE whose rate was impossible: the old trace ends */
} pvl_wave;

/* What the core tells while it receives. Any of them may be NULL, and so may the whole struct. */
typedef struct {
    void *user;
    void (*wave)(void *user, const pvl_wave *wave);
    void (*erase)(void *user);                          /* a new session: the traces go */
    void (*product)(void *user, const char name[16]);   /* printable ASCII padded with 0; empty at a new session */
    void (*verdict)(void *user, uint8_t verdict, const uint8_t *raw, size_t n); /* every frame, good or bad; PVL_OK ... */
} pvl_hooks;

/* Private: how long ago something was, in milliseconds; a full counter stays full, so that no wrap makes it young. */
enum { PVL_AGE_UP, PVL_AGE_HEADER, PVL_AGE_VITALS, PVL_AGE_UNSUPPORTED, PVL_AGE_SETTLING, PVL_AGE_LEAK, PVL_AGE_BAD,
       PVL_AGES = PVL_AGE_BAD + PVL_FAULT_BAD_FRAMES - 1 };

/* Private: what STATUS reports, in its order. The counters wrap; session and seq are those of the newest frame taken. */
enum { PVL_WORD_SESSION, PVL_WORD_SEQ, PVL_WORD_COUNT, PVL_WORD_LOST = PVL_WORD_COUNT + PVL_VERDICTS, PVL_WORD_LATE,
       PVL_WORD_UPTIME_S, PVL_WORD_SHOWN_X10, PVL_WORDS = PVL_WORD_SHOWN_X10 + 2 };

/* Private, and without pointers: it may be copied. Small fields come first, where short instructions reach them. */
typedef struct pvl_display {
    uint8_t fault, stopped, unsupported, looked;
    uint8_t meter;             /* 0 no frame of the session yet, 1 settling, 2 settled */
    uint8_t has_vitals;        /* 0 none, or what meter was when they came */
    uint8_t flags;             /* of all frames of the session */
    uint8_t good_in_a_row;     /* full at PVL_FAULT_CLEARING_FRAMES */
    uint8_t shown_state;       /* as in STATUS */
    uint8_t state[2];          /* of pulse and breathing after every rule; means something in PVL_MODE_LIVE */
    uint8_t length;            /* of the fragment so far; full at PVL_MAX_ENCODED + 1 */
    uint8_t vitals[PVL_VITALS_GAP_DS]; /* the payload as it came, as far as it is used */
    uint16_t word[PVL_WORDS];
    uint16_t alive;
    uint16_t uptime_rest_ms;
    uint16_t own_session, own_seq;
    uint32_t now_ms;
    uint32_t age_ms[PVL_AGES];
    uint32_t t_ms;             /* of the newest frame taken */
    uint32_t vitals_t_ms;
    uint32_t vitals_lag_ms;
    uint32_t zero_ms;          /* t_ms - now_ms of the quickest frame */
    uint32_t settling_ms;      /* t_ms - now_ms of the first frame of the settling time */
    uint8_t raw[PVL_MAX_ENCODED + 1]; /* the last byte tells nothing but that there was one more */
} pvl_display;

typedef struct {
    char text[4];         /* "143", "30", or "---" */
    uint16_t x10;         /* the wire value behind the text; 0xFFFF with dashes */
    uint8_t questionable; /* paint "?" beside it */
    uint8_t bars;         /* quality 0-5 */
    uint8_t averaging_s;  /* 0 = unknown */
    const char *reason;   /* why there is no plain number; "" none */
} pvl_numeral;

/* Everything a painter needs, and nothing it has to decide. Traces stand on the glass only while mode is PVL_MODE_LIVE;
 * at any other mode whoever keeps them erases them, so that none comes back with the numbers. */
typedef struct {
    uint8_t mode;         /* PVL_MODE_* */
    pvl_numeral pr, rr;
    const char *message;  /* one line, "" none */
    uint8_t banners;      /* PVL_FLAG_DEMO | PVL_FLAG_INVESTIGATIONAL */
    uint8_t testing;      /* the start-up segment test is on; pr and rr are dashes meanwhile */
    uint16_t alive;       /* differs from the last one exactly when pvl_receive ran in between */
    uint32_t host_t_ms;   /* sender's clock on the VITALS behind the numbers, where has_host_t */
    uint8_t has_host_t;
    uint16_t ok, bad, lost, late; /* counters, they wrap */
} pvl_view;

void pvl_init(pvl_display *display, uint32_t now_ms);
void pvl_receive(pvl_display *display, const uint8_t *bytes, size_t n, uint32_t now_ms, const pvl_hooks *hooks);
void pvl_look(pvl_display *display, uint32_t now_ms, pvl_view *out);

/* A whole STATUS frame on the wire: what was received, and what the last pvl_look put on the glass. Its length, at most
 * PVL_STATUS_CAPACITY. Send it once a second where there is a line back. */
size_t pvl_status(pvl_display *display, uint32_t now_ms, uint8_t out[PVL_STATUS_CAPACITY]);

/* Between the files of the core. pvl_decide is pvl_look without the words: it leaves the mode in the upper half of
 * shown_state, what may stand on the glass in state and word[PVL_WORD_SHOWN_X10], for a firmware with words of its own. */
void pvl_advance(pvl_display *display, uint32_t now_ms);
void pvl_decide(pvl_display *display, uint32_t now_ms);
uint32_t pvl_crc32(const uint8_t *bytes, size_t n);

#ifdef __cplusplus
}
#endif

#endif
