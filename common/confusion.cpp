// Confusion matrix by exact integer counts, in parallel on the CPU: the extension that common/toolchain.py builds.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <mutex>
#include <vector>

namespace {

// labels, preds: (N,) of any integer type, each in [0, num_classes). Returns (K, K) int64, rows true, columns predicted.
at::Tensor confusion(const at::Tensor& labels, const at::Tensor& preds, int64_t num_classes) {
  TORCH_CHECK_VALUE(labels.dim() == 1 && labels.sizes() == preds.sizes(),
                    "labels and preds must be two vectors of one length, not ", labels.sizes(), " and ", preds.sizes());
  const at::Tensor rows = labels.to(at::kLong).contiguous(), columns = preds.to(at::kLong).contiguous();
  const int64_t* row = rows.const_data_ptr<int64_t>();
  const int64_t* column = columns.const_data_ptr<int64_t>();
  at::Tensor counts = at::zeros({num_classes, num_classes}, at::kLong);
  int64_t* total = counts.mutable_data_ptr<int64_t>();
  std::mutex merging;

  at::parallel_for(0, labels.numel(), 1 << 15, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> local(num_classes * num_classes, 0);
    for (int64_t i = begin; i < end; ++i) {
      TORCH_CHECK_VALUE(0 <= row[i] && row[i] < num_classes && 0 <= column[i] && column[i] < num_classes,
                        "class ", row[i], " or ", column[i], " at ", i, " is not in [0, ", num_classes, ")");
      ++local[row[i] * num_classes + column[i]];
    }
    const std::lock_guard<std::mutex> guard(merging);
    for (size_t i = 0; i < local.size(); ++i) total[i] += local[i];
  });
  return counts;
}

}  // namespace

TORCH_LIBRARY(cifar10_study, library) {
  library.def("confusion(Tensor labels, Tensor preds, int num_classes) -> Tensor");
  library.impl("confusion", c10::DispatchKey::CPU, &confusion);
}
