/* The serial port of the emulated boards: Arm's CMSDK UART (Arm DDI 0479, 4.3). HWPRUNE_UART is its
   address. */
#include "serial.h"

#define DATA (*(volatile uint32_t *)(HWPRUNE_UART + 0x0u))
#define STATE (*(volatile uint32_t *)(HWPRUNE_UART + 0x4u))
#define CTRL (*(volatile uint32_t *)(HWPRUNE_UART + 0x8u))
#define BAUDDIV (*(volatile uint32_t *)(HWPRUNE_UART + 0x10u))
#define FULL_TO_SEND 1u
#define FULL_RECEIVED 2u

static void set_up(void) {
  BAUDDIV = 16;
  CTRL = 3; /* send and receive */
}

void hwprune_put(char c) {
  set_up();
  while (STATE & FULL_TO_SEND) {
  }
  DATA = (uint8_t)c;
}

char hwprune_get(void) {
  set_up();
  while (!(STATE & FULL_RECEIVED)) {
  }
  return (char)(uint8_t)DATA;
}

const char *hwprune_kind(void) {
  return "emulator";
}
