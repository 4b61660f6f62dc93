"""The backend interface, and the selection of model, backend and device."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from mlm_infer.bundle.graph_scan import check_graph
from mlm_infer.bundle.interface import BACKENDS
from mlm_infer.bundle.manifest import TORCHSCRIPT, ForeignManifest, Manifest, ModelFile, unchanged
from mlm_infer.checks import shown
from mlm_infer.errors import DeviceError, InputError

from .cpu import cpu_kind, multiplies_bytes
from .plain_export import EveryPosition

__all__ = ["Backend", "BackendType", "Opened", "backend_type", "open_backend"]

logger = logging.getLogger(__name__)

_RIGHT = ModelFile("")
_FASTEST_FIRST = {"cpu": ("int8", "fp32", "fp16"), "cuda": ("fp16", "fp32")}


class Backend(Protocol):
    """One model on one device. Thread-safe. Its memory is freed with the last reference.

    Attributes:
        provider: The execution provider, such as `CPUExecutionProvider`.
    """

    provider: str

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run the model.

        Args:
            outputs: Names of the outputs to fetch.
            feeds: Input arrays by name, without any that the model does not take.

        Returns:
            The outputs in the order asked for.
        """
        ...


class BackendType(Protocol):
    """Opens the models of one backend.

    Attributes:
        package: The package that runs them.
    """

    package: str

    def __call__(self, path: Path, *, kind: str, number: int = 0, threads: int | None = None) -> Backend:
        """Open a model file on the device `kind` (`cpu` or `cuda`) `number`.

        Raises:
            DependencyError: The backend's package is not installed.
            DeviceError: The device cannot be used.
            BundleError: The file cannot be loaded.
        """
        ...

    def why_no_cuda(self) -> str | None:
        """Return why CUDA is not available and what to install; None if it can be tried."""
        ...

    def version(self) -> str:
        """Return the version of the backend's package."""
        ...


class Opened(NamedTuple):
    """A model of a bundle that runs.

    Attributes:
        name: Its name in the manifest.
        backend: The backend that runs it.
        precision: The precision in which it multiplies.
        session: The open backend.
    """

    name: str
    backend: str
    precision: str
    session: Backend


def backend_type(name: str) -> BackendType:
    """Return the opener of a backend."""
    # Imported here: no backend may need the package of another.
    if name == "torchscript":
        from .torchscript import TorchScript

        return TorchScript
    if name.startswith("openvino"):
        from .openvino import OpenVino, OpenVinoBf16

        return OpenVino if name == "openvino" else OpenVinoBf16
    from .ort_session import Session

    return Session


def open_backend(
    manifest: Manifest, folder: Path, *, backend: str, device: str, precision: str, threads: int | None
) -> Opened:
    """Select a model of a bundle, check its files and open it.

    Args:
        manifest: The bundle's manifest.
        folder: The bundle.
        backend: `auto` (ONNX Runtime) or one of `BACKENDS`. A TorchScript file is code and is never selected by `auto`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `auto`, one that the bundle contains, or with OpenVINO `bf16`, for which it needs fp32.
        threads: Threads per run, or None.

    Raises:
        InputError: An argument is invalid, or the bundle lacks the requested model.
        DeviceError: The device cannot be used, or not with this precision.
        BundleError: A file is missing or damaged.
        DependencyError: The package that runs the model is not installed.
    """
    kind, number = _parse_device(device)
    name = _choose_backend(manifest, backend, folder)
    opener: BackendType = EveryPosition if isinstance(manifest, ForeignManifest) else backend_type(name)
    rounded = name == "openvino" and precision == "bf16"
    if rounded:
        opener, precision = backend_type("openvino-bf16"), "fp32"
    why_not = None if kind == "cpu" else opener.why_no_cuda()
    if kind == "cuda" and why_not:
        raise DeviceError(f"device is {device!r}, but {why_not}")
    # `auto` tries CUDA first. A device for which the bundle has no suitable precision is skipped.
    kinds = [kind] if kind != "auto" else ["cpu"] if why_not else ["cuda", "cpu"]
    choices = [(each, found) for each in kinds if (found := _choose_model(manifest, name, precision, each, folder))]
    if not choices:
        raise DeviceError(
            f"{folder} holds {', '.join(manifest.models)}, and int8 is made for the CPU: for CUDA export fp16 with "
            "mlm-export MODEL OUT --precision fp16, or take device='cpu'"
        )
    # Only `auto` has two choices. CUDA may be installed and still fail to start, so its error selects the next choice.
    for kind, chosen in choices[:-1]:
        try:
            return Opened(chosen, name, chosen, _open(manifest, folder, opener, chosen, kind, number, threads))
        except DeviceError as error:
            logger.warning("%s; filling masks on the CPU", error)
    kind, chosen = choices[-1]
    computed = "bf16" if rounded else "fp32" if chosen == TORCHSCRIPT else chosen
    return Opened(chosen, name, computed, _open(manifest, folder, opener, chosen, kind, number, threads))


