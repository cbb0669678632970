// The source of the table "avx512vnni" once more, with the intrinsics of emulated_avx512/
// immintrin.h: what tests compare where the CPU lacks the instructions.
#define kAvx512VnniKernels kEmulatedAvx512VnniKernels
#include "worker/kernels/cpu/kernels_avx512vnni.cc"
