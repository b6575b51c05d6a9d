/* A driver without a GPU: the functions of libcuda.so.1 that hwprune and TVM call, counted, not run.

   A launch takes a microsecond and one for every 64 threads; the memory is 1 GiB; FAKE_CUDA_* say what
   else is wrong. A kernel is there if its name is in the machine code. The clock stands still but for
   launches; tests/fake_cudart.c, CUDA's runtime, tells the same time. */
#define _GNU_SOURCE
#include <elf.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int R;
double fake_queued_us, fake_clock_us; /* of what is captured; of what was launched */
int fake_capturing, fake_broken;
static double graph_us, events_us[16];
static int events;
size_t fake_used; /* bytes that are allocated */
int fake_retained; /* how often the context is */
static size_t sizes[4096];
static int allocations;

int fake_given(const char* name, int usual) {
  const char* text = getenv(name);
  return text ? atoi(text) : usual;
}
static R fine(void) { return fake_broken ? 700 : 0; }

/* How much machine code there is: an ELF file says it, else it is text. */
static size_t size_of(const void* code) {
  const Elf64_Ehdr* elf = code;
  if (memcmp(code, ELFMAG, SELFMAG)) return strlen(code);
  size_t sections = elf->e_shoff + (size_t)elf->e_shnum * elf->e_shentsize;
  size_t segments = elf->e_phoff + (size_t)elf->e_phnum * elf->e_phentsize;
  return sections > segments ? sections : segments;
}
typedef struct {
  size_t size;
  char code[];
} Image;

R cuInit(unsigned f) { return fake_given("FAKE_CUDA_INIT", 0); }
R cuDriverGetVersion(int* v) { *v = fake_given("FAKE_CUDA_VERSION", 13000); return 0; }
R cuDeviceGet(int* d, int n) { *d = 0; return n; }
R cuDeviceGetName(char* s, int n, int d) { strncpy(s, "NVIDIA Fake", n); return 0; }
R cuDeviceTotalMem_v2(size_t* n, int d) { *n = 1u << 30; return 0; }
R cuDeviceGetAttribute(int* v, int a, int d) {
  int level = fake_given("FAKE_CUDA_SM", 90);
  *v = a == 75 ? level / 10 : a == 76 ? level % 10 : a == 16 ? 132 : -1;
  return 0;
}
R cuDevicePrimaryCtxRetain(void** c, int d) { *c = &fake_broken; fake_retained++; return 0; }
R cuDevicePrimaryCtxReset_v2(int d) { fake_broken = fake_given("FAKE_CUDA_LOST", 0) && fake_broken; fake_used = 0; allocations = 0; fake_retained = 0; return 0; }
R cuDevicePrimaryCtxRelease_v2(int d) { return --fake_retained < 0 ? 1 : 0; }
R cuCtxSetCurrent(void* c) { return fine(); }
R cuStreamDestroy_v2(void* s) { return fine(); }
R cuEventDestroy_v2(void* e) { return fine(); }
R cuStreamCreate(void** s, unsigned f) { *s = &fake_queued_us; return fine(); }
R cuEventCreate(void** e, unsigned f) { *e = &events_us[events++ % 16]; return fine(); }
R cuModuleLoadData(void** m, const void* code) {
  Image* image = malloc(sizeof *image + size_of(code));
  image->size = size_of(code);
  memcpy(image->code, code, image->size);
  *m = image;
  return fake_given("FAKE_CUDA_LOAD", fine());
}
R cuModuleUnload(void* m) {
  free(m);
  return fine();
}
R cuModuleGetFunction(void** f, Image* m, const char* name) {
  *f = memmem(m->code, m->size, name, strlen(name));
  return *f ? fine() : 500;
}
R cuFuncSetAttribute(void* f, int a, int v) { return a != 8 || v > 232448 ? 1 : fine(); }
R cuMemAlloc_v2(uint64_t* p, size_t n) {
  if (fake_used + n > (1u << 30)) return 2;
  *p = 4096 + fake_used;
  sizes[allocations++] = n;
  fake_used += n;
  return fine();
}
R cuMemFree_v2(uint64_t p) {
  fake_used -= sizes[--allocations];
  return fine();
}
R cuMemcpyHtoD_v2(uint64_t p, const void* h, size_t n) { return p + n > fake_used + 4096 ? 1 : fine(); }
R cuMemcpyDtoD_v2(uint64_t p, uint64_t s, size_t n) {
  return p + n > fake_used + 4096 || s + n > p ? 1 : fine();
}
R cuStreamBeginCapture_v2(void* s, int mode) { fake_capturing = 1; fake_queued_us = 0; return fine(); }
R cuLaunchKernel(void* f, unsigned x, unsigned y, unsigned z, unsigned a, unsigned b, unsigned c,
                 unsigned shared, void* s, void** p, void** e) {
  const char* crash = getenv("FAKE_CUDA_CRASH");
  if (!*(uint64_t*)p[0] || a * b * c > 1024) return 1;
  if (crash && !strncmp(f, crash, strlen(crash))) fake_broken = 1;
  *(fake_capturing ? &fake_queued_us : &fake_clock_us) += 1 + x * y * z * (a / 64.0);
  return fine();
}
R cuLaunchKernelEx(const unsigned* c, void* f, void** p, void** e) { /* grid, block, shared */
  return cuLaunchKernel(f, c[0], c[1], c[2], c[3], c[4], c[5], c[6], 0, p, e);
}
R cuTensorMapEncodeTiled(void) { return 1; }
R cuStreamEndCapture(void* s, void** g) { fake_capturing = 0; graph_us = fake_queued_us; *g = &graph_us; return fine(); }
R cuGraphInstantiateWithFlags(void** e, void* g, uint64_t f) { *e = g; return fine(); }
R cuGraphLaunch(void* e, void* s) { fake_clock_us += graph_us; return fine(); }
R cuGraphExecDestroy(void* e) { return fine(); }
R cuGraphDestroy(void* g) { return fine(); }
R cuEventRecord(double* e, void* s) { *e = fake_clock_us; return fine(); }
R cuEventSynchronize(void* e) { return fine(); }
R cuEventElapsedTime(float* ms, double* a, double* b) { *ms = (*b - *a) / 1000; return fine(); }
R cuGetErrorString(R r, const char** s) {
  *s = "an error";
  return 0;
}
R cuGetErrorName(R r, const char** s) {
  *s = r == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : r == 34 ? "CUDA_ERROR_STUB_LIBRARY"
     : r == 100 ? "CUDA_ERROR_NO_DEVICE" : r == 209 ? "CUDA_ERROR_NO_BINARY_FOR_GPU"
     : r == 500 ? "CUDA_ERROR_NOT_FOUND" : r == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS"
     : "CUDA_ERROR_INVALID_VALUE";
  return 0;
}
