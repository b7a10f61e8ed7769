"""Lightning and transformers are imported when their callback is used, and asked for where they are missing."""

import subprocess
import sys

import pytest

from slowness import quick

WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
import noisescape as ns
try:
    ns.training.{name}
except ImportError as error:
    assert isinstance(error, ns.NoisescapeError)
    print(error)
"""


def python(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_they_are_not_imported_before():
    script = (
        "import sys, noisescape as ns\n"
        "ns.Monitor, ns.training.read_log\n"
        "assert 'LightningNoiseMonitor' in dir(ns.training)\n"
        "print({'lightning', 'pytorch_lightning', 'transformers', 'accelerate'} & set(sys.modules))"
    )
    assert python(script) == "set()\n"


@pytest.mark.parametrize(
    ("name", "packages", "extra"),
    quick(
        [("TransformersNoiseMonitor", ("transformers",), "transformers")],
        [
            ("LightningNoiseMonitor", ("lightning", "pytorch_lightning"), "lightning"),
            ("TransformersNoiseMonitor", ("accelerate",), "transformers"),
        ],
    ),
)
def test_a_missing_package_is_asked_for(name, packages, extra):
    (line,) = python(WITHOUT.format(name=name, packages=packages)).splitlines()
    assert line.startswith(name)
    assert f"pip install 'noisescape[{extra}]'" in line
