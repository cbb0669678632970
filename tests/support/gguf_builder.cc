#include "tests/support/gguf_builder.h"

#include <utility>

namespace kvist::testing {

void GgufBuilder::Key(std::string_view key, uint32_t type) {
  metadata_ += StringBytes(key);
  Put(metadata_, type);
  ++entries_;
}

GgufBuilder& GgufBuilder::AddString(std::string_view key, std::string_view value) {
  return AddRaw(key, kString, StringBytes(value));
}

GgufBuilder& GgufBuilder::AddStrings(std::string_view key, const std::vector<std::string>& values) {
  Key(key, kArray);
  Put(metadata_, static_cast<uint32_t>(kString));
  Put(metadata_, static_cast<uint64_t>(values.size()));
  for (const std::string& value : values) metadata_ += StringBytes(value);
  return *this;
}

GgufBuilder& GgufBuilder::AddRaw(std::string_view key, uint32_t type,
                                 std::string_view value_bytes) {
  Key(key, type);
  metadata_ += value_bytes;
  return *this;
}

GgufBuilder& GgufBuilder::AddTensor(Tensor tensor) {
  tensors_.push_back(std::move(tensor));
  return *this;
}

std::string GgufBuilder::StringBytes(std::string_view text) {
  std::string bytes;
  Put(bytes, static_cast<uint64_t>(text.size()));
  bytes += text;
  return bytes;
}

std::string GgufBuilder::Build() const {
  std::string file = magic_;
  Put(file, version_);
  Put(file, tensor_count_.value_or(tensors_.size()));
  Put(file, metadata_count_.value_or(entries_));
  file += metadata_;
  const auto pad = [this](std::string& bytes) {
    while (bytes.size() % alignment_bytes_ != 0) bytes.push_back('\0');
  };
  std::string data;
  for (const Tensor& tensor : tensors_) {
    pad(data);
    file += StringBytes(tensor.name);
    Put(file, static_cast<uint32_t>(tensor.dims.size()));
    for (const uint64_t dim : tensor.dims) Put(file, dim);
    Put(file, tensor.type);
    Put(file, tensor.offset_bytes.value_or(data.size()));
    data += tensor.data;
  }
  if (tensors_.empty()) return file;
  pad(file);
  return file + data;
}

std::span<const std::byte> AsBytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

}  // namespace kvist::testing
