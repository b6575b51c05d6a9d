/* Runs on the board, in the process that TVM's RPC server forks for a session.
 *
 * A library of its own beside the compiled kernels: it allocates what they read and write, launches
 * them in turn and reads the board's clock around each launch, so that nothing of the network between
 * the machines is measured. It also reads small files (/proc, /sys) and ends a session whose kernel
 * crashes or hangs, or whose client is gone, with status 0: TVM's server goes on after that, but is
 * mute after a child that failed.
 *
 * Every function follows TVM's calling convention; tensors are dense and lie on the CPU.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <tvm/ffi/c_api.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define FAIL(kind, text) \
  do { \
    TVMFFIErrorSetRaisedFromCStr(kind, text); \
    return -1; \
  } while (0)

enum { OWN, INPUT, OUTPUT, WEIGHT }; /* where an argument of a kernel lies */
enum { SWITCH_STACK = 65536, ALIGNMENT = 64 };

typedef int (*kernel_t)(void *, const TVMFFIAny *, int32_t, TVMFFIAny *);

typedef struct {
  kernel_t run;
  int arguments;
  TVMFFIAny *turns; /* copies x arguments */
  float *input;     /* touched before a launch; NULL if the kernel has no such input */
  int64_t input_size;
} launch_t;

static launch_t *launches;
static int64_t kernels, copies;
static uint32_t seed = 1;

static DLTensor *tensor(const TVMFFIAny *any) {
  if (any->type_index == kTVMFFIDLTensorPtr) return (DLTensor *)any->v_ptr;
  if (any->type_index == kTVMFFITensor) return (DLTensor *)((char *)any->v_obj + sizeof(TVMFFIObject));
  return NULL;
}

static int64_t elements(const DLTensor *t) {
  int64_t size = 1;
  for (int i = 0; i < t->ndim; ++i) size *= t->shape[i];
  return size;
}

static void give(TVMFFIAny *result, int64_t value) {
  result->type_index = kTVMFFIInt;
  result->zero_padding = 0;
  result->v_int64 = value;
}

static void leave(int number) {
  (void)number;
  _exit(0);
}

static void watch(void) {
  static char stack[SWITCH_STACK];
  static const int signals[] = {SIGALRM, SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT};
  stack_t other = {.ss_sp = stack, .ss_size = sizeof stack};
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = leave;
  action.sa_flags = SA_ONSTACK;
  sigaltstack(&other, NULL);
  for (size_t i = 0; i < sizeof signals / sizeof *signals; ++i) sigaction(signals[i], &action, NULL);
}

static int port_of(int file) {
  struct sockaddr_storage name;
  socklen_t size = sizeof name;
  if (getsockname(file, (struct sockaddr *)&name, &size)) return -1;
  if (name.ss_family == AF_INET) return ((struct sockaddr_in *)&name)->sin_port;
  return name.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&name)->sin6_port : -1;
}

/* Waits until the other end of a connection is closed. */
static void *follow(void *argument) {
  struct pollfd file = {.fd = (int)(intptr_t)argument, .events = POLLRDHUP};
  while (poll(&file, 1, -1) <= 0 || !(file.revents & (POLLRDHUP | POLLHUP | POLLERR))) continue;
  _exit(0);
}

/* End the session when its client is gone: its connection is to the port that the server listens on
 * (another one may be to a tracker). */
EXPORT int __tvm_ffi_hwprune_follow(void *self, const TVMFFIAny *args, int32_t count, TVMFFIAny *result) {
  (void)self, (void)args, (void)count;
  enum { FILES = 256 };
  int listening = -2, followed = 0;
  watch();
  for (int file = 0; file < FILES; ++file) {
    int yes = 0;
    socklen_t size = sizeof yes;
    if (!getsockopt(file, SOL_SOCKET, SO_ACCEPTCONN, &yes, &size) && yes) listening = port_of(file);
  }
  for (int file = 0; file < FILES; ++file) {
    struct sockaddr_storage peer;
    socklen_t size = sizeof peer;
    pthread_t thread;
    if (port_of(file) != listening || getpeername(file, (struct sockaddr *)&peer, &size)) continue;
    followed += !pthread_create(&thread, NULL, follow, (void *)(intptr_t)file);
  }
  give(result, followed);
  return 0;
}

