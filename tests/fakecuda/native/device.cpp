// The device as torch sees it: a guard per thread, memory that is counted, pinned memory,
// generators, and the hooks by which torch asks whether there is CUDA at all.
//
// Streams and events are Python's affair (../device.py): all work is done when it is begun.

#include "fake.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/csrc/distributed/c10d/reducer_timer.hpp>
#include <torch/csrc/profiler/stubs/base.h>

#include <array>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_set>

namespace fake {
namespace {

int devices = 8;
thread_local int current = 0;  // CUDA, too, begins each thread at device 0
thread_local bool next_generator_is_default = false;

void (*listener)(const char*, const char*, int64_t, int, int, int, int) = nullptr;
int sync_debug_mode = 0;  // 0: default, 1: warn, 2: error

int index_of(int index) {
  return index < 0 ? current : index;
}

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override {
    return c10::DeviceType::CUDA;
  }
  c10::Device exchangeDevice(c10::Device device) const override {
    auto before = getDevice();
    setDevice(device);
    return before;
  }
  c10::Device getDevice() const override {
    return cuda();
  }
  void setDevice(c10::Device device) const override {
    TORCH_CHECK(device.index() < devices, "CUDA error: invalid device ordinal");
    uncheckedSetDevice(device);
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    current = index_of(device.index());
  }
  c10::Stream getStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream getDefaultStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    return c10::Stream(c10::Stream::DEFAULT, stream.device());
  }
  c10::DeviceIndex deviceCount() const noexcept override {
    return static_cast<c10::DeviceIndex>(devices);
  }
  bool queryStream(const c10::Stream&) const override {
    return !is_stuck();
  }
  void synchronizeStream(const c10::Stream&) const override {
    wait_if_stuck();
  }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag)
      const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override {
    return !is_stuck();
  }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

// What the caching allocator would count: blocks of 512 bytes.
struct Counter {
  std::mutex mutex;
  size_t total = 80'000'000'000;
  size_t now = 0;
  size_t peak = 0;
};
std::array<Counter, MOST_DEVICES> counters;

struct Block {
  Held held;
  void* memory;
  Block(int device, size_t bytes) : held(device, bytes), memory(c10::alloc_cpu(bytes)) {}
  ~Block() {
    c10::free_cpu(memory);
  }
};

struct DeviceMemory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    return fake::allocate(bytes, cuda());
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return nullptr;
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};
DeviceMemory device_memory;
REGISTER_ALLOCATOR(c10::DeviceType::CUDA, &device_memory)

std::mutex pinned_mutex;
std::unordered_set<const void*> pinned;

void unpin(void* memory) {
  {
    std::lock_guard lock(pinned_mutex);
    pinned.erase(memory);
  }
  c10::free_cpu(memory);
}

