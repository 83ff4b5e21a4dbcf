// attention_varlen: softmax(Q K^T / sqrt(head_dim) + bias) V on tensor cores, straight from the packed qkv rows.
// Oracle: edgebert/backends/numpy_ops.py attention_varlen.
//
// A block takes 64 queries of one head of one sequence, 16 a warp. Keys and values pass by in blocks counted from the
// sequence's start; the softmax is kept up as they do (Milakov and Gimelshein, arXiv 1805.02867; in tiles: Dao et al.,
// arXiv 2205.14135, algorithm 1), its numerators never leave the registers: the sums of one product lie where the
// other wants its left side. Scores, maxima, sums and context are f32; the numerators are rounded to T for the product.
//
// kHeadDim is head_dim rounded up to what has a template; the rest is zeros in shared memory.
#include "cuda/mma.h"
#include "cuda/rows.h"

namespace edgebert {
namespace cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp;
constexpr int kQueries = kWarps * 16;

template <int kHeadDim>
struct HeadTile {
  static constexpr int kKeys = kHeadDim <= 64 ? 64 : 32;  // so that two blocks of keys and values fit
  static constexpr int kBlocks = kHeadDim <= 32 ? 4 : kHeadDim <= 64 ? 3 : 2;  // on a multiprocessor, by registers
  static constexpr int kRowBytes = kHeadDim * 2, kChunks = kRowBytes / kChunkBytes;
  static constexpr int kQueryBytes = kQueries * kRowBytes, kKeyBytes = kKeys * kRowBytes;
  static constexpr int kSharedBytes = kQueryBytes + 2 * 2 * kKeyBytes;
  static_assert(kSharedBytes <= 48 * 1024, "more must be asked for");
};

__device__ inline void pack2(uint32_t& to, float low, float high, __half) {
  const __half2 pair = __floats2half2_rn(low, high);
  memcpy(&to, &pair, sizeof(to));
}
__device__ inline void pack2(uint32_t& to, float low, float high, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  memcpy(&to, &pair, sizeof(to));
}

// Brings `rows` rows of head_dim values into a tile of kTileRows; what lies past either becomes 0.
template <int kHeadDim, int kTileRows, class T>
__device__ void load_rows(unsigned char* to, const T* from, int stride, int rows, int head_dim) {
  constexpr int kChunks = HeadTile<kHeadDim>::kChunks, kPerChunk = kChunkBytes / 2;
  static_assert(kTileRows * kChunks % kThreads == 0, "uneven tile");
#pragma unroll
  for (int i = 0; i < kTileRows * kChunks / kThreads; ++i) {
    constexpr int kRowsAtOnce = kThreads / kChunks;
    const int row = static_cast<int>(threadIdx.x) / kChunks + i * kRowsAtOnce;
    const int chunk = static_cast<int>(threadIdx.x) % kChunks;
    const int left = row < rows ? head_dim - chunk * kPerChunk : 0;
    const T* const x = left > 0 ? from + static_cast<size_t>(row) * stride + chunk * kPerChunk : from;
    unsigned char* const at = to + swizzled<kChunks>(row, chunk);
    if (head_dim % kPerChunk == 0) {
      cp_async(at, x, left > 0 ? kChunkBytes : 0);
    } else {  // a head does not begin at a multiple of 16 bytes
#pragma unroll 1
      for (int j = 0; j < kPerChunk; ++j) {
        T value{};
        if (j < left) value = x[j];
        reinterpret_cast<T*>(at)[j] = value;
      }
    }
  }
}

// Of the four lanes that share a row of sums.
__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

template <class T, int kHeadDim>
__global__ void __launch_bounds__(kThreads, HeadTile<kHeadDim>::kBlocks)
    attention_varlen_kernel(const AttentionArgs args) {
  using Tile = HeadTile<kHeadDim>;
  constexpr int kKeys = Tile::kKeys, kChunks = Tile::kChunks;
  constexpr int kKeyBlocks = kKeys / 8, kColumnBlocks = kHeadDim / 8, kSteps = kHeadDim / 16;
  const int tiles = ceil_div(args.max_seqlen, kQueries);
  const int sequence = static_cast<int>(blockIdx.x) / tiles, head = static_cast<int>(blockIdx.y);
  const int first_query = static_cast<int>(blockIdx.x) % tiles * kQueries;
  const int first_token = args.cu_seqlens[sequence], length = args.cu_seqlens[sequence + 1] - first_token;
  if (first_query >= length) return;

  const int head_dim = args.head_dim, stride = args.qkv.stride, attention_size = args.num_heads * head_dim;
  const int lane = lane_id(), warp_row = warp_id() * 16;
  const bool is_idle = first_query + warp_row >= length;  // this warp has no queries, it only loads
  const T* const q = static_cast<const T*>(args.qkv.data) + static_cast<size_t>(first_token) * stride + head * head_dim;
  const T* const k = q + attention_size;
  const T* const v = k + attention_size;
  unsigned char* const queries = dynamic_shared();
  const auto key_tile = [&](int block) { return queries + Tile::kQueryBytes + block % 2 * 2 * Tile::kKeyBytes; };
  const auto load_keys_values = [&](int block) {
    const int first = block * kKeys;
    if (first < length) {
      load_rows<kHeadDim, kKeys>(key_tile(block), k + static_cast<size_t>(first) * stride, stride, length - first,
                                 head_dim);
      load_rows<kHeadDim, kKeys>(key_tile(block) + Tile::kKeyBytes, v + static_cast<size_t>(first) * stride, stride,
                                 length - first, head_dim);
    }
    cp_async_commit();
  };
  load_rows<kHeadDim, kQueries>(queries, q + static_cast<size_t>(first_query) * stride, stride, length - first_query,
                                head_dim);
  load_keys_values(0);

  // A lane holds parts of two rows: index half 0 is row g, half 1 row g + 8 (see mma.h).
  uint32_t query[kSteps][4];
  float context[kColumnBlocks][4] = {};
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
  const float score_scale = 1.44269504f / sqrtf(static_cast<float>(head_dim));  // of 2**x
  const int farthest = args.max_distance;
  const float* const bias = args.position_bias ? args.position_bias + head * (2 * farthest + 1) + farthest : nullptr;
  const float scale = bias ? 1.0f : score_scale;  // a bias is added to scores that have theirs
  for (int block = 0; block * kKeys < length; ++block) {
    cp_async_wait<0>();
    __syncthreads();  // this block is there for all, and nobody still reads the one whose buffer is filled next
    load_keys_values(block + 1);
    const unsigned char* const keys = key_tile(block);
    const unsigned char* const values = keys + Tile::kKeyBytes;
    if (block == 0)
#pragma unroll
      for (int step = 0; step < kSteps; ++step)
        ldmatrix(query[step], queries + swizzled<kChunks>(warp_row + lane % 16, step * 2 + lane / 16));

    if (is_idle) continue;
    const int keys_left = length - block * kKeys;
    float scores[kKeyBlocks][4] = {};
#pragma unroll
    for (int j = 0; j < kKeyBlocks; j += 2)
      if (j * 8 < keys_left)
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          uint32_t key[4];
          ldmatrix(key, keys + swizzled<kChunks>(j * 8 + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2));
          mma<T>(scores[j], query[step], key[0], key[1]);
          mma<T>(scores[j + 1], query[step], key[2], key[3]);
        }
    if (bias)
#pragma unroll
      for (int j = 0; j < kKeyBlocks; ++j)
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int query = first_query + warp_row + lane / 4 + c / 2 * 8;
          const int distance = block * kKeys + j * 8 + lane % 4 * 2 + c % 2 - query;
          const int near = distance < -farthest ? -farthest : distance > farthest ? farthest : distance;
          scores[j][c] = scores[j][c] * score_scale + 1.44269504f * bias[near];
        }
    if (keys_left < kKeys)
#pragma unroll
      for (int j = 0; j < kKeyBlocks; ++j)
#pragma unroll
        for (int c = 0; c < 4; ++c)
          if (j * 8 + lane % 4 * 2 + c % 2 >= keys_left) scores[j][c] = -INFINITY;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float new_top = top[half];
#pragma unroll
      for (int j = 0; j < kKeyBlocks; ++j)
        new_top = fmaxf(new_top, fmaxf(scores[j][half * 2], scores[j][half * 2 + 1]));
      new_top = quad_max(new_top);  // finite: every block holds a key
      const float shift = new_top * scale, keep = exp2_approx(top[half] * scale - shift);
      top[half] = new_top;
      sum[half] *= keep;
#pragma unroll
      for (int j = 0; j < kColumnBlocks; ++j) {
        context[j][half * 2] *= keep;
        context[j][half * 2 + 1] *= keep;
      }
#pragma unroll
      for (int j = 0; j < kKeyBlocks; ++j)
#pragma unroll
        for (int c = half * 2; c < half * 2 + 2; ++c) {
          scores[j][c] = exp2_approx(scores[j][c] * scale - shift);
          sum[half] += scores[j][c];
        }
    }

