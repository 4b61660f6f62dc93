"""Restricts engines to AVX2 on a processor with AVX-512, to measure what most x86 servers and laptops reach.

ONNX Runtime selects its kernels by whether the operating system saves the AVX-512 registers (instruction XGETBV). In a
copy of the library, this instruction is replaced by the answer "no", so that it selects the AVX2 kernels that a
processor without AVX-512 would get (tests/runtime/test_emulated.py runs them in emulation). torch has a setting for it.
Clock, caches and memory still differ from a real AVX2 processor.
"""

import importlib.util
import re
import shutil
from pathlib import Path

from mlm_infer.errors import InputError

__all__ = ["avx2_environment"]

# What compilers generate for the query: xor ecx, ecx; xgetbv - or xgetbv; mov eax, eax.
_ASKED = re.compile(rb"(?<=\x31\xc9)\x0f\x01\xd0|\x0f\x01\xd0(?=\x89\xc0)")
_ANSWER = b"\xb0\x07\x90"  # mov al, 7; nop: x87, SSE and AVX


def avx2_environment(folder: Path) -> dict[str, str]:
    """Return environment variables that restrict ONNX Runtime and torch to AVX2.

    Args:
        folder: Folder for the copy of ONNX Runtime; an existing copy is reused.

    Raises:
        InputError: ONNX Runtime is not installed, or this build does not contain the expected instructions.
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
