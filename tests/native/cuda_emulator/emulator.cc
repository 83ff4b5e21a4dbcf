#include "emulator.h"

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "cuda/mma.h"
#include "stream.h"

thread_local uint3 threadIdx, blockIdx;
thread_local dim3 blockDim;

namespace emulator {
namespace {

constexpr int kWarp = 32;
constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kMaxSharedBytes = 48 * 1024;  // more needs a function attribute, which the kernels do not set
bool is_reversed = false;

[[noreturn]] void die(const char* what) {
  std::fprintf(stderr, "CUDA emulator: %s\n", what);
  std::abort();
}

struct Barrier {
  int expected = 0, arrived = 0;
  uint64_t generation = 0;
};

// A copy that was issued and not yet waited for.
struct Copy {
  unsigned char* to;
  const unsigned char* from;
  int valid, group;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  bool is_done;
  Barrier* waiting_for;
  uint64_t waiting_since;
  std::vector<Copy> copies;
  int num_groups;
};

// The lanes of a warp at one instruction: each brings a pointer to its operands.
struct Warp {
  Barrier barrier;
  const char* instruction;
  void* operands[kWarp];
};

struct Block {
  ucontext_t scheduler;
  const std::function<void()>* body;
  Barrier barrier;
  std::vector<Warp> warps;
  std::vector<std::unique_ptr<Fiber>> fibers;  // kept from block to block for their stacks
  std::unique_ptr<unsigned char[]> shared;
};
thread_local Block block;
thread_local Fiber* current = nullptr;

void enter() {
  (*block.body)();
  current->is_done = true;
}

void wait_at(Barrier& barrier) {
  const uint64_t since = barrier.generation;
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  current->waiting_for = &barrier;
  current->waiting_since = since;
  swapcontext(&current->context, &block.scheduler);
}

// The last lane to arrive does the instruction for all of them.
template <class Operands, class Act>
void warp_instruction(const char* name, Operands& mine, Act act) {
  const unsigned thread = threadIdx.x;
  Warp& warp = block.warps[thread / kWarp];
  if (warp.barrier.arrived == 0) warp.instruction = name;
  if (std::strcmp(warp.instruction, name) != 0) die("the lanes of a warp are at different instructions");
  warp.operands[thread % kWarp] = &mine;
  if (warp.barrier.arrived == kWarp - 1)
    act([&warp](int lane) -> Operands& { return *static_cast<Operands*>(warp.operands[lane]); });
  wait_at(warp.barrier);
}

void run_block(const std::function<void()>& body, dim3 size, uint3 index, size_t shared_bytes) {
  const int threads = static_cast<int>(size.x);
  blockIdx = index;
  blockDim = size;
  block.body = &body;
  block.barrier = {threads};
  block.warps.assign(threads / kWarp, Warp{});
  for (Warp& warp : block.warps) warp.barrier.expected = kWarp;
  block.shared.reset(new unsigned char[shared_bytes]);
  std::memset(block.shared.get(), 0xff, shared_bytes);
  while (static_cast<int>(block.fibers.size()) < threads) block.fibers.push_back(std::make_unique<Fiber>());
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = *block.fibers[i];
    fiber.is_done = false;
    fiber.waiting_for = nullptr;
    fiber.copies.clear();
    fiber.num_groups = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = &block.scheduler;
    makecontext(&fiber.context, enter, 0);
  }
  // A warp runs as far as it can alone before the next one does, which is as far apart as warps can get.
  const auto run_lane = [](int thread) {
    Fiber& fiber = *block.fibers[thread];
    if (fiber.is_done || (fiber.waiting_for && fiber.waiting_for->generation == fiber.waiting_since)) return false;
    fiber.waiting_for = nullptr;
    current = &fiber;
    threadIdx = {static_cast<unsigned>(thread), 0, 0};
    swapcontext(&block.scheduler, &fiber.context);
    if (fiber.is_done && !fiber.copies.empty()) die("a thread ended with a copy that it had not waited for");
    return true;
  };
  const auto in_order = [](int i, int count) { return is_reversed ? count - 1 - i : i; };
  const int warps = threads / kWarp;
  for (bool has_moved = true; has_moved;) {
    has_moved = false;
    for (int w = 0; w < warps; ++w)
      for (bool warp_moved = true; warp_moved; has_moved |= warp_moved) {
        warp_moved = false;
        for (int i = 0; i < kWarp; ++i) warp_moved |= run_lane(in_order(w, warps) * kWarp + in_order(i, kWarp));
      }
  }
  for (int i = 0; i < threads; ++i)
    if (!block.fibers[i]->is_done) die("threads wait at a barrier that others do not reach");
}

}  // namespace

void set_reversed(bool reversed) { is_reversed = reversed; }
void sync_block() { wait_at(block.barrier); }

void sync_warp() {
  int nothing = 0;
  warp_instruction("syncwarp", nothing, [](auto) {});
}

float shuffle_xor(float x, int lanes) {
  struct {
    float x, result;
    int lanes;
  } mine{x, 0.0f, lanes};
  warp_instruction("shuffle", mine, [](auto lane) {
    for (int i = 0; i < kWarp; ++i) lane(i).result = lane(i ^ lane(i).lanes).x;
  });
  return mine.result;
}

