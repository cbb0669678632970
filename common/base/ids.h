// Strong types for identifiers, so that a session cannot be passed where a worker is meant.
#ifndef KVIST_COMMON_BASE_IDS_H_
#define KVIST_COMMON_BASE_IDS_H_

#include <compare>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>

namespace kvist {

// An identifier of kind `Tag` over `Value`. Default-constructed is the empty (or zero) id.
// Thread-compatible.
template <typename Tag, typename Value>
class StrongId {
 public:
  StrongId() = default;
  explicit StrongId(Value value) : value_(std::move(value)) {}

  const Value& value() const { return value_; }
  bool empty() const { return value_ == Value{}; }

  friend bool operator==(const StrongId&, const StrongId&) = default;
  friend auto operator<=>(const StrongId&, const StrongId&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const StrongId& id) {
    return H::combine(std::move(h), id.value_);
  }

 private:
  Value value_{};
};

// As StrongId, of text that its copies share: events and books name sessions often, and copying a
// name takes no memory. Thread-compatible.
template <typename Tag>
class StrongId<Tag, std::string> {
 public:
  StrongId() = default;
  explicit StrongId(std::string value)
      : text_(value.empty() ? nullptr : std::make_shared<const std::string>(std::move(value))) {}

  const std::string& value() const {
    static const std::string none;
    return text_ == nullptr ? none : *text_;
  }
  bool empty() const { return text_ == nullptr; }

  friend bool operator==(const StrongId& a, const StrongId& b) { return a.value() == b.value(); }
  friend auto operator<=>(const StrongId& a, const StrongId& b) { return a.value() <=> b.value(); }
  template <typename H>
  friend H AbslHashValue(H h, const StrongId& id) {
    return H::combine(std::move(h), id.value());
  }

 private:
  std::shared_ptr<const std::string> text_;  // null: empty
};

using SessionId = StrongId<struct SessionTag, std::string>;
using TenantId = StrongId<struct TenantTag, std::string>;
using WorkerId = StrongId<struct WorkerTag, std::string>;
using RequestId = StrongId<struct RequestTag, std::string>;
using TurnId = StrongId<struct TurnTag, std::string>;
// Random 64 bits drawn at each start of a worker: tells its lives apart.
using Incarnation = StrongId<struct IncarnationTag, uint64_t>;

}  // namespace kvist

template <typename Tag, typename Value>
struct std::hash<kvist::StrongId<Tag, Value>> {
  size_t operator()(const kvist::StrongId<Tag, Value>& id) const noexcept {
    return std::hash<Value>{}(id.value());
  }
};

#endif  // KVIST_COMMON_BASE_IDS_H_
