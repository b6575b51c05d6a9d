/* Vector table, reset and the end of main for Cortex-M: all that a bare program needs. */
#include <stdint.h>

extern uint32_t hwprune_stack_top[], hwprune_data_load[];
extern uint32_t hwprune_data_start[], hwprune_data_end[];
extern uint32_t hwprune_bss_start[], hwprune_bss_end[];

int main(void);
void hwprune_exit(int status);
void Reset_Handler(void);
void SysTick_Handler(void);

static void fault(void) {
  hwprune_exit(3);
}

__attribute__((weak)) void SysTick_Handler(void) {
}

/* A board's own support code replaces this where there is no debugger to end the program. */
__attribute__((weak)) void hwprune_exit(int status) {
  (void)status;
  for (;;) {
  }
}

/* -nostartfiles leaves these out; the C library's initialisation refers to them. */
void _init(void);
void _fini(void);
void _init(void) {
}
void _fini(void) {
}

typedef void (*vector)(void);

__attribute__((section(".isr_vector"), used)) static const vector vectors[16] = {
    (vector)(uintptr_t)hwprune_stack_top,
    Reset_Handler,
    fault,
    fault,
    fault,
    fault,
    fault,
    0,
    0,
    0,
    0,
    fault,
    fault,
    0,
    fault,
    SysTick_Handler,
};

__attribute__((noreturn)) void Reset_Handler(void) {
#if defined(__ARM_FP) || defined(__ARM_FEATURE_MVE)
  *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20; /* CPACR: FPU and Helium on */
  __asm__ volatile("dsb\n isb" ::: "memory");
#endif
  const uint32_t *from = hwprune_data_load;
  for (uint32_t *to = hwprune_data_start; to < hwprune_data_end; ++to) {
    *to = *from++;
  }
  for (uint32_t *to = hwprune_bss_start; to < hwprune_bss_end; ++to) {
    *to = 0;
  }
  hwprune_exit(main());
  for (;;) {
  }
}
