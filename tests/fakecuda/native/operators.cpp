// Operators of the device: each is the CPU's, run on twins, CPU tensors over the same memory. What
// CUDA refuses is refused first: operands on two devices, a generator of another device.
//
// Copies between host and device are told, and those that CUDA makes in its own time are made
// late: until the host waits, what they write is nonsense, and what they read must not change.

#include "fake.h"

#include <ATen/EmptyTensor.h>
#include <ATen/core/Generator.h>
#include <ATen/native/transformers/attention.h>
#include <c10/core/CPUAllocator.h>

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>

namespace fake {
namespace {

using at::Tensor;
using c10::Device;
using c10::IValue;
using c10::Storage;
using torch::jit::Stack;

// --- twins ------------------------------------------------------------------------------------

template <class T>
void drop(void* it) {
  delete static_cast<T*>(it);
}

// A tensor over `storage`, with the sizes of `like`. view_of: the keys of the tensor that it is a view
// of; in inference mode they say whether that was made in it.
Tensor over(
    const Tensor& like,
    Storage storage,
    c10::DispatchKey key,
    std::optional<c10::DispatchKeySet> view_of = std::nullopt) {
  auto tensor = view_of
      ? at::detail::make_tensor<c10::TensorImpl>(
            c10::TensorImpl::VIEW, std::move(storage), *view_of, like.dtype())
      : at::detail::make_tensor<c10::TensorImpl>(
            std::move(storage), c10::DispatchKeySet(key), like.dtype());
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(
      like.sizes(), like.strides(), like.storage_offset());
  if (like.is_conj()) {
    tensor._set_conj(true);
  }
  return tensor;
}

// CPU memory that an operator made, as the device's: it counts from now on.
struct Kept {
  Held held;
  Storage memory;
};

// The device's storages in one operator, each with its twin.
class Twins {
 public:
  Tensor to_cpu(const Tensor& tensor) {
    auto* impl = tensor.storage().unsafeGetStorageImpl();
    for (auto& [ours, host, keys] : pairs_) {
      if (ours.unsafeGetStorageImpl() == impl) {
        return over(tensor, host, c10::DispatchKey::CPU);
      }
    }
    auto* keep_alive = new Storage(tensor.storage());
    c10::DataPtr memory(impl->mutable_data(), keep_alive, &drop<Storage>, Device(c10::kCPU));
    Storage twin(
        Storage::use_byte_size_t(),
        impl->nbytes(),
        std::move(memory),
        c10::GetAllocator(c10::kCPU),
        /*resizable=*/true);
    pairs_.push_back({tensor.storage(), twin, tensor.key_set()});
    return over(tensor, twin, c10::DispatchKey::CPU);
  }

  Tensor to_cuda(const Tensor& tensor, Device device) {
    auto* impl = tensor.storage().unsafeGetStorageImpl();
    for (auto& [ours, host, keys] : pairs_) {
      if (host.unsafeGetStorageImpl() == impl) {  // a view of an argument, or of another result
        return over(tensor, ours, c10::DispatchKey::CUDA, keys);
      }
    }
    Storage ours(
        Storage::use_byte_size_t(),
        impl->nbytes(),
        taken(tensor.storage(), device),
        allocator(),
        /*resizable=*/true);
    auto result = over(tensor, ours, c10::DispatchKey::CUDA);
    pairs_.push_back({ours, tensor.storage(), result.key_set()});
    return result;
  }

  // An argument whose memory the operator replaced, as out= does.
  void take_over(const Tensor& ours, const Tensor& twin) {
    auto* impl = ours.storage().unsafeGetStorageImpl();
    if (twin.storage().data() != impl->data() || twin.storage().nbytes() != impl->nbytes()) {
      auto memory = taken(twin.storage(), ours.device());
      impl->set_data_ptr_noswap(std::move(memory));
      impl->set_nbytes(twin.storage().nbytes());
    }
    if (ours.sizes() != twin.sizes() || ours.strides() != twin.strides()) {
      ours.unsafeGetTensorImpl()->set_sizes_and_strides(
          twin.sizes(), twin.strides(), twin.storage_offset());
    }
  }