cudaError_t launch(dim3 grid, dim3 size, size_t shared_bytes, cudaStream_t stream, std::function<void()> body) {
  if (size.x == 0 || size.x > 1024 || size.x % kWarp || size.y != 1 || size.z != 1 || shared_bytes > kMaxSharedBytes ||
      grid.x == 0 || grid.x > 0x7fffffff || grid.y == 0 || grid.y > 65535 || grid.z == 0 || grid.z > 65535)
    return cudaErrorInvalidConfiguration;
  queue(stream, [=] {
    for (unsigned z = 0; z < grid.z; ++z)
      for (unsigned y = 0; y < grid.y; ++y)
        for (unsigned x = 0; x < grid.x; ++x) run_block(body, size, {x, y, z}, shared_bytes);
  });
  return cudaSuccess;
}

}  // namespace emulator

// ---- kernels/cuda/mma.h
// ----------------------------------------------------------------------------------------------

namespace edgebert {
namespace cuda {

using namespace emulator;

float exp2_approx(float x) { return std::exp2(x); }
unsigned char* dynamic_shared() { return block.shared.get(); }

void cp_async(void* to, const void* from, int valid) {
  if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16) die("a misaligned copy");
  if (valid < 0 || valid > 16) die("a copy of fewer than 0 or more than 16 bytes");
  std::memset(to, 0xff, 16);
  current->copies.push_back(
      {static_cast<unsigned char*>(to), static_cast<const unsigned char*>(from), valid, current->num_groups});
}
void cp_async_commit() { ++current->num_groups; }
void cp_async_wait_all_but(int pending) {
  std::vector<Copy>& copies = current->copies;
  size_t done = 0;
  for (; done < copies.size() && copies[done].group < current->num_groups - pending; ++done) {
    const Copy& copy = copies[done];
    std::memset(copy.to, 0, 16);
    std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.valid));
  }
  copies.erase(copies.begin(), copies.begin() + static_cast<std::ptrdiff_t>(done));
}

namespace {

struct LoadOperands {
  const unsigned char* row;
  uint32_t* r;
};

void load_matrices(const char* name, uint32_t (&r)[4], const void* row, bool is_transposed) {
  if (reinterpret_cast<uintptr_t>(row) % 16) die("a misaligned row of ldmatrix");
  LoadOperands mine{static_cast<const unsigned char*>(row), r};
  warp_instruction(name, mine, [is_transposed](auto lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      unsigned banks = 0;  // groups of four, in which the eight rows lie
      for (int i = 0; i < 8; ++i) banks |= 1u << (lane(matrix * 8 + i).row - block.shared.get()) / 16 % 8;
      if (banks != 0xff) die("rows of a matrix that share memory banks");
      for (int i = 0; i < 32; ++i)
        for (int half = 0; half < 2; ++half) {
          int at_row = i / 4, at_column = i % 4 * 2 + half;
          if (is_transposed) std::swap(at_row, at_column);
          unsigned char* const to = reinterpret_cast<unsigned char*>(&lane(i).r[matrix]);
          std::memcpy(to + half * 2, lane(matrix * 8 + at_row).row + at_column * 2, 2);
        }
    }
  });
}

template <class Sum>
struct ProductOperands {
  Sum* c;
  uint32_t a[4], b[2];
};

float value_of(__half x) { return __half2float(x); }
float value_of(__nv_bfloat16 x) { return __bfloat162float(x); }
int32_t value_of(int8_t x) { return x; }

// Fragments as mma.h draws them; exact products, summed in double and rounded once, or in s32.
template <class T, class Sum>
void multiply(Sum (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  using Wide = std::conditional_t<std::is_same<Sum, float>::value, double, int64_t>;
  constexpr int kDepth = 32 / static_cast<int>(sizeof(T)), kPerRegister = 4 / static_cast<int>(sizeof(T));
  ProductOperands<Sum> mine{c, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  warp_instruction("mma", mine, [](auto lane) {
    T left[16][kDepth], right[8][kDepth];
    for (int i = 0; i < 32; ++i) {
      const int g = i / 4, t = i % 4;
      for (int part = 0; part < 2; ++part) {
        const int k = part * kDepth / 2 + t * kPerRegister;
        std::memcpy(&left[g][k], &lane(i).a[part * 2], 4);
        std::memcpy(&left[g + 8][k], &lane(i).a[part * 2 + 1], 4);
        std::memcpy(&right[g][k], &lane(i).b[part], 4);
      }
    }
    for (int i = 0; i < 32; ++i)
      for (int j = 0; j < 4; ++j) {
        const int row = i / 4 + j / 2 * 8, column = i % 4 * 2 + j % 2;
        Wide sum = lane(i).c[j];
        for (int k = 0; k < kDepth; ++k)
          sum += static_cast<Wide>(value_of(left[row][k])) * static_cast<Wide>(value_of(right[column][k]));
        lane(i).c[j] = static_cast<Sum>(sum);
      }
  });
}

}  // namespace

void ldmatrix(uint32_t (&r)[4], const void* row) { load_matrices("ldmatrix", r, row, false); }
void ldmatrix_transposed(uint32_t (&r)[4], const void* row) { load_matrices("ldmatrix.trans", r, row, true); }
template <>
void mma<__half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply<__half>(c, a, b0, b1);
}
template <>
void mma<__nv_bfloat16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply<__nv_bfloat16>(c, a, b0, b1);
}
template <>
void mma<int8_t>(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply<int8_t>(c, a, b0, b1);
}

}  // namespace cuda
}  // namespace edgebert
