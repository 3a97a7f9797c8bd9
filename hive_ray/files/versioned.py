"""JSON files that a later program may write in another form: what an evaluation found, the card of a reward model."""

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from hive_ray import storage

FORMAT_VERSION = 1


class Versioned(BaseModel):
    """The content of a JSON file with a version. Keys without a field are kept as they are."""

    model_config = ConfigDict(frozen=True, extra="allow")

    format_version: int = FORMAT_VERSION
    """Files of earlier programs have none. They are read as version 1."""


Content = TypeVar("Content", bound=Versioned)


def read_versioned(
    address: str, form: type[Content], *, called: str, remedy: str, error: type[ValueError] = ValueError
) -> Content | None:
    """The content of a file; None if there is no file.

    called: what the file should be, for messages. remedy: how to make it again.
    Raises `error` if the content has another form, or is of a later version.
    """
    content = storage.read_json(address)
    if content is None:
        return None
    try:
        read = form.model_validate(content)
    except ValidationError as invalid:
        raise error(f"{address} is not {called}: {invalid}; {remedy}") from invalid
    if read.format_version > FORMAT_VERSION:
        raise error(
            f"{address} has format_version {read.format_version}, this program reads up to {FORMAT_VERSION}: use the "
            f"program that wrote it, or {remedy}"
        )
    return read
