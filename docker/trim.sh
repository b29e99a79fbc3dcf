#!/bin/sh
# Removes what no server and no job loads, says what each line frees, and checks what stays: trim.sh /opt/venv
# Every package stays, and so does what one of torch's libraries needs, and what a model may call: cuDNN, Triton.
set -eu
cd "$1"/lib/python3*/site-packages

drop() { # REASON PATH...
    reason=$1
    shift
    echo "$(du -cm "$@" 2>/dev/null | sed -n 's/\ttotal$//p') MiB: $reason"
    rm -rf "$@"
}

cuda=$("$1/bin/python" -c 'import torch; print((torch.version.cuda or "none").replace(".", ""))')
drop "static archives, which only a linker reads" $(find . -name '*.a')
drop "torch's headers and protoc, for compiling extensions" torch/include torch/bin/protoc*
drop "a second NVRTC, which nothing links or opens" nvidia/*/lib/libnvrtc*.alt.so*
drop "cuSOLVER for several GPUs, which nothing links or opens" nvidia/*/lib/libcusolverMg.so*
drop "Triton's profiler, which nothing here starts" triton/_C/libproton.so triton/backends/nvidia/lib/cupti
drop "bitsandbytes for another CUDA than torch's, or for other makers' GPUs" \
    $(find bitsandbytes -name 'libbitsandbytes_*.so' ! -name "libbitsandbytes_cuda$cuda.so" ! -name libbitsandbytes_cpu.so)
drop "tests of other packages" $(find numpy scipy sympy networkx -type d -name tests -prune)

# Each library that is left finds all that it links. The driver's own comes with the host.
"$1/bin/python" - <<END
import ctypes, glob
import torch, bitsandbytes
for file in glob.glob("torch/lib/*.so") + glob.glob("bitsandbytes/*.so") + glob.glob("triton/_C/*.so"):
    try:
        ctypes.CDLL("./" + file)
    except OSError as error:
        if "libcuda.so.1" not in str(error):
            raise
if torch.version.cuda:
    assert glob.glob("bitsandbytes/libbitsandbytes_cuda$cuda.so"), "bitsandbytes has nothing for this CUDA"
END
