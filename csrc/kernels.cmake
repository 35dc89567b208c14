# How the kernels are compiled: one file per instruction set, and only that file may use it. Included by the build and
# by tests/CMakeLists.txt.
#
#     GEMWORKS_ISAS            the sets of this processor family, as the files kernels_<isa>.cc spell them
#     GEMWORKS_<isa>_OPTIONS   what lets the compiler use one
#     GEMWORKS_KERNEL_OPTIONS  of every kernel file

# No contraction: a * b + c rounds twice wherever it is not written as MulAdd, so that every set gives the same bits.
# GCC 12 warns of its own intrinsics' undefined lanes (gcc.gnu.org/PR105593).
set(GEMWORKS_KERNEL_OPTIONS -ffp-contract=off -Wno-maybe-uninitialized -Wno-uninitialized)

string(TOLOWER "${CMAKE_SYSTEM_PROCESSOR}" GEMWORKS_PROCESSOR)
set(GEMWORKS_ISAS "")
if(MSVC)
elseif(GEMWORKS_PROCESSOR MATCHES "x86_64|amd64")
  set(GEMWORKS_ISAS avx512_bf16 avx512 avx2)
  set(GEMWORKS_avx2_OPTIONS -mavx2 -mfma -mf16c)
  set(GEMWORKS_avx512_OPTIONS ${GEMWORKS_avx2_OPTIONS} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni)
  set(GEMWORKS_avx512_bf16_OPTIONS ${GEMWORKS_avx512_OPTIONS} -mavx512bf16)
elseif(GEMWORKS_PROCESSOR MATCHES "aarch64|arm64")
  set(GEMWORKS_ISAS neon)
  set(GEMWORKS_neon_OPTIONS -march=armv8.2-a+dotprod)
endif()
