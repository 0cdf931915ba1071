// A CUDA runtime and driver without a GPU, preloaded into a process that runs torch's CUDA build.
//
// Device memory is host memory, streams are empty because every copy is done at once, and events are times. A kernel
// cannot be launched: the attempt fails and prints where it came from, so that nothing is simulated by halves. Only
// what torch calls is here. The library stands in for libcudart by preloading and for libcuda.so.1 by its name.
#include <cuda_runtime_api.h>
#include <execinfo.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#undef cudaGetDeviceProperties

namespace {

constexpr size_t kTotalMemory = 8ull << 30;
constexpr size_t kAlignment = 512;  // cudaMalloc's

struct Block {
  size_t bytes;
  cudaMemoryType type;
};

std::mutex guard;
std::map<const char*, Block> blocks;
std::map<cudaEvent_t, double> event_times;  // in milliseconds
std::atomic<size_t> next_handle{0x1000};

template <typename Handle>
cudaError_t new_handle(Handle* handle) {
  *handle = reinterpret_cast<Handle>(next_handle += 16);
  return cudaSuccess;
}

cudaError_t allocate(void** pointer, size_t bytes, cudaMemoryType type) {
  if (posix_memalign(pointer, kAlignment, bytes ? bytes : kAlignment)) return cudaErrorMemoryAllocation;
  std::lock_guard<std::mutex> lock(guard);
  blocks[static_cast<char*>(*pointer)] = {bytes, type};
  return cudaSuccess;
}

cudaError_t release(void* pointer) {
  {
    std::lock_guard<std::mutex> lock(guard);
    blocks.erase(static_cast<char*>(pointer));
  }
  free(pointer);
  return cudaSuccess;
}

cudaMemoryType type_of(const void* pointer) {
  const char* at = static_cast<const char*>(pointer);
  std::lock_guard<std::mutex> lock(guard);
  auto block = blocks.upper_bound(at);
  if (block == blocks.begin()) return cudaMemoryTypeUnregistered;
  --block;
  return at < block->first + block->second.bytes ? block->second.type : cudaMemoryTypeUnregistered;
}

cudaError_t refuse_kernel() {
  void* frames[24];
  fputs("pretended GPU: a CUDA kernel was launched, from\n", stderr);
  backtrace_symbols_fd(frames, backtrace(frames, 24), 2);
  return cudaErrorUnknown;
}

}  // namespace

extern "C" {

// -- device ---------------------------------------------------------------------------------------------------------

cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) { return *value = 0, cudaSuccess; }
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { return *can = 0, cudaSuccess; }
cudaError_t cudaDeviceGetPCIBusId(char* id, int length, int) {
  return snprintf(id, length, "0000:00:00.0"), cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* most) { return *least = 0, *most = -5, cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }

cudaError_t cudaGetDeviceProperties_v2(cudaDeviceProp* found, int) {
  *found = {};
  strcpy(found->name, "pretended GPU");
  found->major = 9;
  found->totalGlobalMem = kTotalMemory;
  found->multiProcessorCount = 132;
  found->warpSize = 32;
  found->maxThreadsPerBlock = found->maxThreadsDim[0] = found->maxThreadsDim[1] = 1024;
  found->maxThreadsDim[2] = 64;
  found->maxThreadsPerMultiProcessor = 2048;
  found->maxGridSize[0] = 2147483647;
  found->maxGridSize[1] = found->maxGridSize[2] = 65535;
  found->sharedMemPerBlock = 49152;
  found->textureAlignment = kAlignment;
  return cudaSuccess;
}
// the name that CUDA 13 gives to the same function
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* found, int device) {
  return cudaGetDeviceProperties_v2(found, device);
}

// -- memory ---------------------------------------------------------------------------------------------------------

cudaError_t cudaMalloc(void** pointer, size_t bytes) { return allocate(pointer, bytes, cudaMemoryTypeDevice); }
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  return allocate(pointer, bytes, cudaMemoryTypeHost);
}
cudaError_t cudaFree(void* pointer) { return release(pointer); }
cudaError_t cudaFreeHost(void* pointer) { return release(pointer); }
cudaError_t cudaHostRegister(void*, size_t, unsigned) { return cudaSuccess; }
cudaError_t cudaHostUnregister(void*) { return cudaSuccess; }
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) { return *free = *total = kTotalMemory, cudaSuccess; }

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* found, const void* pointer) {
  *found = {};
  found->type = type_of(pointer);
  if (found->type != cudaMemoryTypeUnregistered) found->devicePointer = const_cast<void*>(pointer);
  if (found->type == cudaMemoryTypeHost) found->hostPointer = const_cast<void*>(pointer);
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  return memmove(to, from, bytes), cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  return memmove(to, from, bytes), cudaSuccess;
}
cudaError_t cudaMemset(void* to, int value, size_t bytes) { return memset(to, value, bytes), cudaSuccess; }
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  return memset(to, value, bytes), cudaSuccess;
}

// -- streams and events ---------------------------------------------------------------------------------------------

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return new_handle(stream); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) { return new_handle(stream); }
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) { return *priority = 0, cudaSuccess; }
cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  return *status = cudaStreamCaptureStatusNone, cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }

cudaError_t cudaEventCreate(cudaEvent_t* event) { return new_handle(event); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return new_handle(event); }
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  std::lock_guard<std::mutex> lock(guard);
  event_times[event] = std::chrono::duration<double, std::milli>(now).count();
  return cudaSuccess;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  return cudaEventRecord(event, stream);
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  std::lock_guard<std::mutex> lock(guard);
  return *milliseconds = event_times[end] - event_times[begin], cudaSuccess;
}

// -- errors, kernels, driver ----------------------------------------------------------------------------------------

cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
const char* cudaGetErrorName(cudaError_t error) { return error == cudaSuccess ? "cudaSuccess" : "pretended GPU"; }
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "the pretended GPU runs no kernels (the lines above name the caller)";
}
cudaError_t cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t) { return refuse_kernel(); }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void*, void**) { return refuse_kernel(); }
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, const void*) {
  *found = {};
  return found->maxThreadsPerBlock = 1024, cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }

// torch asks the driver one thing directly: whether a context exists
int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) { return *flags = 0, *active = 1, 0; }
int cuLaunchKernel(...) { return refuse_kernel(); }

}  // extern "C"
