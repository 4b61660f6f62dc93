"""The instruction set of most x86 servers and laptops, measured on a processor that has more.

ONNX Runtime chooses its kernels by what the system says it saves of the AVX-512 registers (the instruction XGETBV).
A copy of the library in which that instruction answers "none" takes its AVX2 kernels, the very ones that it takes on
a processor without AVX-512 (tests/runtime/test_emulated.py runs them in emulation); torch has a switch for it. What
differs from a real one is the rest of the processor: clock, caches, memory.
"""

import importlib.util
import re
import shutil
from pathlib import Path

from mlm_infer.errors import InputError

__all__ = ["avx2_environment"]

# xor ecx, ecx; xgetbv, or xgetbv; mov eax, eax: what compilers make of asking for the saved registers.
_ASKED = re.compile(rb"(?<=\x31\xc9)\x0f\x01\xd0|\x0f\x01\xd0(?=\x89\xc0)")
_ANSWER = b"\xb0\x07\x90"  # mov al, 7; nop: x87, SSE and AVX


def avx2_environment(folder: Path) -> dict[str, str]:
    """Return environment variables under which ONNX Runtime and torch use no more than AVX2.

    Args:
        folder: Where to keep the copy of ONNX Runtime; one that is there is taken.

    Raises:
        InputError: This ONNX Runtime is built otherwise.
    """
    found = importlib.util.find_spec("onnxruntime")
    if found is None or found.origin is None:
        raise InputError("onnxruntime is not installed; install it with: pip install 'mlm-infer[bench,cpu]'")
    copy = folder / "onnxruntime"
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(Path(found.origin).parent, copy)
        changed = 0
        for library in copy.glob("capi/*.so*"):
            content, count = _ASKED.subn(_ANSWER, library.read_bytes())
            library.write_bytes(content)
            changed += count
        if not changed:
            raise InputError("this onnxruntime does not ask for AVX-512 as those for x86-64 on Linux do")
        (folder / "ready").touch()
    return {
        "PYTHONPATH": str(folder.absolute()),
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "MLM_INFER_CPU": "avx2",
    }