/* Files, their names separated by newlines, into `out`: (length, content), length -1 if unreadable. */
EXPORT int __tvm_ffi_hwprune_read(void *self, const TVMFFIAny *args, int32_t count, TVMFFIAny *result) {
  (void)self;
  if (count != 2 || !tensor(args) || !tensor(args + 1)) FAIL("TypeError", "hwprune_read(names, out)");
  int64_t size = elements(tensor(args)), room = elements(tensor(args + 1)), used = 0;
  char *names = strndup(tensor(args)->data, size), *out = tensor(args + 1)->data, *rest = NULL;
  for (char *name = strtok_r(names, "\n", &rest); name; name = strtok_r(NULL, "\n", &rest)) {
    int32_t length = -1, file = open(name, O_RDONLY | O_CLOEXEC);
    if (used + (int64_t)sizeof length > room) break;
    char *content = out + used + sizeof length;
    if (file >= 0) {
      ssize_t got;
      int64_t left = room - used - sizeof length;
      for (length = 0; (got = read(file, content + length, left - length)) > 0; length += got) continue;
      if (got < 0 && length == 0) length = -1;
      close(file);
    }
    memcpy(out + used, &length, sizeof length);
    used += sizeof length + (length > 0 ? length : 0);
  }
  free(names);
  give(result, used);
  return 0;
}

/* The session ends itself, as if nothing had been wrong, unless called again within `seconds`. */
EXPORT int __tvm_ffi_hwprune_guard(void *self, const TVMFFIAny *args, int32_t count, TVMFFIAny *result) {
  (void)self;
  if (count != 1) FAIL("TypeError", "hwprune_guard(seconds)");
  watch();
  alarm((unsigned)args[0].v_int64);
  give(result, 0);
  return 0;
}

/* Keep this thread, and those that it starts from now on, on the cores of a mask. */
EXPORT int __tvm_ffi_hwprune_pin(void *self, const TVMFFIAny *args, int32_t count, TVMFFIAny *result) {
  (void)self;
  if (count != 1) FAIL("TypeError", "hwprune_pin(mask)");
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int i = 0; i < 63; ++i)
    if (args[0].v_int64 >> i & 1) CPU_SET(i, &set);
  setenv("TVM_BIND_THREADS", "0", 1); /* or TVM spreads them over others */
  give(result, sched_setaffinity(0, sizeof set, &set));
  return 0;
}

/* The cores this process may use, as a mask of the first 63. */
EXPORT int __tvm_ffi_hwprune_cores(void *self, const TVMFFIAny *args, int32_t count, TVMFFIAny *result) {
  (void)self, (void)args, (void)count;
  int64_t mask = 0;
  cpu_set_t set;
  CPU_ZERO(&set);
  sched_getaffinity(0, sizeof set, &set);
  for (int i = 0; i < 63; ++i) mask |= CPU_ISSET(i, &set) ? (int64_t)1 << i : 0;
  give(result, mask);
  return 0;
}

static uint32_t draw(void) {
  seed ^= seed << 13, seed ^= seed >> 17, seed ^= seed << 5;
  return seed;
}

/* Memory with values as a network has them: floats in [-1, 1), no denormals; integers 0. */
static void *buffer(int64_t size, int code, int bits) {
  void *memory;
  int64_t bytes = (size * bits + 7) / 8;
  if (posix_memalign(&memory, ALIGNMENT, bytes + ALIGNMENT)) return NULL;
  memset(memory, 0, bytes + ALIGNMENT);
  if (code == kDLFloat && bits == 32)
    for (int64_t i = 0; i < size; ++i) ((float *)memory)[i] = (int32_t)(draw() | 256) * 0x1p-31f;
  if (code == kDLFloat && bits == 16)
    for (int64_t i = 0; i < size; ++i) ((uint16_t *)memory)[i] = 0x3000 | (draw() & 0x87ff);
  if (code == kDLFloat && bits == 64)
    for (int64_t i = 0; i < size; ++i) ((double *)memory)[i] = (int32_t)(draw() | 256) * 0x1p-31;
  return memory;
}

/* Next argument of the plan (code, bits, dimensions, shape…) as a tensor; advances the plan. */
static DLTensor *describe(const int64_t **plan) {
  const int64_t *p = *plan;
  int ndim = (int)p[2];
  DLTensor *t = calloc(1, sizeof *t);
  if (!t || !(t->shape = calloc(2 * ndim + 1, sizeof *t->shape))) return NULL;
  t->strides = t->shape + ndim;
  t->device.device_type = kDLCPU;
  t->ndim = ndim;
  t->dtype = (DLDataType){(uint8_t)p[0], (uint8_t)p[1], 1};
  for (int i = 0; i < ndim; ++i) t->shape[i] = p[3 + i];
  for (int64_t i = ndim - 1, stride = 1; i >= 0; stride *= t->shape[i--]) t->strides[i] = stride;
  *plan = p + 3 + ndim;
  return t;
}

static void point(TVMFFIAny *any, DLTensor *t) {
  any->type_index = kTVMFFIDLTensorPtr;
  any->zero_padding = 0;
  any->v_ptr = t;
}

