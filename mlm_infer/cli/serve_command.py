"""The command line of `mlm-serve`."""

import contextlib
import ipaddress
import os
import socket
import sys

import click

from mlm_infer.errors import DependencyError, InputError
from mlm_infer.shared.command import command_errors

__all__ = ["main"]

_TOKEN = "MLM_SERVE_TOKEN"  # noqa: S105
_MOST_WORKERS = 256


@click.command()
@click.argument("model", required=False)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, help="Port to listen on; 0 takes a free one.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--precision", default="auto", show_default=True, help="auto, fp32, fp16 or int8.")
@click.option("--workers", default=1, show_default=True, help="Processes that answer; each opens the model.")
@click.option(
    "--threads", type=int, help="Threads of the model in each worker.  [default: the worker's share of the cores]"
)
@click.option(
    "--max-requests", type=int, help="Requests in progress in each worker; further ones get 429.  [default: 256]"
)
@click.option("--max-body", type=int, help="Bytes of a body.  [default: 1000000]")
@click.option("--max-texts", type=int, help="Texts of a request.  [default: 1000]")
@click.option("--timeout", type=int, help="Seconds until a request is answered.  [default: 60]")
@click.version_option(package_name="mlm-infer")
@command_errors
def main(
    model: str | None,
    host: str,
    port: int,
    device: str,
    precision: str,
    workers: int,
    threads: int | None,
    max_requests: int | None,
    max_body: int | None,
    max_texts: int | None,
    timeout: int | None,
) -> None:
    """Answer over HTTP for MODEL, or for the small model of the package, with a page to try it on.

    A MLM_SERVE_TOKEN in the environment is what requests must send as `Authorization: Bearer`; it is required on an
    address that other machines reach.
    """
    token = os.environ.get(_TOKEN)
    if not token and not _is_local(host):
        raise InputError(f"{host} can be reached from other machines; set {_TOKEN} to a secret that requests must send")
    try:
        from mlm_infer.serve.limits import Limits
        from mlm_infer.serve.workers import Server, serve_in_workers
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"mlm-serve needs {error.name}; install it with: pip install 'mlm-infer[serve]'"
        ) from error

    from mlm_infer import MaskFiller
    from mlm_infer.checks import whole_number
    from mlm_infer.runtime.cpu import available_cpus

    # Workers share a socket and delay signals in ways that Windows does not have.
    whole_number("workers", workers, least=1, most=1 if sys.platform == "win32" else _MOST_WORKERS)
    if workers > 1 and threads is None:
        threads = max(1, available_cpus() // workers)
    given = {"requests": max_requests, "body": max_body, "texts": max_texts, "seconds": timeout}
    limits = Limits(**{name: value for name, value in given.items() if value is not None})
    # The address first, which is quicker to fail; connections are accepted once the model is open.
    with (
        _listen(host, port) as listener,
        MaskFiller(model, device=device, precision=precision, threads=threads) as filler,
    ):

        def tell() -> None:
            shown, number = listener.getsockname()[:2]
            place = f"[{shown}]" if ":" in shown else shown
            click.echo(f"{filler.info.path.name} answers on http://{place}:{number}", err=True)

        if workers == 1:
            # Once what waits is answered, uvicorn raises again the signal that ended it.
            with contextlib.suppress(KeyboardInterrupt):
                Server(filler, limits, token, tell).run(sockets=[listener])
        else:
            # Opened here it was found right; each worker has one of its own.
            filler.close()
            serve_in_workers(workers, filler, listener, limits, token, tell)


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    """Take the address; connections are accepted from `listen` on.

    Raises:
        InputError: It is in use, or is none of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot listen on {host}, port {port}: {reason}; choose another --port or --host") from error
    return listener


if __name__ == "__main__":
    main()
