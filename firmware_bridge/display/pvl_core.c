/* PVL/1: streaming decoder and display rules, numbered as in ../PROTOCOL.md. Written to be small. */
#include "pvl_core.h"

/* C99 has no static assertion; an array of negative size stops the compiler as well. */
#define PVL_ASSERT(name, condition) typedef char pvl_assert_##name[(condition) ? 1 : -1]
PVL_ASSERT(the_state_fits_in_256_bytes, sizeof(pvl_display) <= 256);
PVL_ASSERT(no_number_can_come_while_the_segment_test_lasts, PVL_TEST_MS <= PVL_SETTLE_MS);
PVL_ASSERT(the_last_two_bad_frames_tell_of_three, PVL_FAULT_BAD_FRAMES == 3);

#define AGE_FULL 0xFFFFFFFFu
#define CRC_RESIDUE 0xDEBB20E3u /* what is left of a body and its own CRC-32 */
#define SETTLING 1
#define SETTLED 2

/* type and smallest payload */
static const uint8_t types[] = {PVL_TYPE_VITALS, PVL_VITALS_SIZE, PVL_TYPE_WAVE, PVL_WAVE_SIZE, PVL_TYPE_HELLO, PVL_HELLO_SIZE,
                                PVL_TYPE_BYE, PVL_BYE_SIZE, PVL_TYPE_STATUS, PVL_STATUS_SIZE};

static uint16_t get16(const uint8_t *at) { return (uint16_t)(at[0] | at[1] << 8); }

