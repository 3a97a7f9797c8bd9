"""One row of the tables of internals: a private name of another package, the file that uses it, and the reason.

The tables are `INTERNALS` of `hive_ray.cluster.one_machine.table` (Ray) and of `hive_ray.training.deepspeed_fixes`
(DeepSpeed and PyTorch). tests/test_internals.py checks that the installed packages still have these names.
tests/test_layers.py checks that no other private name is used.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Internal:
    """A name that its package does not promise to keep."""

    symbol: str
    """The dotted name, starting with the package. An instance attribute is named after its class."""
    where: str
    """The file that uses it, relative to `hive_ray/`."""
    why: str
    """What it is used for."""
    parameters: tuple[str, ...] = ()
    """Parameters that our calls name or our overrides accept."""
    attributes: tuple[str, ...] = ()
    """Its methods and attributes that are used, on the class or on instances."""
    value: object = None
    """The value it must have; None if any value will do."""