 private:
  static c10::DataPtr taken(const Storage& host, Device device) {
    auto* memory = host.unsafeGetStorageImpl()->mutable_data();
    auto* kept = new Kept{Held(device.index(), host.nbytes()), host};
    return {memory, kept, &drop<Kept>, device};
  }

  struct Pair {
    Storage ours;
    Storage host;
    c10::DispatchKeySet keys;  // of a tensor over it
  };
  std::vector<Pair> pairs_;
};

Tensor twin_of(const Tensor& tensor) {
  return tensor.is_cuda() ? Twins().to_cpu(tensor) : tensor;
}

// --- one operator -----------------------------------------------------------------------------

bool starts_with(const std::string& name, const char* prefix) {
  return name.rfind(prefix, 0) == 0;
}

// Whether there may be tensors in it: a list of them, or of such lists.
bool may_hold_tensors(const IValue& value) {
  return value.isList() && !value.isIntList() && !value.isDoubleList() && !value.isBoolList();
}

// Operators in which the host waits for the device, since the shape of their result, or the result
// itself, is the host's.
bool waits(const std::string& name) {
  static const std::set<std::string> names = {
      "aten::_local_scalar_dense", "aten::nonzero",        "aten::masked_select",
      "aten::equal",               "aten::_unique2",       "aten::unique_dim",
      "aten::unique_consecutive",  "aten::bincount",       "aten::repeat_interleave",
      "aten::_linalg_check_errors"};
  return names.count(name) > 0;
}

class Call {
 public:
  Call(const c10::OperatorHandle& op, Stack* stack)
      : op_(op), name_(op.schema().name()), stack_(stack) {}

  void run() {
    const auto& arguments = op_.schema().arguments();
    const auto begin = stack_->end() - static_cast<ptrdiff_t>(arguments.size());
    find_device(begin);
    refuse_what_cuda_refuses(begin);
    for (size_t i = 0; i < arguments.size(); i++) {
      auto& value = *(begin + static_cast<ptrdiff_t>(i));
      const auto* alias = arguments[i].alias_info();
      value = down(value, alias && alias->isWrite(), /*listed=*/false);
      if (arguments[i].name() == "generator" && value.isNone()) {
        value = drawn_from(default_generator(device_.index()));
      }
    }
    if (waits(name_)) {
      wait_for_device({.kind = name_ == "aten::_local_scalar_dense" ? "item" : "down",
                       .what = name_.c_str(),
                       .device = device_.index()});
    }
    op_.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack_);
    for (auto& [ours, twin] : arguments_) {
      twins_.take_over(ours, twin);
    }
    const auto results = op_.schema().returns().size();
    for (auto it = stack_->end() - static_cast<ptrdiff_t>(results); it != stack_->end(); ++it) {
      *it = up(*it);
    }
  }

 private:
  // That of the first tensor on a device, else of the device argument, else the current one.
  template <class Iterator>
  void find_device(Iterator begin) {
    for (auto it = begin; it != stack_->end(); ++it) {
      if (it->isDevice() && it->toDevice().is_cuda()) {
        device_ = it->toDevice().has_index() ? it->toDevice() : cuda();
      }
    }
    for (auto it = begin; it != stack_->end(); ++it) {
      if (find_in(*it)) {
        return;
      }
    }
  }

  bool find_in(const IValue& value) {
    if (value.isTensor() && value.toTensor().defined() && value.toTensor().is_cuda()) {
      device_ = value.toTensor().device();
      has_tensor_ = true;
      return true;
    }
    if (may_hold_tensors(value)) {
      for (const IValue& each : value.toListRef()) {
        if (find_in(each)) {
          return true;
        }
      }
    }
    return false;
  }

  template <class Iterator>
  void refuse_what_cuda_refuses(Iterator begin) {
    static const std::set<std::string> products = {
        "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::addmv", "aten::dot"};
    if (!products.count(name_) || !has_tensor_) {
      return;
    }
    const auto type = begin->toTensor().scalar_type();
    TORCH_CHECK_NOT_IMPLEMENTED(
        !c10::isIntegralType(type, /*includeBool=*/true),
        '"', name_.substr(6), "_cuda\" not implemented for '", type, "'");
    TORCH_CHECK(
        !at::globalContext().deterministicAlgorithms() || std::getenv("CUBLAS_WORKSPACE_CONFIG"),
        "Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)`"
        " or `at::Context::setDeterministicAlgorithms(true)`, but this operation is not "
        "deterministic because it uses CuBLAS and you have CUDA >= 10.2. Set "
        "CUBLAS_WORKSPACE_CONFIG=:4096:8");
  }

