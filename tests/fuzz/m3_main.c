/* replay.c on a bare Cortex-M3 (qemu-system-arm -machine mps2-an385): start-up, and text out by semihosting. */
#include <stddef.h>
#include <stdint.h>

#include "replay.h"

extern uint32_t stack_top, data_from, data_start, data_end, bss_start, bss_end;
void reset(void);
static void stuck(void);

__attribute__((section(".vectors"), used)) static void *const vector_table[16] = {
    &stack_top, (void *)reset, (void *)stuck, (void *)stuck, (void *)stuck, (void *)stuck, (void *)stuck,
    0, 0, 0, 0, (void *)stuck, (void *)stuck, 0, (void *)stuck, (void *)stuck,
};

static void semihost(uint32_t operation, const void *argument)
{
    register uint32_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
}

void replay_write(const char *text) { semihost(0x04, text); }

static void leave(void)
{
    for (;;)
        semihost(0x18, (const void *)0x20026);
}

static void stuck(void)
{
    replay_write("exception\n");
    leave();
}

void reset(void)
{
    const uint32_t *from = &data_from;
    for (uint32_t *at = &data_start; at < &data_end;)
        *at++ = *from++;
    for (uint32_t *at = &bss_start; at < &bss_end;)
        *at++ = 0;
    replay();
    leave();
}

/* gcc calls these also without a library. */
void *memcpy(void *restrict to, const void *restrict from, size_t n);
void *memset(void *to, int value, size_t n);

void *memcpy(void *restrict to, const void *restrict from, size_t n)
{
    char *out = to;
    for (const char *in = from; n; n--)
        *out++ = *in++;
    return to;
}

void *memset(void *to, int value, size_t n)
{
    for (char *out = to; n; n--)
        *out++ = (char)value;
    return to;
}
