#include "cuda/runtime.h"

#include "base/status.h"
#include "cuda/kernels.h"

namespace edgebert {
namespace cuda {
namespace {

constexpr int kOldest = 80;  // compute capability 8.0: what the kernels' mma instructions need

[[noreturn]] void fail(const std::string& what) { throw Error(EB_UNAVAILABLE, what); }

// CUDA's versions are 1000 * major + 10 * minor.
std::string version_name(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string device_name(int index) { return "cuda:" + std::to_string(index); }

int count_devices() {
  int driver = 0, count = 0;
  cudaDriverGetVersion(&driver);  // 0: none
  if (driver == 0) fail("there is no NVIDIA driver here (libcuda.so.1): install it, or use device='cpu'");
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorInsufficientDriver) {
    fail("the NVIDIA driver here is made for CUDA " + version_name(driver) + ", this library needs one for CUDA " +
         version_name(CUDART_VERSION) + ": update it, or use device='cpu'");
  }
  if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0)) {
    fail(
        "the NVIDIA driver here finds no GPU: see what nvidia-smi lists and what CUDA_VISIBLE_DEVICES says, "
        "or use device='cpu'");
  }
  if (error == cudaErrorInitializationError) fail_after_fork();
  if (error != cudaSuccess) fail(std::string("the GPUs here cannot be used: ") + cudaGetErrorString(error));
  return count;
}

Device describe_device(int index) {
  cudaDeviceProp found;
  check(cudaGetDeviceProperties(&found, index), "cudaGetDeviceProperties");
  return {index, found.name, found.major, found.minor, found.multiProcessorCount};
}

bool is_usable(const Device& device) { return 10 * device.major + device.minor >= kOldest; }

}  // namespace

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  const std::string message = std::string("CUDA, ") + what + ": " + cudaGetErrorString(error);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // this one leaves the device usable
    throw Error(EB_OUT_OF_MEMORY, message + ": use smaller batches, or a smaller model");
  }
  throw Error(EB_INTERNAL, message);
}

Device find_device(int index) {
  const int count = count_devices();
  if (index < 0 || index >= count) {
    fail("there is no device " + device_name(index) + ": this machine has " + std::to_string(count) +
         (count == 1 ? " GPU, cuda:0" : " GPUs, cuda:0 to " + device_name(count - 1)));
  }
  const Device device = describe_device(index);
  if (!is_usable(device)) {
    fail(device_name(index) + " (" + device.name + ") has compute capability " + std::to_string(device.major) + "." +
         std::to_string(device.minor) + ", the kernels need 8.0 or newer: use another device");
  }
  return device;
}

void fail_after_fork() {
  fail(
      "this process was forked from one that had used CUDA, which does not survive a fork: load the model in the "
      "child, "
      "and nothing on a GPU in its parent before; or start the child anew (multiprocessing's spawn)");
}

std::string list_devices() {
  std::string names;
  const int count = count_devices();
  for (int i = 0; i < count; ++i) {
    const Device device = describe_device(i);
    if (!is_usable(device)) continue;
    names += (names.empty() ? "" : ",") + device_name(i) + " " + device.name + " (sm_" + std::to_string(device.major) +
             std::to_string(device.minor) + ")";
  }
  if (names.empty()) find_device(0);  // says what is wrong with it
  return names;
}

}  // namespace cuda
}  // namespace edgebert