  IValue down(const IValue& value, bool written, bool listed) {
    if (value.isTensor()) {
      return down(value.toTensor(), written, listed);
    }
    if (may_hold_tensors(value)) {
      auto list = value.toList();
      c10::impl::GenericList twins(list.elementType());
      for (const IValue& each : value.toListRef()) {
        twins.push_back(down(each, written, /*listed=*/true));
      }
      return twins;
    }
    if (value.isDevice() && value.toDevice().is_cuda()) {
      return Device(c10::kCPU);
    }
    if (value.isGenerator()) {
      auto generator = value.toGenerator();
      TORCH_CHECK(
          generator.device().is_cuda(),
          "Expected a 'cuda' device type for generator but found '",
          generator.device().type(),
          "' (",
          name_,
          ")");
      return drawn_from(generator);
    }
    return value;
  }

  Tensor down(const Tensor& tensor, bool written, bool listed) {
    if (!tensor.defined()) {
      return tensor;
    }
    const bool indexes = starts_with(name_, "aten::index") || starts_with(name_, "aten::_index_put");
    if (!tensor.is_cuda()) {
      // a number beside the device's tensors may be the host's; and so may an index, at a price
      const bool is_number = tensor.dim() == 0 && !written && !listed;
      TORCH_CHECK(!has_tensor_ || is_number || (indexes && listed), two_devices(tensor.device()));
      if (indexes && listed && has_tensor_) {
        wait_for_device({.kind = "up",
                         .what = name_.c_str(),
                         .bytes = static_cast<int64_t>(tensor.nbytes()),
                         .contiguous = tensor.is_contiguous(),
                         .pinned = is_pinned(tensor.storage().data()),
                         .device = device_.index()});
      }
      return tensor;
    }
    TORCH_CHECK(tensor.device() == device_, two_devices(tensor.device()));
    const bool is_mask = tensor.scalar_type() == at::kBool || tensor.scalar_type() == at::kByte;
    if (indexes && listed && is_mask) {
      wait_for_device({.kind = "down", .what = "nonzero of a mask", .device = device_.index()});
    }
    auto twin = twins_.to_cpu(tensor);
    arguments_.emplace_back(tensor, twin);
    return twin;
  }

  std::string two_devices(Device other) const {
    return c10::str(
        "Expected all tensors to be on the same device, but found at least two devices, ",
        device_,
        " and ",
        other,
        "! (when checking arguments of ",
        name_,
        ")");
  }

  IValue up(const IValue& value) {
    if (value.isTensor()) {
      auto tensor = value.toTensor();
      if (!tensor.defined() || tensor.is_cuda()) {
        return tensor;
      }
      for (auto& [ours, twin] : arguments_) {
        if (twin.is_same(tensor)) {
          return ours;
        }
      }
      return twins_.to_cuda(tensor, device_);
    }
    if (may_hold_tensors(value)) {
      auto list = value.toList();
      c10::impl::GenericList ours(list.elementType());
      for (const IValue& each : value.toListRef()) {
        ours.push_back(up(each));
      }
      return ours;
    }
    return value;
  }