#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
      if (step * 16 >= keys_left) continue;
      uint32_t weights[4];
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        const float* const pair = scores[step * 2 + part / 2] + part % 2 * 2;
        pack2(weights[part], pair[0], pair[1], T());
      }
#pragma unroll
      for (int j = 0; j < kColumnBlocks; j += 2) {
        uint32_t value[4];
        ldmatrix_transposed(value, values + swizzled<kChunks>(step * 16 + lane % 16, j + lane / 16));
        mma<T>(context[j], weights, value[0], value[1]);
        mma<T>(context[j + 1], weights, value[2], value[3]);
      }
    }
  }

  // Through the shared memory of this warp's own queries, which only it has read, so that rows are written in chunks.
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float inv_sum = 1.0f / quad_sum(sum[half]);
#pragma unroll
    for (int j = 0; j < kColumnBlocks; ++j) {
      uint32_t pair;
      pack2(pair, context[j][half * 2] * inv_sum, context[j][half * 2 + 1] * inv_sum, T());
      unsigned char* const chunk = queries + swizzled<kChunks>(warp_row + half * 8 + lane / 4, j);
      *reinterpret_cast<uint32_t*>(chunk + lane % 4 * 4) = pair;
    }
  }
  __syncwarp();
  T* const out = static_cast<T*>(args.context.data) + head * head_dim;
  for (int i = lane; i < 16 * kChunks; i += kWarp) {
    const int row = warp_row + i / kChunks, chunk = i % kChunks, left = head_dim - chunk * 8;
    if (first_query + row >= length || left <= 0) continue;
    const unsigned char* const from = queries + swizzled<kChunks>(row, chunk);
    T* const to = out + static_cast<size_t>(first_token + first_query + row) * args.context.stride + chunk * 8;
    if (head_dim % 8 == 0)
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
    else
      for (int j = 0; j < 8 && j < left; ++j) to[j] = reinterpret_cast<const T*>(from)[j];
  }
}

template <class T>
cudaError_t launch_attention(const AttentionArgs& args, cudaStream_t stream) {
  const unsigned tiles = static_cast<unsigned>(ceil_div(args.max_seqlen, kQueries));
  const dim3 grid(static_cast<unsigned>(args.num_sequences) * tiles, static_cast<unsigned>(args.num_heads));
  const auto launch_with = [&](auto kernel, size_t shared_bytes) {
    return launch(kernel, grid, kThreads, shared_bytes, stream, args);
  };
  if (args.head_dim <= 32) return launch_with(attention_varlen_kernel<T, 32>, HeadTile<32>::kSharedBytes);
  if (args.head_dim <= 64) return launch_with(attention_varlen_kernel<T, 64>, HeadTile<64>::kSharedBytes);
  if (args.head_dim <= kMaxHeadDim) return launch_with(attention_varlen_kernel<T, 128>, HeadTile<128>::kSharedBytes);
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t attention_varlen(const AttentionArgs& args, cudaStream_t stream) {
  return args.qkv.dtype == DType::kBF16 ? launch_attention<__nv_bfloat16>(args, stream)
                                        : launch_attention<__half>(args, stream);
}

}  // namespace cuda
}  // namespace edgebert
