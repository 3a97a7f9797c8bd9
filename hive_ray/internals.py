"""What a row of the tables of internals says: a name inside another package, who uses it, and why.

The tables are `INTERNALS` of `hive_ray.cluster.one_machine.table` (Ray) and of `hive_ray.training.deepspeed_fixes`
(DeepSpeed and PyTorch). tests/test_internals.py checks that the installed packages still have what the rows name;
tests/test_layers.py, that no other use of an internal is left.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Internal:
    """One name that its package does not promise to keep."""

    symbol: str
    """The dotted name, from the package on; of an instance's attribute, that of its class and the attribute."""
    where: str
    """The file that uses it, from `hive_ray/` on."""
    why: str
    """What would be lost without it."""
    parameters: tuple[str, ...] = ()
    """Parameters that a call of ours names, or that an override of ours takes."""
    attributes: tuple[str, ...] = ()
    """Methods and attributes of it that are used, of a class or of its instances."""
    value: object = None
    """What it has to be equal to; None where that is all the same."""
