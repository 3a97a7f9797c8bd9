"""The errors that several rooms raise or catch. An error of one room is in the file that raises it."""


class ContractError(ValueError):
    """Rows or a table that do not match the schema that is expected."""


class Stopped(RuntimeError):
    """A stage cannot go on, for example because its budget is spent. What is finished stays, and a rerun resumes."""


class BadRows(ValueError):
    """Rows of a batch that cannot be learned from.

    `reasons` maps the position of each in the batch to what is wrong with it.
    """

    def __init__(self, reasons: dict[int, str]) -> None:
        super().__init__("; ".join(f"row {place}: {reason}" for place, reason in reasons.items()))
        self.reasons = reasons
