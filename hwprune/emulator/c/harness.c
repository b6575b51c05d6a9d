/* Counting on Cortex-M: SysTick (Armv7-M ARM, B3.3), or, with HWPRUNE_DWT, the cycle counter (C1.8)
   where the core has one. */
#include "harness.h"

#define SYST_CSR (*(volatile uint32_t *)0xE000E010u)
#define SYST_RVR (*(volatile uint32_t *)0xE000E014u)
#define SYST_CVR (*(volatile uint32_t *)0xE000E018u)
#define ICSR (*(volatile uint32_t *)0xE000ED04u)
#define RELOAD 0x00FFFFFFu

void SysTick_Handler(void);

static volatile uint32_t wraps;
static uint64_t begin, empty;

#ifdef HWPRUNE_DWT
#define DEMCR (*(volatile uint32_t *)0xE000EDFCu)
#define DWT_CTRL (*(volatile uint32_t *)0xE0001000u)
#define DWT_CYCCNT (*(volatile uint32_t *)0xE0001004u)

static int has_counter;

static void start_counter(void) {
  DEMCR |= 1u << 24; /* TRCENA */
  DWT_CYCCNT = 0;
  DWT_CTRL |= 1u;
  const uint32_t first = DWT_CYCCNT;
  for (volatile int i = 0; i < 8; ++i) {
  }
  has_counter = DWT_CYCCNT != first;
}
#endif

void SysTick_Handler(void) {
  ++wraps;
}

/* Both reads of the count of wraps must agree, and none be pending: else one fell in between. */
static uint64_t now(void) {
#ifdef HWPRUNE_DWT
  if (has_counter) {
    return DWT_CYCCNT;
  }
#endif
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
#ifdef HWPRUNE_DWT
  if (has_counter) { /* 32 bits: what lies between must be shorter than 2^32 cycles */
    return (uint32_t)(now() - begin - empty);
  }
#endif
  return now() - begin - empty;
}

void hwprune_harness_init(void) {
  SYST_RVR = RELOAD;
  SYST_CVR = 0;
  SYST_CSR = 7; /* processor clock, interrupt, on */
#ifdef HWPRUNE_DWT
  start_counter();
#endif
  empty = 0;
  hwprune_start();
  empty = hwprune_stop();
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
