#include "pvl_traces.h"

typedef struct {
    pvl_trace *trace;
    int8_t *samples;
    uint32_t kept_s;
    uint32_t sweep_s;
} channel_memory;

static bool find(pvl_traces *traces, uint8_t channel, channel_memory *out)
{
    if (channel == PVL_CHANNEL_PULSE) {
        out->trace = &traces->pulse;
        out->samples = traces->pulse_samples;
        out->kept_s = PVL_PULSE_KEPT_S;
        out->sweep_s = PVL_PULSE_SWEEP_S;
        return true;
    }
    if (channel == PVL_CHANNEL_RESP) {
        out->trace = &traces->resp;
        out->samples = traces->resp_samples;
        out->kept_s = PVL_RESP_KEPT_S;
        out->sweep_s = PVL_RESP_SWEEP_S;
        return true;
    }
    return false;
}

static void clear(pvl_trace *trace)
{
    trace->head = trace->count = trace->sweep = trace->overdue = 0;
    trace->rate_hz = 0;
}

static void append(const channel_memory *memory, int8_t sample)
{
    pvl_trace *trace = memory->trace;
    uint32_t length = memory->kept_s * trace->rate_hz;

    memory->samples[trace->head] = sample;
    trace->head = (uint16_t)((trace->head + 1u) % length);
    trace->sweep = (uint16_t)((trace->sweep + 1u) % (memory->sweep_s * trace->rate_hz));
    if (trace->count < length)
        trace->count++;
}

void pvl_traces_wave(void *user, const pvl_wave *wave)
{
    channel_memory memory;
    pvl_trace *trace;
    int32_t missing, count = wave->n;

    if (wave->rate_hz == 0 || wave->rate_hz > PVL_MAX_RATE_HZ || !find(user, wave->channel, &memory))
        return;
    trace = memory.trace;
    missing = (int32_t)(wave->first_index - trace->next);
    if (wave->rate_hz != trace->rate_hz || missing < -count || missing >= (int32_t)(memory.kept_s * wave->rate_hz)) {
        clear(trace);
        trace->rate_hz = wave->rate_hz;
        missing = 0;
    }
    for (int32_t i = 0; i < missing; i++)
        append(&memory, PVL_NO_SAMPLE);
    for (int32_t i = missing < 0 ? -missing : 0; i < count; i++) /* the samples before are here already */
        append(&memory, wave->samples[i]);
    trace->next = wave->first_index + (uint32_t)count;
    trace->due_ms = wave->now_ms + 1000u * (uint32_t)count / wave->rate_hz;
    trace->overdue = 0;
}

void pvl_traces_erase(void *user)
{
    pvl_traces *traces = user;

    clear(&traces->pulse);
    clear(&traces->resp);
}

static void look(const channel_memory *memory, uint32_t now_ms)
{
    pvl_trace *trace = memory->trace;
    int32_t late_ms = (int32_t)(now_ms - trace->due_ms - PVL_TRACE_SLACK_MS);
    int32_t most_ms = (int32_t)(1000u * memory->kept_s);

    if (late_ms < 0)
        late_ms = 0;
    if (late_ms > most_ms)
        late_ms = most_ms;
    trace->overdue = (uint16_t)(late_ms * trace->rate_hz / 1000);
}

void pvl_traces_look(pvl_traces *traces, const pvl_view *view, uint32_t now_ms)
{
    channel_memory memory;

    if (view->mode != PVL_MODE_LIVE)
        pvl_traces_erase(traces);
    if (find(traces, PVL_CHANNEL_PULSE, &memory))
        look(&memory, now_ms);
    if (find(traces, PVL_CHANNEL_RESP, &memory))
        look(&memory, now_ms);
}

int8_t pvl_traces_at(const pvl_traces *traces, uint8_t channel, uint32_t age)
{
    bool is_pulse = channel == PVL_CHANNEL_PULSE;
    const pvl_trace *trace = is_pulse ? &traces->pulse : &traces->resp;
    const int8_t *samples = is_pulse ? traces->pulse_samples : traces->resp_samples;
    uint32_t length = (is_pulse ? PVL_PULSE_KEPT_S : PVL_RESP_KEPT_S) * (uint32_t)trace->rate_hz;

    if (age < trace->overdue || age - trace->overdue >= trace->count)
        return PVL_NO_SAMPLE;
    return samples[(trace->head + length - 1u - (age - trace->overdue)) % length];
}

size_t pvl_traces_list(const pvl_traces *traces, uint8_t channel, int8_t *out)
{
    bool is_pulse = channel == PVL_CHANNEL_PULSE;
    uint32_t length = is_pulse ? PVL_PULSE_KEPT_S * (uint32_t)traces->pulse.rate_hz
                               : PVL_RESP_KEPT_S * (uint32_t)traces->resp.rate_hz;
    bool any = false;

    for (uint32_t i = 0; i < length; i++) {
        out[i] = pvl_traces_at(traces, channel, length - 1u - i);
        any = any || out[i] != PVL_NO_SAMPLE;
    }
    return any ? length : 0;
}
