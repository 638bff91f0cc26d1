"""A rationed log that keeps its lines, for tests."""

from django_clusterstate.node.log import RateLimitedLog


class KeptLog(RateLimitedLog):
    """Leaves out no line, and writes none to the logger."""

    def __init__(self) -> None:
        super().__init__(lambda: 0.0, 0.0)
        self.lines: list[str] = []

    def write(self, text: str, subject: str = "") -> None:
        self.lines.append(text)
