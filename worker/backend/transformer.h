// The forward pass on the CPU: one program for all architectures, run by a team of threads
// together.
#ifndef KVIST_WORKER_BACKEND_TRANSFORMER_H_
#define KVIST_WORKER_BACKEND_TRANSFORMER_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/backend/batch.h"
#include "worker/backend/kv_pools.h"
#include "worker/backend/row_buffers.h"
#include "worker/backend/thread_team.h"
#include "worker/backend/work_shares.h"
#include "worker/kernels/kernel_table.h"
#include "worker/model/config.h"
#include "worker/model/rope_table.h"
#include "worker/model/weights.h"

namespace kvist::worker {

// Rows that go through all layers together: more would push the activations of a wide product out
// of a 512 KB L2 cache.
inline constexpr int64_t kMaxPassRows = 256;
// Rows that one item embeds, norms, quantises or rotates.
inline constexpr int64_t kRowsPerItem = 8;
// Weights that one small item multiplies: a microsecond's worth for one row, so that members finish
// together, and some fifty times what taking an item costs.
inline constexpr int64_t kItemBytes = 12 << 10;
inline constexpr int64_t kMaxItems = 1 << 14;
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
    int64_t splits = 0;         // > 0: its one query's attention is shared out by splits
    int64_t first_partial = 0;  // in partials_, [splits, heads, head_dim + 2]
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
    int64_t split = -1;  // AttentionTask::split
  };
  // One item of a stage (ThreadTeam::RunStages).
  struct Item {
    int member = 0;
    int64_t layer = 0;
    int64_t index = 0;
    WorkShares::Range range;  // of a matrix product: panels, or chunks of kGateCols columns
  };
  using StageFunction = void (Transformer::*)(const Item& item);
  struct Stage {
    StageFunction run = nullptr;
    int64_t layer = 0;
    WorkShares shares;  // of a matrix product
  };
  struct RowRange {
    int64_t first = 0;
    int64_t last = 0;
  };
  // y [rows, stride] = matrix * input.
  struct Product {
    const PackedMatrix* matrix = nullptr;
    float* y = nullptr;
    int64_t stride = 0;
  };

  explicit Transformer(const TransformerParts& parts) : parts_(parts) {}
  absl::Status TakeMemory(int64_t max_logit_rows);

  // Plans the pass over up to kMaxPassRows tokens from (*slice, *token) on, which it advances.
  void PlanPass(const Batch& batch, size_t* slice, int64_t* token);
  void PlanAttention();
  // Whether a segment's attention is shared out by splits rather than by heads.
  bool SplitsAttention(const Segment& segment) const;

  // Lists the pass's stages and how many items each has; the head's only in the last pass.
  void PlanStages(bool last_pass);

  // The stages of a layer, in this order.
  void EnterLayer(const Item& item);        // the last layer's branch, attention norm; rows
  void Project(const Item& item);           // q, k, v; panels
  void RotateAndStore(const Item& item);    // q and k; k and v into their pages; rows
  void Attend(const Item& item);            // pieces
  void FinishAttention(const Item& item);   // splits merged, quantised; rows
  void ProjectAttended(const Item& item);   // panels
  void EnterFeedForward(const Item& item);  // attention's branch, feed-forward norm; rows
  void Gate(const Item& item);              // gate, up, activation, quantised; columns
  void Down(const Item& item);              // panels
  // After the layers.
  void Leave(const Item& item);  // the last branch, norm of the rows whose logits are wanted; rows
  void Head(const Item& item);   // logits of all passes' wanted rows; panels

  // The matrix products of those stages.
  std::array<Product, 3> Projections(int64_t layer) const;
  std::array<Product, 1> AttendedProjection(int64_t layer) const;
  std::array<Product, 1> DownProjection(int64_t layer) const;
  std::array<Product, 1> HeadProjection(int64_t first_row) const;

  RowRange RowsOf(const Item& item) const;
  void Embed(RowRange rows);
  // normed_ = norm(stream_), and its quantised form.
  void NormRows(RowRange rows, const float* weight);
  // quantized_ = x [rows, cols].
  void QuantizeRows(RowRange rows, const float* x, int64_t cols);
  // stream_ += branch_, through a norm where there is one.
  void AddBranch(RowRange rows, const float* norm);
  // All rows of x [rows, cols] with quantized_.
  ProductInput InputOf(const float* x, int64_t cols) const;
  static int64_t PanelsOf(std::span<const Product> products);
  static int64_t BytesOf(std::span<const Product> products);
  // How the panels of `products`, taken one after the other, are shared out.
  WorkShares SharesOf(std::span<const Product> products) const;
  // How the chunks of kGateCols columns are.
  WorkShares GateShares() const;
  // Columns [col, col + width) of gate, up, activation and quantising.
  void GateColumns(const Item& item, int64_t col, int64_t width);
  // The item's panels of `products` times input.
  void MultiplyItem(const Item& item, std::span<const Product> products, const ProductInput& input);
  // Biases, norms and rotation of one kv head's q and k; k and v into their page.
  void RotateAndStoreHead(int64_t layer, int64_t row, int64_t kv_head);
  KvPages PagesOf(const Segment& segment, int64_t layer, int64_t kv_head) const;

  const TransformerParts parts_;
  int64_t rows_ = 0;        // of this pass
  bool quantizes_ = false;  // some weights take quantised activations
  std::vector<Segment> segments_;
  std::vector<RowFacts> row_facts_;
  std::vector<AttentionItem> items_;
  std::vector<Stage> stages_;
  std::vector<int32_t> stage_items_;

  std::vector<int32_t> group_of_layer_;
  std::vector<int32_t> index_in_group_;
  std::vector<std::unique_ptr<LaneScratch>> scratch_;  // per member
  Buffer<float> stream_;                               // [kMaxPassRows, hidden]
  Buffer<float> normed_;                               // [kMaxPassRows, hidden]
  QuantizedBuffer quantized_;  // of normed_ or attended_: the next product's input
  Buffer<float> qkv_;          // [kMaxPassRows, qkv_stride]
  int64_t qkv_stride_ = 0;     // query_cols + 2 * kv_cols
  Buffer<float> attended_;     // [kMaxPassRows, query_cols]
  Buffer<float> partials_;     // states of single queries' splits
  Buffer<float> branch_;       // [kMaxPassRows, hidden]: what a half of a layer adds to the stream
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
