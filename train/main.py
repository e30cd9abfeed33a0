"""The program's door: `python train/main.py --config FILE [--section.key value ...]`.

Whatever comes from outside and cannot be used ends in one line on stderr and exit code 2.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script, with train/ on the path where the project's root should be
    _here = Path(__file__).resolve().parent
    sys.path[:] = [str(_here.parent), *(path for path in sys.path if Path(path).resolve() != _here)]

from train import signals

if __name__ == "__main__":
    signals.end_at_once()  # before anything is loaded: until the first step there is nothing to save

from rich.console import Console

from nscjax import check
from nscjax.check import InputError
from train import config


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what a command line asks for and returns the exit code.

    Args:
        argv: the words after the program's name; by default those of this process.

    Returns:
        That of the run (0, or 130 or 143 after a signal); 2 for input that cannot be used.

    Raises:
        SystemExit: with code 0, after `--help` or `--print_config`.
    """
    try:
        loaded = config.load(sys.argv[1:] if argv is None else argv)
        # The loop imports jax, which takes seconds: only once the command line is known to be good.
        if loaded.config.role != "local":
            return _party(loaded.config)
        if loaded.config.predict:
            from train import predict

            return predict.main([loaded.config.run_dir, loaded.config.predict])
        with Console(stderr=True).status("loading JAX"):
            from train import loop

        return loop.run(loaded.config, loaded.explicit)
    except OSError as error:
        return _refuse(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except (InputError, UnicodeError) as error:
        return _refuse(str(error))
    except (RuntimeError, ValueError) as error:
        return _refuse(_exhausted(error))
    except KeyboardInterrupt:  # before the first step: there is nothing to save
        return 128 + signal.SIGINT


def _party(chosen: config.Config) -> int:
    """Runs one of two parties."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what goes wrong is said once, by our own errors
    try:
        if chosen.predict or (chosen.role == "server" and chosen.remote.serve == "predictions"):
            from train import inference

            return inference.serve(chosen) if chosen.role == "server" else inference.ask(chosen)
        is_u_shaped = chosen.model.second_cut is not None
        if chosen.role == "server":
            from train import server, u_server

            return server.run(chosen, u_server.UServer if is_u_shaped else server.Server)
        from train import client, u_client

        return client.run(chosen, u_client.UClient if is_u_shaped else client.Client)
    except ModuleNotFoundError as error:
        if error.name not in ("grpc", "tenacity"):
            raise
        remedy = "Install what two parties need: .venv/bin/pip install -e '.[remote]'"
        raise check.error("role", chosen.role, "'local' without grpc", remedy) from None


def _exhausted(error: Exception) -> str:
    """Returns what to do where a library ran out of disk or memory; raises `error` again where it is another one."""
    if "No space left on device" in str(error):
        return "run_dir: no space is left on its disk; make room and go on with --train.resume true"
    if "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error):
        return (
            "the run needs more memory than there is; allowed: what the device holds. Lower train.batch_size or "
            "model.width, cut where the tensor is smaller (model.cut), or keep the data on the host (data.stream true)"
        )
    raise error


def _refuse(message: str) -> int:
    """Writes the one line that tells what was wrong, and returns the exit code for it."""
    print("error:", " ".join(message.split()), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
