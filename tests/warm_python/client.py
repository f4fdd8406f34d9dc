"""What stands for the interpreter: hands its start to a server, and ends as the forked process did.

Run by `python -IS client.py <folder of the servers> <arguments of the interpreter>`. It becomes the
ordinary interpreter instead where a forked one would be another: for modules that are not ours,
where variables that are read by imports differ from the server's, in other namespaces than the
server's (a host of the tests' cluster), and where there is no server.

A process that is killed takes the forked one and its process group with it.
"""

import json
import os
import signal
import socket
import sys

OURS = ("launch", "vlmae", "lsb", "benchmarks")
MODULES = ("torch.distributed.run",)
FORK_SERVER = "from multiprocessing.forkserver import main"
READ_BY_IMPORTS = ("HF_", "TRANSFORMERS_", "OMP_", "MKL_", "LD_", "MALLOC_", "DS_")
OF_PYTHON = ("PYTHONPATH", "PYTHONSAFEPATH", "PYTHON_EXEC")
"""Variables of the interpreter that a server heeds."""
NAMESPACES = ("mnt", "net", "pid", "uts", "ipc")
FORWARDED = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM")
COLD = "VLMAE_COLD_PYTHON"
"""Environment variable that has everything below a process started in the ordinary way."""


def read_by_imports(environment):
    """The variables that are read when packages are imported."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith((*READ_BY_IMPORTS, "PYTHON")) and name not in OF_PYTHON
    }


def namespaces():
    """Names of this process's namespaces."""
    return [os.readlink(f"/proc/self/ns/{name}") for name in NAMESPACES]


def is_ours(arguments):
    """Whether arguments of the interpreter start something that a server can fork."""
    rest = [one for one in arguments if one not in ("-u", "-B")]
    if not rest:
        return False
    if rest[0] == "-m" and len(rest) > 1:
        return rest[1].split(".")[0] in OURS or rest[1] in MODULES
    if rest[0] == "-c" and len(rest) > 1:
        return rest[1].startswith(FORK_SERVER)
    return rest[0].endswith(".py")


def ask(folder, arguments):
    """A connection to a server that was asked to fork, or None."""
    if os.environ.get(COLD) or not is_ours(arguments):
        return None
    try:
        with open(f"{folder}/server.json", encoding="utf-8") as stream:
            server = json.load(stream)
        if server["environment"] != read_by_imports(os.environ):
            return None
        if server["namespaces"] != namespaces():
            return None
        names = sorted(name for name in os.listdir(folder) if name.endswith(".socket"))
        if not names:  # it still imports
            return None
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(f"{folder}/{names[os.urandom(1)[0] % len(names)]}")
    except OSError:
        return None
    import resource

    open_files = sorted(int(name) for name in os.listdir("/proc/self/fd"))
    files = [fd for fd in open_files if fd != connection.fileno() and _is_open(fd)]
    limits = {
        name: resource.getrlimit(getattr(resource, name))
        for name in dir(resource)
        if name.startswith("RLIMIT_")
    }
    request = {
        "arguments": arguments,
        "executable": os.environ.get("VLMAE_WARM_PYTHON", sys.argv[0]),
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "files": files,
        "limits": limits,
        "cores": sorted(os.sched_getaffinity(0)),
    }
    data = json.dumps(request).encode()
    socket.send_fds(connection, [len(data).to_bytes(8, "little")], files)
    connection.sendall(data)
    return connection


def _is_open(fd):
    try:
        os.fstat(fd)
    except OSError:  # the listing's own
        return False
    return True


def follow(connection):
    """Hand signals on until the forked process has ended, and end as it did."""
    caught = {getattr(signal, name) for name in FORWARDED}
    signal.pthread_sigmask(signal.SIG_BLOCK, caught)
    worker = int.from_bytes(_received(connection, 8), "little")
    for number in caught:
        signal.signal(number, lambda number, _: _send(worker, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, caught)
    status = int.from_bytes(_received(connection, 8), "little")
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status))


def _send(worker, number):
    try:
        os.kill(worker, number)
    except ProcessLookupError:
        return  # it has ended, and its status is on its way


def _received(connection, count):
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            print("the server of tests/warm_python has ended", file=sys.stderr)
            os._exit(255)
        data += piece
    return data


def main():
    """Fork, or become the ordinary interpreter."""
    folder, arguments = sys.argv[1], sys.argv[2:]
    connection = ask(folder, arguments)
    if connection is None:
        os.execv(sys.executable, [sys.executable, *arguments])
    follow(connection)


if __name__ == "__main__":
    main()
