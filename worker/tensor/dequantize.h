// Meaning of the stored weight types: values of quantised blocks (ggml's block formats), and
// half-precision conversion.
#ifndef KVIST_WORKER_TENSOR_DEQUANTIZE_H_
#define KVIST_WORKER_TENSOR_DEQUANTIZE_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "common/gguf/tensor_type.h"

namespace kvist::worker {

// IEEE binary16 and bfloat16. FloatToHalf and FloatToBf16 round half to even.
float HalfToFloat(uint16_t half);
uint16_t FloatToHalf(float value);
float Bf16ToFloat(uint16_t value);
uint16_t FloatToBf16(float value);

// The float values of stored blocks. REQUIRES: out.size() is a whole number of blocks and `blocks`
// has their bytes.
void Dequantize(gguf::TensorType type, std::span<const std::byte> blocks, std::span<float> out);

}  // namespace kvist::worker

#endif  // KVIST_WORKER_TENSOR_DEQUANTIZE_H_
