// quantize_rows: one warp a row, read twice (the second time from cache): once for its range, once for its codes.
// Oracle: edgebert/quant.py quantize_rows.
#include "cuda/rows.h"

namespace edgebert {
namespace cuda {
namespace {

constexpr int kWarpsPerBlock = 4;

template <bool kIsF16>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarp) quantize_rows_kernel(const QuantizeRowsArgs args) {
  const int row = row_of_warp();
  if (row >= args.rows) return;
  Rows x = args.x;
  if (kIsF16) x.dtype = DType::kF16;
  const auto at = [&](int column, int valid) {
    return smoothed(load4(x, row, column, valid), args.inv_smooth, column, valid);
  };
  RowRange range;
  for_columns(args.width, [&](int column, int valid) { range.widen(at(column, valid)); });
  const RowQuantizer quantizer(range, args.out, row);
  for_columns(args.width,
              [&](int column, int valid) { quantizer.store(args.out, row, column, at(column, valid), valid); });
}

}  // namespace

cudaError_t quantize_rows(const QuantizeRowsArgs& args, cudaStream_t stream) {
  const auto kernel = args.x.dtype == DType::kF16 ? quantize_rows_kernel<true> : quantize_rows_kernel<false>;
  return launch(kernel, dim3(static_cast<unsigned>(ceil_div(args.rows, kWarpsPerBlock))), kWarpsPerBlock * kWarp, 0,
                stream, args);
}

}  // namespace cuda
}  // namespace edgebert
