// The forward pass on the CPU: one program for all architectures, run by a team of threads
// together.
#ifndef KVIST_WORKER_BACKEND_TRANSFORMER_H_
#define KVIST_WORKER_BACKEND_TRANSFORMER_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/backend/batch.h"
#include "worker/backend/kv_pools.h"
#include "worker/backend/row_buffers.h"
#include "worker/backend/thread_team.h"
#include "worker/kernels/kernel_table.h"
#include "worker/model/config.h"
#include "worker/model/rope_table.h"
#include "worker/model/weights.h"

namespace kvist::worker {

// Rows that go through all layers together: more would push the activations of a wide product out
// of a 512 KB L2 cache.
inline constexpr int64_t kMaxPassRows = 256;
// Columns of the feed-forward product that are gated and quantised together; rows of quantised
// values stay aligned.
inline constexpr int64_t kGateCols = 64;

// What a Transformer runs on; all outlive it.
struct TransformerParts {
  const ModelConfig* config = nullptr;
  const Weights* weights = nullptr;
  const KernelTable* kernels = nullptr;
  ThreadTeam* team = nullptr;
  KvPools* pools = nullptr;
  const RopeTable* rope = nullptr;           // layers that see everything
  const RopeTable* windowed_rope = nullptr;  // layers with a window
};

// What a Transformer has taken, in bytes of whole pages.
struct TransformerMemory {
  int64_t activations_bytes = 0;  // rows of a pass, shared and per member
  int64_t attention_bytes = 0;    // per member
  int64_t logits_bytes = 0;       // with the rows that they are computed from
};

// Runs checked batches. Everything it needs is taken in Create; Run allocates nothing.
// Single-threaded: one caller of Run at a time, which works as member 0 of the team.
class Transformer {
 public:
  // RESOURCE_EXHAUSTED if there is no memory.
  static absl::StatusOr<std::unique_ptr<Transformer>> Create(const TransformerParts& parts,
                                                             int64_t max_logit_rows);

  // As Backend::Run. REQUIRES: CheckBatch(batch) was OK.
  Logits Run(const Batch& batch);

  // Of every buffer below.
  TransformerMemory memory() const;

 private:
  // A run of tokens of one slice in the pass: rows [row, row + count) are its tokens [begin, begin
  // + count).
  struct Segment {
    const SequenceSlice* slice = nullptr;
    int64_t begin = 0;
    int64_t count = 0;
    int64_t row = 0;
    int64_t first_position() const { return slice->first_position + begin; }
  };
  // One row of the pass.
  struct RowFacts {
    int32_t token = 0;
    int32_t segment = 0;
    int64_t position = 0;
    int64_t logit_row = -1;  // -1: not wanted
  };
  // A piece of attention: queries [begin, begin + count) of a segment, `heads` query heads from
  // `first_head` on, which share one kv head.
  struct AttentionItem {
    int32_t segment = 0;
    int64_t begin = 0;
    int64_t count = 0;
    int64_t first_head = 0;
    int64_t heads = 0;
  };
  // A member's view of the pass: its rows of the residual stream and its scratch.
  struct Lane {
    int member = 0;
    int64_t first_row =
        0;  // the rows that it embeds, norms and quantises: a share, or all of a short pass
    int64_t last_row = 0;
    RowBuffers* rows = nullptr;
    LaneScratch* scratch = nullptr;
  };

  explicit Transformer(const TransformerParts& parts) : parts_(parts) {}
  absl::Status TakeMemory(int64_t max_logit_rows);

  // Plans the pass over up to kMaxPassRows tokens from (*slice, *token) on, which it advances.
  void PlanPass(const Batch& batch, size_t* slice, int64_t* token);
  void PlanAttention();

  // The program: each member of the team runs it, meeting the others at barriers.
  void RunPass(int member);
  void RunLayer(int64_t layer, const Lane& lane);
  void Embed(const Lane& lane);
  void KeepWantedRows(const Lane& lane);
  void RunHead(int member);

  // Makes every member's rows visible to all, unless each has computed all rows for itself.
  void ShareRows();
  // rows->normed = norm(rows->stream), and its quantised form.
  void NormRows(const Lane& lane, const float* weight);
  // rows->quantized = x [rows, cols], where some weights want that.
  void QuantizeRows(const Lane& lane, const float* x, int64_t cols);
  // stream += branch, through a norm where there is one.
  void AddBranch(const Lane& lane, const float* norm);
  // y [rows, stride] = matrix * input for this member's share of all the products' panels.
  struct Product {
    const PackedMatrix* matrix = nullptr;
    float* y = nullptr;
    int64_t stride = 0;
  };
  void MultiplyShare(int member, std::initializer_list<Product> products,
                     const ProductInput& input);
  // gated_ = activation(gate * input) * (up * input), and its quantised form, for this member's
  // share of the columns.
  void GateShare(const Lane& lane, const LayerWeights& weights, const ProductInput& input);
  // Biases, norms and rotation of q and k; k and v into their pages.
  void RotateAndStore(int64_t layer, const Lane& lane);
  void Attend(int64_t layer, const Lane& lane);
  KvPages PagesOf(const Segment& segment, int64_t layer, int64_t kv_head) const;
  // All rows of x [rows, cols] with the lane's quantised rows.
  ProductInput InputOf(const Lane& lane, const float* x, int64_t cols) const;

  const TransformerParts parts_;
  int64_t rows_ = 0;  // of this pass
  bool duplicated_ = false;
  bool quantizes_ = false;  // some weights take quantised activations
  std::vector<Segment> segments_;
  std::vector<RowFacts> row_facts_;
  std::vector<AttentionItem> items_;
  alignas(64) std::atomic<int64_t> next_item_{0};

  std::vector<int32_t> group_of_layer_;
  std::vector<int32_t> index_in_group_;
  RowBuffers shared_rows_;
  std::vector<std::unique_ptr<RowBuffers>> private_rows_;  // per member, for short passes
  std::vector<std::unique_ptr<LaneScratch>> scratch_;      // per member
  Buffer<float> qkv_;                                      // [kMaxPassRows, qkv_stride]
  int64_t qkv_stride_ = 0;                                 // query_cols + 2 * kv_cols
  Buffer<float> attended_;                                 // [kMaxPassRows, query_cols]
  Buffer<float> branch_;  // [kMaxPassRows, hidden]: what a half of a layer adds to the stream
  QuantizedBuffer gated_quantized_;
  Buffer<float> gated_;   // [kMaxPassRows, feed_forward]
  Buffer<float> wanted_;  // [max_logit_rows, hidden], normed
  QuantizedBuffer wanted_quantized_;
  int64_t wanted_rows_ = 0;
  Buffer<float> logits_;  // [max_logit_rows, logits_stride]
  int64_t logits_stride_ = 0;
};

}  // namespace kvist::worker

#endif  // KVIST_WORKER_BACKEND_TRANSFORMER_H_
