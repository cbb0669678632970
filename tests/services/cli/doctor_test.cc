#include "services/cli/doctor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/support/model_files.h"
#include "tests/support/tiny_model.h"

namespace kvist::services {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int64_t kGigabyte = int64_t{1} << 30;

absl::StatusOr<ModelFit> Fit(const std::string& model, const worker::CpuBackendOptions& options,
                             int64_t available_bytes = kGigabyte) {
  const auto file = gguf::File::Open(testing::GoldenPath("tiny/" + model + ".gguf"));
  if (!file.ok()) return file.status();
  return FitModel(**file, options, available_bytes);
}

const FormatFit& FormatOf(const ModelFit& fit, const std::string& name) {
  for (const FormatFit& format : fit.formats) {
    if (format.format == name) return format;
  }
  ADD_FAILURE() << "no format " << name;
  return fit.formats.front();
}

TEST(FitModelTest, SaysOfTheModelWhatTheLoadedBackendSays) {
  for (const char* model : {"llama_a.Q4_1", "gemma3_a.Q8_0", "qwen2_tied.Q8_0"}) {
    worker::CpuBackendOptions options = testing::TinyOptions();
    options.kv_formats = {worker::KvFormat::kF16, worker::KvFormat::kF32};
    const auto backend = testing::OpenTinyModel(model, options);
    const auto fit = Fit(model, options);
    ASSERT_TRUE(fit.ok()) << fit.status();
    EXPECT_EQ(fit->name, backend->model().name);
    EXPECT_EQ(fit->parameters, backend->model().parameters);
    EXPECT_EQ(fit->context_tokens, backend->model().context_tokens);
    EXPECT_EQ(fit->step_bytes, backend->model().weight_bytes);
    EXPECT_GE(fit->weight_bytes, fit->step_bytes);
    for (const worker::KvFormat format : options.kv_formats) {
      int64_t per_token = 0;
      for (const worker::PoolSpec& pool : backend->pools()) {
        if (pool.format == format) per_token += pool.block_bytes / pool.block_tokens;
      }
      EXPECT_EQ(FormatOf(*fit, std::string(worker::KvFormatName(format))).bytes_per_token,
                per_token)
          << model;
    }
  }
}

TEST(FitModelTest, WhatFitsFillsTheKvMemory) {
  worker::CpuBackendOptions options;
  options.kv_bytes = 4 << 20;
  const auto fit = Fit("llama_a.Q4_1", options);
  ASSERT_TRUE(fit.ok()) << fit.status();
  EXPECT_EQ(fit->kv_memory_bytes, options.kv_bytes);
  const FormatFit& f16 = FormatOf(*fit, "f16");
  EXPECT_EQ(f16.bytes_beyond_window, f16.bytes_per_token);
  EXPECT_LE(f16.tokens * f16.bytes_per_token, options.kv_bytes);
  EXPECT_GT((f16.tokens + 16) * f16.bytes_per_token, options.kv_bytes);
  EXPECT_EQ(f16.sessions, f16.tokens / kDoctorSessionTokens);
  EXPECT_EQ(FormatOf(*fit, "f32").bytes_per_token, 2 * f16.bytes_per_token);
}

TEST(FitModelTest, ATokenBeyondTheWindowTakesLess) {
  const auto fit = Fit("gemma3_a.Q4_0", {});
  ASSERT_TRUE(fit.ok()) << fit.status();
  const FormatFit& f16 = FormatOf(*fit, "f16");
  EXPECT_GT(f16.bytes_beyond_window, 0);
  EXPECT_LT(f16.bytes_beyond_window, f16.bytes_per_token);
  EXPECT_GT(f16.sessions, 0);
}

TEST(FitModelTest, TheKvMemoryIsAQuarterOfWhatTheWeightsLeave) {
  const int64_t available = 64 << 20;
  const auto fit = Fit("llama_a.Q4_1", {}, available);
  ASSERT_TRUE(fit.ok()) << fit.status();
  EXPECT_EQ(fit->kv_memory_bytes, (available - fit->weight_bytes) / 4);
}

// Nobody chose the memory, and there is more than a server would take by itself: 65,536 blocks in
// each pool, so many bytes fewer in a smaller format.
TEST(FitModelTest, WithoutAMemoryAskedForEachFormatHasWhatAServerOfItAloneWouldTake) {
  worker::CpuBackendOptions options;
  options.context_tokens = 64;
  const auto fit = Fit("llama_a.Q4_1", options, 64 * kGigabyte);
  ASSERT_TRUE(fit.ok()) << fit.status();
  for (const FormatFit& format : fit->formats) {
    EXPECT_EQ(format.tokens, 65536 * 16) << format.format;
    EXPECT_EQ(format.kv_memory_bytes, 65536 * 16 * format.bytes_per_token) << format.format;
  }
  EXPECT_EQ(fit->kv_memory_bytes, 65536 * 16 * FormatOf(*fit, "f16").bytes_per_token);
}

TEST(FitModelTest, AContextBeyondTheModelsIsInvalid) {
  worker::CpuBackendOptions options;
  options.context_tokens = 257;
  EXPECT_EQ(Fit("llama_a.Q4_1", options).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(FitModelTest, FormatsThatNoServerStartsWithAreInvalid) {
  worker::CpuBackendOptions options;
  options.kv_formats = {worker::KvFormat::kQ4};
  const absl::Status heads = Fit("llama_a.Q4_1", options).status();
  EXPECT_EQ(heads.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(heads.message()), HasSubstr("q4 needs heads of a multiple of 32"));
  options.kv_formats = {worker::KvFormat::kF16, worker::KvFormat::kF16};
  EXPECT_EQ(Fit("llama_a.Q4_1", options).status().code(), absl::StatusCode::kInvalidArgument);
}

Diagnosis Healthy() {
  Diagnosis diagnosis;
  diagnosis.machine = {.cpu = "x",
                       .online_cores = 4,
                       .usable_cores = 4,
                       .memory_bytes = kGigabyte,
                       .huge_pages = "madvise"};
  diagnosis.available_bytes = kGigabyte;
  diagnosis.threads = 4;
  diagnosis.kernels = "avx2";
  diagnosis.known_kernels = {"scalar", "avx2"};
  diagnosis.limits.memory_bandwidth_bytes_per_second = 10e9;
  return diagnosis;
}

TEST(WarningsTest, AHealthyMachineHasNone) { EXPECT_THAT(WarningsOf(Healthy()), IsEmpty()); }

TEST(WarningsTest, EachSaysWhatToDo) {
  Diagnosis diagnosis = Healthy();
  diagnosis.machine.huge_pages = "never";
  EXPECT_THAT(WarningsOf(diagnosis), ElementsAre(HasSubstr("echo madvise")));

  diagnosis = Healthy();
  diagnosis.machine.usable_cores = diagnosis.machine.online_cores = diagnosis.threads = 1;
  EXPECT_THAT(WarningsOf(diagnosis), ElementsAre(HasSubstr("one core")));

  diagnosis = Healthy();
  diagnosis.machine.usable_cores = 2;
  EXPECT_THAT(WarningsOf(diagnosis),
              ElementsAre(HasSubstr("2 of 4 cores"), HasSubstr("--threads 2")));

  diagnosis = Healthy();
  diagnosis.machine.quota_cores = 1.5;
  EXPECT_THAT(WarningsOf(diagnosis), ElementsAre(HasSubstr("--threads 1")));

  diagnosis = Healthy();
  diagnosis.machine.load_cores = 2;
  EXPECT_THAT(WarningsOf(diagnosis), ElementsAre(HasSubstr("2.0 cores were busy")));

  diagnosis = Healthy();
  diagnosis.kernels = "scalar";
  EXPECT_THAT(WarningsOf(diagnosis), ElementsAre(HasSubstr("--kernels auto")));
  diagnosis.known_kernels = {"scalar"};
  EXPECT_THAT(WarningsOf(diagnosis), ElementsAre(HasSubstr("no AVX2")));
}

TEST(WarningsTest, MemoryThatIsNotEnoughIsNamed) {
  worker::CpuBackendOptions options;
  options.kv_bytes = 16;
  Diagnosis diagnosis = Healthy();
  const auto fit = Fit("llama_a.Q4_1", options);
  ASSERT_TRUE(fit.ok()) << fit.status();
  diagnosis.model = *fit;
  EXPECT_EQ(FormatOf(*fit, "f16").tokens, 0);
  EXPECT_EQ(WarningsOf(diagnosis).size(), fit->formats.size());
  EXPECT_THAT(WarningsOf(diagnosis)[0], HasSubstr("raise --kv-memory"));

  options.kv_bytes = 2 * kGigabyte;
  diagnosis.model = *Fit("llama_a.Q4_1", options);
  EXPECT_THAT(WarningsOf(diagnosis), ElementsAre(HasSubstr("exceed the 1.0 GiB")));
}

TEST(DiagnosisTest, DecodeIsLimitedByReadingTheWeightsOncePerStep) {
  Diagnosis diagnosis = Healthy();
  EXPECT_EQ(diagnosis.DecodeLimit(), 0);
  diagnosis.model = *Fit("llama_a.Q4_1", {});
  EXPECT_DOUBLE_EQ(diagnosis.DecodeLimit(),
                   10e9 / static_cast<double>(diagnosis.model->step_bytes));
  EXPECT_EQ(diagnosis.KernelsReason(), "the best that this CPU runs, of scalar, avx2");
  diagnosis.kernels_asked_for = true;
  EXPECT_EQ(diagnosis.KernelsReason(), "asked for; this CPU runs scalar, avx2");
}

}  // namespace
}  // namespace kvist::services
