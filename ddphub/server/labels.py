"""Notes and tags: what people say about a model."""

from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import ColumnElement, delete, select
from sqlalchemy.orm import Session

from ddphub import names
from ddphub.server.body import wrong_text
from ddphub.server.problems import Problem
from ddphub.server.tables import Model, Tag

MAX_NOTES: Final = 64 * 1024
"""Bytes of a model's notes, as UTF-8."""

MAX_TAGS: Final = 32
"""Tags of one model."""

FIELDS: Final[tuple[str, ...]] = ("notes", "tags")
"""The fields of a request that are labels."""


def check_notes(value: object) -> str | None:
    """A model's notes; without a character they are none.

    Raises:
        Problem: 422 that says what is expected.
    """
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise Problem(422, "notes: expected text or null")
    if wrong := wrong_text(value):
        raise Problem(422, f"notes: {wrong}")
    if len(value.encode()) > MAX_NOTES:
        raise Problem(422, f"notes: expected at most {MAX_NOTES} bytes")
    return value


def check_tags(value: object) -> list[str]:
    """A model's tags, each once, sorted.

    Raises:
        Problem: 422 that names the wrong one and says what is expected.
    """
    if not isinstance(value, list):
        raise Problem(422, "tags: expected a list of names")
    for index, tag in enumerate(value):
        # People write several with commas between them.
        if wrong := names.wrong_name(tag) or ("must not contain ','" if "," in tag else None):
            raise Problem(422, f"tags[{index}]: {wrong}")
    tags = sorted(set(value))
    if len(tags) > MAX_TAGS:
        raise Problem(422, f"tags: expected at most {MAX_TAGS}, got {len(tags)}")
    return tags


def set_labels(session: Session, model: Model, content: dict[str, Any]) -> None:
    """Give a model the notes and the tags of a request; what it does not name stays.

    Args:
        session: a write session.
        model: the model; its row has been flushed.
        content: any object; `notes` is text or null, `tags` the whole new list.

    Raises:
        Problem: 422 that names the field and what is expected.
    """
    if "notes" in content:
        model.notes = check_notes(content["notes"])
    if "tags" in content:
        tags = check_tags(content["tags"])
        session.execute(delete(Tag).where(Tag.model_ref == model.id))
        session.add_all(Tag(model_ref=model.id, tag=tag) for tag in tags)
        session.flush()


def tags_of(session: Session, model_refs: Iterable[int]) -> dict[int, list[str]]:
    """The tags of some models, sorted; those that have none are there with an empty list."""
    found: dict[int, list[str]] = {number: [] for number in model_refs}
    for tag in session.scalars(select(Tag).where(Tag.model_ref.in_(found)).order_by(Tag.tag)):
        found[tag.model_ref].append(tag.tag)
    return found


def all_tags(session: Session, *of_models: ColumnElement[bool]) -> list[str]:
    """Every tag that one of these models has, sorted."""
    shown = select(Tag.tag).join(Model, Model.id == Tag.model_ref).where(*of_models)
    return list(session.scalars(shown.distinct().order_by(Tag.tag)))
