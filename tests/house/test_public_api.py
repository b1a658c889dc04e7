from __future__ import annotations

import subprocess
import sys

import pytest

import plyfold


def test_every_public_name_loads() -> None:
    for name in plyfold.__all__:
        assert getattr(plyfold, name) is not None
    with pytest.raises(AttributeError, match="no attribute"):
        _ = plyfold.composed  # type: ignore[attr-defined]


def test_importing_loads_no_room() -> None:
    code = "import plyfold, sys; print([name for name in sys.modules if name.startswith(('plyfold.', 'torch'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_names_that_others_build_on_are_where_they_were() -> None:
    from plyfold import variants
    from plyfold.evaluation.answers import extract_answer, same_answer
    from plyfold.registry import store

    assert same_answer(extract_answer("9 * 2 = 18\nAnswer: 18"), "#### 18".removeprefix("#### "))
    for face in (store, variants):
        assert all(getattr(face, name) is not None for name in face.__all__)
        with pytest.raises(AttributeError, match="no attribute"):
            _ = face.nothing
