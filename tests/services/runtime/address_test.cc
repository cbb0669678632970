#include "services/runtime/address.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "common/base/status.h"

namespace kvist::services {
namespace {

using ::testing::HasSubstr;

TEST(AddressTest, ParsesHostAndPort) {
  const auto v4 = ParseHostPort("127.0.0.1:8080", "--grpc");
  ASSERT_TRUE(v4.ok()) << v4.status();
  EXPECT_EQ(v4->host, "127.0.0.1");
  EXPECT_EQ(v4->port, 8080);
  EXPECT_EQ(v4->ToString(), "127.0.0.1:8080");
  const auto v6 = ParseHostPort("[::1]:65535", "--grpc");
  ASSERT_TRUE(v6.ok()) << v6.status();
  EXPECT_EQ(v6->host, "::1");
  EXPECT_EQ(v6->ToString(), "[::1]:65535");
}

TEST(AddressTest, RefusesWhatIsNoHostAndPortAndNamesTheFlag) {
  for (const char* bad : {"", ":", ":80", "host", "host:", "host:x", "host:80x", "host:65536",
                          "host:-1", "::1:80", "[host]:80", "host:99999999999999999999"}) {
    const auto parsed = ParseHostPort(bad, "--grpc");
    ASSERT_FALSE(parsed.ok()) << bad;
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(parsed.status().message()), HasSubstr("--grpc"));
  }
  EXPECT_TRUE(ParseHostPort(std::string(253, 'a') + ":1", "--grpc").ok());
  EXPECT_FALSE(ParseHostPort(std::string(254, 'a') + ":1", "--grpc").ok());
}

TEST(AddressTest, AnAddressThatOthersReachNeedsInsecure) {
  for (const char* local : {"127.0.0.1:0", "127.9.9.9:1", "localhost:5", "[::1]:0"}) {
    EXPECT_TRUE(ParseListenAddress(local, "--grpc", false).ok()) << local;
  }
  for (const char* open : {"0.0.0.0:0", "10.0.0.1:1", "[::]:0", "example.org:80", "128.0.0.1:0"}) {
    const auto refused = ParseListenAddress(open, "--metrics", false);
    ASSERT_FALSE(refused.ok()) << open;
    EXPECT_THAT(std::string(refused.status().message()), HasSubstr("--insecure"));
    EXPECT_EQ(DetailsOf(refused.status()).field, "--metrics");
    EXPECT_TRUE(ParseListenAddress(open, "--metrics", true).ok()) << open;
  }
}

}  // namespace
}  // namespace kvist::services
