// Random weights, activations and buffers for tests of products.
#ifndef KVIST_TESTS_WORKER_KERNELS_PRODUCT_CASE_H_
#define KVIST_TESTS_WORKER_KERNELS_PRODUCT_CASE_H_

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "common/base/int_math.h"
#include "worker/kernels/kernel_table.h"
#include "worker/kernels/packed_matrix.h"
#include "worker/tensor/dequantize.h"

namespace kvist::worker {

inline constexpr gguf::TensorType kAllTypes[] = {
    gguf::TensorType::kF32,  gguf::TensorType::kF16,  gguf::TensorType::kBF16,
    gguf::TensorType::kQ4_0, gguf::TensorType::kQ4_1, gguf::TensorType::kQ5_0,
    gguf::TensorType::kQ5_1, gguf::TensorType::kQ8_0, gguf::TensorType::kQ4_K,
    gguf::TensorType::kQ5_K, gguf::TensorType::kQ6_K};

// 64-byte aligned memory of exactly n elements, so that AddressSanitizer sees any access beyond
// them.
template <typename T>
class AlignedArray {
 public:
  explicit AlignedArray(int64_t n)
      : size_(n),
        data_(static_cast<T*>(
            std::aligned_alloc(64, RoundUp<int64_t>(n * int64_t{sizeof(T)} + 1, 64)))) {
    std::memset(static_cast<void*>(data_.get()), 0, static_cast<size_t>(n) * sizeof(T));
  }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) { return data_.get()[i]; }
  const T& operator[](int64_t i) const { return data_.get()[i]; }
  std::span<T> span() { return {data_.get(), static_cast<size_t>(size_)}; }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  int64_t size_;
  std::unique_ptr<T, Free> data_;
};

// Random stored blocks whose scales are moderate normal numbers (random bits elsewhere).
inline std::vector<std::byte> RandomBlocks(gguf::TensorType type, int64_t rows, int64_t cols,
                                           std::mt19937& rng) {
  using gguf::TensorType;
  const gguf::BlockShape shape = gguf::BlockShapeOf(type);
  const int64_t blocks = rows * cols / shape.elements;
  std::vector<std::byte> out(static_cast<size_t>(blocks * shape.bytes));
  std::normal_distribution<float> normal(0.0f, 1.0f);
  const auto put_half = [&](std::byte* p) {
    const uint16_t half = FloatToHalf(normal(rng) * 0.05f);
    std::memcpy(p, &half, 2);
  };
  for (int64_t b = 0; b < blocks; ++b) {
    std::byte* block = out.data() + b * shape.bytes;
    if (type == TensorType::kF32) {
      const float value = normal(rng);
      std::memcpy(block, &value, 4);
      continue;
    }
    if (type == TensorType::kF16 || type == TensorType::kBF16) {
      const float value = normal(rng);
      const uint16_t bits = type == TensorType::kF16 ? FloatToHalf(value) : FloatToBf16(value);
      std::memcpy(block, &bits, 2);
      continue;
    }
    for (int64_t i = 0; i < shape.bytes; ++i) block[i] = static_cast<std::byte>(rng());
    if (type == TensorType::kQ6_K) {
      put_half(block + 208);
    } else {
      put_half(block);
      const bool second = type == TensorType::kQ4_1 || type == TensorType::kQ5_1 ||
                          type == TensorType::kQ4_K || type == TensorType::kQ5_K;
      if (second) put_half(block + 2);
    }
  }
  return out;
}

struct TestMatrix {
  TestMatrix(gguf::TensorType type, int64_t rows, int64_t cols, std::vector<std::byte> stored)
      : source(std::move(stored)), packed(PackedBytes(type, rows, cols).value()) {
    PackPanels(type, rows, cols, source, 0, CeilDiv(rows, kPanelRows), packed.span());
    view = {type, rows, cols, packed.data(), PackedPanelBytes(type, cols).value()};
    values.resize(static_cast<size_t>(rows * cols));
    Dequantize(type, source, values);
  }
  std::vector<std::byte> source;
  AlignedArray<std::byte> packed;
  PackedMatrix view;
  std::vector<float> values;  // [rows, cols]
};

// Activations [rows, cols] with room for their quantised form.
class TestInput {
 public:
  TestInput(int64_t rows, int64_t cols)
      : rows_(rows),
        cols_(cols),
        q_stride_(RoundUp<int64_t>(cols, 64)),
        block_stride_(CeilDiv<int64_t>(cols, kQuantBlock)),
        x_(rows * cols),
        q_(rows * q_stride_),
        scale_(rows * block_stride_),
        scaled_sum_(rows * block_stride_),
        pair_sums_(4 * rows * block_stride_) {}

  void FillNormal(std::mt19937& rng) {
    std::normal_distribution<float> normal(0.0f, 1.0f);
    for (float& v : x_.span()) v = normal(rng);
  }
  float& at(int64_t row, int64_t col) { return x_[row * cols_ + col]; }

  QuantizedRows quantized() {
    return {q_.data(),         scale_.data(), scaled_sum_.data(),
            pair_sums_.data(), q_stride_,     block_stride_};
  }
  void Quantize(const KernelTable& table) {
    if (cols_ % kQuantBlock == 0) table.quantize_rows(x_.data(), cols_, rows_, cols_, quantized());
  }
  // Rows [first, first + count).
  ProductInput Input(int64_t first, int64_t count) {
    QuantizedRows q = quantized();
    q.q += first * q_stride_;
    q.scale += first * block_stride_;
    q.scaled_sum += first * block_stride_;
    q.pair_sums += 4 * first * block_stride_;
    return {count, x_.data() + first * cols_, cols_, q};
  }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }

 private:
  int64_t rows_, cols_, q_stride_, block_stride_;
  AlignedArray<float> x_;
  AlignedArray<int8_t> q_;
  AlignedArray<float> scale_, scaled_sum_;
  AlignedArray<int16_t> pair_sums_;
};

inline std::vector<float> RunProduct(const KernelTable& table, const TestMatrix& w,
                                     const ProductInput& x) {
  std::vector<float> y(static_cast<size_t>(x.rows * w.view.rows), -1.0f);
  table.product(w.view, 0, w.view.panels(), x, y.data(), w.view.rows);
  return y;
}

inline bool SameBits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

}  // namespace kvist::worker

#endif  // KVIST_TESTS_WORKER_KERNELS_PRODUCT_CASE_H_
