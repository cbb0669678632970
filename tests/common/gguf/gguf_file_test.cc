#include "common/gguf/gguf_file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/gguf/limits.h"
#include "tests/support/gguf_builder.h"

namespace kvist::gguf {
namespace {

using ::kvist::testing::AsBytes;
using ::kvist::testing::GgufBuilder;
using B = GgufBuilder;

constexpr uint32_t kF32 = 0;
constexpr uint32_t kQ4_0 = 2;

// A file of every value type and two tensors.
B GoodFile() {
  B builder;
  builder.Add<uint8_t>("u8", B::kUint8, 250)
      .Add<int8_t>("i8", B::kInt8, -5)
      .Add<uint16_t>("u16", B::kUint16, 65000)
      .Add<int16_t>("i16", B::kInt16, -300)
      .Add<uint32_t>("u32", B::kUint32, 4'000'000'000)
      .Add<int32_t>("i32", B::kInt32, -70'000)
      .Add<uint64_t>("u64", B::kUint64, std::numeric_limits<uint64_t>::max())
      .Add<int64_t>("i64", B::kInt64, -5'000'000'000)
      .Add<float>("f32", B::kFloat32, 0.5F)
      .Add<double>("f64", B::kFloat64, 0.1)
      .Add<uint8_t>("yes", B::kBool, 1)
      .AddString("text", "caf\u00e9")
      .AddStrings("texts", {"a", "", "ccc"})
      .AddArray<int32_t>("ints", B::kInt32, {1, -2})
      .AddArray<uint64_t>("longs", B::kUint64, {7})
      .AddArray<float>("floats", B::kFloat32, {1.5F, 2.5F})
      .AddArray<uint8_t>("bools", B::kBool, {1, 0, 1})
      .AddTensor({.name = "x", .dims = {4, 3}, .type = kF32, .data = std::string(48, 'x')})
      .AddTensor({.name = "q", .dims = {64, 2, 1, 1}, .type = kQ4_0, .data = std::string(72, 'q')});
  return builder;
}

absl::Status StatusOf(const std::string& bytes) { return File::Parse(AsBytes(bytes)).status(); }

class TemporaryFile {
 public:
  explicit TemporaryFile(std::string_view bytes) {
    path_ = std::filesystem::temp_directory_path() /
            ("kvist_gguf_test." + std::to_string(getpid()) + "." + std::to_string(++count_));
    std::ofstream(path_, std::ios::binary) << bytes;
  }
  ~TemporaryFile() { std::filesystem::remove(path_); }
  std::string path() const { return path_.string(); }

 private:
  static inline int count_ = 0;
  std::filesystem::path path_;
};

TEST(GgufFile, ReadsEveryValueType) {
  const std::string bytes = GoodFile().Build();
  const auto parsed = File::Parse(AsBytes(bytes));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const File& file = **parsed;
  EXPECT_EQ(*file.GetInt("u8"), 250);
  EXPECT_EQ(*file.GetInt("i8"), -5);
  EXPECT_EQ(*file.GetInt("u16"), 65000);
  EXPECT_EQ(*file.GetInt("i16"), -300);
  EXPECT_EQ(*file.GetInt("u32"), 4'000'000'000);
  EXPECT_EQ(*file.GetInt("i32"), -70'000);
  EXPECT_EQ(*file.GetInt("i64"), -5'000'000'000);
  EXPECT_EQ(std::get<uint64_t>(*file.FindValue("u64")), std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(*file.GetFloat("f32"), 0.5);
  EXPECT_EQ(*file.GetFloat("f64"), 0.1);
  EXPECT_EQ(*file.GetFloat("i8"), -5.0);
  EXPECT_TRUE(*file.GetBool("yes"));
  EXPECT_EQ(*file.GetString("text"), "caf\u00e9");
  EXPECT_EQ(**file.GetStrings("texts"), (std::vector<std::string>{"a", "", "ccc"}));
  EXPECT_EQ(**file.GetInts("ints"), (std::vector<int64_t>{1, -2}));
  EXPECT_EQ(**file.GetInts("longs"), std::vector<int64_t>{7});
  EXPECT_EQ(**file.GetFloats("floats"), (std::vector<float>{1.5F, 2.5F}));
  EXPECT_EQ(std::get<std::vector<bool>>(*file.FindValue("bools")),
            (std::vector<bool>{true, false, true}));
}

TEST(GgufFile, LookUpsNameAbsentAndMistypedKeys) {
  const std::string bytes = GoodFile().Build();
  const auto file = *File::Parse(AsBytes(bytes));
  EXPECT_EQ(file->FindValue("nothing"), nullptr);
  EXPECT_EQ(file->GetInt("nothing").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(file->GetString("nothing").status().message(), "nothing: the key is missing");
  EXPECT_EQ(file->GetInt("text").status().message(), "text: is not an integer");
  EXPECT_EQ(file->GetInt("f32").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(file->GetInt("u64").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(file->GetBool("u8").status().message(), "u8: is not a bool");
  EXPECT_EQ(file->GetFloat("yes").status().message(), "yes: is not a number");
  EXPECT_EQ(file->GetFloats("ints").status().message(), "ints: is not an array of floats");
}

TEST(GgufFile, TensorsPointAtTheirData) {
  const std::string bytes = GoodFile().Build();
  const auto file = *File::Parse(AsBytes(bytes));
  ASSERT_EQ(file->tensors().size(), 2);
  const TensorInfo* x = file->FindTensor("x");
  ASSERT_NE(x, nullptr);
  EXPECT_EQ(x->type, TensorType::kF32);
  EXPECT_EQ(x->cols(), 4);
  EXPECT_EQ(x->rows(), 3);
  EXPECT_EQ(x->data.size(), 48);
  EXPECT_EQ(x->data.front(), std::byte{'x'});
  const TensorInfo* q = file->FindTensor("q");
  ASSERT_NE(q, nullptr);
  EXPECT_EQ(q->rows(), 2);
  EXPECT_EQ(q->data.size(), 72);
  EXPECT_EQ(q->data.front(), std::byte{'q'});
  EXPECT_EQ(q->data.back(), std::byte{'q'});
  EXPECT_EQ(file->FindTensor("y"), nullptr);
}

// Whatever byte the file ends at, it is refused, and reading never leaves the bytes (the sanitizers
// watch).
TEST(GgufFile, AFileCutOffAnywhereIsRefused) {
  const std::string whole = GoodFile().Build();
  for (size_t size = 0; size < whole.size(); ++size) {
    const auto bytes = std::make_unique<char[]>(size);  // exactly as long as it claims to be
    std::copy_n(whole.data(), size, bytes.get());
    const auto file = File::Parse(AsBytes({bytes.get(), size}));
    ASSERT_FALSE(file.ok()) << "cut off at byte " << size;
    EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(GgufFile, AnyByteChangedNeverReadsOutsideTheFile) {
  const std::string whole = GoodFile().Build();
  for (size_t i = 0; i < whole.size(); ++i) {
    for (const int value : {0x00, 0x01, 0x7F, 0x80, 0xFF}) {
      std::string bytes = whole;
      bytes[i] = static_cast<char>(value);
      const auto file = File::Parse(AsBytes(bytes));
      if (!file.ok()) continue;
      for (const TensorInfo& tensor : (*file)->tensors()) {
        EXPECT_GE(tensor.data.data(), AsBytes(bytes).data());
        EXPECT_LE(tensor.data.data() + tensor.data.size(), AsBytes(bytes).data() + bytes.size());
      }
    }
  }
}

struct BadFile {
  std::string name;
  std::string message;  // what the error must say
  B builder;
};

B::Tensor Floats(std::string name, std::vector<uint64_t> dims) {
  return {
      .name = std::move(name), .dims = std::move(dims), .type = kF32, .data = std::string(64, 0)};
}

// A key whose value is an array header (element type, count) and whatever follows.
B ArrayFile(uint32_t type, uint64_t count, const std::string& elements) {
  return B().AddRaw("list", B::kArray, B::Bytes(type) + B::Bytes(count) + elements);
}

std::vector<BadFile> BadHeaders() {
  return {
      {"empty magic", "magic", B().Magic("")},
      {"other magic", "magic: the file does not begin with 'GGUF'", B().Magic("GGML")},
      {"version 0", "version: 0 is not supported", B().Version(0)},
      {"version 1", "version: 1 is not supported", B().Version(1)},
      {"version 4", "version: 4 is not supported", B().Version(4)},
      {"big endian", "version: big-endian", B().Version(0x03000000)},
      {"one tensor too many", "tensor_count: 65537 is over", B().TensorCount(kMaxTensors + 1)},
      {"huge tensor count", "tensor_count", B().TensorCount(UINT64_MAX)},
      {"one entry too many", "metadata_count: 65537", B().MetadataCount(kMaxMetadataEntries + 1)},
      {"huge metadata count", "metadata_count", B().MetadataCount(UINT64_MAX)},
      {"more tensors than there are", "tensor[0].name", B().TensorCount(1)},
      {"more metadata than there is", "metadata[0].key", B().MetadataCount(1)},
  };
}

std::vector<BadFile> BadMetadata() {
  const std::string huge = B::Bytes(UINT64_MAX);
  return {
      {"empty key", "metadata[0].key: is empty", B().AddString("", "x")},
      {"key too long", "metadata[0].key: length 65536",
       B().AddString(std::string(kMaxKeyBytes + 1, 'k'), "x")},
      {"key twice", "twin: the key appears twice",
       B().AddString("twin", "x").AddString("twin", "y")},
      {"unknown value type", "odd: unknown value type 13", B().AddRaw("odd", 13, "")},
      {"huge value type", "odd: unknown value type", B().AddRaw("odd", UINT32_MAX, "")},
      {"bool of two", "flag: a bool is neither", B().Add<uint8_t>("flag", B::kBool, 2)},
      {"string longer than the file",
       "text: ", B().AddRaw("text", B::kString, B::Bytes(uint64_t{9}))},
      {"string of huge length", "text: length", B().AddRaw("text", B::kString, huge)},
      {"string over the limit", "text: length 16777217",
       B().AddRaw("text", B::kString, B::Bytes(kMaxStringBytes + 1))},
      {"array of arrays", "list: arrays of arrays", ArrayFile(B::kArray, 1, "")},
      {"array of unknown type", "list: unknown value type 99", ArrayFile(99, 1, "")},
      {"array one too long", "list: 16777217 elements",
       ArrayFile(B::kUint8, kMaxArrayElements + 1, "")},
      {"array of huge count", "list: ", ArrayFile(B::kFloat64, UINT64_MAX, "")},
      {"array longer than the file", "list: the file is cut off",
       ArrayFile(B::kUint8, kMaxArrayElements, "")},
      {"array whose size overflows", "list: ", ArrayFile(B::kUint64, uint64_t{1} << 61, "")},
      {"array element over 63 bits", "list[1]: does not fit",
       ArrayFile(B::kUint64, 2, B::Bytes(uint64_t{1}) + huge)},
      {"bool element of 3", "list: a bool is neither", ArrayFile(B::kBool, 1, "\x03")},
      {"token of huge length", "list[1]: length",
       ArrayFile(B::kString, 2, B::StringBytes("ok") + huge)},
      {"token one too long", "list[0]: length 65537",
       ArrayFile(B::kString, 1, B::StringBytes(std::string(kMaxArrayStringBytes + 1, 't')))},
      {"token longer than the file", "list[0]: the file is cut off",
       ArrayFile(B::kString, 1, B::Bytes(uint64_t{100}) + "short")},
      {"alignment of 3", "general.alignment: 3",
       B().Add<uint32_t>("general.alignment", B::kUint32, 3)},
      {"alignment of 0", "general.alignment: 0",
       B().Add<uint32_t>("general.alignment", B::kUint32, 0)},
      {"alignment of 8192", "general.alignment: 8192",
       B().Add<uint32_t>("general.alignment", B::kUint32, 8192)},
      {"negative alignment", "general.alignment: -32",
       B().Add<int32_t>("general.alignment", B::kInt32, -32)},
      {"alignment as text", "general.alignment: is not an integer",
       B().AddString("general.alignment", "32")},
  };
}

std::vector<BadFile> BadTensors() {
  const uint64_t big = uint64_t{1} << 62;
  return {
      {"empty name", "tensor[0].name: is empty", B().AddTensor(Floats("", {4}))},
      {"name too long", "tensor[0].name: length 65",
       B().AddTensor(Floats(std::string(kMaxTensorNameBytes + 1, 'n'), {4}))},
      {"name twice", "tensor 'a': the name appears twice",
       B().AddTensor(Floats("a", {4})).AddTensor(Floats("a", {4}))},
      {"five dimensions", "tensor 'a': 5 dimensions", B().AddTensor(Floats("a", {1, 1, 1, 1, 1}))},
      {"dimension of zero", "tensor 'a': dimension 1 is 0", B().AddTensor(Floats("a", {4, 0}))},
      {"dimension over 63 bits", "tensor 'a': dimension 0",
       B().AddTensor(Floats("a", {UINT64_MAX}))},
      {"dimensions overflow", "tensor 'a': the dimensions overflow",
       B().AddTensor(Floats("a", {4, big, big}))},
      {"bytes overflow", "tensor 'a': the dimensions overflow",
       B().AddTensor(Floats("a", {big, 2}))},
      {"unknown type", "tensor 'a': element type number 16 is not supported",
       B().AddTensor({.name = "a", .dims = {256}, .type = 16, .data = std::string(64, 0)})},
      {"huge type", "tensor 'a': element type number 4294967295",
       B().AddTensor({.name = "a", .dims = {256}, .type = UINT32_MAX, .data = ""})},
      {"row of half a block", "tensor 'a': a row of 48 values is no whole number of Q4_0 blocks",
       B().AddTensor({.name = "a", .dims = {48, 2}, .type = kQ4_0, .data = std::string(64, 0)})},
      {"data after the file", "tensor 'a': its data", B().AddTensor(Floats("a", {17}))},
      {"offset after the file", "tensor 'a': its data",
       B().AddTensor({.name = "a",
                      .dims = {4},
                      .type = kF32,
                      .data = std::string(16, 0),
                      .offset_bytes = 4096})},
      {"offset near 2^64", "tensor 'a': its data",
       B().AddTensor({.name = "a",
                      .dims = {4},
                      .type = kF32,
                      .data = std::string(16, 0),
                      .offset_bytes = UINT64_MAX - 31})},
      {"offset misaligned", "tensor 'a': data offset 4 is no multiple of the alignment 32",
       B().AddTensor({.name = "a",
                      .dims = {4},
                      .type = kF32,
                      .data = std::string(64, 0),
                      .offset_bytes = 4})},
      {"two in one place", "overlaps tensor 'a'",
       B().AddTensor(Floats("a", {8}))
           .AddTensor({.name = "b",
                       .dims = {8},
                       .type = kF32,
                       .data = std::string(32, 0),
                       .offset_bytes = 0})},
      {"second begins inside the first", "overlaps tensor 'a'",
       B().AddTensor(Floats("a", {16}))
           .AddTensor({.name = "b",
                       .dims = {8},
                       .type = kF32,
                       .data = std::string(32, 0),
                       .offset_bytes = 32})},
  };
}

void ExpectRefused(const std::vector<BadFile>& files) {
  for (const BadFile& file : files) {
    const absl::Status status = StatusOf(file.builder.Build());
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << file.name << ": " << status;
    EXPECT_NE(status.message().find(file.message), std::string::npos)
        << file.name << ": " << status;
  }
}

TEST(GgufFile, BadHeadersAreRefusedByName) { ExpectRefused(BadHeaders()); }
TEST(GgufFile, BadMetadataIsRefusedByName) { ExpectRefused(BadMetadata()); }
TEST(GgufFile, BadTensorsAreRefusedByName) { ExpectRefused(BadTensors()); }

TEST(GgufFile, FilesAtTheLimitsPass) {
  EXPECT_TRUE(StatusOf(B().Build()).ok());  // no metadata and no tensors
  EXPECT_TRUE(StatusOf(B().Version(2).Build()).ok());
  EXPECT_TRUE(StatusOf(B().AddString(std::string(kMaxKeyBytes, 'k'), "x").Build()).ok());
  EXPECT_TRUE(StatusOf(B().AddStrings("s", {std::string(kMaxArrayStringBytes, 't')}).Build()).ok());
  EXPECT_TRUE(StatusOf(B().AddString("s", std::string(kMaxStringBytes, 't')).Build()).ok());
  EXPECT_TRUE(
      StatusOf(ArrayFile(B::kUint8, kMaxArrayElements, std::string(kMaxArrayElements, 1)).Build())
          .ok());
  const std::string name(kMaxTensorNameBytes, 'n');
  EXPECT_TRUE(StatusOf(B().AddTensor(Floats(name, {4, 2, 2, 1})).Build()).ok());
  EXPECT_TRUE(StatusOf(B().Add<uint32_t>("general.alignment", B::kUint32, 4096)
                           .Alignment(4096)
                           .AddTensor(Floats("a", {16}))
                           .AddTensor(Floats("b", {16}))
                           .Build())
                  .ok());
  EXPECT_TRUE(StatusOf(B().Add<uint32_t>("general.alignment", B::kUint32, 1)
                           .Alignment(1)
                           .AddTensor(Floats("a", {16}))
                           .Build())
                  .ok());
  B many;
  for (uint64_t i = 0; i < kMaxMetadataEntries; ++i) {
    many.Add<uint8_t>(std::to_string(i), B::kUint8, 0);
  }
  EXPECT_TRUE(StatusOf(many.Build()).ok());
}

TEST(GgufFile, NamesInMessagesArePrintable) {
  const absl::Status status = StatusOf(B().AddRaw("a\n\x01z\xFF", 77, "").Build());
  EXPECT_NE(status.message().find("a\\n\\x01z\\xff: unknown value type"), std::string::npos)
      << status;
}

TEST(GgufFile, OpenMapsAFileAndNamesItInErrors) {
  const TemporaryFile good(GoodFile().Build());
  const auto file = File::Open(good.path());
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->FindTensor("q")->data.back(), std::byte{'q'});
  const TemporaryFile bad("GGUF");
  const auto refused = File::Open(bad.path());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(refused.status().message().find(bad.path() + ": version"), std::string::npos);
}

TEST(GgufFile, OpenSaysWhyAFileCannotBeOpened) {
  EXPECT_EQ(File::Open("/nonexistent/model.gguf").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(File::Open("/tmp").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(File::Open("/dev/null").status().code(), absl::StatusCode::kInvalidArgument);
  const TemporaryFile empty("");
  EXPECT_NE(File::Open(empty.path()).status().message().find("is empty"), std::string::npos);
  const TemporaryFile locked("GGUF");
  std::filesystem::permissions(locked.path(), std::filesystem::perms::none);
  if (geteuid() != 0) {  // root may read anything
    EXPECT_EQ(File::Open(locked.path()).status().code(), absl::StatusCode::kPermissionDenied);
  }
}

TEST(GgufFile, TheFingerprintIsTheSha256OfTheWholeFile) {
  // Of the 24 bytes "GGUF", version 3, no tensors, no metadata; from coreutils' sha256sum.
  const std::string bytes = B().Build();
  const auto file = *File::Parse(AsBytes(bytes));
  EXPECT_EQ(file->Fingerprint(),
            "a4e5e156ddec27e286f75328784d7106b60a4eb1d246e950a001a3f944fbda99");
  std::string other = GoodFile().Build();
  const std::string before = (*File::Parse(AsBytes(other)))->Fingerprint();
  other.back() = 'r';  // a weight
  EXPECT_NE((*File::Parse(AsBytes(other)))->Fingerprint(), before);
}

TEST(GgufFile, TheFingerprintMayBeAskedForByManyThreads) {
  const std::string bytes = GoodFile().Build();
  const auto file = *File::Parse(AsBytes(bytes));
  std::vector<std::string> seen(8);
  {
    std::vector<std::jthread> threads;
    for (std::string& one : seen) threads.emplace_back([&] { one = file->Fingerprint(); });
  }
  for (const std::string& one : seen) EXPECT_EQ(one, file->Fingerprint());
}

}  // namespace
}  // namespace kvist::gguf
