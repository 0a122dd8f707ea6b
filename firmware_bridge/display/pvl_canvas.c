#include "pvl_canvas.h"

#include "pvl_draw.h"
#include "pvl_font.h"

uint16_t pvl_mix(uint16_t paper, uint16_t ink, uint32_t coverage)
{
    static const struct {
        uint8_t shift, mask;
    } part[3] = {{11, 31}, {5, 63}, {0, 31}};
    uint32_t out = 0;

    for (int i = 0; i < 3; i++) {
        uint32_t from = (uint32_t)paper >> part[i].shift & part[i].mask;
        uint32_t to = (uint32_t)ink >> part[i].shift & part[i].mask;
        out |= (from * (15u - coverage) + to * coverage + 7u) / 15u << part[i].shift;
    }
    return (uint16_t)out;
}

uint16_t *pvl_pixel(const pvl_canvas *on, int32_t x, int32_t y)
{
    bool inside = x >= on->left && x < on->right && y >= on->top && y < on->bottom;
    return inside ? &on->fb[y * PVL_SCREEN_WIDTH + x] : NULL;
}

void pvl_fill(const pvl_canvas *on, int32_t left, int32_t top, int32_t right, int32_t bottom, uint16_t colour)
{
    left = left > on->left ? left : on->left;
    top = top > on->top ? top : on->top;
    right = right < on->right ? right : on->right;
    bottom = bottom < on->bottom ? bottom : on->bottom;
    for (int32_t y = top; y < bottom; y++)
        for (int32_t x = left; x < right; x++)
            on->fb[y * PVL_SCREEN_WIDTH + x] = colour;
}

pvl_canvas pvl_within(const pvl_canvas *on, int32_t left, int32_t top, int32_t right, int32_t bottom)
{
    pvl_canvas part = {on->fb, left, top, right, bottom};
    return part;
}

static int32_t find(const pvl_font *font, char character)
{
    for (int32_t i = 0; font->glyphs[i]; i++)
        if (font->glyphs[i] == character)
            return i;
    return -1;
}

static void glyph(const pvl_canvas *on, const pvl_font *font, int32_t index, int32_t x, int32_t y, const uint16_t shade[16])
{
    int32_t column = 0;

    for (uint32_t i = font->start[index]; i < font->start[index + 1]; i++) {
        uint32_t coverage = font->runs[i] >> 4;
        for (int32_t n = (font->runs[i] & 15) + 1; n > 0; n--) {
            uint16_t *at = coverage ? pvl_pixel(on, x + column, y) : NULL;
            if (at)
                *at = shade[coverage];
            if (++column == font->width[index]) {
                column = 0;
                y++;
            }
        }
    }
}

int32_t pvl_text_width(const pvl_font *font, const char *text, uint32_t most)
{
    int32_t width = 0;

    for (uint32_t i = 0; i < most && text[i]; i++) {
        int32_t at = find(font, text[i]);
        if (at >= 0)
            width += font->width[at] + font->gap;
    }
    return width ? width - font->gap : 0;
}

int32_t pvl_text(const pvl_canvas *on, const pvl_font *font, int32_t x, int32_t y, const char *words, uint32_t most,
                 uint16_t ink, uint16_t paper)
{
    uint16_t shade[16];

    for (uint32_t i = 0; i < 16; i++)
        shade[i] = pvl_mix(paper, ink, i);
    for (uint32_t i = 0; i < most && words[i]; i++) {
        int32_t at = find(font, words[i]);
        if (at < 0)
            continue;
        glyph(on, font, at, x, y, shade);
        x += font->width[at] + font->gap;
    }
    return x;
}

static uint32_t length(const char *words)
{
    uint32_t n = 0;

    while (words[n])
        n++;
    return n;
}

/* The end of the first of two lines: the space at which the longer one is shortest. All of it where there is no space. */
static uint32_t balanced(const pvl_font *font, const char *words)
{
    uint32_t best = length(words);
    int32_t least = INT32_MAX;

    for (uint32_t i = 0; words[i]; i++) {
        int32_t first, second;
        if (words[i] != ' ')
            continue;
        first = pvl_text_width(font, words, i);
        second = pvl_text_width(font, words + i + 1, UINT32_MAX);
        if (first < second)
            first = second;
        if (first < least) {
            least = first;
            best = i;
        }
    }
    return best;
}

void pvl_paragraph(const pvl_canvas *on, const pvl_font *font, const char *words, int32_t step, uint16_t ink, uint16_t paper)
{
    uint32_t all = length(words), first = all;

    if (pvl_text_width(font, words, all) > on->right - on->left)
        first = balanced(font, words);
    pvl_text(on, font, on->left, on->top, words, first, ink, paper);
    if (first < all)
        pvl_text(on, font, on->left, on->top + step, words + first + 1, UINT32_MAX, ink, paper);
}
