// Multiply-accumulates per second of each table's product by weight type and tokens, beside what
// bounds them: the memory's read bandwidth (one token) and the rate of the 8-bit multiply (many
// tokens).
//   kernel_bench --benchmark_filter='product/avx2/.*'
// Counters: GMAC/s on one thread; weights GB/s. Matrices that do not fit the caches for one token,
// that do for many.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "tests/worker/kernels/attention_case.h"
#include "tests/worker/kernels/product_case.h"
#include "worker/kernels/cpu/int8_peak.h"
#include "worker/kernels/kernel_table.h"

namespace kvist::worker {
namespace {

constexpr int64_t kCols = 1536;

void BenchmarkProduct(benchmark::State& state, const KernelTable* table, gguf::TensorType type) {
  SetFloatEnvironment();
  const int64_t tokens = state.range(0);
  const int64_t rows = tokens <= 4 ? 49152 : 1536;
  std::mt19937 rng(1);
  const int64_t distinct = 256;  // rows made; the panels are repeated to fill the matrix
  const TestMatrix part(type, distinct, kCols, RandomBlocks(type, distinct, kCols, rng));
  AlignedArray<std::byte> packed(PackedBytes(type, rows, kCols).value());
  const int64_t part_bytes = part.packed.size();
  for (int64_t at = 0; at < packed.size(); at += part_bytes) {
    std::memcpy(packed.data() + at, part.packed.data(),
                static_cast<size_t>(std::min(part_bytes, packed.size() - at)));
  }
  PackedMatrix w = part.view;
  w.rows = rows;
  w.data = packed.data();
  TestInput x(tokens, kCols);
  x.FillNormal(rng);
  x.Quantize(*table);
  std::vector<float> y(static_cast<size_t>(tokens * rows));
  for (auto _ : state) {
    table->product(w, 0, w.panels(), x.Input(0, tokens), y.data(), rows);
    benchmark::DoNotOptimize(y.data());
  }
  const auto steps = static_cast<double>(state.iterations());
  state.counters["GMAC/s"] = benchmark::Counter(
      steps * 1e-9 * static_cast<double>(tokens * rows * kCols), benchmark::Counter::kIsRate);
  state.counters["GB/s"] = benchmark::Counter(steps * 1e-9 * static_cast<double>(packed.size()),
                                              benchmark::Counter::kIsRate);
}

// Queries of one kv head with three query heads of 64 at the end of a sequence of `length`.
void BenchmarkAttention(benchmark::State& state, const KernelTable* table, KvFormat format) {
  SetFloatEnvironment();
  const int64_t queries = state.range(0);
  const AttentionShape shape = {format, 64, 3, state.range(1), 16, 0};
  std::mt19937 rng(2);
  PagedSequence sequence(*table, shape, rng);
  const std::vector<float> q = RandomFloats(shape.length * shape.heads * shape.head_dim, rng);
  for (auto _ : state) {
    benchmark::DoNotOptimize(
        RunAttention(*table, shape, sequence, q, shape.length - queries, queries, queries));
  }
  const auto visible = static_cast<double>(queries * shape.length - queries * (queries - 1) / 2);
  const double macs = visible * static_cast<double>(shape.heads * shape.head_dim * 2);
  state.counters["GMAC/s"] = benchmark::Counter(
      static_cast<double>(state.iterations()) * 1e-9 * macs, benchmark::Counter::kIsRate);
}

void BenchmarkQuantize(benchmark::State& state, const KernelTable* table) {
  SetFloatEnvironment();
  std::mt19937 rng(3);
  TestInput x(16, kCols);
  x.FillNormal(rng);
  for (auto _ : state) {
    x.Quantize(*table);
    benchmark::DoNotOptimize(x.quantized().q);
  }
  state.SetItemsProcessed(state.iterations() * 16 * kCols);
}

void BenchmarkGate(benchmark::State& state, const KernelTable* table) {
  SetFloatEnvironment();
  std::mt19937 rng(4);
  const std::vector<float> gate = RandomFloats(kCols, rng), up = RandomFloats(kCols, rng);
  std::vector<float> out(gate.size());
  for (auto _ : state) {
    table->silu_multiply(gate.data(), up.data(), out.data(), kCols);
    benchmark::DoNotOptimize(out.data());
  }
  state.SetItemsProcessed(state.iterations() * kCols);
}

// Weights per second of packing at load.
void BenchmarkPack(benchmark::State& state, gguf::TensorType type) {
  constexpr int64_t kRows = 256;
  std::mt19937 rng(5);
  const std::vector<std::byte> source = RandomBlocks(type, kRows, kCols, rng);
  AlignedArray<std::byte> packed(PackedBytes(type, kRows, kCols).value());
  for (auto _ : state) {
    PackPanels(type, kRows, kCols, source, 0, kRows / kPanelRows, packed.span());
    benchmark::DoNotOptimize(packed.data());
  }
  state.SetItemsProcessed(state.iterations() * kRows * kCols);
}

void BenchmarkReadBandwidth(benchmark::State& state) {
  AlignedArray<uint64_t> memory(int64_t{256} << 17);
  for (auto _ : state) {
    uint64_t sum = 0;
    for (int64_t i = 0; i < memory.size(); ++i) sum += memory[i];
    benchmark::DoNotOptimize(sum);
  }
  state.SetBytesProcessed(state.iterations() * memory.size() * 8);
}

void BenchmarkInt8Peak(benchmark::State& state, const KernelTable* table) {
  int64_t macs = 0;
  for (auto _ : state) macs += RunInt8MultiplyAdds(table->name, 4096);
  state.counters["GMAC/s"] =
      benchmark::Counter(static_cast<double>(macs) * 1e-9, benchmark::Counter::kIsRate);
}

void RegisterAll() {
  benchmark::RegisterBenchmark("bound/read_bandwidth", BenchmarkReadBandwidth);
  for (gguf::TensorType type : kAllTypes) {
    const std::string title = "pack/" + std::string(gguf::TensorTypeName(type));
    benchmark::RegisterBenchmark(title.c_str(), BenchmarkPack, type);
  }
  for (const KernelTable* table : AvailableKernels()) {
    const std::string name(table->name);
    benchmark::RegisterBenchmark(("bound/int8/" + name).c_str(), BenchmarkInt8Peak, table);
    for (gguf::TensorType type : kAllTypes) {
      const std::string title = "product/" + name + "/" + std::string(gguf::TensorTypeName(type));
      auto* bench = benchmark::RegisterBenchmark(title.c_str(), BenchmarkProduct, table, type);
      for (int64_t tokens : {1, 4, 16, 64, 256}) bench->Arg(tokens);
    }
    for (KvFormat format :
         {KvFormat::kF16, KvFormat::kF32, KvFormat::kBF16, KvFormat::kQ8, KvFormat::kQ4}) {
      const char* const formats[] = {"f16", "f32", "bf16", "q8", "q4"};
      const std::string title = "attention/" + name + "/" + formats[static_cast<int>(format)];
      auto* bench = benchmark::RegisterBenchmark(title.c_str(), BenchmarkAttention, table, format);
      for (int64_t queries : {1, 8, 64}) bench->Args({queries, 512});
      bench->Args({1, 1 << 18});  // more than the caches hold
    }
    benchmark::RegisterBenchmark(("quantize/" + name).c_str(), BenchmarkQuantize, table);
    benchmark::RegisterBenchmark(("silu_multiply/" + name).c_str(), BenchmarkGate, table);
  }
}

}  // namespace
}  // namespace kvist::worker

int main(int argc, char** argv) {
  kvist::worker::RegisterAll();
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
