"""Reads pages of the admin, and creates their users."""

import html.parser
import re
from typing import Any

from django.contrib.auth.models import Permission, User

VOID = {"br", "hr", "img", "input", "link", "meta", "path", "col", "wbr"}


def staff(name: str, *permissions: str) -> User:
    user = User.objects.create_user(name, is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return user


class Page(html.parser.HTMLParser):
    """The text and elements of a page. Fails on wrong nesting, repeated ids, and inline scripts or styles."""

    def __init__(self, response: Any) -> None:
        super().__init__()
        assert response.status_code == 200
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self._text: list[str] = []
        self.feed(response.content.decode())
        self.close()
        assert self._open == []
        ids = [attrs["id"] for _, attrs in self.tags if "id" in attrs]
        assert len(ids) == len(set(ids))

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self._text))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert len(found) == len(attrs)
        assert "style" not in found
        assert not any(name.startswith("on") for name in found)
        assert tag != "style"
        assert tag != "script" or "src" in found
        self.tags.append((tag, found))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self._text.append(data)
