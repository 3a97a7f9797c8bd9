"""Passes the driver's settings of services to the workers: addresses, credentials and proxies.

    the driver's environment -> service_variables() -> a stage's plan -> apply_service_variables() in each worker

Secrets travel only with the plan: Ray writes the runtime environment into its logs and shows it on its dashboard. The
other variables are also in the runtime environment, for libraries that read them when they are imported. Variables that
belong to a machine (PATH, HOME, its role in a cloud) are not passed on.
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
"""Variables that belong to one machine or process, such as its role in a cloud or the address of a local service."""
ENDPOINT_VARIABLE = re.compile(
    r"AWS_ENDPOINT_URL(_\w+)?|HF_ENDPOINT|MLFLOW_TRACKING_URI|OPENAI_(BASE_URL|API_BASE)|WANDB_BASE_URL"
)
"""Addresses of services. A worker drops those that the driver does not set."""
SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|HEADERS", re.IGNORECASE)
"""Names of variables that may hold secrets."""
URL_WITH_CREDENTIALS = re.compile(r"://[^/\s]*@")
"""An address with a user name or a password."""


def service_variables() -> dict[str, str]:
    """The variables of this process that configure services."""
    return {
        name: value
        for name, value in os.environ.items()
        if (name in NAMES or name.startswith(PREFIXES)) and not MACHINE_VARIABLE.match(name)
    }


def public_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables that may appear in logs and on a dashboard. Excludes values with `$`, which Ray would expand."""
    return {
        name: value
        for name, value in variables.items()
        if not (SECRET_NAME.search(name) or URL_WITH_CREDENTIALS.search(value) or "$" in value)
    }


def apply_service_variables(variables: Mapping[str, str]) -> None:
    """Set the driver's `service_variables` in this process, and remove endpoints that the driver does not set."""
    for name in [name for name in os.environ if ENDPOINT_VARIABLE.fullmatch(name) and name not in variables]:
        del os.environ[name]
    os.environ.update(variables)
