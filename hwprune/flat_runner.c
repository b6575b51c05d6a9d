/* Runs a compiled network without TVM's runtime: the kernels of its library, one after another.
 *
 *     runner LIBRARY NETWORK INPUTS OUTPUTS [REPEATS]
 *
 * LIBRARY is the artifact's model.so. NETWORK says where every value lies in one block of memory,
 * which kernels run, and holds the weights (hwprune/lower/flat.py writes it and describes it).
 * INPUTS and OUTPUTS are the tensors' bytes, one after another. With REPEATS the network runs so
 * often more, and the nanoseconds of each run are printed.
 *
 * flat_open, flat_input, flat_run and flat_output are all that a program needs; define
 * FLAT_NO_MAIN to use them from one. Little-endian machines only, as the file is.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define EXPORT __attribute__((visibility("default")))

enum { ALIGNMENT = 64, DLTENSOR = 7, MOST_ARGUMENTS = 64, MOST_DIMENSIONS = 16, MOST_THREADS = 256 };

/* DLPack's tensor, and an argument of a function of TVM's, as their binary interfaces say. */
typedef struct {
  void *data;
  struct { int32_t type, id; } device;
  int32_t ndim;
  struct { uint8_t code, bits; uint16_t lanes; } dtype;
  int64_t *shape, *strides;
  uint64_t byte_offset;
} tensor_t;
typedef struct {
  int32_t type_index;
  uint32_t padding;
  void *value;
} any_t;
typedef int (*kernel_t)(void *, const any_t *, int32_t, any_t *);
typedef struct { void *sync; int32_t tasks; } group_t;
typedef int (*lambda_t)(int, group_t *, void *);
typedef struct { kernel_t run; int64_t arguments; any_t *values; } call_t;

typedef struct {
  void *library;
  char *file, *workspace;
  int64_t tensors, calls, inputs, outputs;
  tensor_t *tensor;
  call_t *call;
  const int64_t *input, *output;
} flat_t;

static int64_t threads = 1;

/* What kernels call. */

EXPORT void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  fprintf(stderr, "%s: ", kind);
  for (int32_t i = 0; i < count; ++i) fputs(parts[i], stderr);
  fputc('\n', stderr);
}

