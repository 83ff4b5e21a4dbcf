// quantize_rows: one warp a row, read twice (the second time from cache): once for its range, once for its codes.
// Oracle: edgebert/quant.py quantize_rows.
#include "cuda/rows.h"

namespace edgebert {
namespace cuda {
namespace {

constexpr int kWarpsPerBlock = 4;

__global__ void __launch_bounds__(kWarpsPerBlock* kWarp) quantize_rows_kernel(const QuantizeRowsArgs args) {
  const int row = static_cast<int>(blockIdx.x) * kWarpsPerBlock + warp_id();
  if (row >= args.rows) return;
  const auto at = [&](int column, int valid) {
    return smoothed(load4(args.x, row, column, valid), args.inv_smooth, column, valid);
  };
  RowRange range;
  for_columns(args.width, [&](int column, int valid) { range.widen(at(column, valid)); });
  const RowQuantizer quantizer(range, args.out, row);
  for_columns(args.width,
              [&](int column, int valid) { quantizer.store(args.out, row, column, at(column, valid), valid); });
}

}  // namespace

cudaError_t quantize_rows(const QuantizeRowsArgs& args, cudaStream_t stream) {
  return launch(quantize_rows_kernel, dim3(static_cast<unsigned>(ceil_div(args.rows, kWarpsPerBlock))),
                kWarpsPerBlock * kWarp, 0, stream, args);
}

}  // namespace cuda
}  // namespace edgebert
