"""What every test gets: a cache of its own, reproducible random inputs, and golden texts."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# Before flambeau or torch is imported. Tests must neither read what an earlier checkout left in the user's cache nor
# fill it; the folder goes when the interpreter ends. torch is an oracle here, and two test workers share the cores.
_CACHE = tempfile.TemporaryDirectory(prefix="flambeau-tests-", ignore_cleanup_errors=True)
os.environ["FLAMBEAU_CACHE_DIR"] = _CACHE.name
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadline: the first example of a test may compile. In CI the same examples every time: a red run can be repeated.
settings.register_profile("flambeau", deadline=None)
settings.register_profile("ci", settings.get_profile("flambeau"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "flambeau")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--update-golden` writes the golden texts anew instead of comparing with them."""
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite golden files with what is produced now"
    )


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)` compares `text` with the file `golden/name` beside the test.

    `pytest --update-golden` writes the file, and the change is then reviewed as a diff. A missing file fails.
    """
    folder = Path(request.path).parent / "golden"

    def compare(name: str, text: str) -> None:
        file = folder / name
        if request.config.getoption("--update-golden"):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8", newline="\n")
            return
        assert file.exists(), (
            f"{file} does not exist: run pytest with --update-golden and review what it writes"
        )
        assert text == file.read_text(encoding="utf-8"), (
            f"{file} differs; --update-golden accepts the new text"
        )

    return compare
