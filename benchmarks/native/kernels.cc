// Each kernel of each instruction set at real shapes, one thread, as JSON lines:
//
//   {"isa", "kernel", "shape", "us": the shortest run, "gop": its operations / 1e9, or "mb": bytes read and written /
//   1e6}
#include <stdio.h>
#include <string.h>

#include <random>
#include <string>
#include <vector>

#include "clock.h"
#include "cpu/dispatch.h"

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
  Codes(int rows, int width)
      : codes(static_cast<size_t>(rows) * round_up(width, 64)),
        a_scale(rows),
        neg_zero(rows),
        stride(round_up(width, 64)) {}
  CodeRows view() {
    CodeRows rows{};
    rows.codes = codes.get();
    rows.stride = stride;
    rows.a_scale = a_scale.get();
    rows.neg_zero = neg_zero.get();
    return rows;
  }
  Array<uint8_t> codes;
  Array<float> a_scale;
  Array<int32_t> neg_zero;
  int stride;
};

class Bench {
 public:
  explicit Bench(const KernelTable& table) : table_(table) {}

  void run() {
    for (const Shape& shape : kShapes) {
      for (const int rows : kRows) {
        const struct {
          const char* name;
          int inputs, outputs;
          Epilogue epilogue;
        } linears[] = {{"qkv", shape.hidden, 3 * shape.hidden, Epilogue::kBias},
                       {"attention_output", shape.hidden, shape.hidden, Epilogue::kBias},
                       {"ffn_up", shape.hidden, shape.intermediate, Epilogue::kGeluErf},
                       {"ffn_down", shape.intermediate, shape.hidden, Epilogue::kBias}};
        for (const auto& linear : linears) {
          const std::string name = std::string(shape.name) + " " + linear.name + ", " + std::to_string(rows) + " rows";
          linear_u8s8(name, rows, linear.inputs, linear.outputs, linear.epilogue);
          linear_f32(name, rows, linear.inputs, linear.outputs, linear.epilogue);
        }
        const std::string name = std::string(shape.name) + ", " + std::to_string(rows) + " rows";
        add_layernorm(name, rows, shape.hidden);
        quantize_rows(name, rows, shape.intermediate);
      }
      for (const int length : kLengths) {
        attention("attention_varlen", table_.attention_varlen, shape, length);
        attention("attention_varlen_u8s8", table_.attention_varlen_u8s8, shape, length);
      }
    }
  }

 private:
  void print(const char* kernel, const std::string& shape, double seconds, const char* unit, double amount) {
    printf("{\"isa\": \"%s\", \"kernel\": \"%s\", \"shape\": \"%s\", \"us\": %.3f, \"%s\": %.6f}\n", table_.isa, kernel,
           shape.c_str(), 1e6 * seconds, unit, amount);
    fflush(stdout);
  }

  void linear_u8s8(const std::string& shape, int rows, int inputs, int outputs, Epilogue epilogue) {
    const int nr = table_.s8_nr, panels = (outputs + nr - 1) / nr;
    const size_t columns = static_cast<size_t>(panels) * static_cast<size_t>(nr);
    Array<int8_t> weight(columns * static_cast<size_t>(round_up(inputs, 4)));
    Array<float> w_scale(columns), bias(columns), out(static_cast<size_t>(rows) * row_stride(outputs));
    Array<int32_t> colsum(columns);
    Codes in(rows, inputs);
    LinearU8S8Args args{};
    args.in = in.view();
    args.linear.weight = weight.get();
    args.linear.w_scale = w_scale.get();
    args.linear.colsum = colsum.get();
    args.linear.bias = bias.get();
    args.linear.inputs = inputs;
    args.linear.outputs = outputs;
    args.epilogue = epilogue;
    args.out = out.get();
    args.out_stride = row_stride(outputs);
    const double seconds = shortest(kSeconds, [&] { table_.linear_u8s8_f32(args, {0, rows, 0, panels}); });
    print("linear_u8s8_f32", shape, seconds, "gop", 2e-9 * rows * inputs * outputs);
  }

  void linear_f32(const std::string& shape, int rows, int inputs, int outputs, Epilogue epilogue) {
    const int nr = table_.f32_nr, panels = (outputs + nr - 1) / nr;
    const size_t columns = static_cast<size_t>(panels) * static_cast<size_t>(nr);
    Array<float> weight(columns * static_cast<size_t>(inputs)), bias(columns);
    Array<float> x(static_cast<size_t>(rows) * row_stride(inputs)),
        out(static_cast<size_t>(rows) * row_stride(outputs));
    LinearF32Args args{};
    args.x = x.get();
    args.x_stride = row_stride(inputs);
    args.linear.weight = weight.get();
    args.linear.bias = bias.get();
    args.linear.inputs = inputs;
    args.linear.outputs = outputs;
    args.epilogue = epilogue;
    args.out = out.get();
    args.out_stride = row_stride(outputs);
    const double seconds = shortest(kSeconds, [&] { table_.linear_f32(args, {0, rows, 0, panels}); });
    print("linear_f32", shape, seconds, "gop", 2e-9 * rows * inputs * outputs);
  }

  template <class Kernel>
  void attention(const char* kernel, Kernel attend, const Shape& shape, int length) {
    const int head_dim = shape.hidden / shape.heads;
    const int32_t cu_seqlens[] = {0, length};
    Array<float> qkv(static_cast<size_t>(length) * 3 * shape.hidden),
        context(static_cast<size_t>(length) * shape.hidden);
    Array<float> scratch(attention_scratch(length, head_dim));
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
    print(kernel, std::string(shape.name) + ", " + std::to_string(length) + " tokens", seconds, "gop",
          4e-9 * length * length * shape.hidden);
  }

  void add_layernorm(const std::string& shape, int rows, int width) {
    const int stride = row_stride(width);
    Array<float> x(static_cast<size_t>(rows) * stride), residual(static_cast<size_t>(rows) * stride);
    Array<float> out(static_cast<size_t>(rows) * stride), weight(width), bias(width), inv_smooth(width);
    Codes codes(rows, width);
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
    const double seconds = shortest(kSeconds, [&] { table_.add_layernorm(args, 0, rows); });
    print("add_layernorm", shape, seconds, "mb", 13e-6 * rows * width);
  }

  void quantize_rows(const std::string& shape, int rows, int width) {
    Array<float> x(static_cast<size_t>(rows) * row_stride(width)), inv_smooth(width);
    Codes codes(rows, width);
    QuantizeArgs args{};
    args.x = x.get();
    args.x_stride = row_stride(width);
    args.width = width;
    args.inv_smooth = inv_smooth.get();
    args.out = codes.view();
    const double seconds = shortest(kSeconds, [&] { table_.quantize_rows(args, 0, rows); });
    print("quantize_rows", shape, seconds, "mb", 5e-6 * rows * width);
  }

  const KernelTable& table_;
};

}  // namespace
}  // namespace edgebert

int main() {
  using namespace edgebert;
  const std::string isas = usable_isas();
  for (size_t begin = 0; begin < isas.size();) {
    const size_t end = std::min(isas.find(',', begin), isas.size());
    const std::string isa = isas.substr(begin, end - begin);
    if (isa != "baseline") Bench(select_kernels(isa.c_str())).run();
    begin = end + 1;
  }
  return 0;
}
