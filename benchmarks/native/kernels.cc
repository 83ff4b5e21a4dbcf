// Each kernel of each instruction set at real shapes, one thread, as JSON lines:
//
//   {"isa", "kernel", "shape", "us": the shortest run, and
//    "gop": its operations / 1e9, with "precision": the roof it is held against, "int8" or "fp32"; or
//    "mb": bytes read and written / 1e6}
#include <stdio.h>
#include <string.h>

#include <random>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "roof/clock.h"

namespace edgebert {
namespace {

constexpr double kSeconds = 0.03;

struct Shape {
  const char* name;
  int hidden, heads, intermediate;
};
constexpr Shape kShapes[] = {{"minilm-l6", 384, 12, 1536}, {"bert-base", 768, 12, 3072}};
constexpr int kRows[] = {16, 128};
constexpr int kLengths[] = {16, 32, 128, 512};

// An array at a 64-byte boundary, filled with numbers in [-1, 1) or codes, with slack behind.
template <class T>
class Array {
 public:
  explicit Array(size_t size) : data_(size + kSlackFloats + 64 / sizeof(T)) {
    static std::mt19937 random(0);
    for (T& value : data_) {
      if constexpr (sizeof(T) == 1)
        value = static_cast<T>(random() % 255 - 127);
      else
        value = static_cast<T>(static_cast<double>(random()) / 2147483648.0 - 1.0);
    }
  }
  T* get() {
    const uintptr_t at = reinterpret_cast<uintptr_t>(data_.data());
    return reinterpret_cast<T*>((at + 63) / 64 * 64);
  }

 private:
  std::vector<T> data_;
};

// Codes of `rows` rows and what belongs to them.
struct Codes {
  Codes(const KernelTable& table, int rows, int width)
      : codes(static_cast<size_t>(rows) * round_up(width, 64)),
        a_scale(rows),
        neg_zero(rows),
        stride(round_up(width, 64)),
        flip(table.code_flip) {}
  CodeRows view() {
    CodeRows rows{};
    rows.codes = codes.get();
    rows.stride = stride;
    rows.a_scale = a_scale.get();
    rows.neg_zero = neg_zero.get();
    rows.flip = flip;
    return rows;
  }
  Array<uint8_t> codes;
  Array<float> a_scale;
  Array<int32_t> neg_zero;
  int stride;
  uint8_t flip;
};

// Prints what one kernel of one ISA takes.
struct Report {
  const char* isa;
  const char* kernel;

  void operations(const std::string& shape, double seconds, const char* precision, double count) const {
    print(shape, seconds);
    printf(", \"gop\": %.6f, \"precision\": \"%s\"}\n", count / 1e9, precision);
    fflush(stdout);
  }
  void bytes(const std::string& shape, double seconds, double count) const {
    print(shape, seconds);
    printf(", \"mb\": %.6f}\n", count / 1e6);
    fflush(stdout);
  }

