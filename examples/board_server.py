"""TVM's RPC server for a board: `board_server.py --port 9090 [--tracker PC:9190 --key rpi4]`.

TVM's own launcher goes on without its listening thread when a session's process failed: it takes
connections and says nothing. Here that ends the process, and it is started again. Needs TVM only.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time

PAUSE_S = 1.0  # between two servers


def serve(options: argparse.Namespace) -> None:
    """Be the server, until a session fails."""
    os.environ.setdefault("TVM_USE_RUNTIME_LIB", "1")  # no compiler: less memory
    threading.excepthook = lambda failure: os._exit(1)
    from tvm.rpc.server import PopenRPCServerState

    host, _, port = options.tracker.rpartition(":")
    state = PopenRPCServerState(
        options.host,
        options.port,
        options.port + 1,
        tracker_addr=(host, int(port)) if port else None,
        key=options.key,
    )
    state.thread.join()


def main() -> None:
    """Start the server, and again when it ends."""
    parser = argparse.ArgumentParser(description="TVM's RPC server, started again when it fails")
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=9090)
    parser.add_argument("--tracker", default="", help="HOST:PORT of a tracker")
    parser.add_argument("--key", default="", help="of boards like this one, at the tracker")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tracker and not options.key:
        parser.error("--tracker needs --key")
    if options.once:
        serve(options)
    while True:
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--once"], check=False)
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    main()
