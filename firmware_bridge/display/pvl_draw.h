/* Paints the whole screen. Integer arithmetic only, no state: the same view gives the same pixels, whatever was there. */
#ifndef PVL_DRAW_H
#define PVL_DRAW_H

#include "pvl_traces.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PVL_SCREEN_WIDTH 800
#define PVL_SCREEN_HEIGHT 480

/* fb: PVL_SCREEN_WIDTH * PVL_SCREEN_HEIGHT pixels, RGB565, row after row from the top left; every one is written.
 * traces may be NULL: no trace. product: the camera unit's name, at most 16 characters are read; NULL or "" = unknown. */
void pvl_draw(uint16_t *fb, const pvl_view *view, const pvl_traces *traces, const char *product);

#ifdef __cplusplus
}
#endif

#endif
