"""Other people's datasets of pairs: reading -> `imported`, measuring -> `pairs`, writing <- `pairs`."""
