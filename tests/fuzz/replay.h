/* What replay.c needs of the machine it runs on. */
void replay(void);
void replay_write(const char *text);
