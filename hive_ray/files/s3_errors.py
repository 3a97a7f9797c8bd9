"""Errors of S3: one form for those of botocore and Arrow, whether they are transient, and advice.

Both clients' errors are told apart by their text, since Arrow raises OSError without a code.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, SSLError
from botocore.exceptions import ConnectionError as NoConnection

ADDRESSING = "HIVE_RAY_S3_ADDRESSING"
CHECKSUMS = {
    "request_checksum_calculation": "AWS_REQUEST_CHECKSUM_CALCULATION",
    "response_checksum_validation": "AWS_RESPONSE_CHECKSUM_VALIDATION",
}
"""Setting of a profile -> environment variable that overrides it."""
ERROR = re.compile(r"AWS Error (\w+)(?: \(HTTP status (-?\d+)\))?")
"""Code and status in the errors of both clients; `translated_errors` brings those of botocore into this form."""
TRANSIENT_STATUS = {408, 425, 429}
PERMANENT_STATUS = {501, 505}
TRANSIENT = re.compile(
    r"\b(INTERNAL_FAILURE|InternalError|SERVICE_UNAVAILABLE|ServiceUnavailable|SLOW_DOWN|SlowDown\w*|THROTTLING|"
    r"Throttl\w+|REQUEST_TIMEOUT|RequestTimeout|OperationAborted|NETWORK_CONNECTION)\b"
)
"""Codes of transient errors, whatever their status."""
CERTIFICATE = re.compile(
    r"curlCode: (51|58|59|60|66|77|83|90|91)\b|certificate verify|CERTIFICATE_VERIFY|(?i:wrong.version.number)"
)
"""TLS errors that come from wrong settings."""
CREDENTIALS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_SESSION_TOKEN if they have one), or AWS_PROFILE"


class S3Error(OSError):
    """A permanent error of S3, or a transient one that outlasted the timeout; says what to do."""


@contextmanager
def translated_errors(what: str) -> Iterator[None]:
    """Raise botocore's errors as OSErrors in the form of Arrow's: "<what>: AWS Error <code> (HTTP status <status>)"."""
    try:
        yield
    except ClientError as error:
        answer = error.response
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        raise OSError(
            f"{what}: AWS Error {error_code(error)} (HTTP status {status}) during {error.operation_name} operation: "
            f"{answer.get('Error', {}).get('Message', '')}"
        ) from error
    except (NoConnection, HTTPClientError) as error:
        name = "TLS" if isinstance(error, SSLError) and CERTIFICATE.search(str(error)) else "NETWORK_CONNECTION"
        raise OSError(f"{what}: AWS Error {name}: {error}") from error
    except BotoCoreError as error:
        raise OSError(f"{what}: AWS Error {type(error).__name__}: {error}") from error
    except RecursionError:  # botocore follows region redirects without end
        raise OSError(
            f"{what}: AWS Error PermanentRedirect (HTTP status 301): each answer is another address"
        ) from None


def error_code(error: ClientError) -> str:
    """The error code of a botocore error; "UNKNOWN" if it has none."""
    return re.sub(r"\W", "", str(error.response.get("Error", {}).get("Code", ""))) or "UNKNOWN"


def is_error(text: str) -> bool:
    """Whether the text of an error is an S3 error."""
    return bool(ERROR.search(text))


def is_permanent(text: str) -> bool:
    """Whether an S3 error is permanent.

    Transient errors are connection errors, 408, 425, 429, and 5xx except 501 and 505.
    """
    error = ERROR.search(text)
    if error is None or CERTIFICATE.search(text):
        return True
    if TRANSIENT.search(text):
        return False
    if error[2] is None:
        return error[1] != "UNKNOWN"
    status = int(error[2])
    if status < 100 or status in TRANSIENT_STATUS:  # below 100 there was no answer
        return False
    return status < 500 or status in PERMANENT_STATUS


def advice(text: str, *, signed: bool, virtual_host: bool, checksums: dict[str, str]) -> str:
    """Advice on an S3 error, by its text.

    signed: whether requests are signed; virtual_host: whether they go to <bucket>.<host>; checksums: the variables of
    CHECKSUMS and their values.
    """
    if CERTIFICATE.search(text):
        return (
            "set AWS_CA_BUNDLE to a file of the certificates that signed the server's, or correct https:// and "
            "http:// in AWS_ENDPOINT_URL"
        )
    if "NETWORK_CONNECTION" in text:
        if virtual_host and re.search(r"(?i)resolve|name or service|EndpointConnection|connect", text):
            return (
                "set AWS_ENDPOINT_URL to an address that answers; if it has no hosts named by buckets, set "
                f"{ADDRESSING}=path"
            )
        return "set AWS_ENDPOINT_URL to an address that answers, and look at firewalls and HTTPS_PROXY"
    if re.search(r"(?i)checksum|trailer|aws-chunked|decoded-content-length", text) and checksums != {
        variable: "when_required" for variable in CHECKSUMS.values()
    }:
        return " and ".join(f"set {variable}=when_required" for variable in CHECKSUMS.values())
    for pattern, words in ADVICE:
        if re.search(pattern, text):
            return words
    if re.search(r"ACCESS_DENIED|AccessDenied|status 403", text):
        if not signed:
            return f"no credentials are set, so requests are not signed: set {CREDENTIALS}"
        return (
            "these credentials may not do this: allow s3:ListBucket, s3:GetObject, s3:PutObject, s3:DeleteObject and "
            f"s3:AbortMultipartUpload in the bucket, or set {CREDENTIALS} to others"
        )
    if not is_permanent(text):
        return "run the same command again when it answers"
    return f"look at AWS_ENDPOINT_URL, AWS_REGION, {ADDRESSING}, {CHECKSUMS['request_checksum_calculation']} and keys"


ADVICE = (
    (r"NO_SUCH_BUCKET|NoSuchBucket", "make the bucket, or correct its name in the address, or AWS_ENDPOINT_URL"),
    (
        r"SecondLevelDomain|VirtualHost|virtual[ -]host|[Pp]ath[ -]?[Ss]tyle",
        f"set {ADDRESSING} to virtual or to path, whichever the server knows",
    ),
    (
        r"status 30\d|PermanentRedirect|AuthorizationHeaderMalformed|IllegalLocation|[Rr]egion",
        "set AWS_REGION to the bucket's region, or correct AWS_ENDPOINT_URL (and its http:// or https://)",
    ),
    (r"TIME_TOO_SKEWED|TimeTooSkewed", "set this machine's clock"),
    (r"ExpiredToken|REQUEST_EXPIRED|TokenRefresh", f"the credentials have ended: renew {CREDENTIALS}"),
    (
        r"INVALID_ACCESS_KEY|InvalidAccessKey|SIGNATURE_DOES|SignatureDoes|UNRECOGNIZED_CLIENT|InvalidClientTokenId|"
        r"InvalidToken|INVALID_SIGNATURE|MISSING_AUTHENTICATION|NoCredentials|PartialCredentials|status 401",
        f"set {CREDENTIALS} to credentials that this server knows",
    ),
    (r"Quota|StorageFull|InsufficientStorage|status 507", "make room on the server, or raise its quota"),
    (r"RESOURCE_NOT_FOUND|ResponseParser", "nothing there speaks S3: correct AWS_ENDPOINT_URL"),
)
"""Pattern of an error's text -> advice; the first match counts."""
