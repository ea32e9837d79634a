"""What the user can mend is told in one line."""

import signal


class UserError(Exception):
    """A fault in the input, the flags or the machine; `main` prints its message as one line and exits with status 2.

    The message names the thing that is wrong and what to do about it.
    """

    status = 2


class Absent(UserError):
    """Another process of the run did not come; the same command may succeed later (EX_TEMPFAIL of sysexits.h)."""

    status = 75


class Stopped(Exception):
    """A signal asked the run to stop, and its state is saved.

    Attributes:
        status: the exit status a shell gives a process that the signal ended.
    """

    def __init__(self, number: int, saved_step: int | None):
        self.status = 128 + number
        saved = "stopped" if saved_step is None else f"step {saved_step} is saved"
        super().__init__(f"{signal.Signals(number).name}: {saved}; the same command goes on")