  const c10::OperatorHandle& op_;
  const std::string name_;
  Stack* stack_;
  Device device_ = cuda();
  bool has_tensor_ = false;
  Twins twins_;
  std::vector<std::pair<Tensor, Tensor>> arguments_;  // the device's tensors and their twins
};

// --- copies -----------------------------------------------------------------------------------

// A copy that CUDA makes while the host goes on: to the device from pinned memory, which must stay
// as it is; or to pinned memory, which is not written yet.
struct UnderWay {
  int64_t number;
  Tensor host;   // pinned
  Tensor value;  // what is, or will be, in it
  bool upward;
};
std::mutex copies_mutex;
std::vector<UnderWay> copies;
int64_t copies_begun = 0;

void begin_copy(const Tensor& host, Tensor value, bool upward) {
  std::lock_guard lock(copies_mutex);
  copies.push_back({++copies_begun, host, std::move(value), upward});
}

bool same_bytes(const Tensor& a, const Tensor& b) {
  auto left = a.contiguous(), right = b.contiguous();
  return std::memcmp(left.data_ptr(), right.data_ptr(), left.nbytes()) == 0;
}

Tensor& copy_(Tensor& self, const Tensor& source, bool non_blocking) {
  auto to = twin_of(self), from = twin_of(source);
  if (self.is_cuda() == source.is_cuda()) {
    to.copy_(from);
    return self;
  }
  const bool upward = self.is_cuda();
  const auto& host = upward ? source : self;
  Happening happening{
      .kind = upward ? "up" : "down",
      .what = "copy_",
      .bytes = static_cast<int64_t>(self.nbytes()),
      .contiguous = host.is_contiguous(),
      .pinned = is_pinned(host.storage().data()),
      .device = (upward ? self : source).device().index()};
  // Of other kinds of memory, or of another dtype or layout, CUDA makes a copy first and waits.
  const bool late = non_blocking && happening.pinned && self.dtype() == source.dtype() &&
      self.is_contiguous() && source.is_contiguous();
  if (!late) {
    if (upward && non_blocking) {
      tell(happening);  // staged by the driver: the host may go on
    } else {
      wait_for_device(happening);
    }
    to.copy_(from);
    return self;
  }
  tell(happening);
  if (upward) {
    to.copy_(from);
    begin_copy(source, from.clone(), upward);
  } else {
    begin_copy(self, from.clone(), upward);
    std::memset(to.data_ptr(), 0xff, to.nbytes());  // NaN, or -1
  }
  return self;
}

// --- operators that the CPU does not have, or that mean another thing there ---------------------

// The allocator counts for the current device, so that has to be the one asked for.
class On {
 public:
  explicit On(std::optional<Device> device) : guard_(device.value_or(cuda())) {}

 private:
  c10::DeviceGuard guard_;
};

Tensor empty(
    c10::IntArrayRef size,
    std::optional<at::ScalarType> dtype,
    std::optional<at::Layout>,
    std::optional<Device> device,
    std::optional<bool>,
    std::optional<c10::MemoryFormat> format) {
  On on(device);
  return at::detail::empty_generic(
      size,
      allocator(),
      c10::DispatchKeySet(c10::DispatchKey::CUDA),
      c10::dtype_or_default(dtype),
      format);
}

Tensor empty_strided(
    c10::IntArrayRef size,
    c10::IntArrayRef stride,
    std::optional<at::ScalarType> dtype,
    std::optional<at::Layout>,
    std::optional<Device> device,
    std::optional<bool>) {
  On on(device);
  return at::detail::empty_strided_generic(
      size,
      stride,
      allocator(),
      c10::DispatchKeySet(c10::DispatchKey::CUDA),
      c10::dtype_or_default(dtype));
}

const Tensor& resize_(
    const Tensor& self,
    c10::IntArrayRef size,
    std::optional<c10::MemoryFormat>) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_sizes_contiguous(size);
  const size_t needed = (self.storage_offset() + self.numel()) * self.element_size();
  auto* storage = self.storage().unsafeGetStorageImpl();
  if (storage->nbytes() < needed) {
    auto memory = allocate(needed, self.device());
    if (storage->nbytes()) {
      std::memcpy(memory.get(), storage->data(), storage->nbytes());
    }
    storage->set_data_ptr_noswap(std::move(memory));
    storage->set_nbytes(needed);
  }
  return self;
}

Tensor& set_storage(
    Tensor& self,
    Storage source,
    int64_t offset,
    c10::IntArrayRef size,
    c10::IntArrayRef stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  impl->set_storage_offset(offset);
  if (stride.size() == size.size()) {
    impl->set_sizes_and_strides(size, stride, offset);
  } else {
    impl->set_sizes_contiguous(size);
  }
  return self;
}

