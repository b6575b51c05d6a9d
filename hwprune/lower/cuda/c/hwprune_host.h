// CUDA for a C++ compiler: a block's threads are fibres that take turns at barriers; tensor cores are
// what their definition says (PTX ISA, mma.m16n8k16 and ldmatrix). For proofs, not for speed.
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <vector>

#define __global__
#define __launch_bounds__(...)
#define __restrict__
#define __align__(n) __attribute__((aligned(n)))
#define HWP inline
#define uchar unsigned char
using std::max;
using std::min;
typedef _Float16 half;
struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
struct nv_bfloat16 {
  unsigned short bits;
  nv_bfloat16() = default;
  nv_bfloat16(float x) {
    unsigned u;
    memcpy(&u, &x, 4);
    bits = x != x ? 0x7fc0 : (u + 0x7fff + (u >> 16 & 1)) >> 16;
  }
  operator float() const {
    unsigned u = (unsigned)bits << 16;
    float x;
    memcpy(&x, &u, 4);
    return x;
  }
};
struct hwp_dim { int x, y, z; };
static hwp_dim threadIdx, blockIdx;
inline half __float2half_rn(float x) { return (half)x; }
inline nv_bfloat16 __float2bfloat16_rn(float x) { return nv_bfloat16(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __tanhf(float x) { return tanhf(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }

alignas(1024) static unsigned char hwp_dynamic[232448];

struct hwp_fibre {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(64 << 10);
  int waits;  // 0 runs, 1 for its warp, 2 for its block, 3 is done
};
static std::vector<hwp_fibre> hwp_fibres;
static ucontext_t hwp_scheduler;
static int hwp_current;
static void (*hwp_body)();

static void hwp_yield(int kind) {
  int me = hwp_current;
  hwp_fibres[me].waits = kind;
  swapcontext(&hwp_fibres[me].context, &hwp_scheduler);
}
inline void __syncthreads() { hwp_yield(2); }
static void hwp_enter() {
  hwp_body();
  hwp_yield(3);
}
// Lets go those who wait together: a warp where all 32 do, the block where all that run do.
static bool hwp_release(int threads) {
  bool any = false, all = true, done = true;
  for (int t = 0; t < threads; ++t) {
    all &= hwp_fibres[t].waits >= 2;
    done &= hwp_fibres[t].waits == 3;
  }
  if (done) return false;
  for (int w = 0; w < threads; w += 32) {
    bool whole = true;
    for (int t = w; t < w + 32 && t < threads; ++t) whole &= hwp_fibres[t].waits == 1;
    for (int t = w; t < w + 32 && t < threads; ++t)
      if (whole || (all && hwp_fibres[t].waits == 2)) hwp_fibres[t].waits = 0, any = true;
  }
  if (!any) abort();  // threads of a warp, or of the block, do not meet at a barrier
  return true;
}
static void hwp_run_block(int threads) {
  for (int t = 0; t < threads; ++t) {
    hwp_fibre& fibre = hwp_fibres[t];
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.data();
    fibre.context.uc_stack.ss_size = fibre.stack.size();
    fibre.context.uc_link = &hwp_scheduler;
    fibre.waits = 0;
    makecontext(&fibre.context, hwp_enter, 0);
  }
  do {
    for (int t = 0; t < threads; ++t)
      if (hwp_fibres[t].waits == 0) {
        hwp_current = t;
        threadIdx = {t, 0, 0};
        swapcontext(&hwp_scheduler, &hwp_fibres[t].context);
      }
  } while (hwp_release(threads));
}
static void hwp_launch(void (*body)(), int gx, int gy, int gz, int threads) {
  if ((int)hwp_fibres.size() < threads) hwp_fibres = std::vector<hwp_fibre>(threads);
  hwp_body = body;
  for (int z = 0; z < gz; ++z)
    for (int y = 0; y < gy; ++y)
      for (int x = 0; x < gx; ++x) {
        blockIdx = {x, y, z};
        memset(hwp_dynamic, 0xff, sizeof hwp_dynamic);  // NaN: nobody may read what nobody wrote
        hwp_run_block(threads);
      }
}

static unsigned hwp_words[1024][8];
static const void* hwp_rows[1024];
inline void hwp_ldmatrix(unsigned* r, const void* row, bool transposed) {
  int me = hwp_current, lane = me % 32, warp = me - lane;
  hwp_rows[me] = row;
  hwp_yield(1);
  for (int m = 0; m < 4; ++m)
    for (int e = 0; e < 2; ++e) {
      int i = lane / 4, j = lane % 4 * 2 + e;
      const unsigned short* from = (const unsigned short*)hwp_rows[warp + m * 8 + (transposed ? j : i)];
      ((unsigned short*)&r[m])[e] = from[transposed ? i : j];
    }
  hwp_yield(1);
}
inline void hwp_ldmatrix4(unsigned* r, const void* row) { hwp_ldmatrix(r, row, false); }
inline void hwp_ldmatrix4_transposed(unsigned* r, const void* row) { hwp_ldmatrix(r, row, true); }

struct hwp_tf32 {};
template <class T> inline float hwp_element(unsigned word, int e) {
  T value;
  memcpy(&value, (const char*)&word + e * sizeof(T), sizeof(T));
  return (float)value;
}
template <> inline float hwp_element<hwp_tf32>(unsigned word, int) {
  word = (word + 0x1000) & ~0x1fffu;
  float x;
  memcpy(&x, &word, 4);
  return x;
}
template <class T> struct hwp_packed { static const int count = 2; };
template <> struct hwp_packed<hwp_tf32> { static const int count = 1; };
template <class T> inline void hwp_mma(float* c, const unsigned* a, const unsigned* b) {
  const int count = hwp_packed<T>::count;
  int me = hwp_current, lane = me % 32, warp = me - lane;
  memcpy(hwp_words[me], a, 16);
  memcpy(hwp_words[me] + 4, b, 8);
  hwp_yield(1);
  for (int i = 0; i < 4; ++i) {
    int row = lane / 4, column = lane % 4 * 2 + i % 2;
    float sum = 0;
    for (int half_k = 0; half_k < 2; ++half_k)
      for (int k = 0; k < 4; ++k)
        for (int e = 0; e < count; ++e)
          sum += hwp_element<T>(hwp_words[warp + row * 4 + k][i / 2 + half_k * 2], e) *
                 hwp_element<T>(hwp_words[warp + column * 4 + k][4 + half_k], e);
    c[i] += sum;
  }
  hwp_yield(1);
}
template <int BYTES> inline void hwp_copy(void* to, const void* from, bool there) {
  if (((uintptr_t)to | (there ? (uintptr_t)from : 0)) % BYTES) abort();  // not aligned
  if (there) memcpy(to, from, BYTES);
  else memset(to, 0, BYTES);
}
inline void hwp_commit() {}
template <int LEFT> inline void hwp_wait() {}
static float hwp_floats[1024];
inline float hwp_shuffle(float x, int mask) {
  int me = hwp_current;
  hwp_floats[me] = x;
  hwp_yield(1);
  float other = hwp_floats[me ^ mask];
  hwp_yield(1);
  return other;
}
