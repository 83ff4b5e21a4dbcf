#include "cpu/cpu_features.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace edgebert {
namespace {

CpuFeatures detect() {
  CpuFeatures f;
  f.baseline = true;
#if defined(__x86_64__)
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return f;
  const bool has_fma = c & (1u << 12), has_osxsave = c & (1u << 27);
  if (!has_osxsave) return f;
  unsigned xcr0, high;
  __asm__("xgetbv" : "=a"(xcr0), "=d"(high) : "c"(0));
  const bool os_saves_256 = (xcr0 & 0x06) == 0x06, os_saves_512 = (xcr0 & 0xE6) == 0xE6;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return f;
  const unsigned max_subleaf = a;
  f.avx2 = os_saves_256 && has_fma && (b & (1u << 5));
  const bool has_avx512 = (b & (1u << 16)) && (b & (1u << 17)) && (b & (1u << 30)) && (b & (1u << 31));  // F DQ BW VL
  f.avx512_vnni = f.avx2 && os_saves_512 && has_avx512 && (c & (1u << 11));
  if (max_subleaf >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) f.avx_vnni = f.avx2 && (a & (1u << 4));
#elif defined(__aarch64__)
  f.neon = true;  // all of 64-bit Arm has it
#if defined(__linux__)
  f.neon_dotprod = getauxval(AT_HWCAP) & HWCAP_ASIMDDP;  // sdot, of Armv8.2
#endif
#endif
  return f;
}

// The tightest CPU quota of the cgroups this process is in, in CPUs; a large number if there is none.
double cgroup_cpus() {
  double cpus = 1e9;
#if defined(__linux__)
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // hierarchy:controllers:path
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::string path = line.substr(second + 1);
    const bool is_v2 = controllers.empty();
    if (!is_v2 && ("," + controllers + ",").find(",cpu,") == std::string::npos) continue;
    for (;; path = path.substr(0, path.rfind('/'))) {  // a parent's quota binds its children
      if (path == "/") path.clear();
      double quota = -1, period = 0;
      std::string text;
      if (is_v2) {
        std::ifstream("/sys/fs/cgroup" + path + "/cpu.max") >> text >> period;
        if (!text.empty() && text != "max") std::istringstream(text) >> quota;
      } else {
        std::ifstream("/sys/fs/cgroup/cpu" + path + "/cpu.cfs_quota_us") >> quota;
        std::ifstream("/sys/fs/cgroup/cpu" + path + "/cpu.cfs_period_us") >> period;
      }
      if (quota > 0 && period > 0) cpus = std::min(cpus, quota / period);
      if (path.empty()) break;
    }
  }
#endif
  return cpus;
}

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

int usable_cpus() {
  int cpus = static_cast<int>(std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) cpus = CPU_COUNT(&set);
#endif
  return std::max(1, std::min(cpus, static_cast<int>(std::ceil(std::min(cgroup_cpus(), 1e6)))));
}

}  // namespace edgebert
