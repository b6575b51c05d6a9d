// What TIR cannot say: products of shared tiles on tensor cores, asynchronous copies, wide loads.
// Compiled by nvcc; `hwprune_host.h` gives the same names a meaning for a C++ compiler.
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define HWP __device__ __forceinline__

HWP unsigned hwp_shared(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}
HWP void hwp_ldmatrix4(unsigned* r, const void* row) {
#if __CUDA_ARCH__ >= 750
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(hwp_shared(row)) : "memory");
#endif
}
HWP void hwp_ldmatrix4_transposed(unsigned* r, const void* row) {
#if __CUDA_ARCH__ >= 750
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(hwp_shared(row)) : "memory");
#endif
}
#define HWP_MMA(instruction)                                                                   \
  asm volatile(instruction " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"  \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
struct hwp_tf32 {};
HWP unsigned hwp_round_tf32(unsigned x) {
  unsigned y = x;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(__uint_as_float(x)));
#endif
  return y;
}
template <class T> HWP void hwp_mma(float* c, const unsigned* a, const unsigned* b);
template <> HWP void hwp_mma<half>(float* c, const unsigned* a, const unsigned* b) {
#if __CUDA_ARCH__ >= 800
  HWP_MMA("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32");
#endif
}
template <> HWP void hwp_mma<nv_bfloat16>(float* c, const unsigned* a, const unsigned* b) {
#if __CUDA_ARCH__ >= 800
  HWP_MMA("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32");
#endif
}
template <> HWP void hwp_mma<hwp_tf32>(float* c, const unsigned* x, const unsigned* y) {
  unsigned a[4], b[2];
  for (int i = 0; i < 4; ++i) a[i] = hwp_round_tf32(x[i]);
  for (int i = 0; i < 2; ++i) b[i] = hwp_round_tf32(y[i]);
#if __CUDA_ARCH__ >= 800
  HWP_MMA("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32");
#endif
}
// Copies of 4, 8 or 16 bytes into shared memory; zeros where there is nothing to copy.
template <int BYTES> HWP void hwp_copy(void* to, const void* from, bool there) {
#if __CUDA_ARCH__ >= 800
  if constexpr (BYTES == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(hwp_shared(to)), "l"(from),
                 "r"(there ? 16 : 0) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(hwp_shared(to)), "l"(from),
                 "n"(BYTES), "r"(there ? BYTES : 0) : "memory");
#else
  for (int i = 0; i < BYTES / 4; ++i) ((unsigned*)to)[i] = there ? ((const unsigned*)from)[i] : 0u;
#endif
}
HWP void hwp_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int LEFT> HWP void hwp_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#endif
}
HWP float hwp_shuffle(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
#endif

template <int BYTES> struct hwp_bytes;
template <> struct hwp_bytes<16> { typedef uint4 type; };
template <> struct hwp_bytes<8> { typedef uint2 type; };
template <> struct hwp_bytes<4> { typedef unsigned type; };
template <> struct hwp_bytes<2> { typedef unsigned short type; };

// One load or store of so many bytes, between registers and memory.
template <int BYTES, class A, class B> HWP void hwp_move(A* to, const B* from) {
  typedef typename hwp_bytes<BYTES>::type type;
  *(type*)to = *(const type*)from;
}
template <int BYTES, class A, class B> HWP void hwp_move_or_zero(A* to, const B* from, bool there) {
  typedef typename hwp_bytes<BYTES>::type type;
  type value = {};
  if (there) value = *(const type*)from;
  *(type*)to = value;
}

// The chunk of 16 bytes of a row of CHUNKS in shared memory: eight rows never meet in a bank.
template <int CHUNKS> HWP int hwp_chunk(int row, int chunk) {
  return row * CHUNKS + (chunk ^ (CHUNKS == 8 ? row & 7 : (row >> 1) & 3));
}
template <int CHUNKS, int BYTES>
HWP void hwp_fill(unsigned char* tile, int row, int chunk, int part, const void* from, bool there) {
  hwp_copy<BYTES>(tile + hwp_chunk<CHUNKS>(row, chunk) * 16 + part * BYTES, from, there);
}
template <int CHUNKS, class A> HWP void hwp_put(unsigned char* tile, int row, int chunk, A* from) {
  hwp_move<16>(tile + hwp_chunk<CHUNKS>(row, chunk) * 16, from);
}

// A warp's product of rows of two tiles: acc[MT][NT][4] += a (16 MT rows) x b (8 NT rows)^T, in the
// layout of mma.m16n8: rows lane/4 and lane/4 + 8, columns 2 (lane % 4) and the next.
template <class T, int MT, int NT, int CHUNKS>
HWP void hwp_product(float* acc, const unsigned char* a, const unsigned char* b, int lane) {
#pragma unroll
  for (int k = 0; k < CHUNKS; k += 2) {
    unsigned x[MT][4], y[NT / 2][4];
#pragma unroll
    for (int i = 0; i < MT; ++i)
      hwp_ldmatrix4(x[i], a + hwp_chunk<CHUNKS>(i * 16 + lane % 16, k + lane / 16) * 16);
#pragma unroll
    for (int j = 0; j < NT / 2; ++j)
      hwp_ldmatrix4(y[j], b + hwp_chunk<CHUNKS>(j * 16 + lane / 16 * 8 + lane % 8, k + lane / 8 % 2) * 16);
#pragma unroll
    for (int i = 0; i < MT; ++i)
#pragma unroll
      for (int j = 0; j < NT; ++j) hwp_mma<T>(acc + (i * NT + j) * 4, x[i], y[j / 2] + j % 2 * 2);
  }
}
// The same on CUDA cores, in float32.
template <int MT, int NT, int CHUNKS>
HWP void hwp_product_simt(float* acc, const unsigned char* a, const unsigned char* b, int lane) {
#pragma unroll
  for (int k = 0; k < CHUNKS; ++k) {
    __align__(16) float x[2 * MT][4];
#pragma unroll
    for (int i = 0; i < 2 * MT; ++i)
      hwp_move<16>(x[i], a + hwp_chunk<CHUNKS>(i * 8 + lane / 4, k) * 16);
#pragma unroll
    for (int j = 0; j < 2 * NT; ++j) {
      __align__(16) float y[4];
      hwp_move<16>(y, b + hwp_chunk<CHUNKS>(j / 2 * 8 + lane % 4 * 2 + j % 2, k) * 16);
#pragma unroll
      for (int i = 0; i < 2 * MT; ++i)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          acc[(i / 2 * NT + j / 2) * 4 + i % 2 * 2 + j % 2] += x[i][e] * y[e];
    }
  }
}
// The accumulators of a warp to a row-major tile of float32.
template <int MT, int NT, int STRIDE> HWP void hwp_stage(unsigned char* tile, const float* acc, int lane) {
#pragma unroll
  for (int i = 0; i < MT; ++i)
#pragma unroll
    for (int j = 0; j < NT; ++j)
#pragma unroll
      for (int h = 0; h < 2; ++h)
        hwp_move<8>((float*)tile + (i * 16 + h * 8 + lane / 4) * STRIDE + j * 8 + lane % 4 * 2,
                    acc + (i * NT + j) * 4 + h * 2);
}
HWP float hwp_get(const unsigned char* from) { return *(const float*)from; }
HWP void hwp_set(unsigned char* to, float x) { *(float*)to = x; }
HWP float hwp_warp_sum(float x) {
  for (int mask = 16; mask; mask /= 2) x += hwp_shuffle(x, mask);
  return x;
}
HWP float hwp_warp_max(float x) {
  for (int mask = 16; mask; mask /= 2) {
    float other = hwp_shuffle(x, mask);
    x = x > other ? x : other;
  }
  return x;
}