/* Set up one kernel from the plan. Returns 0, or -1 where memory is out. */
static int place(launch_t *launch, const int64_t **plan, float *input, float *output) {
  launch->arguments = (int)*(*plan)++;
  launch->turns = calloc(copies * launch->arguments, sizeof *launch->turns);
  if (!launch->turns) return -1;
  for (int i = 0; i < launch->arguments; ++i) {
    int role = (int)*(*plan)++;
    DLTensor *t = describe(plan), *turn = t;
    if (!t) return -1;
    if (role == INPUT) launch->input = input, launch->input_size = elements(t);
    for (int64_t copy = 0; copy < copies; ++copy) {
      if (copy == 0 || role == WEIGHT) {
        turn = calloc(1, sizeof *turn);
        if (!turn) return -1;
        *turn = *t;
        if (role == INPUT || role == OUTPUT) turn->data = role == INPUT ? input : output;
        else turn->data = buffer(elements(t), t->dtype.code, t->dtype.bits);
        if (!turn->data) return -1;
      }
      point(launch->turns + copy * launch->arguments + i, turn);
    }
  }
  return 0;
}

/* (library's path, plan): plan is kernels, copies, floats of the input and the output arena, then per
 * kernel its number of arguments and per argument role, code, bits, dimensions and shape. */
EXPORT int __tvm_ffi_hwprune_open(void *self, const TVMFFIAny *args, int32_t count, TVMFFIAny *result) {
  (void)self;
  if (count != 2 || !tensor(args) || !tensor(args + 1)) FAIL("TypeError", "hwprune_open(path, plan)");
  char *path = strndup(tensor(args)->data, elements(tensor(args))), name[64];
  const int64_t *plan = tensor(args + 1)->data;
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  free(path);
  if (!library) FAIL("RuntimeError", dlerror());
  kernels = *plan++, copies = *plan++;
  float *input = buffer(*plan++, kDLFloat, 32), *output = buffer(*plan++, kDLFloat, 32);
  launches = calloc(kernels, sizeof *launches);
  if (!input || !output || !launches) FAIL("MemoryError", "the board is out of memory");
  for (int64_t i = 0; i < kernels; ++i) {
    strcpy(name, "__tvm_ffi_k");
    char digits[24], *end = digits + sizeof digits - 1;
    *end = 0;
    for (int64_t rest = i; end == digits + sizeof digits - 1 || rest; rest /= 10) *--end = '0' + rest % 10;
    strcat(name, end);
    launches[i].run = (kernel_t)dlsym(library, name);
    if (!launches[i].run) FAIL("RuntimeError", dlerror());
    if (place(launches + i, &plan, input, output)) FAIL("MemoryError", "the board is out of memory");
  }
  give(result, kernels);
  return 0;
}

static double now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e6 + t.tv_nsec * 1e-3;
}

/* (kernel, round, seconds allowed): microseconds of one launch after its input was written. */
static int launch(int64_t i, int64_t round, int64_t seconds, double *us) {
  launch_t *l = launches + i;
  TVMFFIAny nothing = {.type_index = kTVMFFINone};
  for (int64_t k = 0; k < l->input_size; ++k) l->input[k] = -l->input[k];
  alarm((unsigned)seconds);
  double start = now_us();
  int status = l->run(NULL, l->turns + (round % copies) * l->arguments, l->arguments, &nothing);
  *us = now_us() - start;
  alarm(0);
  return status;
}

/* (kernel, seconds): one launch by itself, nanoseconds. */
EXPORT int __tvm_ffi_hwprune_run(void *self, const TVMFFIAny *args, int32_t count, TVMFFIAny *result) {
  (void)self;
  double us;
  if (count != 2 || args[0].v_int64 >= kernels) FAIL("TypeError", "hwprune_run(kernel, seconds)");
  watch();
  int status = launch(args[0].v_int64, 0, args[1].v_int64, &us);
  if (!status) give(result, (int64_t)(1000 * us));
  return status;
}

/* (round, seconds a kernel, out): every kernel in turn; microseconds of each into out, float64. */
EXPORT int __tvm_ffi_hwprune_round(void *self, const TVMFFIAny *args, int32_t count, TVMFFIAny *result) {
  (void)self;
  if (count != 3 || !tensor(args + 2)) FAIL("TypeError", "hwprune_round(round, seconds, out)");
  double *out = tensor(args + 2)->data;
  watch();
  for (int64_t i = 0; i < kernels; ++i) {
    int status = launch(i, args[0].v_int64, args[1].v_int64, out + i);
    if (status) return status;
  }
  give(result, kernels);
  return 0;
}