struct PinnedMemory final : at::HostAllocator {
  c10::DataPtr allocate(size_t bytes) override {
    tell({.kind = "pin",
          .what = "pinned memory",
          .bytes = static_cast<int64_t>(bytes),
          .pinned = true,
          .device = current});
    void* memory = c10::alloc_cpu(bytes);
    std::lock_guard lock(pinned_mutex);
    pinned.insert(memory);
    return {memory, memory, &unpin, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return &unpin;
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
  bool record_event(void*, void*, c10::Stream) override {
    return true;
  }
  void empty_cache() override {}
  at::HostStats get_stats() override {
    return {};
  }
  void reset_accumulated_stats() override {}
  void reset_peak_stats() override {}
};
PinnedMemory pinned_memory;

// Draws what a CPU generator of the same seed draws, so that dropout is the same on both.
struct FakeGenerator final : c10::GeneratorImpl {
  at::Generator cpu = at::detail::createCPUGenerator();

  explicit FakeGenerator(int index)
      : GeneratorImpl(cuda(index), c10::DispatchKeySet(c10::DispatchKey::CUDA)) {}
  void set_current_seed(uint64_t seed) override {
    cpu.set_current_seed(seed);
  }
  void set_offset(uint64_t) override {}
  uint64_t get_offset() const override {
    return 0;
  }
  uint64_t current_seed() const override {
    return cpu.current_seed();
  }
  uint64_t seed() override {
    return cpu.seed();
  }
  void set_state(const c10::TensorImpl& state) override {
    cpu.unsafeGetGeneratorImpl()->set_state(state);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return cpu.unsafeGetGeneratorImpl()->get_state();
  }
  c10::GeneratorImpl* clone_impl() const override {
    auto* copy = new FakeGenerator(device().index());
    copy->cpu = cpu.clone();
    return copy;
  }
};

// torch looks for this name.
struct CUDAHooks final : at::CUDAHooksInterface {
  CUDAHooks() = default;
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override {
    return true;
  }
  bool isBuilt() const override {
    return true;
  }
  bool isAvailable() const override {
    return true;
  }
  bool hasPrimaryContext(c10::DeviceIndex) const override {
    return true;
  }
  int getNumGPUs() const override {
    return devices;
  }
  c10::DeviceIndex deviceCount() const override {
    return static_cast<c10::DeviceIndex>(devices);
  }
  c10::DeviceIndex current_device() const override {
    return static_cast<c10::DeviceIndex>(current);
  }
  c10::DeviceIndex getCurrentDevice() const override {
    return static_cast<c10::DeviceIndex>(current);
  }
  void setCurrentDevice(c10::DeviceIndex index) const override {
    current = index_of(index);
  }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override {
    int before = current;
    current = index_of(index);
    return static_cast<c10::DeviceIndex>(before);
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override {
    return exchangeDevice(index);
  }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex index = -1) const override {
    return default_generator(index);
  }
  at::Generator getNewGenerator(c10::DeviceIndex index = -1) const override {
    if (next_generator_is_default) {
      next_generator_is_default = false;
      return default_generator(index);
    }
    return at::make_generator<FakeGenerator>(index_of(index));
  }
  bool isPinnedPtr(const void* pointer) const override {
    return is_pinned(pointer);
  }
  at::Allocator* getPinnedMemoryAllocator() const override {
    return &pinned_memory;
  }
  at::Device getDeviceFromPtr(void*) const override {
    return cuda();
  }
  void deviceSynchronize(c10::DeviceIndex) const override {
    wait_if_stuck();
  }
};
using at::CUDAHooksRegistry;
using at::RegistererCUDAHooksRegistry;
REGISTER_CUDA_HOOKS(CUDAHooks)

// The profiler's events on the device: when they are recorded, its work is done.
struct ProfilerClock final : torch::profiler::impl::ProfilerStubs {
  void record(
      c10::DeviceIndex* device,
      torch::profiler::impl::ProfilerVoidEventStub* event,
      int64_t* cpu_ns) const override {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    const auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
    if (device) {
      *device = static_cast<c10::DeviceIndex>(current);
    }
    *event = std::make_shared<int64_t>(ns);
    if (cpu_ns) {
      *cpu_ns = ns;
    }
  }
  float elapsed(
      const torch::profiler::impl::ProfilerVoidEventStub* begin,
      const torch::profiler::impl::ProfilerVoidEventStub* end) const override {
    const auto ns = [](const auto* event) { return *static_cast<const int64_t*>(event->get()); };
    return static_cast<float>(ns(end) - ns(begin)) / 1e3F;  // µs
  }
  void mark(const char*) const override {}
  void rangePush(const char*) const override {}
  void rangePop() const override {}
  bool enabled() const override {
    return true;
  }
  void onEachDevice(std::function<void(int)> call) const override {
    call(current);
  }
  void synchronize() const override {}
};
ProfilerClock profiler_clock;

struct Start {
  Start() {
    torch::profiler::impl::registerCUDAMethods(&profiler_clock);
    at::setHostAllocator(c10::DeviceType::CUDA, &pinned_memory, 255);
  }
} start;

}  // namespace

c10::Device cuda(int index) {
  return {c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index_of(index))};
}

