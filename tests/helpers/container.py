"""Builds and runs a Dockerfile without Docker, in namespaces of Linux and over this machine's own files.

The base image is an overlay of this machine's root folder with the Python that runs the tests. All else is as in
Docker: the instructions run as root and at their own paths, and the command runs in namespaces of its own for processes
and network, as the user of the image, with the environment of the image and nothing else.
"""

import fnmatch
import json
import os
import shlex
import shutil
import signal
import string
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

__all__ = ["Image", "build", "cannot_run", "ignored", "instructions", "process_of", "run_in", "running"]

_TOOLS = ("unshare", "nsenter", "mount", "chroot", "ip")

# Arguments: upper, work and root of the overlay; options of mount, model, network, user, folder; the command.
_SCRIPT = """set -e
mount -t overlay overlay -o "lowerdir=/,upperdir=$1,workdir=$2" "$3"
mount --rbind /dev "$3/dev"
mount -t proc proc "$3/proc"
if [ -n "$5" ]; then mkdir -p "$3/model"; mount --bind "$5" "$3/model"; mount -o remount,bind,ro "$3/model"; fi
if [ "$4" = ro ]; then mount -o remount,ro "$3"; fi
if [ "$6" = own ]; then ip link set lo up; fi
root=$3 user=$7 folder=$8
shift 8
exec chroot --userspec="$user" "$root" /bin/sh -c 'cd "$0" && exec "$@"' "$folder" "$@"
"""


@dataclass
class Image:
    """A stage of a Dockerfile.

    Attributes:
        folder: Its files are in `upper`, over those of this machine.
        environment: Environment variables.
        entrypoint: The command.
        health: The command of the health check.
    """

    folder: Path
    environment: dict[str, str]
    workdir: str = "/"
    user: str = "0:0"
    entrypoint: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)

    @property
    def files(self) -> Path:
        """The folder of the files that differ from this machine's."""
        return self.folder / "upper"

    def place(self, path: str) -> Path:
        """Return where a path of the image is on this machine."""
        return self.files / str(PurePosixPath(self.workdir, path)).lstrip("/")


