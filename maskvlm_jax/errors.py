"""What the user can mend is told in one line."""


class UserError(Exception):
    """A fault in the input, the flags or the machine; `main` prints its message as one line and exits with status 2.

    The message names the thing that is wrong and what to do about it.
    """
