// XLA's way into the attention kernels: gemworks_attend_ring and gemworks_attend_pages (gemworks/ops/cpu/attention.py).
//
//     arguments  q [T, N, H], k, v [T, K, H] fp32; start, count [R], ring [R] or table [R, M] int32; k and v pool; for
//                int8 their scales
//     results    out [T, N, H]; the pools, which must be the arguments' own memory (input_output_aliases)
//     attributes scale, window
//
// What the kernels take for granted is checked here: shapes against each other, and ring, page and position numbers
// against the pool, because a wrong one would write into somebody else's memory.
#include <string>

#include "attention.h"
#include "dispatch.h"
#include "xla/ffi/api/ffi.h"

namespace gemworks {
namespace {

namespace ffi = xla::ffi;

using F32 = ffi::Buffer<ffi::F32>;
using S32 = ffi::Buffer<ffi::S32>;

ffi::Error Refuse(const std::string& why) { return ffi::Error::InvalidArgument("gemworks attention: " + why); }

// The pool's element type, or false for one no kernel reads. bf16 arrives as its bits.
bool TypeOf(ffi::DataType dtype, KvType* type) {
  if (dtype == ffi::DataType::F32) return *type = KvType::kFloat32, true;
  if (dtype == ffi::DataType::U16 || dtype == ffi::DataType::BF16) return *type = KvType::kBf16, true;
  if (dtype == ffi::DataType::S8) return *type = KvType::kInt8, true;
  return false;
}

// Fills call.kv from the pools. Empty: all is well.
std::string ReadPools(ffi::RemainingArgs pools, ffi::RemainingRets results, AttentionArguments* call, int64_t* num_pools) {
  void* data[4] = {};
  if (pools.size() != results.size() || pools.size() > 4 || pools.size() < 2) return "takes two or four pools";
  for (size_t i = 0; i < pools.size(); ++i) {
    const auto in = pools.get<ffi::AnyBuffer>(i);
    auto out = results.get<ffi::AnyBuffer>(i);
    if (!in.has_value() || !out.has_value()) return "a pool is not an array";
    data[i] = in->untyped_data();
    if (data[i] != (*out)->untyped_data()) return "the pools must be updated in place";
    const auto shape = in->dimensions();
    if (i >= 2) continue;
    if (shape.size() != 4 || shape[2] != call->kv_heads || shape[3] != call->head_dim) return "a pool has another shape";
    if (!TypeOf(in->element_type(), &call->kv.type)) return "a pool has a type that no kernel reads";
    call->kv.slots = shape[1], *num_pools = shape[0];
  }
  if ((call->kv.type == KvType::kInt8) != (pools.size() == 4)) return "int8 pools, and no others, come with scales";
  call->kv.k = data[0], call->kv.v = data[1];
  call->kv.k_scale = static_cast<float*>(data[2]), call->kv.v_scale = static_cast<float*>(data[3]);
  return "";
}

// Checks every number that becomes an address. Empty: all is well.
std::string CheckPlan(const AttentionArguments& call, int64_t num_pools) {
  for (int64_t r = 0; r < call.rows; ++r) {
    const int64_t start = call.start[r], count = call.count[r], end = start + count;
    if (count <= 0) continue;
    if (start < 0 || count > call.columns) return "row " + std::to_string(r) + " has a start or count out of range";
    const int64_t pages = call.kv.is_ring ? 1 : (end + call.kv.slots - 1) / call.kv.slots;
    if (pages > call.kv.table_width) return "row " + std::to_string(r) + " is longer than its page table";
    for (int64_t m = 0; m < pages; ++m) {
      const int64_t at = call.kv.where[r * call.kv.table_width + m];
      if (at < 0 || at >= num_pools) return "row " + std::to_string(r) + " names a ring or page that does not exist";
    }
  }
  return "";
}

ffi::Error Attend(bool is_ring, F32 q, F32 k, F32 v, S32 start, S32 count, S32 where, ffi::RemainingArgs pools,
                  ffi::Result<F32> out, ffi::RemainingRets results, float scale, int64_t window) {
  const auto q_shape = q.dimensions(), k_shape = k.dimensions(), v_shape = v.dimensions();
  if (q_shape.size() != 3 || k_shape.size() != 3 || v_shape.size() != 3) return Refuse("q, k and v have three axes");
  AttentionArguments call{};
  call.rows = static_cast<int64_t>(start.element_count());
  const int64_t tokens = q_shape[0];
  if (call.rows == 0 || tokens == 0) return ffi::Error::Success();
  call.columns = tokens / call.rows;
  call.heads = q_shape[1], call.kv_heads = k_shape[1], call.head_dim = q_shape[2];
  const int64_t N = call.heads, K = call.kv_heads, H = call.head_dim;
  if (tokens % call.rows != 0 || k_shape[0] != tokens || v_shape[0] != tokens || v_shape[1] != K || k_shape[2] != H ||
      v_shape[2] != H || H % 16 != 0 || K == 0 || N % K != 0 || out->element_count() != q.element_count() ||
      static_cast<int64_t>(count.element_count()) != call.rows || where.dimensions().size() != (is_ring ? 1u : 2u) ||
      where.dimensions()[0] != call.rows)
    return Refuse("shapes do not fit one another");
  call.scale = scale, call.window = window;
  call.q = q.typed_data(), call.k = k.typed_data(), call.v = v.typed_data(), call.out = out->typed_data();
  call.q_stride = call.out_stride = N * H, call.k_stride = call.v_stride = K * H;
  call.start = start.typed_data(), call.count = count.typed_data();
  call.kv.is_ring = is_ring, call.kv.where = where.typed_data();
  call.kv.table_width = is_ring ? 1 : where.dimensions()[1];
  int64_t num_pools = 0;
  std::string wrong = ReadPools(pools, results, &call, &num_pools);
  if (wrong.empty()) wrong = CheckPlan(call, num_pools);
  if (!wrong.empty()) return Refuse(wrong);
  Turn turn;
  turn.kernels().attend(call, turn.pool());
  return ffi::Error::Success();
}

ffi::Error AttendRing(F32 q, F32 k, F32 v, S32 start, S32 count, S32 where, ffi::RemainingArgs pools,
                      ffi::Result<F32> out, ffi::RemainingRets results, float scale, int64_t window) {
  if (window < 1) return Refuse("a ring's window is at least 1");
  return Attend(true, q, k, v, start, count, where, pools, out, results, scale, window);
}

ffi::Error AttendPages(F32 q, F32 k, F32 v, S32 start, S32 count, S32 where, ffi::RemainingArgs pools,
                       ffi::Result<F32> out, ffi::RemainingRets results, float scale) {
  return Attend(false, q, k, v, start, count, where, pools, out, results, scale, 0);
}

}  // namespace

#if !defined(_WIN32)
#pragma GCC visibility push(default)
#endif

XLA_FFI_DEFINE_HANDLER_SYMBOL(gemworks_attend_ring, AttendRing,
                              ffi::Ffi::Bind()
                                  .Arg<F32>().Arg<F32>().Arg<F32>()
                                  .Arg<S32>().Arg<S32>().Arg<S32>()
                                  .RemainingArgs()
                                  .Ret<F32>()
                                  .RemainingRets()
                                  .Attr<float>("scale").Attr<int64_t>("window"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(gemworks_attend_pages, AttendPages,
                              ffi::Ffi::Bind()
                                  .Arg<F32>().Arg<F32>().Arg<F32>()
                                  .Arg<S32>().Arg<S32>().Arg<S32>()
                                  .RemainingArgs()
                                  .Ret<F32>()
                                  .RemainingRets()
                                  .Attr<float>("scale"));

#if !defined(_WIN32)
#pragma GCC visibility pop
#endif

}  // namespace gemworks
