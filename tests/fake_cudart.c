/* CUDA's runtime without a GPU: the functions of libcudart that TVM's CUDA runtime calls.

   Memory is the host's, FAKE_CUDA_MEMORY bytes of it; kernels are launched through tests/fake_cuda.c
   and compute nothing; graphs and events are times of its clock. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int R;
extern double fake_queued_us, fake_clock_us;
extern int fake_capturing, fake_broken;
extern int fake_given(const char* name, int usual);
int fake_replays; /* of graphs */
static size_t used;

static R fine(void) { return fake_broken ? 700 : 0; }
static R made(void** p) { return (*p = calloc(1, sizeof(double))) ? fine() : 2; }
static R gone(void* p) {
  free(p);
  return fine();
}

R cudaGetDeviceCount(int* n) {
  R wrong = fake_given("FAKE_CUDA_INIT", 0);
  *n = !wrong;
  return fake_given("FAKE_CUDA_VERSION", 13000) < 13000 ? 35 : wrong;
}
R cudaGetDevice(int* d) { *d = 0; return 0; }
R cudaSetDevice(int d) { return d ? 101 : 0; }
R cudaDeviceGetAttribute(int* v, int a, int d) {
  int level = fake_given("FAKE_CUDA_SM", 90);
  *v = a == 75 ? level / 10 : a == 76 ? level % 10 : a == 16 ? 132 : a == 10 ? 32 : 1024;
  return 0;
}
R cudaGetDeviceProperties(void* p, int d) { return 801; }
R cudaMalloc(void** p, size_t n) {
  size_t* block = used + n > (size_t)fake_given("FAKE_CUDA_MEMORY", 1 << 30) ? 0 : calloc(1, n + 256);
  if (!block) return 2;
  *block = n;
  used += n;
  *p = (char*)block + 256; /* as far as CUDA aligns */
  return fine();
}
R cudaFree(void* p) {
  if (!p) return fine();
  size_t* block = (size_t*)((char*)p - 256);
  used -= *block;
  return gone(block);
}
R cudaMallocHost(void** p, size_t n) { return (*p = malloc(n)) ? fine() : 2; }
R cudaFreeHost(void* p) { return gone(p); }
R cudaMemGetInfo(size_t* left, size_t* all) { *all = 1u << 30; *left = *all - used; return fine(); }
R cudaMemcpyAsync(void* to, const void* from, size_t n, int kind, void* s) {
  memcpy(to, from, n);
  return fine();
}
R cudaMemcpyPeerAsync(void* to, int d, const void* from, int e, size_t n, void* s) { return 1; }
R cudaStreamCreate(void** s) { return made(s); }
R cudaStreamCreateWithFlags(void** s, unsigned f) { return made(s); }
R cudaStreamDestroy(void* s) { return gone(s); }
R cudaStreamSynchronize(void* s) { return fine(); }
R cudaStreamWaitEvent(void* s, void* e, unsigned f) { return fine(); }
R cudaStreamBeginCapture(void* s, int mode) {
  fake_capturing = 1;
  fake_queued_us = 0;
  return fine();
}
R cudaStreamEndCapture(void* s, void** g) {
  R wrong = made(g);
  fake_capturing = 0;
  *(double*)*g = fake_queued_us;
  return wrong;
}
R cudaGraphInstantiate(void** e, void* g, unsigned long long f) {
  R wrong = made(e);
  *(double*)*e = *(double*)g;
  return wrong;
}
R cudaGraphLaunch(void* e, void* s) {
  fake_clock_us += *(double*)e;
  fake_replays++;
  return fine();
}
R cudaGraphDestroy(void* g) { return gone(g); }
R cudaGraphExecDestroy(void* e) { return gone(e); }
R cudaEventCreate(void** e) { return made(e); }
R cudaEventDestroy(void* e) { return gone(e); }
R cudaEventRecord(void* e, void* s) {
  *(double*)e = fake_clock_us;
  return fine();
}
R cudaEventSynchronize(void* e) { return fine(); }
R cudaEventElapsedTime(float* ms, void* a, void* b) {
  *ms = (*(double*)b - *(double*)a) / 1000;
  return fine();
}
R cudaGetLastError(void) { return fine(); }
R cudaPeekAtLastError(void) { return fine(); }
const char* cudaGetErrorName(R r) { return r == 2 ? "cudaErrorMemoryAllocation" : "cudaErrorUnknown"; }
const char* cudaGetErrorString(R r) { return r == 2 ? "out of memory" : "unknown error"; }
