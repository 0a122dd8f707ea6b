/* PVL/1: what the core decided, in words and digits. */
#include "pvl_core.h"

#define PVL_ASSERT(name, condition) typedef char pvl_assert_##name[(condition) ? 1 : -1]
PVL_ASSERT(an_unknown_condition_follows_the_known, PVL_TEXT_UNKNOWN_TECH == PVL_TEXT_TECH + 16);

#define SAYS_CONDITION \
    (1u << PVL_STATE_SEARCHING | 1u << PVL_STATE_QUESTIONABLE | 1u << PVL_STATE_INVALID | 1u << PVL_STATE_FAULT)

static const char texts[] = PVL_TEXTS;
static const uint8_t tech_order[] = {PVL_TECH_ORDER};

static const char *text(unsigned index)
{
    const char *at = texts;
    for (; index; index--)
        while (*at++) {
        }
    return at;
}

/* The most important condition in words; one that is not known here goes before all others. */
static const char *condition_in(const uint8_t *vitals)
{
    const uint8_t *at = vitals + PVL_VITALS_TECH;
    uint32_t tech = at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
    unsigned i = tech & ~(uint32_t)PVL_TECH_KNOWN ? sizeof tech_order : 0;
    if (!tech)
        return "";
    while (i < sizeof tech_order && !(tech >> tech_order[i] & 1))
        i++;
    return text(PVL_TEXT_TECH + i);
}

/* which: 0 pulse, 1 breathing. condition: NULL while the link as a whole is not good. */
static void look_at_vital(const pvl_display *d, unsigned which, const char *condition, pvl_numeral *out)
{
    unsigned state = d->state[which], sqi = d->vitals[PVL_VITALS_PR_SQI + which], power = 100;
    char *digit = out->text;
    out->x10 = d->word[PVL_WORD_SHOWN_X10 + which];
    out->questionable = out->bars = out->averaging_s = 0;
    out->reason = "";
    if (condition) {
        out->averaging_s = d->vitals[PVL_VITALS_PR_AVG_S + which];
        out->reason = SAYS_CONDITION >> state & 1 && *condition ? condition : text(PVL_TEXT_STATE + state);
    }
    if (out->x10 != PVL_NO_RATE) {
        unsigned rate = (out->x10 + 5u) / 10; /* 2-300 */
        while (power > rate)
            power /= 10;
        for (; power; power /= 10)
            *digit++ = (char)('0' + rate / power % 10);
        out->questionable = state == PVL_STATE_QUESTIONABLE;
        out->bars = (uint8_t)(sqi > 100 ? 0 : (sqi + 19) / 20);
    } else {
        while (digit < out->text + 3)
            *digit++ = '-';
    }
    *digit = 0;
}

void pvl_look(pvl_display *d, uint32_t now_ms, pvl_view *out)
{
    const char *condition = NULL;
    pvl_decide(d, now_ms);
    out->mode = d->shown_state >> 4;
    out->message = text(PVL_TEXT_MODE + out->mode);
    out->has_host_t = out->mode == PVL_MODE_LIVE;
    out->host_t_ms = 0;
    if (out->has_host_t) {
        out->message = condition = condition_in(d->vitals);
        out->host_t_ms = d->vitals_t_ms;
    }
    look_at_vital(d, 0, condition, &out->pr);
    look_at_vital(d, 1, condition, &out->rr);
    out->banners = d->flags & (PVL_FLAG_DEMO | PVL_FLAG_INVESTIGATIONAL); /* rule 8 */
    out->testing = d->age_ms[PVL_AGE_UP] < PVL_TEST_MS;
    out->alive = d->alive;
    out->ok = d->word[PVL_WORD_COUNT + PVL_OK];
    out->bad = (uint16_t)(d->word[PVL_WORD_COUNT + PVL_BAD_COBS] + d->word[PVL_WORD_COUNT + PVL_BAD_CRC]
                          + d->word[PVL_WORD_COUNT + PVL_BAD_LEN]);
    out->lost = d->word[PVL_WORD_LOST];
    out->late = d->word[PVL_WORD_LATE];
}
