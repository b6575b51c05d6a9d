/* Semihosting (Arm IHI 0100) and SysTick (Armv7-M ARM, B3.3) for Cortex-M. */
#include "harness.h"

#define SYST_CSR (*(volatile uint32_t *)0xE000E010u)
#define SYST_RVR (*(volatile uint32_t *)0xE000E014u)
#define SYST_CVR (*(volatile uint32_t *)0xE000E018u)
#define ICSR (*(volatile uint32_t *)0xE000ED04u)
#define RELOAD 0x00FFFFFFu

void SysTick_Handler(void);

static volatile uint32_t wraps;
static uint64_t begin, empty;

static uint32_t semihost(uint32_t operation, const void *argument) {
  register uint32_t r0 __asm__("r0") = operation;
  register const void *r1 __asm__("r1") = argument;
  __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
  return r0;
}

void SysTick_Handler(void) {
  ++wraps;
}

/* Both reads of the count of wraps must agree, and none be pending: else one fell in between. */
static uint64_t now(void) {
  for (;;) {
    const uint32_t before = wraps;
    const uint32_t left = SYST_CVR;
    if (before == wraps && !(ICSR & (1u << 26))) {
      return (uint64_t)before * (RELOAD + 1ull) + (RELOAD - left);
    }
  }
}

void hwprune_start(void) {
  begin = now();
}

uint64_t hwprune_stop(void) {
  return now() - begin - empty;
}

void hwprune_harness_init(void) {
  SYST_RVR = RELOAD;
  SYST_CVR = 0;
  SYST_CSR = 7; /* processor clock, interrupt, on */
  empty = 0;
  hwprune_start();
  empty = hwprune_stop();
}

void hwprune_print(const char *text) {
  semihost(0x04, text); /* SYS_WRITE0 */
}

void hwprune_print_number(uint64_t value) {
  char text[21];
  int at = 20;
  text[at] = 0;
  do {
    text[--at] = (char)('0' + (int)(value % 10u));
    value /= 10u;
  } while (value);
  hwprune_print(text + at);
}

void hwprune_exit(int status) {
  const uint32_t block[2] = {0x20026u, (uint32_t)status}; /* ADP_Stopped_ApplicationExit */
  semihost(0x20, block);                                  /* SYS_EXIT_EXTENDED */
  for (;;) {
  }
}
