#include "base/platform.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include "base/status.h"

#if defined(_WIN32)
#define NOMINMAX
#define WIN32_LEAN_AND_MEAN
#include <io.h>
#include <malloc.h>
#include <windows.h>
#else
#include <time.h>
#include <unistd.h>
#if !defined(__wasm__)
#include <pthread.h>
#include <sys/mman.h>
#endif
#endif
#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__linux__) && defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#if EDGEBERT_THREADS
#include <thread>
#endif

namespace edgebert {

// ---- Memory -----------------------------------------------------------------------------------------------------

AlignedBytes allocate_aligned(size_t bytes, size_t alignment) {
#if defined(_WIN32)
  void* p = _aligned_malloc(bytes, alignment);
#else
  void* p = nullptr;
  if (posix_memalign(&p, alignment, bytes) != 0) p = nullptr;
#endif
  if (p == nullptr) throw std::bad_alloc();
  return AlignedBytes(static_cast<unsigned char*>(p));
}

void FreeAligned::operator()(void* p) const {
#if defined(_WIN32)
  _aligned_free(p);
#else
  std::free(p);
#endif
}

ZeroBytes allocate_zeros(size_t bytes) {
#if defined(_WIN32)
  void* p = VirtualAlloc(nullptr, bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
#elif defined(__wasm__)
  void* p = nullptr;
  if (posix_memalign(&p, 64, bytes) == 0) std::memset(p, 0, bytes);
#else
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) p = nullptr;
#endif
  if (p == nullptr) throw std::bad_alloc();
  return ZeroBytes(p, FreeZeros{bytes});
}

void FreeZeros::operator()(void* p) const {
#if defined(_WIN32)
  VirtualFree(p, 0, MEM_RELEASE);
#elif defined(__wasm__)
  std::free(p);
#else
  munmap(p, bytes);
#endif
}

void prefer_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  madvise(memory, bytes, MADV_HUGEPAGE);
#endif
}

// ---- Files ------------------------------------------------------------------------------------------------------

namespace {

// Opened for reading, or -1 and errno. Not blocking: the path may be a pipe.
int open_file(const std::string& path) {
#if defined(_WIN32)
  const int size = MultiByteToWideChar(CP_UTF8, 0, path.c_str(), -1, nullptr, 0);
  std::wstring wide(static_cast<size_t>(size), L'\0');
  MultiByteToWideChar(CP_UTF8, 0, path.c_str(), -1, &wide[0], size);
  const int fd = _wopen(wide.c_str(), _O_RDONLY | _O_BINARY | _O_NOINHERIT);
  const DWORD attributes = fd < 0 ? GetFileAttributesW(wide.c_str()) : INVALID_FILE_ATTRIBUTES;
  if (attributes != INVALID_FILE_ATTRIBUTES && (attributes & FILE_ATTRIBUTE_DIRECTORY)) errno = EISDIR;
  return fd;
#else
  return open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
#endif
}

// The file's bytes, or nullptr and errno.
const char* map_file(int fd, size_t size) {
#if defined(_WIN32)
  const HANDLE file = reinterpret_cast<HANDLE>(_get_osfhandle(fd));
  const HANDLE mapping = CreateFileMappingW(file, nullptr, PAGE_READONLY, 0, 0, nullptr);
  void* data = mapping != nullptr ? MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, size) : nullptr;
  if (mapping != nullptr) CloseHandle(mapping);  // the view keeps it
  if (data == nullptr) errno = ENOMEM;
  return static_cast<const char*>(data);
#elif defined(__wasm__)
  char* data = static_cast<char*>(std::malloc(size));
  for (size_t done = 0; data != nullptr && done < size;) {
    const ssize_t count = read(fd, data + done, size - done);
    if (count <= 0) {
      std::free(data);
      data = nullptr;
    } else {
      done += static_cast<size_t>(count);
    }
  }
  return data;
#else
  void* data = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
  return data != MAP_FAILED ? static_cast<const char*>(data) : nullptr;
#endif
}

}  // namespace

MappedFile::MappedFile(const std::string& path) {
  const auto fail = [&](const std::string& what) { throw Error(EB_MODEL_FORMAT, path + ": " + what); };
  const int fd = open_file(path);
  if (fd < 0) fail(std::strerror(errno));
#if defined(_WIN32)
  struct _stat64 info;
  const bool is_file = _fstat64(fd, &info) == 0 && (info.st_mode & _S_IFMT) == _S_IFREG;
#else
  struct stat info;
  const bool is_file = fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
#endif
  if (is_file && info.st_size > 0) {
    size_ = static_cast<size_t>(info.st_size);
    data_ = map_file(fd, size_);
  }
  const int map_error = errno;
  close(fd);
  if (!is_file) fail("not a regular file");
  if (size_ == 0) fail("the file is empty");
  if (data_ == nullptr) fail(std::string("cannot be mapped: ") + std::strerror(map_error));
}

