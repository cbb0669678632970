// How much arithmetic a model takes: what a measured speed is a share of.
#ifndef KVIST_SERVICES_CLI_MODEL_WORK_H_
#define KVIST_SERVICES_CLI_MODEL_WORK_H_

#include <cstdint>

#include "worker/model/config.h"

namespace kvist::services {

// Multiply-adds of a prompt of `tokens`: all matrices of all layers for every token, attention over
// what each one sees (scores and weighted sums), and the output matrix for the last. REQUIRES:
// tokens >= 0.
int64_t PrefillMultiplyAdds(const worker::ModelConfig& config, int64_t tokens);

}  // namespace kvist::services

#endif  // KVIST_SERVICES_CLI_MODEL_WORK_H_
