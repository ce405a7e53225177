"""Multipart forms with one file, read as their bytes arrive (RFC 7578)."""

from typing import Final

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from ddphub.server.problems import Problem

MAX_PARTS: Final = 32
MAX_FIELD_NAME: Final = 64
MAX_FIELD: Final = 1024
"""Bytes of a text field."""


class Form:
    """A form while it arrives: `fields` has its texts; the bytes of its file are handed on.

    Args:
        request: its content type says how the parts are told apart.

    Raises:
        Problem: 422 when the request has no multipart form.
    """

    def __init__(self, request: Request) -> None:
        kind, options = parse_options_header(request.headers.get("content-type"))
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise Problem(422, "expected multipart/form-data with a boundary")
        self.fields: dict[str, str] = {}
        self._text: dict[str, bytearray] = {}
        self._files = 0
        self._parts = 0
        self._ended = False
        self._name: str | None = None  # of the text field that arrives; None while a file does
        self._header = bytearray()
        self._value = bytearray()
        self._disposition = b""
        self._file_bytes = bytearray()
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._add_header,
                    "on_header_value": self._add_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": self._add_data,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise Problem(422, "the boundary is too long") from error

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes of the body.

        Returns:
            Those of them that belong to the file.

        Raises:
            Problem: 400 when they are no form, 413 or 422 when it has more or other parts than this one may have.
        """
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise Problem(400, "the body is not a multipart form") from error
        taken = bytes(self._file_bytes)
        self._file_bytes.clear()
        return taken

    def close(self) -> None:
        """Check that the form is complete and has its file.

        Raises:
            Problem: 400 or 422 when not.
        """
        if not self._ended:
            raise Problem(400, "the form ended before its last boundary: send it again")
        if self._files != 1:
            raise Problem(422, "expected one file in the form, got none")
        for name, content in self._text.items():
            try:
                self.fields[name] = content.decode("utf-8")
            except UnicodeDecodeError as error:
                raise Problem(422, f"{name!a}: expected UTF-8 text") from error

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise Problem(413, f"expected at most {MAX_PARTS} parts in the form")
        self._disposition = b""

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _end_headers(self) -> None:
        kind, options = parse_options_header(self._disposition.decode("latin-1"))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if kind != b"form-data" or not 1 <= len(name) <= MAX_FIELD_NAME:
            raise Problem(422, f"expected parts that are form-data with a name of at most {MAX_FIELD_NAME} characters")
        if b"filename" in options:
            # What the client calls its file is of no use here: nothing on disk is named by it.
            self._name = None
            self._files += 1
            if self._files > 1:
                raise Problem(422, "expected one file in the form, got more")
            return
        self._name = name
        if name in self._text:
            raise Problem(422, f"{name!a}: expected each field once")
        self._text[name] = bytearray()

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._name is None:
            self._file_bytes += data[start:end]
            return
        text = self._text[self._name]
        text += data[start:end]
        if len(text) > MAX_FIELD:
            raise Problem(413, f"{self._name!a}: expected at most {MAX_FIELD} bytes")

    def _end(self) -> None:
        self._ended = True
