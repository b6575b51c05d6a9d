/* A driver without a GPU: the functions of libcuda.so.1 that hwprune calls, counted, not run.

   A launch takes a microsecond and one for every block; the memory is 1 GiB; FAKE_CUDA_* say what else
   is wrong. A kernel is there if its name is in the machine code. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int R;
static double queued_us, graph_us, clock_us, events_us[16];
static int events, capturing, broken;
static size_t used, sizes[4096];
static int allocations;
static char image[1 << 20];

static int given(const char* name, int usual) {
  const char* text = getenv(name);
  return text ? atoi(text) : usual;
}
static R fine(void) { return broken ? 700 : 0; }

R cuInit(unsigned f) { return given("FAKE_CUDA_INIT", 0); }
R cuDriverGetVersion(int* v) { *v = given("FAKE_CUDA_VERSION", 13000); return 0; }
R cuDeviceGet(int* d, int n) { *d = 0; return n; }
R cuDeviceGetName(char* s, int n, int d) { strncpy(s, "NVIDIA Fake", n); return 0; }
R cuDeviceTotalMem_v2(size_t* n, int d) { *n = 1u << 30; return 0; }
R cuDeviceGetAttribute(int* v, int a, int d) {
  int level = given("FAKE_CUDA_SM", 90);
  *v = a == 75 ? level / 10 : a == 76 ? level % 10 : a == 16 ? 132 : -1;
  return 0;
}
R cuDevicePrimaryCtxRetain(void** c, int d) { *c = &broken; return 0; }
R cuDevicePrimaryCtxReset_v2(int d) { broken = 0; used = 0; allocations = 0; return 0; }
R cuCtxSetCurrent(void* c) { return fine(); }
R cuStreamCreate(void** s, unsigned f) { *s = &queued_us; return fine(); }
R cuEventCreate(void** e, unsigned f) { *e = &events_us[events++ % 16]; return fine(); }
R cuModuleLoadData(void** m, const void* code) {
  strncpy(image, code, sizeof image - 1);
  *m = image;
  return given("FAKE_CUDA_LOAD", fine());
}
R cuModuleUnload(void* m) { return fine(); }
R cuModuleGetFunction(void** f, void* m, const char* name) {
  *f = strstr(m, name);
  return *f ? fine() : 500;
}
R cuFuncSetAttribute(void* f, int a, int v) { return a != 8 || v > 232448 ? 1 : fine(); }
R cuMemAlloc_v2(uint64_t* p, size_t n) {
  if (used + n > (1u << 30)) return 2;
  *p = 4096 + used;
  sizes[allocations++] = n;
  used += n;
  return fine();
}
R cuMemFree_v2(uint64_t p) {
  used -= sizes[--allocations];
  return fine();
}
R cuMemcpyHtoD_v2(uint64_t p, const void* h, size_t n) { return p + n > used + 4096 ? 1 : fine(); }
R cuMemcpyDtoD_v2(uint64_t p, uint64_t s, size_t n) {
  return p + n > used + 4096 || s + n > p ? 1 : fine();
}
R cuStreamBeginCapture_v2(void* s, int mode) { capturing = 1; queued_us = 0; return fine(); }
R cuLaunchKernel(void* f, unsigned x, unsigned y, unsigned z, unsigned a, unsigned b, unsigned c,
                 unsigned shared, void* s, void** p, void** e) {
  const char* crash = getenv("FAKE_CUDA_CRASH");
  if (!capturing || !*(uint64_t*)p[0] || a * b * c > 1024) return 1;
  if (crash && !strncmp(f, crash, strlen(crash))) broken = 1;
  queued_us += 1 + x * y * z;
  return fine();
}
R cuStreamEndCapture(void* s, void** g) { capturing = 0; graph_us = queued_us; *g = image; return fine(); }
R cuGraphInstantiateWithFlags(void** e, void* g, uint64_t f) { *e = g; return fine(); }
R cuGraphLaunch(void* e, void* s) { clock_us += graph_us; return fine(); }
R cuGraphExecDestroy(void* e) { return fine(); }
R cuGraphDestroy(void* g) { return fine(); }
R cuEventRecord(double* e, void* s) { *e = clock_us; return fine(); }
R cuEventSynchronize(void* e) { return fine(); }
R cuEventElapsedTime(float* ms, double* a, double* b) { *ms = (*b - *a) / 1000; return fine(); }
R cuGetErrorName(R r, const char** s) {
  *s = r == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : r == 34 ? "CUDA_ERROR_STUB_LIBRARY"
     : r == 100 ? "CUDA_ERROR_NO_DEVICE" : r == 209 ? "CUDA_ERROR_NO_BINARY_FOR_GPU"
     : r == 500 ? "CUDA_ERROR_NOT_FOUND" : r == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS"
     : "CUDA_ERROR_INVALID_VALUE";
  return 0;
}