Tensor& set_tensor(Tensor& self, const Tensor& source) {
  return set_storage(
      self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

Tensor& set_whole_storage(Tensor& self, Storage source) {
  const int64_t size = static_cast<int64_t>(source.nbytes() / self.element_size());
  return set_storage(self, std::move(source), 0, {size}, {1});
}

void record_stream(Tensor&, c10::Stream) {}

// Products of half precision whose result is not rounded to it, which a CPU does not have.
Tensor mm_in_float(const Tensor& a, const Tensor& b, at::ScalarType out) {
  TORCH_CHECK(
      a.scalar_type() == out ||
          (out == at::kFloat && (a.scalar_type() == at::kHalf || a.scalar_type() == at::kBFloat16)),
      "out_dtype must be the same as input dtype or fp32 for fp16/bf16 inputs");
  return at::matmul(a.to(out), b.to(out));
}

// --- attention --------------------------------------------------------------------------------

// Flash attention takes half precision without a mask, memory-efficient attention the rest; both
// are the CPU's flash kernel here, so that its bits are the same. Where that cannot (dropout), and
// where CUDA has neither (grouped heads in float32), it is math.
int64_t sdp_choice(
    const Tensor& q,
    const Tensor& k,
    const Tensor& v,
    const std::optional<Tensor>& mask,
    double dropout_p,
    bool,
    std::optional<double>,
    bool) {
  constexpr int64_t MATH = 0, FLASH = 1, EFFICIENT = 2;
  // by shapes alone, which may be symbols: torch.compile asks, too
  const auto dense = [](const Tensor& t) { return t.sym_stride(3) == 1; };
  const bool fits = q.dim() == 4 && dropout_p == 0 && q.sym_size(3) == v.sym_size(3) && dense(q) &&
      dense(k) && dense(v);
  if (!fits) {
    return MATH;
  }
  const bool masked = mask && mask->defined();
  const bool half = q.scalar_type() == at::kHalf || q.scalar_type() == at::kBFloat16;
  auto& context = at::globalContext();
  if (half && !masked && context.userEnabledFlashSDP()) {
    return FLASH;
  }
  const bool grouped = q.sym_size(1) != k.sym_size(1);
  return !grouped && context.userEnabledMemEfficientSDP() ? EFFICIENT : MATH;
}

const at::native::RegisterCUDADispatch<decltype(at::native::_fused_sdp_choice_stub)> chooser(
    at::native::_fused_sdp_choice_stub,
    &sdp_choice);

Tensor no_numbers(const Tensor& like) {
  return at::zeros({2}, like.options().dtype(at::kLong));
}

using FlashResult =
    std::tuple<Tensor, Tensor, Tensor, Tensor, c10::SymInt, c10::SymInt, Tensor, Tensor, Tensor>;

FlashResult flash_attention(
    const Tensor& q,
    const Tensor& k,
    const Tensor& v,
    double dropout_p,
    bool is_causal,
    bool,
    std::optional<double> scale) {
  Twins twins;
  auto [out, lse] = at::_scaled_dot_product_flash_attention_for_cpu(
      twins.to_cpu(q), twins.to_cpu(k), twins.to_cpu(v), dropout_p, is_causal, {}, scale);
  return {
      twins.to_cuda(out, q.device()),
      twins.to_cuda(lse, q.device()),
      Tensor(),
      Tensor(),
      q.size(2),
      k.size(2),
      no_numbers(q),
      no_numbers(q),
      at::empty({0}, q.options())};
}

std::tuple<Tensor, Tensor, Tensor> flash_attention_backward(
    const Tensor& grad,
    const Tensor& q,
    const Tensor& k,
    const Tensor& v,
    const Tensor& out,
    const Tensor& lse,
    const Tensor&,
    const Tensor&,
    c10::SymInt,
    c10::SymInt,
    double dropout_p,
    bool is_causal,
    const Tensor&,
    const Tensor&,
    std::optional<double> scale) {
  Twins twins;
  auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
      twins.to_cpu(grad),
      twins.to_cpu(q),
      twins.to_cpu(k),
      twins.to_cpu(v),
      twins.to_cpu(out),
      twins.to_cpu(lse),
      dropout_p,
      is_causal,
      {},
      scale);
  const auto device = q.device();
  return {twins.to_cuda(dq, device), twins.to_cuda(dk, device), twins.to_cuda(dv, device)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> efficient_attention(
    const Tensor& q,
    const Tensor& k,
    const Tensor& v,
    const std::optional<Tensor>& bias,
    bool,
    double dropout_p,
    bool is_causal,
    std::optional<double> scale) {
  Twins twins;
  std::optional<Tensor> mask;
  if (bias && bias->defined()) {
    mask = twins.to_cpu(*bias);
  }
  auto [out, lse] = at::_scaled_dot_product_flash_attention_for_cpu(
      twins.to_cpu(q), twins.to_cpu(k), twins.to_cpu(v), dropout_p, is_causal, mask, scale);
  const auto device = q.device();
  return {twins.to_cuda(out, device), twins.to_cuda(lse, device), no_numbers(q), no_numbers(q)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> efficient_attention_backward(
    const Tensor& grad,
    const Tensor& q,
    const Tensor& k,
    const Tensor& v,
    const Tensor& bias,
    const Tensor& out,
    const Tensor& lse,
    const Tensor&,
    const Tensor&,
    double dropout_p,
    std::array<bool, 4>,
    bool is_causal,
    std::optional<double> scale) {
  Twins twins;
  std::optional<Tensor> mask;
  if (bias.defined()) {
    mask = twins.to_cpu(bias);
  }
  auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
      twins.to_cpu(grad),
      twins.to_cpu(q),
      twins.to_cpu(k),
      twins.to_cpu(v),
      twins.to_cpu(out),
      twins.to_cpu(lse),
      dropout_p,
      is_causal,
      mask,
      scale);
  const auto device = q.device();
  return {
      twins.to_cuda(dq, device), twins.to_cuda(dk, device), twins.to_cuda(dv, device), Tensor()};
}

}  // namespace

void on_cpu(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  Call(op, stack).run();
}

int64_t last_copy() {
  std::lock_guard lock(copies_mutex);
  return copies_begun;
}

void arrive(int64_t up_to) {
  std::vector<UnderWay> arrived;
  {
    std::lock_guard lock(copies_mutex);
    auto later = std::find_if(copies.begin(), copies.end(), [&](const UnderWay& copy) {
      return copy.number > up_to;
    });
    arrived.assign(copies.begin(), later);
    copies.erase(copies.begin(), later);
  }
  at::NoGradGuard no_grad;
  for (auto& copy : arrived) {
    if (!copy.upward) {
      std::memcpy(copy.host.data_ptr(), copy.value.data_ptr(), copy.value.nbytes());
    } else if (!same_bytes(copy.host, copy.value)) {
      tell({.kind = "race",
            .what = "a pinned buffer was written while it was copied to the device",
            .bytes = static_cast<int64_t>(copy.value.nbytes()),
            .pinned = true});
    }
  }
}

TORCH_LIBRARY_IMPL(_, CUDA, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_cpu>());
}

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("copy_", &copy_);
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("resize_", &resize_);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("set_.source_Tensor", &set_tensor);
  m.impl("set_.source_Storage", &set_whole_storage);
  m.impl("record_stream", &record_stream);
  m.impl("mm.dtype", &mm_in_float);
  m.impl("bmm.dtype", &mm_in_float);
  m.impl("_fused_sdp_choice", &sdp_choice);
  m.impl("_scaled_dot_product_flash_attention", &flash_attention);
  m.impl("_scaled_dot_product_flash_attention_backward", &flash_attention_backward);
  m.impl("_scaled_dot_product_efficient_attention", &efficient_attention);
  m.impl("_scaled_dot_product_efficient_attention_backward", &efficient_attention_backward);
}

}  // namespace fake

extern "C" {
int64_t fake_last_copy() {
  return fake::last_copy();
}
void fake_arrive(int64_t up_to) {
  fake::arrive(up_to);
}
// FSDP2 frees and gets memory by resizing storages; torch asks CUDA's own allocator for it.
int fake_resize(void* storage, size_t bytes) {
  auto* impl = static_cast<c10::StorageImpl*>(storage);
  try {
    auto memory = fake::allocate(bytes, impl->device());
    if (const size_t kept = std::min(bytes, impl->nbytes())) {
      std::memcpy(memory.get(), impl->data(), kept);
    }
    impl->set_data_ptr_noswap(std::move(memory));
    impl->set_nbytes(bytes);
    return 0;
  } catch (const c10::OutOfMemoryError&) {
    return 1;
  }
}
}
