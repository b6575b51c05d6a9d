/* Runs the network on its test vectors, compares with the reference and counts.
   With HWPRUNE_HOST it is a program for the host, which counts nothing; with HWPRUNE_SERIAL one for a
   board, which does so at every "run" that comes over its serial port. */
#include <math.h>
#include <string.h>

#include "model.h"

#ifdef HWPRUNE_HOST
#include <stdio.h>
#else
#include "harness.h"
#endif

static int differs(int output);

/* Whether n floats are within a share of the largest of those wanted. */
static inline int near(const float *made, const float *want, int n, float share) {
  float top = 0.0f;
  for (int i = 0; i < n; ++i) {
    top = fabsf(want[i]) > top ? fabsf(want[i]) : top;
  }
  for (int i = 0; i < n; ++i) {
    if (!(fabsf(made[i] - want[i]) <= share * top)) {
      return 0;
    }
  }
  return 1;
}

/* Whether n integers are at most so many steps from those wanted. */
static inline int beside(const int8_t *made, const int8_t *want, int n, int steps) {
  for (int i = 0; i < n; ++i) {
    const int apart = made[i] - want[i];
    if (apart > steps || apart < -steps) {
      return 0;
    }
  }
  return 1;
}

#include "vectors.h"

#ifdef HWPRUNE_HOST
static int differs(int output) {
  printf("differs %d\n", output);
  return 0;
}

int main(void) {
  int same = 0;
  for (int i = 0; i < VECTORS; ++i) {
    run(i);
    same += equal(i);
  }
  printf("equal %d of %d\n", same, VECTORS);
  return same == VECTORS ? 0 : 1;
}
#else
static void say(const char *word, uint64_t number, const char *after) {
  hwprune_print(word);
  hwprune_print_number(number);
  hwprune_print(after);
}

static int differs(int output) {
  say("differs ", (uint64_t)output, "\n");
  return 0;
}

#ifdef HWPRUNE_TRACE
static uint64_t ticks[CALLS];
void hwprune_after(int call);
void hwprune_after(int call) {
  ticks[call] = hwprune_stop();
  hwprune_start();
}
#endif

static int report(void) {
  hwprune_start();
  run(0);
#ifdef HWPRUNE_TRACE
  uint64_t total = 0;
  for (int call = 0; call < CALLS; ++call) {
    total += ticks[call];
  }
  for (int call = 0; call < CALLS; ++call) {
    say("kernel ", (uint64_t)call, "");
    say(" ticks ", ticks[call], "\n");
  }
#else
  const uint64_t total = hwprune_stop();
#endif
  say("model ticks ", total, "\n");
  int same = equal(0);
  for (int i = 1; i < VECTORS; ++i) {
    run(i);
    same += equal(i);
  }
  say("equal ", (uint64_t)same, " of ");
  say("", VECTORS, "\n");
  return same == VECTORS ? 0 : 1;
}

int main(void) {
  hwprune_harness_init();
#ifdef HWPRUNE_SERIAL
  for (;;) {
    hwprune_wait();
    (void)report();
    hwprune_print("end\n");
  }
#else
  return report();
#endif
}
#endif
