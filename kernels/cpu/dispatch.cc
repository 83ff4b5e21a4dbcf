#include "cpu/dispatch.h"

#include <cstdlib>
#include <string>

#include "base/status.h"
#include "cpu/cpu_features.h"

namespace edgebert {

#define EB_BUILT_ISA(name)         \
  namespace name {                 \
  extern const KernelTable kTable; \
  }
#include "built_isas.inc"
#undef EB_BUILT_ISA

namespace {

struct Entry {
  const KernelTable* table;
  bool usable;
};

// Every name any build may have, so that "this build lacks it" differs from "there is no such ISA".
constexpr const char* kKnownIsas[] = {
#define EB_ISA_ENTRY(name, processors, flags) #name,
#include "cpu/isas.inc"
#undef EB_ISA_ENTRY
};

template <class Visit>
void for_isas(Visit visit) {
#define EB_BUILT_ISA(name) visit(Entry{&name::kTable, cpu_features().name});
#include "built_isas.inc"
#undef EB_BUILT_ISA
}

std::string join(bool usable_only) {
  std::string names;
  for_isas([&](Entry e) {
    if (usable_only && !e.usable) return;
    if (!names.empty()) names += ',';
    names += e.table->isa;
  });
  return names;
}

// Made when the library is loaded: a child forked while a thread makes them would wait for that thread forever.
const std::string built = join(false), usable = join(true);

}  // namespace

const char* built_isas() { return built.c_str(); }
const char* usable_isas() { return usable.c_str(); }

const KernelTable& select_kernels(const char* isa) {
  if (!isa || !*isa) isa = std::getenv("EDGEBERT_FORCE_ISA");
  const std::string wanted = isa ? isa : "";
  const KernelTable* found = nullptr;
  bool is_built = false;
  for_isas([&](Entry e) {
    const bool matches = wanted.empty() || wanted == e.table->isa;
    is_built = is_built || matches;
    if (matches && e.usable && !found) found = e.table;
  });
  if (found) return *found;
  if (is_built)
    throw Error(EB_UNAVAILABLE, "this CPU cannot run the instruction set '" + wanted + "': it can run " +
                                    usable_isas() + "; choose one of those or leave the choice to EdgeBERT");
  for (const char* known : kKnownIsas)
    if (wanted == known)
      throw Error(EB_UNAVAILABLE, "this build lacks the instruction set '" + wanted + "': it has " + built_isas() +
                                      "; rebuild with a compiler that supports it");
  throw Error(EB_UNAVAILABLE, "unknown instruction set '" + wanted + "': this build has " + built_isas());
}

}  // namespace edgebert
