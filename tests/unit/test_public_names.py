"""The root is lazy, and its public names are what their home modules have."""

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import noisescape as ns

IMPORT_ALL = """
import importlib, pkgutil
import noisescape as ns
for found in pkgutil.walk_packages(ns.__path__, "noisescape."):
    importlib.import_module(found.name)
"""


def python(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout


def test_importing_the_root_loads_no_heavy_library():
    heavy = {"torch", "numpy", "scipy", "sklearn", "matplotlib", "plotly", "datasets"}
    loaded = python("import sys, noisescape; print(noisescape.__version__, *sys.modules)").split()
    assert loaded[0] == ns.__version__
    assert not heavy.intersection(loaded)


@pytest.mark.parametrize("name", ns.__all__)
def test_a_public_name_is_what_its_home_module_has(name):
    found = getattr(ns, name)
    if isinstance(found, ModuleType):
        assert found is sys.modules[found.__name__]
        assert found.__name__.split(".")[-1] == name
    elif name == "DYNAMICS":
        assert found is sys.modules["noisescape.dynamics.registry"].DYNAMICS
    else:
        assert found.__name__ == name
        assert found.__module__.startswith("noisescape.")
        assert getattr(sys.modules[found.__module__], name) is found


@pytest.mark.slow
def test_public_names_do_not_depend_on_what_was_imported_before():
    kinds = "print(*[f'{name}:{type(getattr(ns, name)).__name__}' for name in ns.__all__])"
    alone = [f"{name}:{type(getattr(ns, name)).__name__}" for name in ns.__all__]
    assert python(IMPORT_ALL + kinds).split() == alone
    assert "trace:function" in alone
    assert "linops:module" in alone


@pytest.mark.slow
def test_functions_that_share_the_name_of_their_module_stay_functions():
    names = "print(*[type(found).__name__ for found in (ns.linops.trace, ns.linops.product_trace, ns.trace)])"
    first = "import noisescape.linops.trace, noisescape.linops.product_trace\nimport noisescape as ns\n"
    assert python(first + names).split() == ["function"] * 3


def test_the_names_that_type_checkers_see_are_those_there_are():
    stub = ast.parse(Path(ns.__file__).with_suffix(".pyi").read_text())
    (listed,) = (
        ast.literal_eval(node.value)
        for node in stub.body
        if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["__all__"]
    )
    assert sorted(listed) == sorted(ns.__all__) == sorted(dir(ns))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="gradiant_noise"):
        ns.gradiant_noise  # noqa: B018
