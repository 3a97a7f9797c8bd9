"""Serve an editor on this machine.

    make serve EDITOR_FOLDER=runs/quickstart/editors/finetuned
    python -m serve.start --editor s3://bucket/run/editors/finetuned --num-gpus 1

As `serve run serve.editor:app`, which takes the same settings, but Ray is started as the jobs start it: on the loopback
address alone, with a token of its own. With RAY_ADDRESS it serves on that cluster.
"""

import os
import sys
import time

import tyro
from pydantic import Field
from ray import serve

from hive_ray.annotation.database import DatabaseUnavailableError
from hive_ray.cluster.starting import start_ray
from hive_ray.errors import Stopped
from serve.editor import ServeSettings, app
from serve.listening import warning_for

SERVE_TIMEOUTS = {
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
}
"""What Serve is told, unless it is set: on a busy machine its 5 s have it end its own proxy."""


CHECK_S = 10.0


class StartSettings(ServeSettings):
    """The editor that is served, and where it answers."""

    host: str = "127.0.0.1"
    """Address that it listens on; 0.0.0.0 for all of this machine's."""
    port: int = Field(default=8000, ge=1, le=65535)


def serve_editor(settings: StartSettings) -> None:
    """Serve the editor until it is stopped."""
    if warning := warning_for(settings.host):
        print(warning, file=sys.stderr, flush=True)
    editor = app(ServeSettings(**{name: getattr(settings, name) for name in ServeSettings.model_fields}))
    for name, value in SERVE_TIMEOUTS.items():
        os.environ.setdefault(name, value)
    start_ray()
    serve.start(http_options={"host": settings.host, "port": settings.port})
    serve.run(editor)
    print(f"the editor is at http://{settings.host}:{settings.port}; Ctrl-C ends it", flush=True)
    try:
        while True:
            time.sleep(CHECK_S)
            serve.status()  # raises once the cluster is gone
    except KeyboardInterrupt:
        serve.shutdown()


def main() -> None:
    """Read the command line and serve."""
    try:
        serve_editor(tyro.cli(StartSettings, default=StartSettings(), prog="python -m serve.start"))
    except (ValueError, OSError, Stopped, DatabaseUnavailableError) as error:  # what a person can mend
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
