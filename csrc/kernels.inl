// Every kernel, compiled for one instruction set: kernels_<isa>.cc includes a simd_<isa>.h and then this file.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels.h"
#include "layout.h"
#include "pool.h"

namespace gemworks::GEMWORKS_NS {

constexpr int kTileTokens = GEMWORKS_TILE_TOKENS;
constexpr int kTilePanels = GEMWORKS_TILE_PANELS;

// Sum of four products: weights of at most 15 (four-bit codes) or any byte.
template <bool kNibbles>
inline Ints Dot(Ints acc, Bytes w, Bytes a) {
  if constexpr (kNibbles) return DotSmall4(acc, w, a);
  return Dot4(acc, w, a);
}

#include "math.inl"
#include "activations.inl"
#include "linear.inl"
#include "block.inl"
#include "rowmajor.inl"
#include "head.inl"
#include "attention.inl"
#include "attend_all.inl"
#include "attend_all_int8.inl"
#include "tower.inl"

const Kernels* Table() {
  static const Kernels kTable = [] {
    Kernels k{};
    k.isa = GEMWORKS_ISA_NAME;
    k.linear = Linear;
    k.linear_workspace = LinearWorkspace;
    k.row_major = RowMajor;
    k.qkv = Qkv;
    k.qkv_workspace = QkvWorkspace;
    k.tail = Tail;
    k.tail_workspace = TailWorkspace;
    k.head = Head;
    k.head_workspace = HeadWorkspace;
    k.embed = Embed;
    k.norm = Norm;
    k.attend = Attend;
    k.attend_all = AttendAll;
    k.attend_all_workspace = AttendAllWorkspace;
    k.tower_layer = TowerLayer;
    k.tower_workspace = TowerWorkspace;
    return k;
  }();
  return &kTable;
}

}  // namespace gemworks::GEMWORKS_NS