void MappedFile::forget() const {
#if defined(_WIN32)
  VirtualUnlock(const_cast<char*>(data_), size_);  // of pages that are not locked: takes them out of the working set
#elif !defined(__wasm__)
  madvise(const_cast<char*>(data_), size_, MADV_DONTNEED);
#endif
}

MappedFile::~MappedFile() {
#if defined(_WIN32)
  UnmapViewOfFile(data_);
#elif defined(__wasm__)
  std::free(const_cast<char*>(data_));
#else
  munmap(const_cast<char*>(data_), size_);
#endif
}

// ---- CPUs -------------------------------------------------------------------------------------------------------

namespace {

#if EDGEBERT_THREADS

int num_cpus() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#elif defined(_WIN32)
  DWORD_PTR mine, all;
  if (GetProcessAffinityMask(GetCurrentProcess(), &mine, &all) != 0 && mine != 0) return __builtin_popcountll(mine);
#endif
  return static_cast<int>(std::thread::hardware_concurrency());
}

#if defined(__linux__)

// A small file of the system's, or nothing if it is not there.
std::string read_text(const std::string& path) {
  std::string text;
  std::FILE* file = std::fopen(path.c_str(), "re");
  if (file == nullptr) return text;
  char buffer[1024];
  for (size_t count; (count = std::fread(buffer, 1, sizeof buffer, file)) > 0;) text.append(buffer, count);
  std::fclose(file);
  return text;
}

// The tightest CPU quota of the cgroups this process is in, in CPUs; a large number if there is none.
double cgroup_cpus() {
  double cpus = 1e6;
  const std::string groups = read_text("/proc/self/cgroup");
  for (size_t begin = 0, end; begin < groups.size(); begin = end + 1) {  // lines of hierarchy:controllers:path
    end = std::min(groups.find('\n', begin), groups.size());
    const std::string line = groups.substr(begin, end - begin);
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::string path = line.substr(second + 1);
    const bool is_v2 = controllers.empty();
    if (!is_v2 && ("," + controllers + ",").find(",cpu,") == std::string::npos) continue;
    for (;; path = path.substr(0, path.rfind('/'))) {  // a parent's quota binds its children
      if (path == "/") path.clear();
      const std::string v1 = "/sys/fs/cgroup/cpu" + path;
      const std::string text = is_v2 ? read_text("/sys/fs/cgroup" + path + "/cpu.max")
                                     : read_text(v1 + "/cpu.cfs_quota_us") + read_text(v1 + "/cpu.cfs_period_us");
      long long quota, period;  // in microseconds
      if (std::sscanf(text.c_str(), "%lld %lld", &quota, &period) == 2 && quota > 0 && period > 0)
        cpus = std::min(cpus, static_cast<double>(quota) / static_cast<double>(period));
      if (path.empty()) break;
    }
  }
  return cpus;
}

#else

double cgroup_cpus() { return 1e6; }

#endif
#endif

}  // namespace

int usable_cpus() {
#if EDGEBERT_THREADS
  return std::max(1, std::min(num_cpus(), static_cast<int>(std::ceil(cgroup_cpus()))));
#else
  return 1;
#endif
}

bool has_arm_dot_product() {
#if defined(__aarch64__) && defined(__linux__)
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__APPLE__)
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &value, &size, nullptr, 0) == 0 && value != 0;
#else
  return false;
#endif
}

double thread_seconds() {
#if defined(_WIN32)
  LARGE_INTEGER now, frequency;
  QueryPerformanceCounter(&now);
  QueryPerformanceFrequency(&frequency);
  return static_cast<double>(now.QuadPart) / static_cast<double>(frequency.QuadPart);
#else
  timespec now;
#if defined(CLOCK_THREAD_CPUTIME_ID)
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
#else
  clock_gettime(CLOCK_MONOTONIC, &now);
#endif
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
#endif
}

// ---- Forks ------------------------------------------------------------------------------------------------------

namespace {

std::atomic<uint32_t> depth{0};

#if !defined(_WIN32) && !defined(__wasm__)
// When the library is loaded, not at the first use: a fork in the middle of that would leave the child without it.
[[maybe_unused]] const int registered =
    pthread_atfork(nullptr, nullptr, [] { depth.fetch_add(1, std::memory_order_relaxed); });
#endif

}  // namespace

uint32_t fork_depth() { return depth.load(std::memory_order_relaxed); }

}  // namespace edgebert
