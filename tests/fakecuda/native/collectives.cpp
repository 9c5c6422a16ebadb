// What NCCL does between processes: c10d's operators on the device's tensors run on their twins, by
// gloo, the group's backend for the CPU.
//
// As with NCCL, a rank that is gone is no error for the others. Their collectives do not fail: from
// then on the device is stuck, an event is never reached, and whoever waits for the device waits
// until NCCL's watchdog ends the process.

#include "fake.h"

#include <ATen/core/ivalue.h>
#include <torch/csrc/distributed/c10d/Work.hpp>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

namespace fake {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

std::atomic<bool> stuck = false;
std::atomic<Clock::time_point> stuck_since;
std::atomic<int64_t> watchdog_ms = 600'000;  // the group's timeout
std::atomic<int64_t> patience_ms = 0;        // of a collective; 0: as long as the peers live

void get_stuck() {
  if (!stuck.exchange(true)) {
    stuck_since = Clock::now();
    tell({.kind = "stuck", .what = "a collective waits for a rank that is gone"});
  }
}

struct FakeNcclWork final : c10d::Work {
  c10::intrusive_ptr<c10d::Work> by_gloo;  // none: begun when the device was stuck
  std::vector<at::Tensor> tensors;

  FakeNcclWork(c10::intrusive_ptr<c10d::Work> work, std::vector<at::Tensor> results)
      : by_gloo(std::move(work)), tensors(std::move(results)) {}

  bool isCompleted() override {
    return !stuck && (!by_gloo || by_gloo->isCompleted());
  }
  bool isSuccess() const override {
    return true;
  }
  std::vector<at::Tensor> result() override {
    return tensors;
  }
  // NCCL's only lets the current stream wait. Here the work must be done by then.
  bool wait(milliseconds timeout) override {
    if (stuck || !by_gloo) {
      return true;
    }
    try {
      by_gloo->wait(patience_ms ? milliseconds(patience_ms) : timeout);
    } catch (const std::exception&) {
      get_stuck();
    }
    return true;
  }
  void synchronize() override {
    wait(kNoTimeout);
  }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override {
    wait(kNoTimeout);
    auto type = c10::ListType::create(c10::TensorType::get());
    std::vector<c10::Device> devices;
    if (!tensors.empty()) {
      devices.push_back(tensors.front().device());
    }
    auto future = c10::make_intrusive<c10::ivalue::Future>(type, devices);
    future->markCompleted(c10::List<at::Tensor>(tensors));
    return future;
  }
};

void gather(const c10::IValue& value, std::vector<at::Tensor>& tensors) {
  if (value.isTensor()) {
    tensors.push_back(value.toTensor());
  } else if (value.isList()) {
    for (const c10::IValue& each : value.toListRef()) {
      gather(each, tensors);
    }
  }
}

// All of c10d's operators give back their first argument, if anything beside the Work.
void collective(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto count = static_cast<ptrdiff_t>(schema.arguments().size());
  const c10::IValue first = *(stack->end() - count);
  std::vector<at::Tensor> tensors;
  gather(first, tensors);
  int64_t bytes = 0;
  for (const auto& tensor : tensors) {
    TORCH_CHECK(tensor.is_contiguous(), "Tensors must be contiguous");
    bytes += static_cast<int64_t>(tensor.nbytes());
  }
  tell({.kind = "collective",
        .what = schema.name().c_str(),
        .bytes = bytes,
        .device = tensors.empty() ? 0 : tensors.front().device().index()});
  c10::intrusive_ptr<c10d::Work> work;
  if (stuck) {
    stack->erase(stack->end() - count, stack->end());
    if (schema.returns().size() == 2) {
      stack->push_back(first);
    }
  } else {
    on_cpu(op, keys, stack);
    work = stack->back().toCustomClass<c10d::Work>();
    stack->pop_back();
  }
  auto ours = c10::make_intrusive<FakeNcclWork>(std::move(work), std::move(tensors));
  stack->emplace_back(c10::static_intrusive_pointer_cast<c10d::Work>(std::move(ours)));
}

struct Quiet final : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

// In place of c10d's own, which ask the group's NCCL; torch warns of that.
std::vector<torch::Library> replace_operators() {
  Quiet quiet;
  c10::WarningUtils::WarningHandlerGuard guard(&quiet);
  std::vector<torch::Library> kept;
  auto& library = kept.emplace_back(
      torch::Library::IMPL, "c10d", c10::DispatchKey::CUDA, __FILE__, __LINE__);
  for (const char* name :
       {"allreduce_",
        "allreduce_coalesced_",
        "allgather_",
        "_allgather_base_",
        "allgather_coalesced_",
        "allgather_into_tensor_coalesced_",
        "alltoall_",
        "alltoall_base_",
        "barrier",
        "broadcast_",
        "gather_",
        "reduce_",
        "reduce_scatter_",
        "_reduce_scatter_base_",
        "reduce_scatter_tensor_coalesced_",
        "scatter_",
        "send",
        "recv_"}) {
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&collective>());
  }
  return kept;
}
const auto replaced = replace_operators();

}  // namespace

bool is_stuck() {
  return stuck;
}

void wait_if_stuck() {
  while (stuck) {
    if (Clock::now() - stuck_since.load() > milliseconds(watchdog_ms)) {
      std::fprintf(stderr, "[fake NCCL] Watchdog caught collective operation timeout\n");
      std::abort();
    }
    std::this_thread::sleep_for(milliseconds(10));
  }
}

}  // namespace fake

extern "C" {
int fake_is_stuck() {
  return fake::stuck;
}
void fake_wait_if_stuck() {
  fake::wait_if_stuck();
}
void fake_collectives(int64_t watchdog_ms, int64_t patience_ms) {
  fake::watchdog_ms = watchdog_ms;
  fake::patience_ms = patience_ms;
}
}
