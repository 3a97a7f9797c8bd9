"""Measures that more than one part of the house needs."""


def effective_sample_size(mean: float, mean_square: float, num_rows: int) -> float:
    """(sum w)^2 / sum w^2 (Kish 1965) of weights with these means: how many equally weighted rows they are worth.

    1..num_rows; 0 if no row has any weight.
    """
    return num_rows * mean**2 / mean_square if mean_square else 0.0