static uint32_t get32(const uint8_t *at)
{
    return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

/* Bit by bit: twelve frames a second leave time, and a table would cost a kilobyte. */
uint32_t pvl_crc32(const uint8_t *at, size_t n)
{
    uint32_t crc = 0xFFFFFFFFu;
    for (; n; n--) {
        crc ^= *at++;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
    }
    return crc;
}

/* Brings every age up to now. A full age stays full: a wrap of the clock makes nothing young again. */
void pvl_advance(pvl_display *d, uint32_t now_ms)
{
    uint32_t passed_ms = now_ms - d->now_ms;
    d->now_ms = now_ms;
    for (int i = 0; i < PVL_AGES; i++)
        if ((d->age_ms[i] += passed_ms) < passed_ms)
            d->age_ms[i] = AGE_FULL;
    passed_ms += d->uptime_rest_ms;
    d->word[PVL_WORD_UPTIME_S] = (uint16_t)(d->word[PVL_WORD_UPTIME_S] + passed_ms / 1000);
    d->uptime_rest_ms = (uint16_t)(passed_ms % 1000);
}

/* Rule 4. */
static void judge_link(pvl_display *d, bool intact)
{
    uint32_t *bad = &d->age_ms[PVL_AGE_BAD]; /* the newest and the one before */
    if (!intact) {
        d->good_in_a_row = 0;
        if (bad[1] <= PVL_FAULT_WINDOW_MS)
            d->fault = 1;
        bad[1] = bad[0];
        bad[0] = 0;
    } else if (d->good_in_a_row < PVL_FAULT_CLEARING_FRAMES && ++d->good_in_a_row == PVL_FAULT_CLEARING_FRAMES && d->fault) {
        /* A cleared fault starts with a clean sheet, or the old bad frames would raise it again at once. */
        d->fault = 0;
        bad[0] = bad[1] = AGE_FULL;
    }
}

static void new_session(pvl_display *d, const pvl_hooks *hooks)
{
    static const char nobody[16] = "";
    d->stopped = d->meter = d->has_vitals = d->flags = 0;
    if (hooks && hooks->erase)
        hooks->erase(hooks->user);
    if (hooks && hooks->product)
        hooks->product(hooks->user, nobody);
}

/* Rule 5. */
static bool is_newer(pvl_display *d, const uint8_t *body, const pvl_hooks *hooks)
{
    uint16_t session = get16(body + PVL_HEADER_SESSION), seq = get16(body + PVL_HEADER_SEQ);
    uint32_t t_ms = get32(body + PVL_HEADER_T_MS);
    if (session != d->word[PVL_WORD_SESSION] || d->age_ms[PVL_AGE_HEADER] > PVL_FORGET_AFTER_MS) {
        new_session(d, hooks);
    } else {
        uint16_t missed = (uint16_t)(seq - d->word[PVL_WORD_SEQ] - 1);
        uint32_t elapsed_ms = t_ms - d->t_ms;
        if (elapsed_ms > INT32_MAX || (elapsed_ms < PVL_SEQ_TRUSTED_MS && missed > 0x7FFE)) {
            d->word[PVL_WORD_LATE]++;
            return false;
        }
        if (missed != 0xFFFF)
            d->word[PVL_WORD_LOST] = (uint16_t)(d->word[PVL_WORD_LOST] + missed);
    }
    d->word[PVL_WORD_SESSION] = session;
    d->word[PVL_WORD_SEQ] = seq;
    d->t_ms = t_ms;
    return true;
}

/* Rule 2: how far the newest frame is behind the quickest of its session. */
static uint32_t measure_lag(pvl_display *d)
{
    uint32_t offset_ms = d->t_ms - d->now_ms, pause_ms = d->age_ms[PVL_AGE_HEADER];
    int32_t ahead_ms;
    bool anew;
    d->age_ms[PVL_AGE_HEADER] = 0;
    if (!d->meter) {
        d->zero_ms = offset_ms;
        d->age_ms[PVL_AGE_LEAK] = 0;
    }
    d->zero_ms -= d->age_ms[PVL_AGE_LEAK] / PVL_LEAK_INTERVAL_MS;
    d->age_ms[PVL_AGE_LEAK] %= PVL_LEAK_INTERVAL_MS;
    ahead_ms = (int32_t)(offset_ms - d->zero_ms);
    if (ahead_ms > 0)
        d->zero_ms = offset_ms;
    if (d->meter == SETTLED) /* what was taken for zero lag may have been late */
        anew = ahead_ms > (int32_t)PVL_SETTLE_BAND_MS;
    else
        anew = !d->meter || pause_ms > PVL_SETTLE_PAUSE_MS
               || offset_ms - d->settling_ms + PVL_SETTLE_BAND_MS > 2 * PVL_SETTLE_BAND_MS;
    if (anew) {
        d->meter = SETTLING;
        d->settling_ms = offset_ms;
        d->age_ms[PVL_AGE_SETTLING] = 0;
    } else if (d->age_ms[PVL_AGE_SETTLING] >= PVL_SETTLE_MS) {
        d->meter = SETTLED;
    }
    return d->zero_ms - offset_ms;
}

static void take_wave(const pvl_display *d, const uint8_t *body, const pvl_hooks *hooks)
{
    const uint8_t *payload = body + PVL_HEADER_SIZE;
    pvl_wave wave;
    wave.channel = payload[PVL_WAVE_CHANNEL];
    if (wave.channel - PVL_CHANNEL_PULSE > PVL_CHANNEL_RESP - PVL_CHANNEL_PULSE || !hooks || !hooks->wave)
        return;
    wave.first_index = get32(payload + PVL_WAVE_FIRST_INDEX);
    wave.now_ms = d->now_ms;
    wave.samples = (const int8_t *)(payload + PVL_WAVE_SAMPLES);
    wave.n = (uint8_t)(body[PVL_HEADER_LEN] - PVL_WAVE_SAMPLES);
    wave.rate_hz = payload[PVL_WAVE_RATE_HZ];
    if (wave.rate_hz - 1u >= PVL_MAX_RATE_HZ) {
        wave.rate_hz = 1;
        wave.n = 0;
    }
    hooks->wave(hooks->user, &wave);
}

static void take_product(uint8_t *name, const pvl_hooks *hooks)
{
    bool ended = false;
    if (!hooks || !hooks->product)
        return;
    for (int i = 0; i < 16; i++) {
        ended = ended || !name[i];
        if (ended)
            name[i] = 0;
        else if (name[i] - 32u > 126u - 32u)
            name[i] = '?';
    }
    hooks->product(hooks->user, (const char *)name);
}

/* A frame that passed every check. */
static void take(pvl_display *d, uint8_t *body, const pvl_hooks *hooks)
{
    uint8_t type = body[PVL_HEADER_TYPE];
    uint32_t lag_ms;
    if (type >= 0x80 || !is_newer(d, body, hooks))
        return;
    lag_ms = measure_lag(d);
    d->flags |= body[PVL_HEADER_FLAGS]; /* a session that was a demonstration once stays one */
    if (type == PVL_TYPE_VITALS) {
        for (unsigned i = 0; i < sizeof d->vitals; i++)
            d->vitals[i] = body[PVL_HEADER_SIZE + i];
        d->vitals_t_ms = d->t_ms;
        d->vitals_lag_ms = lag_ms;
        d->age_ms[PVL_AGE_VITALS] = 0;
        d->has_vitals = d->meter;
        d->unsupported = d->stopped = 0;
        if (lag_ms > PVL_MAX_LAG_MS)
            d->word[PVL_WORD_LATE]++;
    } else if (type == PVL_TYPE_WAVE) {
        if (lag_ms <= PVL_MAX_LAG_MS)
            take_wave(d, body, hooks);
    } else if (type == PVL_TYPE_HELLO) {
        take_product(body + PVL_HEADER_SIZE + PVL_HELLO_PRODUCT, hooks);
    } else if (type == PVL_TYPE_BYE) {
        d->has_vitals = 0;
        d->stopped = 1;
    }
}

/* The checks in the order of PROTOCOL.md. out: the body, from its second byte on. */
static uint8_t judge(const uint8_t *raw, unsigned length, uint8_t *out)
{
    const uint8_t *body = out + 1;
    unsigned left = 0, known = 0;
    if (length > PVL_MAX_ENCODED)
        return PVL_BAD_LEN;
    for (unsigned i = 0; i < length; i++) {
        uint8_t byte = raw[i];
        if (!left) { /* COBS: a zero, save before the first byte, and how far the next one is */
            left = byte;
            byte = 0;
        }
        left--;
        out[i] = byte;
    }
    if (left)
        return PVL_BAD_COBS;
    length -= 1 + PVL_HEADER_SIZE + PVL_CRC_SIZE;
    if (length > PVL_MAX_BODY)
        return PVL_BAD_LEN;
    if (pvl_crc32(body, length + PVL_HEADER_SIZE + PVL_CRC_SIZE) != CRC_RESIDUE)
        return PVL_BAD_CRC;
    if (body[PVL_HEADER_VER] != PVL_VERSION)
        return PVL_BAD_VERSION;
    while (known < sizeof types && types[known] != body[PVL_HEADER_TYPE])
        known += 2;
    if (body[PVL_HEADER_LEN] != length || !get16(body + PVL_HEADER_SESSION)
        || (known < sizeof types && length < types[known + 1]))
        return PVL_BAD_LEN;
    if (body[PVL_HEADER_FLAGS] & PVL_MUST_UNDERSTAND)
        return PVL_UNKNOWN_FLAGS;
    return known < sizeof types ? PVL_OK : PVL_UNKNOWN_TYPE;
}

static void close_frame(pvl_display *d, const pvl_hooks *hooks)
{
    uint8_t body[1 + PVL_MAX_BODY];
    uint8_t verdict = judge(d->raw, d->length, body);
    d->word[PVL_WORD_COUNT + verdict]++;
    if (hooks && hooks->verdict)
        hooks->verdict(hooks->user, verdict, d->raw, d->length < PVL_MAX_ENCODED ? d->length : PVL_MAX_ENCODED);
    d->length = 0;
    judge_link(d, verdict - 1u >= PVL_BAD_LEN);
    if (verdict == PVL_OK || verdict == PVL_UNKNOWN_TYPE) {
        take(d, body + 1, hooks);
    } else if (verdict > PVL_BAD_LEN) { /* rule 7 */
        new_session(d, hooks);
        d->unsupported = 1;
        d->age_ms[PVL_AGE_UNSUPPORTED] = 0;
    }
}

void pvl_receive(pvl_display *d, const uint8_t *bytes, size_t n, uint32_t now_ms, const pvl_hooks *hooks)
{
    pvl_advance(d, now_ms);
    d->looked = 1;
    for (; n; n--) {
        uint8_t byte = *bytes++;
        if (!byte) {
            if (d->length)
                close_frame(d, hooks);
        } else if (d->length < sizeof d->raw) {
            d->raw[d->length++] = byte;
        }
    }
}

static uint8_t mode_of(const pvl_display *d)
{
    if (d->stopped)
        return PVL_MODE_STOPPED;
    if (d->unsupported && d->age_ms[PVL_AGE_UNSUPPORTED] < PVL_BLANK_AFTER_MS)
        return PVL_MODE_UPDATE_REQUIRED;
    if (!d->word[PVL_WORD_SESSION] && !d->unsupported)
        return d->fault ? PVL_MODE_LINK_FAULT : PVL_MODE_WAITING;
    if (d->age_ms[d->has_vitals ? PVL_AGE_VITALS : PVL_AGE_HEADER] >= PVL_BLANK_AFTER_MS)
        return PVL_MODE_LINK_LOST; /* rule 3 */
    if (d->fault)
        return PVL_MODE_LINK_FAULT;
    if (d->has_vitals != SETTLED)
        return PVL_MODE_SYNCHRONISING;
    return d->vitals_lag_ms > PVL_MAX_LAG_MS ? PVL_MODE_DELAYED : PVL_MODE_LIVE;
}

/* Rule 1, for pulse (which 0) or breathing (1), once the link as a whole is good. Returns the state it is shown in. */
static uint8_t state_of(const pvl_display *d, unsigned which, uint16_t x10)
{
    static const uint16_t lowest[] = {PVL_PR_MIN_X10, PVL_RR_MIN_X10};
    static const uint16_t span[] = {PVL_PR_MAX_X10 - PVL_PR_MIN_X10, PVL_RR_MAX_X10 - PVL_RR_MIN_X10};
    uint8_t state = d->vitals[PVL_VITALS_PR_STATE + which];
    uint16_t age_ds = get16(d->vitals + PVL_VITALS_PR_AGE_DS + 2 * which);
    if (state > PVL_STATE_FAULT)
        return PVL_STATE_INVALID;
    if (state != PVL_STATE_VALID && state != PVL_STATE_QUESTIONABLE)
        return state;
    if (!x10 || x10 == PVL_NO_RATE)
        return PVL_STATE_INVALID;
    if (age_ds == PVL_NO_AGE || d->age_ms[PVL_AGE_VITALS] + d->vitals_lag_ms + 100u * age_ds > PVL_MAX_AGE_MS)
        return PVL_STATE_STALE;
    return (unsigned)(x10 - lowest[which]) > span[which] ? PVL_STATE_OUT_OF_RANGE : state;
}

void pvl_decide(pvl_display *d, uint32_t now_ms)
{
    uint8_t mode;
    pvl_advance(d, now_ms);
    d->alive = (uint16_t)(d->alive + d->looked); /* rule 6 */
    d->looked = 0;
    mode = mode_of(d);
    d->shown_state = (uint8_t)(mode << 4);
    for (unsigned i = 0; i < 2; i++) {
        uint16_t x10 = get16(d->vitals + PVL_VITALS_PR_X10 + 2 * i);
        unsigned shown = 0;
        if (mode == PVL_MODE_LIVE) {
            d->state[i] = state_of(d, i, x10);
            shown = d->state[i] - (PVL_STATE_VALID - 1u); /* 1 plain, 2 with "?" */
        }
        if (shown - 1 > 1) {
            shown = 0;
            x10 = PVL_NO_RATE;
        }
        d->word[PVL_WORD_SHOWN_X10 + i] = x10;
        d->shown_state |= (uint8_t)(shown << 2 * i);
    }
}

void pvl_init(pvl_display *d, uint32_t now_ms)
{
    uint8_t *byte = (uint8_t *)d;
    for (size_t i = 0; i < sizeof *d; i++)
        byte[i] = 0;
    d->now_ms = now_ms;
    d->age_ms[PVL_AGE_BAD] = d->age_ms[PVL_AGE_BAD + 1] = AGE_FULL;
    d->own_session = (uint16_t)(now_ms ^ now_ms >> 16) | 1u;
    d->word[PVL_WORD_SHOWN_X10] = d->word[PVL_WORD_SHOWN_X10 + 1] = PVL_NO_RATE;
    d->shown_state = PVL_MODE_WAITING << 4;
    d->flags = PVL_FLAG_INVESTIGATIONAL; /* until a sender says otherwise */
}
