#include "worker/backend/row_buffers.h"

#include "common/base/check.h"
#include "common/base/int_math.h"
#include "common/base/status.h"

namespace kvist::worker {

absl::Status QuantizedBuffer::Allocate(int64_t rows, int64_t cols) {
  KVIST_CHECK(cols % kQuantBlock == 0);
  q_stride_ = RoundUp<int64_t>(cols, 64);
  block_stride_ = q_stride_ / kQuantBlock;
  KVIST_ASSIGN_OR_RETURN(q_, Buffer<int8_t>::Create(rows * q_stride_, "activations"));
  KVIST_ASSIGN_OR_RETURN(scale_, Buffer<float>::Create(rows * block_stride_, "activations"));
  KVIST_ASSIGN_OR_RETURN(scaled_sum_, Buffer<float>::Create(rows * block_stride_, "activations"));
  KVIST_ASSIGN_OR_RETURN(pair_sums_,
                         Buffer<int16_t>::Create(4 * rows * block_stride_, "activations"));
  return absl::OkStatus();
}

QuantizedRows QuantizedBuffer::At(int64_t row, int64_t col) const {
  KVIST_DCHECK(col % 64 == 0);
  const int64_t block = row * block_stride_ + col / kQuantBlock;
  return {.q = q_.data() + row * q_stride_ + col,
          .scale = scale_.data() + block,
          .scaled_sum = scaled_sum_.data() + block,
          .pair_sums = pair_sums_.data() + 4 * block,
          .q_stride = q_stride_,
          .block_stride = block_stride_};
}

int64_t QuantizedBuffer::taken_bytes() const {
  return q_.taken_bytes() + scale_.taken_bytes() + scaled_sum_.taken_bytes() +
         pair_sums_.taken_bytes();
}

}  // namespace kvist::worker
