// linear_f16, linear_s8: activation(x @ weight + bias) + residual on tensor cores.
// Oracle: edgebert/backends/numpy_ops.py linear; edgebert/quant.py linear_u8s8_f32.
//
// A block computes a tile of the output. Slices of x and of the weight, kDepthBytes deep, come into a ring of kStages
// buffers by asynchronous copies; each warp multiplies its part of the tile from the oldest. Depth is counted in bytes,
// so that f16, bf16 and s8 share everything but the product's instruction and the start of the epilogue.
//
// Every output is one chain of products, inputs ascending, 32 bytes at a time, in every tile: which one is chosen does
// not change a bit. What lies past the last input is filled with zeros on both sides and adds nothing.
#include "cuda/mma.h"
#include "cuda/rows.h"

namespace edgebert {
namespace cuda {
namespace {

// The arguments of both linears. f16 and bf16 leave a_scale, neg_zero, w_scale and colsum out.
struct LinearArgs {
  const unsigned char* x;
  const unsigned char* weight;
  size_t x_stride, weight_stride;  // bytes
  int depth;                       // bytes of a row's inputs
  int rows, outputs;
  const float* a_scale;
  const int32_t* neg_zero;
  const float* w_scale;
  const int32_t* colsum;
  const float* bias;
  Activation activation;
  Rows residual, out;
};

template <int kRows_, int kColumns_, int kWarpRows_, int kWarpColumns_, int kDepthBytes, int kStages_>
struct Tile {
  static constexpr int kRows = kRows_, kColumns = kColumns_;                  // of a block
  static constexpr int kWarpRows = kWarpRows_, kWarpColumns = kWarpColumns_;  // of a warp
  static constexpr int kDepth = kDepthBytes, kChunks = kDepth / kChunkBytes, kStages = kStages_;
  static constexpr int kWarpsAcross = kColumns / kWarpColumns;
  static constexpr int kThreads = kRows / kWarpRows * kWarpsAcross * kWarp;
  static constexpr int kXBytes = kRows * kDepth, kStageBytes = (kRows + kColumns) * kDepth;
  // Sixteen rows of a warp's sums on their way out; eight columns of padding put the rows that half a warp writes into
  // different banks.
  static constexpr int kSumStride = kWarpColumns + 8, kSumBytes = 16 * kSumStride * 4;
  static constexpr int kRingBytes = kStages * kStageBytes, kAllSumBytes = kThreads / kWarp * kSumBytes;
  static constexpr int kSharedBytes = kRingBytes > kAllSumBytes ? kRingBytes : kAllSumBytes;
  static_assert(kSharedBytes <= 48 * 1024, "more must be asked for");
  static_assert(kThreads % kChunks == 0 && kWarpRows % 16 == 0 && kWarpColumns % 16 == 0, "uneven tile");
};

template <class T>
struct alignas(2 * sizeof(T)) Two {
  T first, second;
};

// Copies kTileRows rows of a slice; what lies past the matrix becomes 0.
template <class Tile, int kTileRows>
__device__ void load_slice(unsigned char* to, const unsigned char* from, size_t stride, int rows_left, int bytes_left) {
  const int chunk = static_cast<int>(threadIdx.x) % Tile::kChunks, left = bytes_left - chunk * kChunkBytes;
  const int valid = left < 0 ? 0 : left < kChunkBytes ? left : kChunkBytes;
  constexpr int kRowsAtOnce = Tile::kThreads / Tile::kChunks;
  static_assert(kTileRows % kRowsAtOnce == 0, "uneven tile");
#pragma unroll
  for (int i = 0; i < kTileRows / kRowsAtOnce; ++i) {
    const int row = static_cast<int>(threadIdx.x) / Tile::kChunks + i * kRowsAtOnce;
    const bool is_inside = row < rows_left && valid > 0;
    cp_async(to + swizzled<Tile::kChunks>(row, chunk),
             is_inside ? from + static_cast<size_t>(row) * stride + chunk * kChunkBytes : from, is_inside ? valid : 0);
  }
}

__device__ inline float dequantized(float sum, const LinearArgs&, int, int) { return sum; }
__device__ inline float dequantized(int32_t sum, const LinearArgs& args, int row, int column) {
  const int32_t acc = sum + args.neg_zero[row] * args.colsum[column];
  return __fmul_rn(__fmul_rn(__int2float_rn(acc), args.w_scale[column]), args.a_scale[row]);
}

template <class T, class Sum, class Tile>
__global__ void __launch_bounds__(Tile::kThreads) linear_kernel(const LinearArgs args) {
  constexpr int kRowBlocks = Tile::kWarpRows / 16, kColumnBlocks = Tile::kWarpColumns / 8;
  unsigned char* const memory = dynamic_shared();
  const int lane = lane_id(), warp = warp_id();
  const int first_row = static_cast<int>(blockIdx.y) * Tile::kRows;
  const int first_column = static_cast<int>(blockIdx.x) * Tile::kColumns;
  const int warp_row = warp / Tile::kWarpsAcross * Tile::kWarpRows;
  const int warp_column = warp % Tile::kWarpsAcross * Tile::kWarpColumns;
  const unsigned char* const x = args.x + static_cast<size_t>(first_row) * args.x_stride;
  const unsigned char* const weight = args.weight + static_cast<size_t>(first_column) * args.weight_stride;
  const int slices = ceil_div(args.depth, Tile::kDepth);

  const auto load = [&](int slice) {
    if (slice < slices) {
      unsigned char* const stage = memory + slice % Tile::kStages * Tile::kStageBytes;
      const int at = slice * Tile::kDepth;
      load_slice<Tile, Tile::kRows>(stage, x + at, args.x_stride, args.rows - first_row, args.depth - at);
      load_slice<Tile, Tile::kColumns>(stage + Tile::kXBytes, weight + at, args.weight_stride,
                                       args.outputs - first_column, args.depth - at);
    }
    cp_async_commit();  // an empty group too, so that the count of groups tells which slice is there
  };

  Sum sums[kRowBlocks][kColumnBlocks][4] = {};
  for (int slice = 0; slice < Tile::kStages - 1; ++slice) load(slice);
  for (int slice = 0; slice < slices; ++slice) {
    cp_async_wait<Tile::kStages - 2>();
    __syncthreads();  // this slice is there for all, and nobody still reads the one whose buffer is filled next
    load(slice + Tile::kStages - 1);
    const unsigned char* const x_tile = memory + slice % Tile::kStages * Tile::kStageBytes;
    const unsigned char* const weight_tile = x_tile + Tile::kXBytes;
#pragma unroll
    for (int step = 0; step < Tile::kDepth / kStepBytes; ++step) {
      uint32_t a[kRowBlocks][4], b[kColumnBlocks / 2][4];
#pragma unroll
      for (int i = 0; i < kRowBlocks; ++i)
        ldmatrix(a[i], x_tile + swizzled<Tile::kChunks>(warp_row + i * 16 + lane % 16, step * 2 + lane / 16));
#pragma unroll
      for (int j = 0; j < kColumnBlocks / 2; ++j)
        ldmatrix(b[j], weight_tile + swizzled<Tile::kChunks>(warp_column + j * 16 + lane / 16 * 8 + lane % 8,
                                                             step * 2 + lane / 8 % 2));
#pragma unroll
      for (int i = 0; i < kRowBlocks; ++i)
#pragma unroll
        for (int j = 0; j < kColumnBlocks; ++j) mma<T>(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
  }
  cp_async_wait<0>();
  __syncthreads();  // the ring is free

  // Through shared memory, so that a lane gets four neighbouring columns and a warp writes whole lines.
  Sum* const slab = reinterpret_cast<Sum*>(memory + warp * Tile::kSumBytes);
#pragma unroll
  for (int i = 0; i < kRowBlocks; ++i) {
#pragma unroll
    for (int j = 0; j < kColumnBlocks; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        Sum* const to = slab + (lane / 4 + half * 8) * Tile::kSumStride + j * 8 + lane % 4 * 2;
        *reinterpret_cast<Two<Sum>*>(to) = {sums[i][j][half * 2], sums[i][j][half * 2 + 1]};
      }
    __syncwarp();
    constexpr int kVectorsAcross = Tile::kWarpColumns / kVector;
#pragma unroll 1
    for (int v = lane; v < 16 * kVectorsAcross; v += kWarp) {
      const int slab_row = v / kVectorsAcross, slab_column = v % kVectorsAcross * kVector;
      const int row = first_row + warp_row + i * 16 + slab_row;
      const int column = first_column + warp_column + slab_column, valid = args.outputs - column;
      if (row >= args.rows || valid <= 0) continue;
      const Four<Sum> sum = *reinterpret_cast<const Four<Sum>*>(slab + slab_row * Tile::kSumStride + slab_column);
      const Four32 bias = args.bias ? load_as(args.bias + column, valid) : Four32{};
      const Four32 residual = args.residual.data ? load4(args.residual, row, column, valid) : Four32{};
      Four32 y;
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        const float scaled = dequantized(sum.v[j], args, row, j < valid ? column + j : column);
        y.v[j] = activate(__fadd_rn(scaled, bias.v[j]), args.activation) + residual.v[j];
      }
      store4(args.out, row, column, y, valid);
    }
    __syncwarp();
  }
}

template <class Tile>
dim3 tiles(const LinearArgs& args) {
  return dim3(static_cast<unsigned>(ceil_div(args.outputs, Tile::kColumns)),
              static_cast<unsigned>(ceil_div(args.rows, Tile::kRows)));
}

// A large tile needs the fewest loads for a product: a warp's 64 x 64 reads half as much shared memory as 32 x 32 does,
// and 240 registers a thread still leave two blocks to a multiprocessor. Small ones give each multiprocessor something
// to do where there are few rows; theirs is the deepest ring, as they have little to compute while loads are on the
// way.
using LargeTile = Tile<128, 128, 64, 64, 64, 3>;
using MediumTile = Tile<64, 64, 32, 32, 128, 3>;
using SmallTile = Tile<32, 32, 16, 16, 128, 6>;

// The tile whose blocks are done first if a multiprocessor does them one after the other. A block's time per depth is
// the larger of its products' and its loads' (1024 multiply-adds and 64 bytes of L2 a cycle: 16, 4 and 2 cycles), and a
// quarter more for the medium tile, whose products wait for shared memory.
template <class T, class Sum>
cudaError_t launch_linear(const LinearArgs& args, int num_multiprocessors, cudaStream_t stream) {
  const auto time = [&](dim3 grid, int64_t of_block) {
    const int64_t blocks = static_cast<int64_t>(grid.x) * grid.y;
    return (blocks + num_multiprocessors - 1) / num_multiprocessors * of_block;
  };
  const auto launch_with = [&](auto tile) {
    using Tile = decltype(tile);
    return launch(linear_kernel<T, Sum, Tile>, tiles<Tile>(args), Tile::kThreads, Tile::kSharedBytes, stream, args);
  };
  const int64_t large = time(tiles<LargeTile>(args), 16), medium = time(tiles<MediumTile>(args), 5),
                small = time(tiles<SmallTile>(args), 2);
  if (large <= medium && large <= small) return launch_with(LargeTile());
  if (medium <= small) return launch_with(MediumTile());
  return launch_with(SmallTile());
}

}  // namespace

cudaError_t linear_f16(const LinearF16Args& args, cudaStream_t stream) {
  LinearArgs all{};
  all.x = static_cast<const unsigned char*>(args.x.data);
  all.weight = static_cast<const unsigned char*>(args.weight);
  all.x_stride = static_cast<size_t>(args.x.stride) * 2;
  all.weight_stride = static_cast<size_t>(row_stride(args.inputs)) * 2;
  all.depth = args.inputs * 2;
  all.rows = args.rows;
  all.outputs = args.outputs;
  all.bias = args.bias;
  all.activation = args.activation;
  all.residual = args.residual;
  all.out = args.out;
  return args.x.dtype == DType::kBF16 ? launch_linear<__nv_bfloat16, float>(all, args.num_multiprocessors, stream)
                                      : launch_linear<__half, float>(all, args.num_multiprocessors, stream);
}

cudaError_t linear_s8(const LinearS8Args& args, cudaStream_t stream) {
  LinearArgs all{};
  all.x = reinterpret_cast<const unsigned char*>(args.x.codes);
  all.weight = reinterpret_cast<const unsigned char*>(args.weight);
  all.x_stride = static_cast<size_t>(args.x.stride);
  all.weight_stride = static_cast<size_t>(row_stride(args.inputs));
  all.depth = args.inputs;
  all.rows = args.rows;
  all.outputs = args.outputs;
  all.a_scale = args.x.a_scale;
  all.neg_zero = args.x.neg_zero;
  all.w_scale = args.w_scale;
  all.colsum = args.colsum;
  all.bias = args.bias;
  all.activation = args.activation;
  all.residual = args.residual;
  all.out = args.out;
  return launch_linear<int8_t, int32_t>(all, args.num_multiprocessors, stream);
}

}  // namespace cuda
}  // namespace edgebert