 private:
  void print(const std::string& shape, double seconds) const {
    printf("{\"isa\": \"%s\", \"kernel\": \"%s\", \"shape\": \"%s\", \"us\": %.3f", isa, kernel, shape.c_str(),
           1e6 * seconds);
  }
};

// BENCHMARK_KERNEL(name) { ... } times a kernel of `table` at a model's shape. The kernel's line in kernels.inc runs it
// on every ISA, and does not compile without it.
template <auto kernel>
constexpr bool is_timed = false;
#define BENCHMARK_KERNEL(name)                        \
  template <>                                         \
  constexpr bool is_timed<&KernelTable::name> = true; \
  void time_##name(const KernelTable& table, const Shape& shape, const Report& report)

std::string of_rows(const Shape& shape, int rows) {
  return std::string(shape.name) + ", " + std::to_string(rows) + " rows";
}
std::string of_tokens(const Shape& shape, int length) {
  return std::string(shape.name) + ", " + std::to_string(length) + " tokens";
}

struct LinearShape {
  std::string name;
  int rows, inputs, outputs;
  Epilogue epilogue;
  double operations() const { return 2.0 * rows * inputs * outputs; }
};
std::vector<LinearShape> linears_of(const Shape& shape) {
  const int hidden = shape.hidden, intermediate = shape.intermediate;
  std::vector<LinearShape> linears;
  for (const int rows : kRows)
    for (const LinearShape& linear : {LinearShape{"qkv", rows, hidden, 3 * hidden, Epilogue::kBias},
                                      LinearShape{"attention_output", rows, hidden, hidden, Epilogue::kBias},
                                      LinearShape{"ffn_up", rows, hidden, intermediate, Epilogue::kGeluErf},
                                      LinearShape{"ffn_down", rows, intermediate, hidden, Epilogue::kBias}}) {
      linears.push_back(linear);
      linears.back().name = std::string(shape.name) + " " + linear.name + ", " + std::to_string(rows) + " rows";
    }
  return linears;
}

BENCHMARK_KERNEL(embed_layernorm) {
  constexpr int kVocab = 30522, kPositions = 512;
  const int width = shape.hidden;
  Array<int8_t> words(static_cast<size_t>(kVocab) * width), positions(static_cast<size_t>(kPositions) * width);
  Array<float> scale(kVocab), weight(width), bias(width);
  for (const int rows : kRows) {
    std::vector<int32_t> input_ids, position_ids;
    for (int i = 0; i < rows; ++i) {
      input_ids.push_back(i * 4099 % kVocab);
      position_ids.push_back(i);
    }
    Array<float> out(static_cast<size_t>(rows) * row_stride(width));
    EmbedArgs args{};
    args.word = {nullptr, words.get(), scale.get()};
    args.position = {nullptr, positions.get(), scale.get()};
    args.norm = {weight.get(), bias.get(), width, 1e-12f};
    args.input_ids = input_ids.data();
    args.position_ids = position_ids.data();
    args.out = out.get();
    args.out_stride = row_stride(width);
    const double seconds = shortest(kSeconds, [&] { table.embed_layernorm(args, 0, rows); });
    report.bytes(of_rows(shape, rows), seconds, 6.0 * rows * width);
  }
}

BENCHMARK_KERNEL(quantize_rows) {
  const int width = shape.intermediate;
  for (const int rows : kRows) {
    Array<float> x(static_cast<size_t>(rows) * row_stride(width)), inv_smooth(width);
    Codes codes(table, rows, width);
    QuantizeArgs args{};
    args.x = x.get();
    args.x_stride = row_stride(width);
    args.width = width;
    args.inv_smooth = inv_smooth.get();
    args.out = codes.view();
    const double seconds = shortest(kSeconds, [&] { table.quantize_rows(args, 0, rows); });
    report.bytes(of_rows(shape, rows), seconds, 5.0 * rows * width);
  }
}

BENCHMARK_KERNEL(linear_u8s8_f32) {
  for (const LinearShape& linear : linears_of(shape)) {
    const int nr = table.s8_nr, panels = (linear.outputs + nr - 1) / nr;
    const size_t columns = static_cast<size_t>(panels) * static_cast<size_t>(nr);
    Array<int8_t> weight(columns * static_cast<size_t>(round_up(linear.inputs, 4)));
    Array<float> w_scale(columns), bias(columns), out(static_cast<size_t>(linear.rows) * row_stride(linear.outputs));
    Array<int32_t> colsum(columns);
    Codes in(table, linear.rows, linear.inputs);
    LinearU8S8Args args{};
    args.in = in.view();
    args.linear = {weight.get(), w_scale.get(), colsum.get(), bias.get(), linear.inputs, linear.outputs, 0};
    args.epilogue = linear.epilogue;
    args.out = out.get();
    args.out_stride = row_stride(linear.outputs);
    const double seconds = shortest(kSeconds, [&] { table.linear_u8s8_f32(args, {0, linear.rows, 0, panels}); });
    report.operations(linear.name, seconds, "int8", linear.operations());
  }
}

BENCHMARK_KERNEL(linear_f32) {
  for (const LinearShape& linear : linears_of(shape)) {
    const int nr = table.f32_nr, panels = (linear.outputs + nr - 1) / nr;
    const size_t columns = static_cast<size_t>(panels) * static_cast<size_t>(nr);
    Array<float> weight(columns * static_cast<size_t>(linear.inputs)), bias(columns);
    Array<float> x(static_cast<size_t>(linear.rows) * row_stride(linear.inputs)),
        out(static_cast<size_t>(linear.rows) * row_stride(linear.outputs));
    LinearF32Args args{};
    args.x = x.get();
    args.x_stride = row_stride(linear.inputs);
    args.linear = {weight.get(), bias.get(), linear.inputs, linear.outputs};
    args.epilogue = linear.epilogue;
    args.out = out.get();
    args.out_stride = row_stride(linear.outputs);
    const double seconds = shortest(kSeconds, [&] { table.linear_f32(args, {0, linear.rows, 0, panels}); });
    report.operations(linear.name, seconds, "fp32", linear.operations());
  }
}

BENCHMARK_KERNEL(rotate) {
  const int head_dim = shape.hidden / shape.heads, stride = row_stride(head_dim / 2), width = 3 * shape.hidden;
  for (const int rows : kRows) {
    Array<float> qkv(static_cast<size_t>(rows) * width), table_of(static_cast<size_t>(rows) * 2 * stride);
    std::vector<int32_t> positions(rows);
    for (int i = 0; i < rows; ++i) positions[i] = i;
    const RotateArgs args{qkv.get(),
                          width,
                          shape.heads,
                          head_dim,
                          positions.data(),
                          table_of.get(),
                          table_of.get() + static_cast<size_t>(rows) * stride};
    const double seconds = shortest(kSeconds, [&] { table.rotate(args, 0, rows); });
    report.bytes(of_rows(shape, rows), seconds, 16.0 * rows * shape.hidden);
  }
}

BENCHMARK_KERNEL(gate) {
  const int width = shape.intermediate;
  for (const int rows : kRows) {
    Array<float> x(static_cast<size_t>(rows) * row_stride(2 * width)), inv_smooth(width);
    Codes codes(table, rows, width);
    const GateArgs args{x.get(), row_stride(2 * width), width,       Epilogue::kGeluErf,
                        true,    inv_smooth.get(),      codes.view()};
    const double seconds = shortest(kSeconds, [&] { table.gate(args, 0, rows); });
    report.bytes(of_rows(shape, rows), seconds, 13.0 * rows * width);
  }
}

// Both attention kernels: every head of one sequence.
template <class Kernel>
void time_attention(Kernel attend, const char* precision, const Shape& shape, const Report& report) {
  const int head_dim = shape.hidden / shape.heads;
  for (const int length : kLengths) {
    const int32_t cu_seqlens[] = {0, length};
    Array<float> qkv(static_cast<size_t>(length) * 3 * shape.hidden),
        context(static_cast<size_t>(length) * shape.hidden);
    Array<float> scratch(attention_scratch(length, head_dim, 0));
    AttentionArgs args{};
    args.qkv = qkv.get();
    args.qkv_stride = 3 * shape.hidden;
    args.attention_size = shape.hidden;
    args.head_dim = head_dim;
    args.cu_seqlens = cu_seqlens;
    args.context = context.get();
    args.context_stride = shape.hidden;
    const double seconds = shortest(kSeconds, [&] {
      for (int head = 0; head < shape.heads; ++head) attend(args, 0, head, scratch.get());
    });
    report.operations(of_tokens(shape, length), seconds, precision, 4.0 * length * length * shape.hidden);
  }
}

BENCHMARK_KERNEL(attention_varlen) { time_attention(table.attention_varlen, "fp32", shape, report); }

BENCHMARK_KERNEL(attention_varlen_u8s8) { time_attention(table.attention_varlen_u8s8, "int8", shape, report); }

BENCHMARK_KERNEL(add_layernorm) {
  const int width = shape.hidden, stride = row_stride(width);
  for (const int rows : kRows) {
    Array<float> x(static_cast<size_t>(rows) * stride), residual(static_cast<size_t>(rows) * stride);
    Array<float> out(static_cast<size_t>(rows) * stride), weight(width), bias(width), inv_smooth(width);
    Codes codes(table, rows, width);
    AddLayerNormArgs args{};
    args.x = x.get();
    args.x_stride = stride;
    args.residual = residual.get();
    args.residual_stride = stride;
    args.norm = {weight.get(), bias.get(), width, 1e-12f};
    args.out = out.get();
    args.out_stride = stride;
    args.quantize = true;
    args.inv_smooth = inv_smooth.get();
    args.codes = codes.view();
    const double seconds = shortest(kSeconds, [&] { table.add_layernorm(args, 0, rows); });
    report.bytes(of_rows(shape, rows), seconds, 13.0 * rows * width);
  }
}

BENCHMARK_KERNEL(pool) {
  const int width = shape.hidden;
  for (const int length : kLengths) {
    const int32_t cu_seqlens[] = {0, length};
    Array<float> x(static_cast<size_t>(length) * row_stride(width)), out(row_stride(width));
    PoolArgs args{};
    args.x = x.get();
    args.x_stride = row_stride(width);
    args.width = width;
    args.cu_seqlens = cu_seqlens;
    args.fold = Fold::kMean;
    args.normalize = true;
    args.out = out.get();
    args.out_stride = row_stride(width);
    const double seconds = shortest(kSeconds, [&] { table.pool(args, 0, 1); });
    report.bytes(of_tokens(shape, length), seconds, 4.0 * (length + 1) * width);
  }
}

#define EB_KERNEL(name, arguments)                                                                               \
  static_assert(is_timed<&KernelTable::name>,                                                                    \
                "kernels.inc lists " #name ", so benchmarks/native/kernels.cc must have BENCHMARK_KERNEL(" #name \
                ") { ... }");
#include "cpu/kernels.inc"
#undef EB_KERNEL

}  // namespace
}  // namespace edgebert

int main() {
  using namespace edgebert;
  const std::string isas = usable_isas();
  for (size_t begin = 0; begin < isas.size();) {
    const size_t end = std::min(isas.find(',', begin), isas.size());
    const std::string isa = isas.substr(begin, end - begin);
    if (isa != "baseline")
      for (const Shape& shape : kShapes) {
        const KernelTable& table = select_kernels(isa.c_str());
#define EB_KERNEL(name, arguments) time_##name(table, shape, {table.isa, #name});
#include "cpu/kernels.inc"
#undef EB_KERNEL
      }
    begin = end + 1;
  }
  return 0;
}
