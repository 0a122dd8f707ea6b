/* replay.c on the host. */
#include <stdio.h>

#include "replay.h"

void replay_write(const char *text) { fputs(text, stdout); }

int main(void)
{
    replay();
    return 0;
}
