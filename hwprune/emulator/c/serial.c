/* Printing over a serial port, and the host that asks for runs. A board brings the functions of
   serial.h: uart.c is where to write them, uart_emulated.c has those of the emulated boards. */
#include "serial.h"

#include "harness.h"
#include "model_id.h"

__attribute__((weak)) const char *hwprune_kind(void) {
  return "device";
}

__attribute__((weak)) uint32_t hwprune_clock_hz(void) {
  return 0;
}

void hwprune_print(const char *text) {
  while (*text) {
    hwprune_put(*text++);
  }
}

void hwprune_exit(int status) {
  hwprune_print("fault ");
  hwprune_print_number((uint64_t)status);
  hwprune_print("\n");
  for (;;) {
  }
}

/* A line that is "run" asks for one; anything else is noise. */
static void wait_for_run(void) {
  static const char wanted[] = "run\n";
  for (unsigned at = 0; wanted[at];) {
    const char c = hwprune_get();
    at = c == wanted[at] ? at + 1 : c == wanted[0];
  }
}

void hwprune_wait(void) {
  wait_for_run();
  hwprune_print("hwprune 1 ");
  hwprune_print(hwprune_kind());
  hwprune_print(" ");
  hwprune_print_number(hwprune_clock_hz());
  hwprune_print(" ");
  hwprune_print_number(HWPRUNE_MODEL_ID);
  hwprune_print("\n");
}
