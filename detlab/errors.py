"""What a run ends with when it is nobody's bug, apart from what needs torch."""


class UserError(Exception):
    """A mistake of the user's, in one or two lines: the key or file, the value, what is allowed, what to do.

    The one exception type for it. The outermost level alone turns it into exit status 2.
    """


class BrokenDownError(Exception):
    """The work cannot go on: not the user's mistake, and no bug either; its message is told without a trace."""


class NonFiniteLossError(BrokenDownError):
    """A loss or a gradient became infinite or not a number: the step, the losses and the images."""


class OutOfMemoryError(BrokenDownError):
    """A step wanted more memory than there is: the batch, its images and objects, and what to change."""