static void *allocate(int type, int id, uint64_t bytes, int code, int bits) {
  (void)type, (void)id, (void)code, (void)bits;
  return aligned_alloc(ALIGNMENT, (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
}

static int release(int type, int id, void *memory) {
  (void)type, (void)id;
  free(memory);
  return 0;
}

typedef struct { lambda_t run; group_t *group; void *closure; int task, status; } task_t;

static void *start(void *argument) {
  task_t *task = argument;
  task->status = task->run(task->task, task->group, task->closure);
  return NULL;
}

static int launch(lambda_t run, void *closure, int count) {
  pthread_t thread[MOST_THREADS];
  task_t task[MOST_THREADS];
  group_t group = {NULL, count > 0 ? count : (int)threads};
  if (group.tasks > MOST_THREADS) return -1;
  int status = 0, started = 1;
  for (int i = 0; i < group.tasks; ++i) task[i] = (task_t){run, &group, closure, i, 0};
  while (started < group.tasks && !pthread_create(&thread[started], NULL, start, &task[started]))
    ++started;
  start(&task[0]);
  for (int i = started; i < group.tasks; ++i) start(&task[i]); /* no thread was to be had */
  for (int i = 1; i < started; ++i) pthread_join(thread[i], NULL);
  for (int i = 0; i < group.tasks; ++i) status |= task[i].status;
  return status;
}

static int connect(void *library, const char *name, void *function) {
  void **slot = dlsym(library, name);
  if (slot) *slot = function;
  return slot != NULL;
}

/* Reading a network. */

static void *whole_file(const char *path, int64_t *bytes) {
  FILE *file = fopen(path, "rb");
  if (!file) return NULL;
  fseek(file, 0, SEEK_END);
  *bytes = ftell(file);
  rewind(file);
  char *data = allocate(0, 0, (uint64_t)*bytes + 1, 0, 0);
  if (data && fread(data, 1, (size_t)*bytes, file) != (size_t)*bytes) free(data), data = NULL;
  fclose(file);
  return data;
}

static int64_t bytes_of(const tensor_t *tensor) {
  int64_t size = tensor->dtype.bits / 8;
  for (int i = 0; i < tensor->ndim; ++i) size *= tensor->shape[i];
  return size;
}

static const int64_t *read_tensor(tensor_t *tensor, const int64_t *at, char *const *places) {
  *tensor = (tensor_t){.data = places[at[0]] + at[1], .device = {1, 0}, .ndim = (int32_t)at[4]};
  tensor->dtype.code = (uint8_t)at[2], tensor->dtype.bits = (uint8_t)at[3], tensor->dtype.lanes = 1;
  if (tensor->ndim > MOST_DIMENSIONS) return NULL;
  tensor->shape = calloc(2 * (size_t)tensor->ndim + 1, sizeof(int64_t));
  if (!tensor->shape) return NULL;
  tensor->strides = tensor->shape + tensor->ndim;
  memcpy(tensor->shape, at + 5, sizeof(int64_t) * (size_t)tensor->ndim);
  for (int64_t i = tensor->ndim - 1, stride = 1; i >= 0; stride *= tensor->shape[i--])
    tensor->strides[i] = stride;
  return at + 5 + tensor->ndim;
}

static const int64_t *read_call(flat_t *net, call_t *call, const int64_t *at) {
  const char *name = (const char *)(at + 1);
  call->run = (kernel_t)dlsym(net->library, name);
  if (!call->run) return fprintf(stderr, "no kernel %s in the library\n", name), NULL;
  at += 1 + at[0];
  call->arguments = *at++;
  if (call->arguments > MOST_ARGUMENTS) return NULL;
  call->values = calloc((size_t)call->arguments, sizeof(any_t));
  if (!call->values) return NULL;
  for (int64_t i = 0; i < call->arguments; ++i)
    call->values[i] = (any_t){DLTENSOR, 0, &net->tensor[*at++]};
  return at;
}

/* A network, ready to run; NULL, with a message on stderr, where a file is missing or not what it
 * should be. One network at a time, from one thread. */
flat_t *flat_open(const char *library, const char *network) {
  flat_t *net = calloc(1, sizeof *net);
  int64_t size = 0;
  if (!net || !(net->library = dlopen(library, RTLD_NOW)))
    return fprintf(stderr, "cannot load the library: %s\n", dlerror()), NULL;
  connect(net->library, "__TVMBackendAllocWorkspace", (void *)allocate);
  connect(net->library, "__TVMBackendFreeWorkspace", (void *)release);
  connect(net->library, "__TVMBackendParallelLaunch", (void *)launch);
  net->file = whole_file(network, &size);
  if (!net->file || size < 72 || memcmp(net->file, "HWPFLAT1", 8))
    return fprintf(stderr, "not a network: %s\n", network), NULL;
  const int64_t *at = (const int64_t *)(net->file + 8);
  if (at[0] != size) return fprintf(stderr, "%s is not whole\n", network), NULL;
  int64_t workspace = at[1], weights = at[2];
  net->tensors = at[3], net->calls = at[4], net->inputs = at[5], net->outputs = at[6];
  threads = at[7];
  at += 8;
  net->workspace = allocate(0, 0, (uint64_t)workspace + ALIGNMENT, 0, 0);
  net->tensor = calloc((size_t)net->tensors, sizeof(tensor_t));
  net->call = calloc((size_t)net->calls + 1, sizeof(call_t));
  if (!net->workspace || !net->tensor || !net->call) return fputs("no memory\n", stderr), NULL;
  char *places[] = {net->workspace, net->file + weights};
  for (int64_t i = 0; at && i < net->tensors; ++i) at = read_tensor(&net->tensor[i], at, places);
  for (int64_t i = 0; at && i < net->calls; ++i) at = read_call(net, &net->call[i], at);
  if (!at) return fprintf(stderr, "cannot read %s\n", network), NULL;
  net->input = at, net->output = at + net->inputs;
  return net;
}

/* Where input or output i lies, and its bytes. */
void *flat_input(flat_t *net, int64_t i, int64_t *bytes) {
  tensor_t *tensor = &net->tensor[net->input[i]];
  return *bytes = bytes_of(tensor), tensor->data;
}

const void *flat_output(flat_t *net, int64_t i, int64_t *bytes) {
  tensor_t *tensor = &net->tensor[net->output[i]];
  return *bytes = bytes_of(tensor), tensor->data;
}

/* Run the network on what its inputs hold; not 0 where a kernel failed. */
int flat_run(flat_t *net) {
  for (int64_t i = 0; i < net->calls; ++i) {
    any_t result = {0};
    int status = net->call[i].run(NULL, net->call[i].values, (int32_t)net->call[i].arguments, &result);
    if (status) return fprintf(stderr, "kernel %d failed\n", (int)i), status;
  }
  return 0;
}

#ifndef FLAT_NO_MAIN
static int64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

int main(int count, char **argument) {
  if (count < 5) return fprintf(stderr, "LIBRARY NETWORK INPUTS OUTPUTS [REPEATS]\n"), 2;
  flat_t *net = flat_open(argument[1], argument[2]);
  FILE *given = net ? fopen(argument[3], "rb") : NULL;
  if (!given) return fprintf(stderr, "cannot read %s\n", argument[3]), 1;
  for (int64_t i = 0, bytes; i < net->inputs; ++i) {
    void *to = flat_input(net, i, &bytes);
    if (fread(to, 1, (size_t)bytes, given) != (size_t)bytes)
      return fprintf(stderr, "%s is too short\n", argument[3]), 1;
  }
  fclose(given);
  if (flat_run(net)) return 1;
  FILE *made = fopen(argument[4], "wb");
  if (!made) return fprintf(stderr, "cannot write %s\n", argument[4]), 1;
  for (int64_t i = 0, bytes; i < net->outputs; ++i) {
    const void *from = flat_output(net, i, &bytes);
    if (fwrite(from, 1, (size_t)bytes, made) != (size_t)bytes) return 1;
  }
  if (fclose(made)) return fprintf(stderr, "cannot write %s\n", argument[4]), 1;
  for (int repeats = count > 5 ? atoi(argument[5]) : 0; repeats > 0; --repeats) {
    int64_t begin = now_ns();
    if (flat_run(net)) return 1;
    printf("%lld\n", (long long)(now_ns() - begin));
  }
  return 0;
}
#endif
