/* The memory behind the two traces: the last seconds of each wave, by sample number. What did not arrive stays a gap.
 *
 * pvl_traces is 2640 bytes and lies outside pvl_display: a display without traces leaves it away. One line to the core:
 *   pvl_hooks hooks = { .user = &traces, .wave = pvl_traces_wave, .erase = pvl_traces_erase };
 * and after each pvl_look, before pvl_draw: pvl_traces_look(&traces, &view, now_ms).
 */
#ifndef PVL_TRACES_H
#define PVL_TRACES_H

#include "pvl_core.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Distance from pixel to pixel. A 7-inch panel of 800 x 480 is 154.08 mm wide. */
#ifndef PVL_PITCH_NM
#define PVL_PITCH_NM 192600
#endif
#define PVL_PULSE_NM_PER_S 25000000 /* 25 mm/s and 6.25 mm/s: the usual bedside sweeps for pulse and breathing */
#define PVL_RESP_NM_PER_S 6250000

#define PVL_PULSE_KEPT_S 6
#define PVL_RESP_KEPT_S 20

/* The glass has room for so many columns. A sweep takes whole seconds, so that it ends on a sample at any rate. */
#define PVL_TRACE_ROOM_PX 392
#define PVL_ROOM_S(nm_per_s) ((int32_t)((int64_t)PVL_TRACE_ROOM_PX * PVL_PITCH_NM / (nm_per_s)))
#define PVL_PX_256_PER_S(nm_per_s) ((int32_t)((int64_t)(nm_per_s) * 256 / PVL_PITCH_NM)) /* 1/256 pixels per second */

enum {
    PVL_PULSE_SWEEP_S = PVL_ROOM_S(PVL_PULSE_NM_PER_S) < PVL_PULSE_KEPT_S ? PVL_ROOM_S(PVL_PULSE_NM_PER_S) : PVL_PULSE_KEPT_S,
    PVL_RESP_SWEEP_S = PVL_ROOM_S(PVL_RESP_NM_PER_S) < PVL_RESP_KEPT_S ? PVL_ROOM_S(PVL_RESP_NM_PER_S) : PVL_RESP_KEPT_S
};

typedef struct {
    uint32_t next;    /* first_index that would follow without a gap */
    uint32_t due_ms;  /* when the next WAVE should be here */
    uint16_t head;    /* where in the memory the next sample goes */
    uint16_t count;   /* samples kept */
    uint16_t sweep;   /* where on the glass the next sample goes, in samples from the left end */
    uint16_t overdue; /* samples that should have come meanwhile, as of pvl_traces_look */
    uint8_t rate_hz;  /* 0 = erased */
} pvl_trace;

typedef struct pvl_traces {
    pvl_trace pulse, resp;
    int8_t pulse_samples[PVL_PULSE_KEPT_S * PVL_MAX_RATE_HZ];
    int8_t resp_samples[PVL_RESP_KEPT_S * PVL_MAX_RATE_HZ];
} pvl_traces;

/* Hooks for pvl_receive; user is the pvl_traces. Call pvl_traces_erase once before anything else. */
void pvl_traces_wave(void *user, const pvl_wave *wave);
void pvl_traces_erase(void *user);

/* Moves the traces on to now, and erases them when the view is not live. */
void pvl_traces_look(pvl_traces *traces, const pvl_view *view, uint32_t now_ms);

/* The sample that is `age` samples older than the newest that should be here by now; PVL_NO_SAMPLE = gap. */
int8_t pvl_traces_at(const pvl_traces *traces, uint8_t channel, uint32_t age);

/* All that is kept, oldest first, gaps as PVL_NO_SAMPLE, the newest at the end; out holds PVL_RESP_KEPT_S *
 * PVL_MAX_RATE_HZ. Returns the length; 0 when there is nothing but gaps. */
size_t pvl_traces_list(const pvl_traces *traces, uint8_t channel, int8_t *out);

#ifdef __cplusplus
}
#endif

#endif
