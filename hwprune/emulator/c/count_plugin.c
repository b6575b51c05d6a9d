/* A plugin of QEMU (plugin API version 1): how often every instruction ran, by address.
   With start=ADDRESS and stop=ADDRESS (hexadecimal) it counts from every call of the one function
   to the next of the other, apart, and a line "phase" ends each. Declared here and not included, for the header comes with QEMU's source only. */
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef struct qemu_info_t qemu_info_t;

void qemu_plugin_register_vcpu_tb_trans_cb(
    plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);
void qemu_plugin_register_vcpu_insn_exec_inline(
    struct qemu_plugin_insn *, int operation, void *counter, uint64_t step);
void qemu_plugin_register_vcpu_insn_exec_cb(
    struct qemu_plugin_insn *, void (*)(unsigned, void *), int flags, void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

#define SLOTS (1u << 18)
static struct {
  uint64_t address, count;
} slots[SLOTS];
static char *path;
static uint64_t start_at = 1, stop_at = 1; /* no address of code is odd */
static FILE *phases;

static uint64_t *counter(uint64_t address) {
  size_t i = (size_t)(address * 0x9E3779B97F4A7C15ull >> 46) & (SLOTS - 1);
  while (slots[i].address && slots[i].address != address + 1) {
    i = (i + 1) & (SLOTS - 1);
  }
  slots[i].address = address + 1;
  return &slots[i].count;
}

static void write_counts(FILE *file) {
  for (size_t i = 0; i < SLOTS; ++i) {
    if (slots[i].count) {
      fprintf(file, "%" PRIx64 " %" PRIu64 "\n", slots[i].address - 1, slots[i].count);
    }
  }
}

static void started(unsigned cpu, void *data) {
  (void)cpu;
  (void)data;
  for (size_t i = 0; i < SLOTS; ++i) {
    slots[i].count = 0;
  }
}

static void stopped(unsigned cpu, void *data) {
  (void)cpu;
  (void)data;
  if (phases) {
    write_counts(phases);
    fputs("phase\n", phases);
  }
}

static void translated(plugin_id id, struct qemu_plugin_tb *block) {
  (void)id;
  for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); ++i) {
    struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(block, i);
    const uint64_t address = qemu_plugin_insn_vaddr(insn);
    if (address == start_at) {
      qemu_plugin_register_vcpu_insn_exec_cb(insn, started, 0, NULL);
    }
    if (address == stop_at) {
      qemu_plugin_register_vcpu_insn_exec_cb(insn, stopped, 0, NULL);
    }
    qemu_plugin_register_vcpu_insn_exec_inline(insn, 0, counter(address), 1);
  }
}

static void ended(plugin_id id, void *data) {
  (void)id;
  (void)data;
  if (phases) {
    fclose(phases);
    return;
  }
  FILE *file = fopen(path, "w");
  if (file) {
    write_counts(file);
    fclose(file);
  }
}

__attribute__((visibility("default"))) int qemu_plugin_install(
    plugin_id id, const qemu_info_t *info, int argc, char **argv) {
  (void)info;
  if (argc < 1 || strncmp(argv[0], "path=", 5) != 0) {
    return 1;
  }
  path = strdup(argv[0] + 5);
  for (int i = 1; i < argc; ++i) {
    if (strncmp(argv[i], "start=", 6) == 0) {
      start_at = strtoull(argv[i] + 6, NULL, 16);
    } else if (strncmp(argv[i], "stop=", 5) == 0) {
      stop_at = strtoull(argv[i] + 5, NULL, 16);
    }
  }
  if (stop_at != 1) {
    phases = fopen(path, "w");
  }
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_atexit_cb(id, ended, NULL);
  return 0;
}
