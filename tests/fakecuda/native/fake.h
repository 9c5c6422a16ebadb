// What the three parts of the fake device share: device.cpp (guard, memory, generators, hooks),
// operators.cpp (operators, copies, attention) and collectives.cpp (NCCL's part).
#pragma once

#include <ATen/ATen.h>
#include <c10/core/Allocator.h>
#include <c10/core/Storage.h>
#include <torch/library.h>

#include <cstdint>
#include <string>
#include <vector>

namespace fake {

// --- device.cpp -----------------------------------------------------------------------------

constexpr int MOST_DEVICES = 16;

// cuda:N; -1: the calling thread's current device.
c10::Device cuda(int index = -1);

// The device's own generator, and the CPU generator that a CUDA one draws from.
at::Generator& default_generator(int index);
at::Generator& drawn_from(const at::Generator& cuda_generator);

// Bytes of device memory that are held for as long as this lives; OutOfMemoryError beyond the
// device's total.
class Held {
 public:
  Held(int device, size_t bytes);
  ~Held();
  Held(const Held&) = delete;

 private:
  int device_;
  size_t bytes_;
};

// Device memory of `bytes`; the allocator that the device's storages name.
c10::DataPtr allocate(size_t bytes, c10::Device device);
c10::Allocator* allocator();
bool is_pinned(const void* pointer);

// --- the record: what a test wants to know --------------------------------------------------

struct Happening {
  const char* kind;  // up, down, item, pin, collective, race, stuck
  const char* what;  // the operator
  int64_t bytes = 0;
  bool contiguous = true;  // of the host's side
  bool pinned = false;     // of the host's side
  bool waits = false;      // the host waits for the device
  int device = 0;
};
void tell(const Happening& happening);

// The host waits for the device: told, refused under set_sync_debug_mode("error"), and copies that
// are under way arrive. For ever where a collective is stuck.
void wait_for_device(Happening happening);

// --- copies under way (operators.cpp) -------------------------------------------------------

// The number of the last copy that was begun, and the arrival of all up to one.
int64_t last_copy();
void arrive(int64_t up_to);

// --- collectives.cpp ------------------------------------------------------------------------

// Whether a collective waits for a rank that is gone, as a kernel of NCCL's does; and to wait
// for it, which ends with the process.
bool is_stuck();
void wait_if_stuck();

// The operator on the CPU: operators.cpp's fallback, also for c10d's.
void on_cpu(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack);

}  // namespace fake
