"""What editors and type checkers see of the library."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import keras_mobilevit
from keras_mobilevit.classifier import ClassifierFunction

ROOT = Path(__file__).parents[2]
CALLABLES = [
    name for name in keras_mobilevit.__all__ if callable(getattr(keras_mobilevit, name))
]


def test_the_package_that_pip_installs_is_typed(tmp_path: Path):
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)],
        cwd=ROOT,
        check=True,
    )
    assert (tmp_path / "keras_mobilevit/py.typed").is_file()


@pytest.mark.parametrize("name", CALLABLES)
def test_public_signatures_are_annotated(name: str):
    signature = inspect.signature(getattr(keras_mobilevit, name))
    own = getattr(keras_mobilevit, name)
    if inspect.isclass(own) and "__init__" not in vars(own):
        return  # Keras's own arguments, which have no annotations
    bare = [x for x in signature.parameters.values() if x.annotation is x.empty]
    assert not bare
    # A class has no annotation of what it returns.
    is_class = inspect.isclass(getattr(keras_mobilevit, name))
    assert is_class or signature.return_annotation is not signature.empty


def test_the_type_of_a_variant_has_the_arguments_of_its_function():
    declared = inspect.signature(ClassifierFunction.__call__).parameters
    expected = inspect.signature(keras_mobilevit.MobileViT_S).parameters
    declared = {name: x for name, x in declared.items() if name != "self"}
    assert list(declared) == list(expected)
    for name in set(expected) - {"name"}:  # its default depends on the variant
        assert declared[name] == expected[name]
