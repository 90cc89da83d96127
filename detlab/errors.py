"""What a run ends with when it is nobody's bug, apart from what needs torch."""


class UserError(Exception):
    """A mistake of the user's, in one or two lines: the key or file, the value, what is allowed, what to do.

    The one exception type for it. The outermost level alone turns it into exit status 2.
    """


class NonFiniteLossError(Exception):
    """A loss became infinite or not a number: the step, the losses and the images."""
