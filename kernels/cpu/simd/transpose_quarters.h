// transpose_16x16 of the vector headers whose F32x16 is four vectors of four lanes, by their transpose_4x4.
#pragma once

namespace edgebert {
namespace EB_ISA {

inline void transpose_16x16(F32x16* r) {
  F32x16 columns[16];
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) {
      decltype(F32x16::v) block = {r[4 * i].v[j], r[4 * i + 1].v[j], r[4 * i + 2].v[j], r[4 * i + 3].v[j]};
      transpose_4x4(block);
      for (int k = 0; k < 4; ++k) columns[4 * j + k].v[i] = block[k];
    }
  for (int i = 0; i < 16; ++i) r[i] = columns[i];
}

}  // namespace EB_ISA
}  // namespace edgebert
