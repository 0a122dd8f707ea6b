/* PVL/1: the STATUS frame, display to camera unit. */
#include "pvl_core.h"

#ifndef PVL_FW_ID
#define PVL_FW_ID 0 /* the display firmware's release; the firmware's build may say */
#endif

static uint8_t *put16(uint8_t *at, uint32_t value)
{
    *at++ = (uint8_t)value;
    *at++ = (uint8_t)(value >> 8);
    return at;
}

size_t pvl_status(pvl_display *d, uint32_t now_ms, uint8_t out[PVL_STATUS_CAPACITY])
{
    uint8_t *body = out + 2, *at = body; /* 00 and the first code byte stand before it */
    uint32_t crc;
    unsigned code = 1;
    pvl_advance(d, now_ms);
    *at++ = PVL_VERSION;
    *at++ = PVL_TYPE_STATUS;
    *at++ = 0;
    *at++ = PVL_STATUS_SIZE;
    at = put16(at, d->own_session);
    at = put16(at, d->own_seq++);
    at = put16(at, now_ms);
    at = put16(at, now_ms >> 16);
    for (unsigned i = 0; i < PVL_WORDS; i++) {
        if (i == PVL_WORD_COUNT + PVL_BAD_VERSION)
            i = PVL_WORD_LOST;
        at = put16(at, d->word[i]);
    }
    *at++ = d->shown_state;
    *at++ = PVL_FW_ID;
    crc = ~pvl_crc32(body, (size_t)(at - body));
    at = put16(at, crc);
    at = put16(at, crc >> 16);
    *at = 0;
    out[0] = 0;
    /* COBS in place, from the end: each zero becomes the distance to the next one. */
    out[1] = 0;
    for (uint8_t *byte = at; byte-- > out + 1; code++)
        if (!*byte) {
            *byte = (uint8_t)code;
            code = 0;
        }
    return (size_t)(at + 1 - out);
}
