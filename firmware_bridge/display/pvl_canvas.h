/* Rectangles and text on a part of an RGB565 framebuffer. Integer arithmetic only, no state. */
#ifndef PVL_CANVAS_H
#define PVL_CANVAS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A part of the glass. Nothing is painted outside it, so no text can run over what stands beside it. */
typedef struct {
    uint16_t *fb;
    int32_t left, top, right, bottom; /* the last two are outside */
} pvl_canvas;

/* Glyph i is runs[start[i]] up to runs[start[i + 1]]: coverage in the upper four bits of a byte, run length - 1 in the
 * lower, row after row of width[i] pixels, height rows. */
typedef struct {
    const uint8_t *runs;
    const uint16_t *start;
    const uint8_t *width;
    const char *glyphs;
    uint8_t height, cap, gap;
} pvl_font;

extern const pvl_font pvl_font_small, pvl_font_medium, pvl_font_large; /* ASCII */
extern const pvl_font pvl_font_digits, pvl_font_mark;                  /* 0-9 and -; ? */

pvl_canvas pvl_within(const pvl_canvas *on, int32_t left, int32_t top, int32_t right, int32_t bottom);

/* NULL outside the canvas. */
uint16_t *pvl_pixel(const pvl_canvas *on, int32_t x, int32_t y);

/* From paper (0) to ink (15). */
uint16_t pvl_mix(uint16_t paper, uint16_t ink, uint32_t coverage);

void pvl_fill(const pvl_canvas *on, int32_t left, int32_t top, int32_t right, int32_t bottom, uint16_t colour);

/* At most `most` characters; one that the font lacks is left out. y is the top of the capitals. Text returns where the
 * next character would stand. */
int32_t pvl_text(const pvl_canvas *on, const pvl_font *font, int32_t x, int32_t y, const char *words, uint32_t most,
                 uint16_t ink, uint16_t paper);
int32_t pvl_text_width(const pvl_font *font, const char *words, uint32_t most);

/* From the canvas's top left corner: on one line, or where it is too long on two of about the same length. */
void pvl_paragraph(const pvl_canvas *on, const pvl_font *font, const char *words, int32_t step, uint16_t ink, uint16_t paper);

#ifdef __cplusplus
}
#endif

#endif
