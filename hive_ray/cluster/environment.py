"""What workers take over from the environment of whoever gives the command: how to reach services, and as whom.

    the driver's environment -> service_variables() -> a stage's plan -> apply_service_variables() in each worker

Secrets go with the plan alone: Ray writes what a runtime environment holds into its logs and shows it on its dashboard.
The rest is in the runtime environment as well, for libraries that read it when they are imported. What belongs to a
machine (PATH, HOME, its role in a cloud) is not carried.
"""

import os
import re
from collections.abc import Mapping

PREFIXES = ("AWS_", "HF_", "HIVE_RAY_", "HUGGINGFACE_", "HUGGING_FACE_", "MLFLOW_", "OPENAI_", "WANDB_")
PROXIES = ("all_proxy", "ftp_proxy", "http_proxy", "https_proxy", "no_proxy")
NAMES = {
    *PROXIES,
    *(name.upper() for name in PROXIES),
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
}
MACHINE_VARIABLE = re.compile(
    r"AWS_(CONTAINER_|ROLE_|WEB_IDENTITY_|LAMBDA_|EXECUTION_ENV)|WANDB_SERVICE|HIVE_RAY_(WARM_WORKERS|ONE_MACHINE|DASHBOARD)"
)
"""Such names are a machine's or a process's own: the role that a cloud gave it, the door of a process beside it."""
ENDPOINT_VARIABLE = re.compile(
    r"AWS_ENDPOINT_URL(_\w+)?|HF_ENDPOINT|MLFLOW_TRACKING_URI|OPENAI_(BASE_URL|API_BASE)|WANDB_BASE_URL"
)
"""Addresses of services: where the driver has none, no worker has one."""
SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|HEADERS", re.IGNORECASE)
URL_WITH_CREDENTIALS = re.compile(r"://[^/\s]*@")
"""An address with a name and a password."""


def service_variables() -> dict[str, str]:
    """This process's settings of services."""
    return {
        name: value
        for name, value in os.environ.items()
        if (name in NAMES or name.startswith(PREFIXES)) and not MACHINE_VARIABLE.match(name)
    }


def public_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Those that may stand in logs and on a dashboard, and that Ray does not change: it replaces `$NAME` in values."""
    return {
        name: value
        for name, value in variables.items()
        if not (SECRET_NAME.search(name) or URL_WITH_CREDENTIALS.search(value) or "$" in value)
    }


def apply_service_variables(variables: Mapping[str, str]) -> None:
    """Have this process use the services that `service_variables` named where the command was given, and no endpoint else."""
    for name in [name for name in os.environ if ENDPOINT_VARIABLE.fullmatch(name) and name not in variables]:
        del os.environ[name]
    os.environ.update(variables)
