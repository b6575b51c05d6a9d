/* What a board brings for its serial port. */
#ifndef HWPRUNE_SERIAL_H
#define HWPRUNE_SERIAL_H
#include <stdint.h>

/* Send a character; wait for the next one. The first call of either may set up clock and port. */
void hwprune_put(char c);
char hwprune_get(void);
/* Clock cycles a second, of which the counts are; 0 (as it is without this function): that of the
   target's description. */
uint32_t hwprune_clock_hz(void);
/* "device", as it is without this function, or "emulator". */
const char *hwprune_kind(void);

#endif
