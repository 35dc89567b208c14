// XLA's way into the kernels of the vision tower: gemworks_attend_all and gemworks_tower_layer (gemworks/ops/cpu/tower.py).
//
// What the kernels take for granted is checked here: shapes against each other, packed sizes, addresses.
#include <string>

#include "dispatch.h"
#include "layout.h"
#include "tower.h"
#include "xla/ffi/api/ffi.h"

namespace gemworks {
namespace {

namespace ffi = xla::ffi;
using F32 = ffi::Buffer<ffi::F32>;
using U8 = ffi::Buffer<ffi::U8>;
using F32Result = ffi::ResultBuffer<ffi::F32>;

ffi::Error Refuse(const std::string& why) { return ffi::Error::InvalidArgument("gemworks tower: " + why); }

int64_t Count(const F32& x) { return static_cast<int64_t>(x.element_count()); }

ffi::Error AttendAll(F32 q, F32 k, F32 v, float scale, bool exact, F32Result out) {
  const auto shape = q.dimensions();
  if (shape.size() != 3 || Count(k) != Count(q) || Count(v) != Count(q) || out->element_count() != q.element_count() ||
      Count(q) == 0)
    return Refuse("attention wants q, k and v of one shape [N, P, H]");
  const AttendAllArguments a{shape[0], shape[1], shape[2], scale, exact, q.typed_data(), k.typed_data(), v.typed_data(),
                             out->typed_data()};
  Turn turn;
  turn.kernels().attend_all(a, turn.pool(), turn.Workspace(turn.kernels().attend_all_workspace(a)));
  return ffi::Error::Success();
}

// The products of a layer in the order of the operands: q, k, v, o, up, down.
constexpr int kProducts = 6;

ffi::Error TowerLayer(F32 x, F32 attn_weight, F32 attn_bias, F32 ffw_weight, F32 ffw_bias, U8 q, U8 k, U8 v, U8 o, U8 up,
                      U8 down, F32 q_bias, F32 k_bias, F32 v_bias, F32 o_bias, F32 up_bias, F32 down_bias, int64_t heads,
                      float eps, F32Result out, F32Result room) {
  if (x.dimensions().size() != 2) return Refuse("a layer wants x as [P, D]");
  const int64_t P = x.dimensions()[0], D = x.dimensions()[1], F = Count(up_bias);
  const U8 packed[] = {q, k, v, o, up, down};
  const F32 biases[] = {q_bias, k_bias, v_bias, o_bias, up_bias, down_bias};
  if (P == 0 || heads < 1 || D % 32 != 0 || F % 32 != 0 || D % heads != 0 || D / heads % 4 != 0 ||
      static_cast<int64_t>(room->element_count()) != 3 * P * D || out->element_count() != x.element_count())
    return Refuse("a layer's sizes are not ones the kernel takes");
  for (const F32& each : {attn_weight, attn_bias, ffw_weight, ffw_bias}) {
    if (Count(each) != D) return Refuse("a norm is not as wide as the model");
  }
  Matrix matrices[kProducts];
  for (int i = 0; i < kProducts; ++i) {
    const bool is_up = i == 4, is_down = i == 5;
    matrices[i] = {packed[i].typed_data(), Format::kInt8, is_up ? F : D, is_down ? F : D};
    if (static_cast<int64_t>(packed[i].element_count()) != PackedBytes(matrices[i]) || Count(biases[i]) != matrices[i].rows ||
        reinterpret_cast<uintptr_t>(matrices[i].data) % kLine != 0)
      return Refuse("product " + std::to_string(i) + " has another size, or is not 64-byte aligned");
  }
  const auto biased = [&](int i) { return Biased{&matrices[i], biases[i].typed_data()}; };
  const TowerArguments a{P, D, F, heads, eps, x.typed_data(),
                         {attn_weight.typed_data(), attn_bias.typed_data()}, {ffw_weight.typed_data(), ffw_bias.typed_data()},
                         biased(0), biased(1), biased(2), biased(3), biased(4), biased(5),
                         room->typed_data(), out->typed_data()};
  Turn turn;
  turn.kernels().tower_layer(a, turn.pool(), turn.Workspace(turn.kernels().tower_workspace(a)));
  return ffi::Error::Success();
}

}  // namespace

#if !defined(_WIN32)
#pragma GCC visibility push(default)
#endif

XLA_FFI_DEFINE_HANDLER_SYMBOL(gemworks_attend_all, AttendAll,
                              ffi::Ffi::Bind()
                                  .Arg<F32>().Arg<F32>().Arg<F32>()
                                  .Attr<float>("scale").Attr<bool>("exact")
                                  .Ret<F32>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(gemworks_tower_layer, TowerLayer,
                              ffi::Ffi::Bind()
                                  .Arg<F32>().Arg<F32>().Arg<F32>().Arg<F32>().Arg<F32>()
                                  .Arg<U8>().Arg<U8>().Arg<U8>().Arg<U8>().Arg<U8>().Arg<U8>()
                                  .Arg<F32>().Arg<F32>().Arg<F32>().Arg<F32>().Arg<F32>().Arg<F32>()
                                  .Attr<int64_t>("heads").Attr<float>("eps")
                                  .Ret<F32>().Ret<F32>());

#if !defined(_WIN32)
#pragma GCC visibility pop
#endif

}  // namespace gemworks
