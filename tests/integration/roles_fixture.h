// Requests and the fixture of the tests that see all roles through a client.
#ifndef KVIST_TESTS_INTEGRATION_ROLES_FIXTURE_H_
#define KVIST_TESTS_INTEGRATION_ROLES_FIXTURE_H_

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "tests/integration/background.h"
#include "tests/integration/role_cluster.h"

namespace kvist::services {

inline std::vector<int32_t> RandomIds(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % kSpaceId);
  return ids;
}

inline v1::GenerateRequest IdsRequest(const std::vector<int32_t>& ids, int64_t max_new) {
  v1::GenerateRequest request;
  request.mutable_ids()->mutable_ids()->Add(ids.begin(), ids.end());
  request.mutable_stop()->set_max_new_tokens(max_new);
  request.mutable_stop()->set_ignore_model_stops(true);
  return request;
}

inline v1::GenerateRequest InSession(v1::GenerateRequest request, const std::string& session) {
  request.set_session_id(session);
  return request;
}

inline std::vector<int32_t> IdsOf(const Generated& generated) {
  std::vector<int32_t> ids;
  for (const v1::Token& token : generated.tokens) ids.push_back(token.id());
  return ids;
}

class RolesTest : public ::testing::Test {
 protected:
  explicit RolesTest(const RoleClusterOptions& options = {}) : cluster_(options) {}

  void CreateSession(const std::string& id) {
    v1::CreateSessionRequest request;
    request.set_id(id);
    ASSERT_TRUE(client_->CreateSession(request).ok());
  }
  absl::Status Generate(const v1::GenerateRequest& request, Generated* generated) {
    return client_->Generate(request, {}, generated);
  }

  RoleCluster cluster_;
  std::unique_ptr<Client> client_ = cluster_.Connect();
};

}  // namespace kvist::services

#endif  // KVIST_TESTS_INTEGRATION_ROLES_FIXTURE_H_
