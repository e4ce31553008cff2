"""SIGTERM: what schedulers send before they kill."""

import multiprocessing
import os
import signal
import threading
from types import FrameType, TracebackType

EXIT_CODE = 128 + signal.SIGTERM  # 143, as a shell reports it


class TerminatedError(SystemExit):
    """Raised after the step in which SIGTERM came, once its checkpoint is complete; ends the process with 143."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class TerminationWatch:
    """Notes SIGTERM instead of dying of it, while a training runs.

    Only where SIGTERM would end the process: a handler that is there already has its own plans. Outside the main
    thread, where Python allows no handlers, nothing is watched.

    Attributes:
        requested: whether SIGTERM came.
    """

    def __init__(self) -> None:
        self.requested = False
        self._watching = False

    def __enter__(self) -> "TerminationWatch":
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._note)
            self._watching = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._watching:
            return
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._watching = False
        if self.requested and kind is None:  # it came after the last step
            signal.raise_signal(signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


def heed_only_parent(worker: int) -> None:
    """`worker_init_fn` of a DataLoader: SIGTERM from others than its own process does not end the worker.

    Some schedulers send it to every process of a job. A worker that died of it would end the trainer, too, before
    its checkpoint. Where signals do not tell their sender (not on Linux), workers stay as they are.

    Args:
        worker: number of the worker; unused.
    """
    parent = multiprocessing.parent_process()
    if parent is None or not hasattr(signal, "sigwaitinfo"):
        return

    def watch() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
            pass
        os._exit(0)

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # in this thread and those it starts from now on
    threading.Thread(target=watch, daemon=True).start()