at::Generator& default_generator(int index) {
  static std::vector<at::Generator> all = [] {
    std::vector<at::Generator> made;
    for (int i = 0; i < MOST_DEVICES; i++) {
      made.push_back(at::make_generator<FakeGenerator>(i));
    }
    return made;
  }();
  return all[index_of(index)];
}

at::Generator& drawn_from(const at::Generator& generator) {
  return static_cast<FakeGenerator*>(generator.unsafeGetGeneratorImpl())->cpu;
}

Held::Held(int device, size_t bytes) : device_(device), bytes_((bytes + 511) / 512 * 512) {
  auto& counter = counters[device];
  std::lock_guard lock(counter.mutex);
  TORCH_CHECK_WITH(
      OutOfMemoryError,
      counter.now + bytes_ <= counter.total,
      "CUDA out of memory. Tried to allocate ",
      bytes_ / (1 << 20),
      " MiB. GPU ",
      device,
      " has a total capacity of ",
      counter.total / (1 << 20),
      " MiB of which ",
      (counter.total - counter.now) / (1 << 20),
      " MiB is free.");
  counter.now += bytes_;
  counter.peak = std::max(counter.peak, counter.now);
}

Held::~Held() {
  std::lock_guard lock(counters[device_].mutex);
  counters[device_].now -= bytes_;
}

c10::DataPtr allocate(size_t bytes, c10::Device device) {
  if (!bytes) {
    return {nullptr, device};
  }
  auto* block = new Block(device.index(), bytes);
  return {block->memory, block, [](void* it) { delete static_cast<Block*>(it); }, device};
}

c10::Allocator* allocator() {
  return &device_memory;
}

bool is_pinned(const void* pointer) {
  std::lock_guard lock(pinned_mutex);
  return pinned.count(pointer) > 0;
}

void tell(const Happening& it) {
  if (listener) {
    listener(it.kind, it.what, it.bytes, it.contiguous, it.pinned, it.waits, it.device);
  }
}

void wait_for_device(Happening happening) {
  happening.waits = true;
  tell(happening);
  TORCH_CHECK(sync_debug_mode < 2, "called a synchronizing CUDA operation");
  if (sync_debug_mode == 1) {
    TORCH_WARN("called a synchronizing CUDA operation");
  }
  wait_if_stuck();
  arrive(last_copy());
}

}  // namespace fake

// DDP asks for a timer of the device, to log with.
namespace c10d {
namespace {
struct NoTimer final : Timer {
  explicit NoTimer(c10::Device) {}
  void record(Event) override {}
  std::optional<int64_t> measureDifference(Event, Event) override {
    return std::nullopt;
  }
};
C10_REGISTER_TYPED_CLASS(TimerRegistry, c10::kCUDA, NoTimer);
}  // namespace
}  // namespace c10d

// What ../device.py calls.
extern "C" {
void fake_set_devices(int devices) {
  fake::devices = devices;
}
void fake_set_total(int index, size_t bytes) {
  fake::counters[index].total = bytes;
}
void fake_listen(decltype(fake::listener) listener) {
  fake::listener = listener;
}
int fake_current_device() {
  return fake::current;
}
void fake_set_device(int index) {
  fake::current = index;
}
void fake_seed(int index, uint64_t seed) {
  fake::default_generator(index).set_current_seed(seed);
}
void fake_next_generator_is_default() {
  fake::next_generator_is_default = true;
}
size_t fake_allocated(int index) {
  return fake::counters[index].now;
}
size_t fake_peak(int index) {
  return fake::counters[index].peak;
}
void fake_reset_peak(int index) {
  std::lock_guard lock(fake::counters[index].mutex);
  fake::counters[index].peak = fake::counters[index].now;
}
void fake_sync_debug_mode(int mode) {
  fake::sync_debug_mode = mode;
}
}
