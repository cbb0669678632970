#include "services/frontend/session_files.h"

#include <algorithm>

#include "cache_manager/block_key.h"
#include "services/frontend/limits.h"
#include "services/frontend/request.h"
#include "services/frontend/wire.h"

namespace kvist::services {

CallPatience::CallPatience(grpc::ServerContext* context)
    : last_(std::chrono::system_clock::now() + kMaxSessionFileTime),
      target_(std::make_shared<Target>()) {
  MutexLock lock(target_->mutex);
  target_->context = context;
}

CallPatience::~CallPatience() {
  MutexLock lock(target_->mutex);
  target_->context = nullptr;
}

void CallPatience::Start() {
  alarm_ = std::make_unique<grpc::Alarm>();
  alarm_->Set(std::min<std::chrono::system_clock::time_point>(
                  std::chrono::system_clock::now() + kSessionFilePatience, last_),
              [target = target_](bool expired) {
                if (!expired) return;
                MutexLock lock(target->mutex);
                if (target->context != nullptr) target->context->TryCancel();
              });
}

v1::SessionHistory HistoryOf(const FrontendState& state, const std::string& id,
                             const worker::SessionFileRecord& record,
                             const v1::CacheParams& cache) {
  const Principal principal;
  v1::SessionHistory history;
  history.set_session_id(id);
  history.set_tenant_id(principal.tenant.value());
  history.set_tenant_salt(
      cache_manager::TenantSalt(state.cluster_secret, principal.tenant.value()));
  history.mutable_ids()->Add(record.token_ids.begin(), record.token_ids.end());
  *history.mutable_cache() = ResolveCache({}, cache);
  return history;
}

}  // namespace kvist::services
