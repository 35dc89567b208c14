// The kernels as operations of a compiled XLA step (jax.ffi). Only files named ffi_* include XLA's headers.
//
// Shapes are checked here once more, in words, because what a kernel is given it trusts: a wrong size in Python would
// otherwise be a wild read.

#include <string>

#include "dispatch.h"
#include "layout.h"
#include "xla/ffi/api/ffi.h"

namespace gemworks {
namespace {

namespace ffi = xla::ffi;
using F32 = ffi::Buffer<ffi::F32>;
using S32 = ffi::Buffer<ffi::S32>;
using U8 = ffi::Buffer<ffi::U8>;
using F32Result = ffi::ResultBuffer<ffi::F32>;
using S32Result = ffi::ResultBuffer<ffi::S32>;
// (format, rows) of each packed matrix, in the order of the operands; columns follow from what it multiplies.
using Matrices = ffi::Span<const int64_t>;

Matrix MatrixOf(const U8& data, Matrices matrices, size_t i, int64_t cols) {
  return {data.typed_data(), static_cast<Format>(matrices[2 * i]), matrices[2 * i + 1], cols};
}

// An error where a packed buffer is not as long as its matrix, or an address is not one a kernel can load from.
ffi::Error Check(std::initializer_list<const Matrix*> matrices, std::initializer_list<const U8*> buffers) {
  auto buffer = buffers.begin();
  for (const Matrix* m : matrices) {
    const int64_t bytes = static_cast<int64_t>((*buffer)->element_count());
    if (bytes != PackedBytes(*m) || reinterpret_cast<uintptr_t>(m->data) % kLine != 0) {
      return ffi::Error::InvalidArgument("gemworks: a packed [" + std::to_string(m->rows) + ", " +
                                         std::to_string(m->cols) + "] matrix has " + std::to_string(bytes) +
                                         " bytes at an address that is " +
                                         std::to_string(reinterpret_cast<uintptr_t>(m->data) % kLine) +
                                         " past a multiple of 64; wanted " + std::to_string(PackedBytes(*m)) + " at 0.");
    }
    ++buffer;
  }
  return ffi::Error::Success();
}

ffi::Error Linear(F32 x, U8 weight, Matrices matrices, F32Result y) {
  const LinearArguments a{x.dimensions()[0], x.typed_data(), MatrixOf(weight, matrices, 0, x.dimensions()[1]),
                          y->typed_data()};
  if (ffi::Error error = Check({&a.weight}, {&weight}); error.failure()) return error;
  Turn turn;
  turn.kernels().linear(a, turn.pool(), turn.Workspace(turn.kernels().linear_workspace(a)));
  return ffi::Error::Success();
}

ffi::Error RowMajor(F32 x, ffi::Buffer<ffi::BF16> weight, F32Result y) {
  const RowMajorArguments a{x.dimensions()[0], weight.dimensions()[0], weight.dimensions()[1], x.typed_data(),
                            reinterpret_cast<const uint16_t*>(weight.untyped_data()), y->typed_data()};
  if (a.tokens < 1 || a.tokens > 4 || a.cols % 16 != 0 || a.cols != x.dimensions()[1]) {
    return ffi::Error::InvalidArgument("gemworks: a row-major product wants 1 to 4 tokens and a multiple of 16 columns.");
  }
  Turn turn;
  turn.kernels().row_major(a, turn.pool(), turn.Workspace(Aligned(a.tokens * a.cols * 4)));
  return ffi::Error::Success();
}

ffi::Error Norm(F32 x, F32 gain, float eps, F32Result out) {
  const int64_t cols = static_cast<int64_t>(gain.element_count()), count = static_cast<int64_t>(x.element_count());
  if (cols % 16 != 0 || cols == 0 || count % cols != 0) {
    return ffi::Error::InvalidArgument("gemworks: a norm wants rows of a multiple of 16 numbers, as many as its gain has.");
  }
  Turn turn;
  turn.kernels().norm({count / cols, cols, eps, x.typed_data(), gain.typed_data(), out->typed_data()}, turn.pool());
  return ffi::Error::Success();
}

ffi::Error Qkv(F32 x, F32 gain, U8 q_weight, U8 k_weight, U8 v_weight, F32 q_gain, F32 k_gain, F32 cos, F32 sin,
               Matrices matrices, float eps, F32Result q, F32Result k, F32Result v) {
  const int64_t D = x.dimensions()[1];
  QkvArguments a{};
  a.tokens = x.dimensions()[0];
  a.head_dim = static_cast<int64_t>(q_gain.element_count());
  a.eps = eps;
  a.x = x.typed_data();
  a.gain = gain.typed_data();
  a.q_gain = q_gain.typed_data();
  a.k_gain = k_gain.typed_data();
  a.cos = cos.typed_data();
  a.sin = sin.typed_data();
  a.q_weight = MatrixOf(q_weight, matrices, 0, D);
  a.k_weight = MatrixOf(k_weight, matrices, 1, D);
  a.v_weight = MatrixOf(v_weight, matrices, 2, D);
  a.q = q->typed_data();
  a.k = k->typed_data();
  a.v = v->typed_data();
  ffi::Error error = Check({&a.q_weight, &a.k_weight, &a.v_weight}, {&q_weight, &k_weight, &v_weight});
  if (error.failure()) return error;
  Turn turn;
  turn.kernels().qkv(a, turn.pool(), turn.Workspace(turn.kernels().qkv_workspace(a)));
  return ffi::Error::Success();
}

ffi::Error Tail(F32 x, F32 attn, F32 attn_gain, F32 ffw_gain, F32 ffw_post_gain, U8 o, U8 gate, U8 up, U8 down,
                Matrices matrices, float eps, F32Result out) {
  const int64_t D = x.dimensions()[1];
  TailArguments a{};
  a.tokens = x.dimensions()[0];
  a.eps = eps;
  a.x = x.typed_data();
  a.attn = attn.typed_data();
  a.attn_gain = attn_gain.typed_data();
  a.ffw_gain = ffw_gain.typed_data();
  a.ffw_post_gain = ffw_post_gain.typed_data();
  a.o = MatrixOf(o, matrices, 0, attn.dimensions()[1]);
  a.gate = MatrixOf(gate, matrices, 1, D);
  a.up = MatrixOf(up, matrices, 2, D);
  a.down = MatrixOf(down, matrices, 3, a.gate.rows);
  a.out = out->typed_data();
  ffi::Error error = Check({&a.o, &a.gate, &a.up, &a.down}, {&o, &gate, &up, &down});
  if (error.failure()) return error;
  Turn turn;
  turn.kernels().tail(a, turn.pool(), turn.Workspace(turn.kernels().tail_workspace(a)));
  return ffi::Error::Success();
}

ffi::Error Head(F32 x, U8 weight, Matrices matrices, int64_t vocab, bool with_total, F32Result values, S32Result ids,
                F32Result log_total) {
  HeadArguments a{};
  a.tokens = x.dimensions()[0];
  a.vocab = vocab;
  a.top = values->dimensions()[1];
  a.x = x.typed_data();
  a.weight = MatrixOf(weight, matrices, 0, x.dimensions()[1]);
  a.values = values->typed_data();
  a.ids = ids->typed_data();
  a.log_total = log_total->typed_data();
  a.with_total = with_total;
  if (ffi::Error error = Check({&a.weight}, {&weight}); error.failure()) return error;
  if (a.top < 1 || a.top > vocab || vocab > a.weight.rows) {
    return ffi::Error::InvalidArgument("gemworks: the head wants 1 <= top <= vocab <= rows.");
  }
  Turn turn;
  turn.kernels().head(a, turn.pool(), turn.Workspace(turn.kernels().head_workspace(a, turn.pool().size())));
  return ffi::Error::Success();
}

ffi::Error Embed(S32 ids, U8 weight, Matrices matrices, float scale, F32Result out) {
  const EmbedArguments a{static_cast<int64_t>(ids.element_count()), ids.typed_data(),
                         MatrixOf(weight, matrices, 0, out->dimensions()[1]), scale, out->typed_data()};
  if (ffi::Error error = Check({&a.weight}, {&weight}); error.failure()) return error;
  Turn turn;
  turn.kernels().embed(a, turn.pool());
  return ffi::Error::Success();
}

}  // namespace

#if !defined(_WIN32)
#pragma GCC visibility push(default)
#endif

XLA_FFI_DEFINE_HANDLER_SYMBOL(gemworks_linear, Linear,
                              ffi::Ffi::Bind().Arg<F32>().Arg<U8>().Attr<Matrices>("matrices").Ret<F32>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(gemworks_linear_bf16, RowMajor,
                              ffi::Ffi::Bind().Arg<F32>().Arg<ffi::Buffer<ffi::BF16>>().Ret<F32>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(gemworks_rms_norm, Norm,
                              ffi::Ffi::Bind().Arg<F32>().Arg<F32>().Attr<float>("eps").Ret<F32>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(gemworks_qkv, Qkv,
                              ffi::Ffi::Bind()
                                  .Arg<F32>().Arg<F32>()
                                  .Arg<U8>().Arg<U8>().Arg<U8>()
                                  .Arg<F32>().Arg<F32>().Arg<F32>().Arg<F32>()
                                  .Attr<Matrices>("matrices").Attr<float>("eps")
                                  .Ret<F32>().Ret<F32>().Ret<F32>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(gemworks_block_tail, Tail,
                              ffi::Ffi::Bind()
                                  .Arg<F32>().Arg<F32>().Arg<F32>().Arg<F32>().Arg<F32>()
                                  .Arg<U8>().Arg<U8>().Arg<U8>().Arg<U8>()
                                  .Attr<Matrices>("matrices").Attr<float>("eps")
                                  .Ret<F32>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(gemworks_head_top, Head,
                              ffi::Ffi::Bind()
                                  .Arg<F32>().Arg<U8>().Attr<Matrices>("matrices").Attr<int64_t>("vocab").Attr<bool>("with_total")
                                  .Ret<F32>().Ret<ffi::Buffer<ffi::S32>>().Ret<F32>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(gemworks_embed, Embed,
                              ffi::Ffi::Bind()
                                  .Arg<S32>().Arg<U8>().Attr<Matrices>("matrices").Attr<float>("scale")
                                  .Ret<F32>());

#if !defined(_WIN32)
#pragma GCC visibility pop
#endif

}  // namespace gemworks
