// The Python module of the CUDA backend. Addresses and the stream's handle cross as numbers; torch does not.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "fill_cuda.h"

namespace py = pybind11;

namespace {

void launch(uintptr_t records, uintptr_t works, int64_t n_works, int device, uintptr_t stream) {
  const char* error;
  {
    py::gil_scoped_release released;
    error = fastinit::launch(reinterpret_cast<const fastinit::FillDesc*>(records),
                             reinterpret_cast<const fastinit::Work*>(works), n_works, device,
                             reinterpret_cast<void*>(stream));
  }
  if (error != nullptr) throw std::runtime_error("the CUDA kernel could not be launched: " + std::string(error));
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
  module.doc() = "fastinit's kernel for NVIDIA GPUs";
  module.attr("RECORD_BYTES") = sizeof(fastinit::FillDesc);
  module.attr("WORK_BYTES") = sizeof(fastinit::Work);
  module.attr("TRIP_ELEMENTS") = fastinit::kTripElements;
  module.attr("TRIP_BYTES") = fastinit::kTripBytes;
  module.attr("RUNTIME_VERSION") = fastinit::runtime_version();
  module.def(
      "why_not", [] { return fastinit::why_not(); },
      "Returns why CUDA cannot run here in CUDA's words, None if it can.");
  module.def("launch", &launch, py::arg("records"), py::arg("works"), py::arg("n_works"), py::arg("device"),
             py::arg("stream"),
             "Starts the kernel on a stream; the tables, in device memory, must stay alive until it is done.");
}
