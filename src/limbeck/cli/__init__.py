"""The command line: a client of the public names, one file per command."""

from __future__ import annotations

import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from cyclopts import App, CycloptsError

import limbeck
from limbeck.cli import (
    audit,
    bench,
    datasets,
    demo,
    distill,
    inspect,
    latency,
    names,
    predict,
    probe,
    profile,
    report,
    rewire,
    score,
    serve,
)
from limbeck.errors import LimbeckError, missing_extra

app = App(
    name="limbeck",
    help="Distil a graph neural network into a student that answers in microseconds.",
    version=limbeck.__version__,
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
app.command(demo.demo)
app.command(datasets.datasets)
app.command(names.methods)
app.command(names.teachers)
app.command(profile.profile)
app.command(rewire.rewire)
app.command(distill.distill)
app.command(bench.bench)
app.command(report.report)
app.command(probe.probe)
app.command(inspect.inspect)
app.command(predict.predict)
app.command(score.score)
app.command(audit.audit)
app.command(latency.latency)
app.command(serve.serve)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0 done, 2 bad input, 1 our fault, 130 interrupted."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code."""
    try:
        app(arguments, exit_on_error=False, print_error=False)
    except LimbeckError as error:
        return _say(str(error), error.exit_code)
    except CycloptsError as error:
        return _say(" ".join(str(error).split()), 2)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("limbeck"):
            return _our_fault(error)
        return _say(str(missing_extra(error.name, "train")), 2)
    except KeyboardInterrupt:
        return _say("interrupted; the same command goes on where this one stopped.", 130)
    except BrokenPipeError:
        return 0  # the reader of our output has seen enough
    except Exception as error:
        return _our_fault(error)
    return 0


def _say(sentence: str, code: int) -> int:
    print(f"limbeck: {sentence}", file=sys.stderr)
    return code


def _our_fault(error: BaseException) -> int:
    with tempfile.NamedTemporaryFile(
        "w", prefix="limbeck-", suffix=".log", delete=False, encoding="utf-8"
    ) as log:
        log.write(f"limbeck {limbeck.__version__}: {' '.join(sys.argv)}\n\n")
        log.write("".join(traceback.format_exception(error)))
    reason = " ".join(str(error).split())[:200]
    return _say(
        f"a fault of ours ({type(error).__name__}: {reason}); the details are in "
        f"{Path(log.name)}, please send them to us.",
        1,
    )
