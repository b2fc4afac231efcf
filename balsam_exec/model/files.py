"""Reading a file of a job's workdir: asked of the service, answered by the agent of the job's site."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from balsam_exec.model.base import MAX_PAGE, Id, Record, Timestamp, Wire

#: The most of a file of a job that is read at once, in bytes.
MAX_CHUNK = 1024 * 1024
DEFAULT_CHUNK = 64 * 1024

_FAR = 2**62
Path = Annotated[str, StringConstraints(max_length=2000)]


def check_inside(value: str) -> str:
    """Raise ValueError for the path of a file that could not be below a workdir."""
    if value.startswith("/") or ".." in value.split("/") or "\0" in value:
        raise ValueError("the path of a file is relative to the job's workdir, without '..'")
    return value


class ReadRequest(Wire):
    """A part of a file of a job."""

    path: Path = ""  #: relative to the job's workdir; "": the job's stdout
    offset: int = Field(default=0, ge=-_FAR, le=_FAR)  #: in bytes; negative: from the end of the file
    length: int = Field(default=DEFAULT_CHUNK, ge=0, le=MAX_CHUNK)  #: in bytes; the answer may be shorter
    timeout: float = Field(default=30, ge=0, le=60)  #: seconds that the site's agent has to answer

    _path = field_validator("path")(check_inside)


class FileChunk(Record):
    """What was read. The file goes on at `offset + len(data)`, up to `size` as it was then."""

    data: Annotated[bytes, Field(max_length=MAX_CHUNK)]
    offset: int = Field(ge=0, le=2 * _FAR)
    size: int = Field(ge=0, le=2 * _FAR)  #: of the whole file, in bytes
    modified: Timestamp


class FileRequest(Record):
    """A request as the site's agent gets it."""

    id: Id
    job_id: Id
    workdir: str
    path: str
    offset: int
    length: int


class FileAnswer(Wire):
    """What the agent says: what it read, or why it could not."""

    chunk: FileChunk | None = None
    code: Literal["not_found", "forbidden", "invalid_request"] | None = None  #: of the error to raise
    message: Annotated[str, StringConstraints(max_length=10_000)] = ""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.chunk is None) == (self.code is None):
            raise ValueError("set exactly one of chunk and code")
        return self


class FileRequestQuery(BaseModel):
    """What the agent of a site asks for: requests that nobody has answered yet, and that it does not know of."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    timeout: float = Field(default=0, ge=0, le=60)  #: seconds to wait for the first one
    known: list[Id] = Field(default=[], max_length=MAX_PAGE)  #: being answered at this moment
