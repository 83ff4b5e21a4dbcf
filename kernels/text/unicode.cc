#include "text/unicode.h"

#include <algorithm>
#include <iterator>

namespace edgebert::text {
namespace {

struct CaseRun {
  uint32_t first, last, step;
  int32_t difference;
};

struct Decomposition {
  uint32_t code;
  uint16_t begin;  // of the canonical one's UTF-16 units
  uint8_t num_canonical;
  uint8_t num_compatible;  // units of the compatible one behind it; 0 where it is the same
};

struct Composition {
  uint32_t first, second, composed;
};

#include "text/unicode_tables.inc"

// Twins of BITS, GRAPHEME and BLOCK in make_tables.py, with ClassTables.
constexpr int kNumBits = ClassTables::kNumBits, kGraphemeBits = 4;

enum Grapheme : uint32_t {
  kOther,
  kExtend,
  kJoiner,
  kSpacing,
  kPrepend,
  kBreaking,  // control
  kReturn,
  kNewline,
  kHangulL,
  kHangulV,
  kHangulT,
  kHangulLV,
  kHangulLVT
};

// Hangul syllables, which are arranged by their parts.
constexpr uint32_t kL = 0x1100, kV = 0x1161, kT = 0x11A7, kSyllables = 0xAC00;
constexpr uint32_t kNumV = 21, kNumT = 28, kNumL = 19;

}  // namespace

const ClassTables kClassTables = {kClassBits, kClassBlocks, kClasses};

int combining_class(uint32_t code) {
  return static_cast<int>(kClassTables.all_bits(code) >> (kNumBits + kGraphemeBits));
}

int to_lower(uint32_t code, uint32_t* out) {
  out[0] = code;
  if (code < 0x80) {
    if (code >= 'A' && code <= 'Z') out[0] = code + 32;
    return 1;
  }
  if ((class_of(code) & kHasLower) == 0) return 1;
  if (code == 0x130) {  // the only one with two
    out[0] = 'i';
    out[1] = 0x307;
    return 2;
  }
  const CaseRun* run = std::partition_point(std::begin(kLowerRuns), std::end(kLowerRuns),
                                            [&](const CaseRun& candidate) { return candidate.last < code; });
  out[0] = code + static_cast<uint32_t>(run->difference);
  return 1;
}

int decompose(uint32_t code, bool is_compatible, uint32_t* out) {
  if (code >= kSyllables && code < kSyllables + kNumL * kNumV * kNumT) {
    const uint32_t index = code - kSyllables;
    out[0] = kL + index / (kNumV * kNumT);
    out[1] = kV + index / kNumT % kNumV;
    out[2] = kT + index % kNumT;
    return index % kNumT == 0 ? 2 : 3;
  }
  out[0] = code;
  if (code < 0x80 || (class_of(code) & kHasDecomposition) == 0) return 1;
  const Decomposition* found =
      std::partition_point(std::begin(kDecompositions), std::end(kDecompositions),
                           [&](const Decomposition& candidate) { return candidate.code < code; });
  const bool is_second = is_compatible && found->num_compatible > 0;
  int num_units = is_second ? found->num_compatible : found->num_canonical;
  if (num_units == 0) return 1;  // has a compatible one only
  const uint16_t* units = kDecompositionUnits + found->begin + (is_second ? found->num_canonical : 0);
  int count = 0;
  for (; num_units > 0; ++units, --num_units) {
    uint32_t unit = *units;
    if (unit >= 0xD800 && unit < 0xDC00) {
      unit = 0x10000 + ((unit - 0xD800) << 10) + (*++units - 0xDC00u);
      --num_units;
    }
    out[count++] = unit;
  }
  return count;
}

uint32_t compose(uint32_t first, uint32_t second) {
  if (first - kL < kNumL && second - kV < kNumV) {
    return kSyllables + ((first - kL) * kNumV + (second - kV)) * kNumT;
  }
  if (first - kSyllables < kNumL * kNumV * kNumT && (first - kSyllables) % kNumT == 0 && second - kT - 1 < kNumT - 1) {
    return first + (second - kT);
  }
  const Composition* found =
      std::partition_point(std::begin(kCompositions), std::end(kCompositions), [&](const Composition& candidate) {
        return candidate.first != first ? candidate.first < first : candidate.second < second;
      });
  const bool is_found = found != std::end(kCompositions) && found->first == first && found->second == second;
  return is_found ? found->composed : 0;
}

bool composes_with_left(uint32_t code) {
  if (code - kV < kNumV || code - kT - 1 < kNumT - 1) return true;
  return std::any_of(std::begin(kCompositions), std::end(kCompositions),
                     [&](const Composition& composition) { return composition.second == code; });
}

bool Graphemes::is_alone(uint32_t code) {
  const uint32_t kind = kClassTables.all_bits(code) >> kNumBits & ((1u << kGraphemeBits) - 1);
  return kind == kOther || kind == kBreaking || kind == kHangulLV || kind == kHangulLVT;
}

bool Graphemes::begins(uint32_t code) {
  const uint32_t bits = kClassTables.all_bits(code), before = last_;
  const uint32_t kind = bits >> kNumBits & ((1u << kGraphemeBits) - 1);
  const bool is_breaking = kind == kBreaking || kind == kReturn || kind == kNewline;
  bool is_joined = false;
  if (is_first_) {
    is_joined = false;
  } else if (before == kReturn && kind == kNewline) {
    is_joined = true;
  } else if (before == kBreaking || before == kReturn || before == kNewline || is_breaking) {
    is_joined = false;
  } else if (kind == kExtend || kind == kJoiner || kind == kSpacing || before == kPrepend) {
    is_joined = true;
  } else if (before == kHangulL) {
    is_joined = kind == kHangulL || kind == kHangulV || kind == kHangulLV || kind == kHangulLVT;
  } else if (before == kHangulLV || before == kHangulV) {
    is_joined = kind == kHangulV || kind == kHangulT;
  } else if (before == kHangulLVT || before == kHangulT) {
    is_joined = kind == kHangulT;
  }
  if (!is_joined && !is_first_ && before == kJoiner && after_pictographic_ && (bits & kPictographic) != 0) {
    is_joined = true;
  }
  if (!is_joined && after_consonant_ && after_linker_ && (bits & kConjunctConsonant) != 0) is_joined = true;
  // Regional indicators go in pairs; each has four bytes, so that for Precompiled, which looks at graphemes of less
  // than six bytes, it makes no difference.
  if ((bits & kPictographic) != 0) {
    after_pictographic_ = true;
  } else if (kind != kExtend && !(kind == kJoiner && before != kJoiner)) {
    after_pictographic_ = false;
  } else if (before == kJoiner) {
    after_pictographic_ = false;
  }
  if ((bits & kConjunctConsonant) != 0) {
    after_consonant_ = true;
    after_linker_ = false;
  } else if ((bits & kConjunctLinker) != 0) {
    after_linker_ = true;
  } else if ((bits & kConjunctExtend) == 0) {
    after_consonant_ = false;
  }
  last_ = kind;
  is_first_ = false;
  return !is_joined;
}

bool is_utf8(std::string_view text, size_t* at) {
  const auto* p = reinterpret_cast<const unsigned char*>(text.data());
  const size_t size = text.size();
  for (size_t i = 0; i < size;) {
    if (size - i >= 8) {
      uint64_t word;
      std::memcpy(&word, p + i, 8);
      if ((word & 0x8080808080808080u) == 0) {
        i += 8;
        continue;
      }
    }
    if (p[i] < 0x80) {
      ++i;
      continue;
    }
    // The second byte's range keeps out overlong forms, surrogates and what is beyond the last code point.
    const unsigned char first = p[i];
    const size_t length = first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 0;
    bool is_valid = length != 0 && length <= size - i;
    if (is_valid) {
      const unsigned char low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
      const unsigned char high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
      is_valid = p[i + 1] >= low && p[i + 1] <= high;
      for (size_t k = 2; k < length; ++k) is_valid &= (p[i + k] & 0xC0) == 0x80;
    }
    if (!is_valid) {
      *at = i;
      return false;
    }
    i += length;
  }
  return true;
}

}  // namespace edgebert::text
