// The instructions that C++ has no words for: tensor-core products, the loads that feed them, asynchronous copies.
//
// All are collective: every lane of a warp calls them together. With lane = 4 g + t, the fragments of a 16 x 8 product
// are (PTX ISA, "Matrix fragments for mma.m16n8k16" and "mma.m16n8k32"), each register four bytes of a row:
//   a[0] row g, bytes 4t    a[1] row g + 8, bytes 4t    a[2] row g, bytes 16 + 4t    a[3] row g + 8, bytes 16 + 4t
//   b[0] column g, bytes 4t    b[1] column g, bytes 16 + 4t
//   c[0], c[1] row g, columns 2t and 2t + 1    c[2], c[3] row g + 8, the same columns
// A step is 32 bytes deep for every dtype: 16 halves or 32 codes. So f16, bf16 and s8 share all their addresses.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

namespace edgebert {
namespace cuda {

constexpr int kChunkBytes = 16;  // what one asynchronous copy, and one row of a matrix of ldmatrix, moves
constexpr int kStepBytes = 32;   // depth of one product

// Where a 16-byte chunk of a row lies in a tile of kChunks chunks a row (a power of two): permuted so that eight
// consecutive rows at one chunk lie in eight different groups of four banks, which ldmatrix reads at once.
template <int kChunks>
__host__ __device__ constexpr int swizzled(int row, int chunk) {
  static_assert(kChunks == 4 || kChunks == 8 || kChunks == 16, "other widths need another permutation");
  return (row * kChunks + (chunk ^ (kChunks == 4 ? row / 2 % 4 : row % 8))) * kChunkBytes;
}

#ifdef __CUDACC__

// The shared memory whose size the launch set.
__device__ inline unsigned char* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

__device__ inline uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// to[0 .. valid) = from, to[valid .. 16) = 0, once cp_async_wait says so. valid 0 does not touch `from`.
__device__ inline void cp_async(void* to, const void* from, int valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid)
               : "memory");
}
// Closes a group of the copies since the last one.
__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for all of this thread's groups but the newest kPending.
template <int kPending>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four 8 x 8 matrices of 16-bit values: lane 8 i + j points at row j of matrix i; r[i] is matrix i's row g, columns 2t
// and 2t + 1.
__device__ inline void ldmatrix(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
// The same of each matrix's transpose.
__device__ inline void ldmatrix_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// c += a b, a and b of T.
template <class T>
__device__ inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ inline void mma<__half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ inline void mma<__nv_bfloat16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <class T>
__device__ inline void mma(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ inline void mma<int8_t>(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 2**x, relative error 2**-22; subnormal results are 0.
__device__ inline float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

#else  // Compiled for the CPU: tests/native/cuda_emulator defines them.

unsigned char* dynamic_shared();
void cp_async(void* to, const void* from, int valid);
void cp_async_commit();
void cp_async_wait_all_but(int pending);
template <int kPending>
void cp_async_wait() {
  cp_async_wait_all_but(kPending);
}
void ldmatrix(uint32_t (&r)[4], const void* row);
void ldmatrix_transposed(uint32_t (&r)[4], const void* row);
template <class T>
void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <class T>
void mma(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
float exp2_approx(float x);

#endif

}  // namespace cuda
}  // namespace edgebert
