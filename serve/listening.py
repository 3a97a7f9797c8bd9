"""Where services listen: on this machine alone, unless they are told otherwise."""

from hive_ray.cluster.addresses import is_loopback


def warning_for(host: str) -> str:
    """What to know before listening on an address that other machines reach; "" for a loopback address."""
    if is_loopback(host):
        return ""
    who = "every machine that reaches this one" if host in ("", "0.0.0.0", "::") else f"whoever reaches {host}"
    return (
        f"warning: this service listens on {host or 'all addresses'} for {who}, over plain HTTP: passwords, links and "
        "pictures can be read on the way. Put a proxy with TLS before it, or keep it to this machine with "
        "--host 127.0.0.1"
    )
