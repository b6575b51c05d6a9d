/* Counting and printing on an emulated board (or one with a debugger): semihosting and SysTick. */
#ifndef HWPRUNE_HARNESS_H
#define HWPRUNE_HARNESS_H
#include <stdint.h>

/* Start SysTick and measure an empty pair of hwprune_start and hwprune_stop. */
void hwprune_harness_init(void);
void hwprune_start(void);
/* Ticks of SysTick's clock since hwprune_start, less those of an empty pair. */
uint64_t hwprune_stop(void);
void hwprune_print(const char *text);
void hwprune_print_number(uint64_t value);
/* End the emulation with this status. */
void hwprune_exit(int status);
/* Wait until the host asks for a run (serial.c). */
void hwprune_wait(void);

#endif