def cannot_run() -> str:
    """Return why a Dockerfile cannot be run here; empty if it can."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing or not Path(sys.base_prefix, "bin/pip").exists():
        return f"needs {', '.join(missing) or 'pip'}"
    probe = ["unshare", "--mount", "--pid", "--fork", "--net", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return "needs the right to mount" if subprocess.run(probe, check=False, capture_output=True).returncode else ""


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Yield the instructions of a Dockerfile with their values."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        name, _, value = line.partition(" ")
        yield name, value.strip()


def ignored(path: PurePosixPath, patterns: Sequence[str]) -> bool:
    """Return whether a .dockerignore excludes a file: the last pattern that matches it or a folder of it decides."""
    found = False
    for pattern in patterns:
        plain = pattern.removeprefix("!")
        names = [path, *path.parents[:-1]]
        # Without a slash, fnmatch's asterisk would match folders too.
        if any(
            fnmatch.fnmatchcase(each.name, plain[3:])
            if plain.startswith("**/")
            else len(each.parts) == len(PurePosixPath(plain).parts) and fnmatch.fnmatchcase(str(each), plain)
            for each in names
        ):
            found = not pattern.startswith("!")
    return found


def build(context: Path, work: Path) -> Image:
    """Return the image that the last stage of a Dockerfile makes."""
    arguments: dict[str, str] = {}
    stages: dict[str, Image] = {}
    image = None
    for name, value in instructions((context / "Dockerfile").read_text(encoding="utf-8")):
        if name == "ARG":
            key, _, default = value.partition("=")
            arguments[key] = default
            continue
        if name == "FROM":
            base, _, stage = string.Template(value).substitute(arguments).partition(" AS ")
            assert base.startswith("python:3."), base
            image = stages[stage] = _base(work / (stage or "last"))
            continue
        assert image is not None
        if name == "RUN":
            # Certificates, proxies and indices of pip are what a builder would pass as arguments.
            image.environment, own = os.environ | image.environment, image.environment
            done = _run(image, ["/bin/sh", "-c", value])
            image.environment = own
            assert done.returncode == 0, done.stderr
        elif name == "COPY":
            _copy(context, image, value, stages)
        elif name == "ENV":
            for each in shlex.split(value):
                key, _, content = each.partition("=")
                image.environment[key] = string.Template(content).substitute(image.environment)
        elif name == "WORKDIR":
            image.workdir = value
            image.place(".").mkdir(parents=True)
        elif name == "USER":
            image.user = value
        elif name == "ENTRYPOINT":
            image.entrypoint = json.loads(value)
        elif name == "HEALTHCHECK":
            image.health = json.loads(value.partition("CMD ")[2])
        else:
            assert name == "EXPOSE", f"{name} is not known here"
    assert image is not None
    return image


def _base(folder: Path) -> Image:
    """Return what stands in for an image of Python: this machine, and the interpreter of the tests for every user."""
    for name in ("upper", "work", "root"):
        (folder / name).mkdir(parents=True)
    tools = f"{sys.base_prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    image = Image(folder, {"PATH": tools, "LANG": "C.UTF-8"})
    homes = [str(each) for each in Path(sys.base_prefix).parents[:-1]]
    opened = _run(image, ["chmod", "a+x", sys.base_prefix, *homes])
    assert opened.returncode == 0, opened.stderr
    return image


def _copy(context: Path, image: Image, value: str, stages: dict[str, Image]) -> None:
    """Copy from another stage, or what is not ignored of the context."""
    *options, source, target = value.split()
    if options:
        stage = stages[options[0].removeprefix("--from=")]
        shutil.copytree(stage.place(source), image.place(target), symlinks=True)
        return
    patterns = (context / ".dockerignore").read_text(encoding="utf-8").split("\n")
    patterns = [each for each in patterns if each and not each.startswith("#")]
    for top in context.iterdir():
        # No pattern takes back a file below a folder that is ignored.
        if ignored(PurePosixPath(top.name), patterns):
            continue
        for path in [top, *top.rglob("*")]:
            name = path.relative_to(context)
            if path.is_file() and not ignored(PurePosixPath(name), patterns):
                image.place(target).joinpath(name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, image.place(target) / name)


def _command(image: Image, command: Sequence[str], *, model: Path | None, alone: bool) -> list[str]:
    return [
        *("unshare", "--mount", "--pid", "--fork", *(["--net"] if alone else [])),
        *("/bin/sh", "-c", _SCRIPT, "container"),
        *(str(image.folder / name) for name in ("upper", "work", "root")),
        *("ro" if alone else "rw", str(model or ""), "own" if alone else "shared", image.user, image.workdir),
        *command,
    ]


def _run(image: Image, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command of a build, with the network."""
    words = _command(image, command, model=None, alone=False)
    return subprocess.run(words, env=image.environment, check=False, capture_output=True, text=True)


def process_of(container: subprocess.Popen[str]) -> int:
    """Return the id, on this machine, of a container's first process."""
    return int(Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text(encoding="utf-8").split()[0])


@contextmanager
def running(
    image: Image, *arguments: str, model: Path | None = None, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """Run the image's command as `docker run --read-only` does, with a model at /model, and kill it at the end."""
    words = _command(image, [*image.entrypoint, *arguments], model=model, alone=True)
    with subprocess.Popen(words, env=image.environment | environment, stderr=subprocess.PIPE, text=True) as container:
        try:
            yield container
        finally:
            if container.poll() is None:
                os.kill(process_of(container), signal.SIGKILL)


def run_in(container: subprocess.Popen[str], image: Image, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command beside that of a container, as a health check is."""
    user, _, group = image.user.partition(":")
    namespaces = ["--mount", "--net", "--pid", "--root", "--wd", "-S", user, "-G", group]
    words = ["nsenter", "--target", str(process_of(container)), *namespaces, *command]
    return subprocess.run(words, env=image.environment, check=False, capture_output=True, text=True, timeout=60)
