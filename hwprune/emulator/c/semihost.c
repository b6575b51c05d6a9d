/* Printing and ending by semihosting (Arm IHI 0100): an emulated board, or one with a debugger. */
#include "harness.h"

static uint32_t semihost(uint32_t operation, const void *argument) {
  register uint32_t r0 __asm__("r0") = operation;
  register const void *r1 __asm__("r1") = argument;
  __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
  return r0;
}

void hwprune_print(const char *text) {
  semihost(0x04, text); /* SYS_WRITE0 */
}

void hwprune_exit(int status) {
  const uint32_t block[2] = {0x20026u, (uint32_t)status}; /* ADP_Stopped_ApplicationExit */
  semihost(0x20, block);                                  /* SYS_EXIT_EXTENDED */
  for (;;) {
  }
}