def _open(
    manifest: Manifest, folder: Path, opener: BackendType, chosen: str, kind: str, number: int, threads: int | None
) -> Backend:
    files = manifest.models[chosen]
    # The files are checked and opened by name: `unchanged` rejects one that is replaced in between.
    with unchanged(folder, files.names):
        for name in files.names:
            manifest.check_file(folder, name)
        path = folder / files.file
        if chosen != TORCHSCRIPT:
            # A hash does not confine a graph, whose author also wrote the hash: it could name any file as its weights.
            check_graph(path, files.weights)
        model = opener(path, kind=kind, number=number, threads=threads)
    if files.overflows and not multiplies_bytes():
        logger.warning(
            "int8 of %s was made for %s and overflows on this processor (%s), so its answers are wrong: export it "
            "again for an int8 model that is correct on every processor, or use precision='fp32'",
            folder,
            files.cpu,
            cpu_kind(),
        )
    made_with, here = manifest.created_with.get(opener.package, ""), opener.version()
    if _version(made_with) > _version(here):
        logger.warning(
            "%s was made with %s %s and runs on the older %s: upgrade it, or check the answers with self_test=True",
            folder,
            opener.package,
            made_with,
            here,
        )
    if chosen == "fp16" and kind == "cpu":
        logger.warning("fp16 is made for CUDA and is slower than fp32 on the CPU; export fp32 or int8 for the CPU")
    return model


def _version(text: str) -> tuple[int, ...]:
    """Return the major and minor number, or an empty tuple."""
    return tuple(map(int, re.findall(r"\d+", text)[:2]))


def _parse_device(device: str) -> tuple[str, int]:
    kind, _, number = device.partition(":") if isinstance(device, str) else ("", "", "")
    right = not number or (kind == "cuda" and number.isascii() and number.isdecimal() and len(number) < 5)
    if kind not in ("auto", "cpu", "cuda") or not right:
        raise InputError(f"device is {shown(device)}; it must be 'auto', 'cpu', 'cuda' or 'cuda:N'")
    return kind, int(number or 0)


def _choose_backend(manifest: Manifest, backend: str, folder: Path) -> str:
    if backend not in ("auto", *BACKENDS):
        raise InputError(f"backend is {backend!r}; it must be 'auto', 'onnx', 'openvino' or 'torchscript'")
    held = {"torchscript" if name == TORCHSCRIPT else "onnx" for name in manifest.models}
    if backend == "auto":
        if "onnx" not in held:
            raise InputError(
                f"{folder} holds TorchScript only, and such a file is code, which runs when it is opened: if you trust "
                "who made it, take backend='torchscript' (--backend torchscript)"
            )
        return "onnx"
    if backend == "openvino" and "onnx" in held:
        if isinstance(manifest, ForeignManifest):
            raise InputError(
                f"the openvino backend runs bundles, and {folder} is a plain ONNX export; write a bundle with: "
                "mlm-export MODEL OUT"
            )
        return backend
    if backend not in held:
        raise InputError(
            f"backend is {backend!r}, but {folder} holds no such model; write one with: "
            f"mlm-export {manifest.source.get('model', 'MODEL')} OUT --format {backend}"
        )
    return backend


def _choose_model(manifest: Manifest, backend: str, precision: str, kind: str, folder: Path) -> str | None:
    """Return the model to open, the fastest one for `auto`; None if none runs on this kind of device."""
    if backend == "torchscript":
        if precision not in ("auto", "fp32"):
            raise InputError(f"precision is {precision!r}, but TorchScript models are fp32; take 'auto'")
        return TORCHSCRIPT
    held = [name for name in manifest.models if name != TORCHSCRIPT]
    if precision == "bf16":
        raise InputError("precision is 'bf16', which only OpenVINO computes; take backend='openvino' too")
    if precision not in ("auto", *held):
        raise InputError(
            f"precision is {precision!r}, but {folder} holds {', '.join(held)}; export it again, or take 'auto'"
        )
    if precision == "auto" and manifest.models.get("int8", _RIGHT).overflows and not multiplies_bytes():
        others = [name for name in held if name != "int8"]
        if others and kind == "cpu":
            logger.warning(
                "int8 of %s was made for %s and overflows on this processor (%s); taking %s: export it again",
                folder,
                manifest.models["int8"].cpu,
                cpu_kind(),
                " or ".join(others),
            )
            held = others
    wanted = held if precision == "auto" else [precision]
    return next((each for each in _FASTEST_FIRST[kind] if each in wanted), None)
